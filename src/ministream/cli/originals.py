"""Translates command lines of aps-mini-apps' `DAQStream.py` and `sirt_stream` into ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ministream.errors import ConfigError

N = TypeVar("N", int, float)

DAQ_OPTIONS = (
    *("--mode", "--image_pv", "--simulation_file", "--d_iteration", "--iteration_sleep", "--projection_sleep"),
    *("--publisher_addr", "--publisher_hwm", "--synch_addr", "--synch_count"),
    *("--beg_sinogram", "--num_sinograms", "--num_sinogram_columns", "--num_sinogram_projections"),
)
WORKER_OPTIONS = (
    *("--dest-host", "--dest-port", "--thread", "--recon-output-dir"),
    *("--reconOutputPath", "--reconDatasetPath"),
)
SHORT = {"-t": "--thread", "-c": "--center", "-o": "--reconOutputPath", "-r": "--reconDatasetPath"}

DAQ_ADDRESS = "tcp://*:50000"
DISTRIBUTOR_PORT = "5560"
SENT = {"0": "uint16", "1": "float32", "2": "uint16"}
WINDOW = {"--window-length": "32", "--window-step": "1", "--window-iter": "1"}
"""Defaults of the originals."""


def translated(argv: Sequence[str]) -> list[str]:
    """`produce` with the options of `DAQStream.py`, `recon` with those of `sirt_stream`, in our options.

    Other command lines, and our options among theirs, pass unchanged. Raises ConfigError for what has no
    counterpart.
    """
    match list(argv):
        case ["produce", *words]:
            given, rest = _taken(words, DAQ_OPTIONS)
            return ["produce", *rest, *(_produce(given, rest) if given else ())]
        case ["recon", *words]:
            given, rest = _taken([SHORT.get(word, word) for word in words], WORKER_OPTIONS)
            return ["recon", *_without_zero_center(rest), *(_recon(given, rest) if given else ())]
        case words:
            return words


def _taken(words: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the options in `names`, and the other words."""
    given: dict[str, str] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name in names:
            given[name] = value if equals else next(left, "")
        else:
            rest.append(word)
    return given, rest


def _produce(given: Mapping[str, str], rest: Sequence[str]) -> list[str]:
    mode = given.get("--mode", "1")
    # The original's sockets are open to the network, and its command line says where: that is consent.
    words = ["--wire", "timage", "--open-network", "--listen", given.get("--publisher_addr", DAQ_ADDRESS)]
    for name, ours in (("--synch_addr", "--sync"), ("--d_iteration", "--repeat")):
        words += [ours, given[name]] if name in given else []
    if _number(given, "--publisher_hwm", int, 0) > 0:
        words += ["--set", f"aps.queue={given['--publisher_hwm']}"]
    if "--synch_count" in given:
        words += ["--set", f"aps.subscribers={given['--synch_count']}"]
    if mode not in SENT:
        raise ConfigError(f"--mode {mode} is not known. Use 0 for a detector, 1 for a file, 2 for a phantom")
    words += {"0": _detector, "1": _played_file, "2": _test_pattern}[mode](given)
    named = any(word.partition("=")[0] == "--pixel-dtype" for word in rest)
    return words if named else [*words, "--pixel-dtype", SENT[mode]]


def _detector(given: Mapping[str, str]) -> list[str]:
    if "--image_pv" not in given:
        raise ConfigError("--mode 0 needs the detector's channel. Give --image_pv PV")
    words = ["--source", "pva", "--set", f"source.channel={given['--image_pv']}"]
    projections = _number(given, "--num_sinogram_projections", int, 0)
    return [*words, "--set", f"source.projections={projections}"] if projections > 0 else words


def _played_file(given: Mapping[str, str]) -> list[str]:
    if "--simulation_file" not in given:
        raise ConfigError("--mode 1 plays a file. Give --simulation_file FILE")
    file = given["--simulation_file"]
    if file.endswith(".npy"):
        raise ConfigError(
            f"{file}: saved messages of DAQStream.py are not supported. Give the HDF5 file that they are from"
        )
    words = ["--file", file, *_rate(given, "--projection_sleep")]
    if "--iteration_sleep" in given:
        words += ["--set", f"aps.pass_pause_s={_number(given, '--iteration_sleep', float, 0.0)}"]
    first, rows = _number(given, "--beg_sinogram", int, 0), _number(given, "--num_sinograms", int, 0)
    return [*words, "--set", f"source.rows=[{first}, {first + rows}]"] if rows > 0 else words


def _test_pattern(given: Mapping[str, str]) -> list[str]:
    projections = _number(given, "--num_sinogram_projections", int, 1440)
    source = {
        "rows": _number(given, "--num_sinograms", int, 0) or 2048,
        "cols": _number(given, "--num_sinogram_columns", int, 2048),
        "projections": projections,
        "range_deg": 0.25 * projections,
        "flats": 0,
        "darks": 0,
    }
    settings = [word for key, value in source.items() for word in ("--set", f"source.{key}={value}")]
    return ["--source", "phantom", *settings, *_rate(given, "--iteration_sleep")]


def _rate(given: Mapping[str, str], sleep: str) -> list[str]:
    seconds = _number(given, sleep, float, 0.0)
    return ["--rate", str(1 / seconds)] if seconds > 0 else []


def _number(given: Mapping[str, str], name: str, kind: Callable[[str], N], default: N) -> N:
    try:
        return kind(given[name]) if name in given else default
    except ValueError:
        raise ConfigError(f"{name} {given[name]} is not a number. Give a number") from None


def _recon(given: Mapping[str, str], rest: Sequence[str]) -> list[str]:
    if given.get("--reconDatasetPath", "/data").strip("/") != "data":
        raise ConfigError(f"-r {given['--reconDatasetPath']}: the dataset is always /data. Leave -r out")
    named = {word.partition("=")[0] for word in rest}
    words = ["--open-network"] if "--pub-addr" in named else []
    for name, ours in (("--thread", "--threads"), ("--recon-output-dir", "--out")):
        words += [ours, given[name]] if name in given else []
    if "--dest-port" in given and "--dest-host" not in given:
        raise ConfigError("--dest-port without --dest-host. Give --dest-host too, the distributor's host")
    if "--dest-host" in given:
        url = f"tcp://{given['--dest-host']}:{given.get('--dest-port', DISTRIBUTOR_PORT)}"
        words += ["--source-wire", "tracemq", "--connect", url]
        words += [word for name, value in WINDOW.items() if name not in named for word in (name, value)]
    return words


def _without_zero_center(words: Sequence[str]) -> list[str]:
    """In the original, `-c 0` stands for no centre."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--center":
            value = next(left, "")
            kept += [] if _is_zero(value) else [word, value]
        elif word.startswith("--center=") and _is_zero(word.partition("=")[2]):
            continue
        else:
            kept.append(word)
    return kept


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False
