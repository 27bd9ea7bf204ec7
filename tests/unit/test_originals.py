"""The command lines of aps-mini-apps, as its documentation gives them, in our options."""

from __future__ import annotations

import shlex

import pytest

from ministream.cli.originals import translated
from ministream.errors import ConfigError


def translated_line(line: str) -> list[str]:
    return translated(shlex.split(line))


def options(words: list[str]) -> dict[str, list[str]]:
    """Option → its values, in order."""
    found: dict[str, list[str]] = {}
    if "--open-network" in words:  # the originals' sockets are open
        words.remove("--open-network")
    for name, value in zip(words[1::2], words[2::2], strict=True):
        found.setdefault(name, []).append(value)
    return found


def test_the_daq_of_the_originals_compose_file() -> None:
    words = translated_line(
        "produce --mode 1 --simulation_file scan.h5 --d_iteration 2 --publisher_addr tcp://*:50000 --iteration_sleep 1 "
        "--synch_addr tcp://*:50001 --synch_count 3 --publisher_hwm 9 --projection_sleep 0.25"
    )
    assert options(words) == {
        "--wire": ["timage"],
        "--listen": ["tcp://*:50000"],
        "--sync": ["tcp://*:50001"],
        "--repeat": ["2"],
        "--file": ["scan.h5"],
        "--rate": ["4.0"],
        "--pixel-dtype": ["float32"],
        "--set": ["aps.queue=9", "aps.subscribers=3", "aps.pass_pause_s=1.0"],
    }


def test_the_worker_of_the_originals_compose_file() -> None:
    words = translated_line(
        "recon --write-freq 4 --dest-host dist --dest-port 50010 --window-iter 1 --window-step 4 --window-length 4 "
        "-t 2 -c 1427 --pub-addr tcp://*:52000 --recon-output-dir out"
    )
    assert options(words) == {
        "--write-freq": ["4"],
        "--window-iter": ["1"],
        "--window-step": ["4"],
        "--window-length": ["4"],
        "--center": ["1427"],
        "--pub-addr": ["tcp://*:52000"],
        "--threads": ["2"],
        "--out": ["out"],
        "--source-wire": ["tracemq"],
        "--connect": ["tcp://dist:50010"],
    }


def test_what_the_originals_assume_is_assumed() -> None:
    assert options(translated(["recon", "--dest-host", "dist"])) == {
        "--source-wire": ["tracemq"],
        "--connect": ["tcp://dist:5560"],
        "--window-length": ["32"],
        "--window-step": ["1"],
        "--window-iter": ["1"],
    }
    words = options(translated(["produce", "--simulation_file=scan.h5"]))
    assert words["--listen"] == ["tcp://*:50000"]


def test_the_test_mode_is_a_phantom() -> None:
    words = translated_line(
        "produce --mode 2 --num_sinograms 8 --num_sinogram_columns 64 --num_sinogram_projections 20 "
        "--iteration_sleep 0.5"
    )
    given = options(words)
    assert given["--source"] == ["phantom"]
    assert given["--rate"] == ["2.0"]
    assert given["--pixel-dtype"] == ["uint16"]
    assert set(given["--set"]) >= {"source.rows=8", "source.cols=64", "source.projections=20", "source.range_deg=5.0"}


def test_a_named_dtype_stays() -> None:
    line = "produce --mode 2 --num_sinograms 8 --num_sinogram_columns 64 --pixel-dtype=uint8"
    words = translated_line(line)
    assert words[:1] + [word for word in words if word.startswith("--pixel-dtype")] == [
        "produce",
        "--pixel-dtype=uint8",
    ]


def test_output_names_of_the_original_are_taken_where_they_are_ours() -> None:
    assert translated_line("recon -o out.h5 -r /data --window-length 4") == ["recon", "--window-length", "4"]


def test_rows_are_cut_from_the_file() -> None:
    words = options(translated_line("produce --simulation_file f.h5 --beg_sinogram 3 --num_sinograms 2"))
    assert words["--set"] == ["source.rows=[3, 5]"]


@pytest.mark.parametrize("zero", [["-c", "0"], ["--center=0.0"], ["-c", "0."]])
def test_a_center_of_zero_is_none(zero) -> None:
    assert translated(["recon", *zero, "--window-length", "4"]) == ["recon", "--window-length", "4"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--version"],
        ["produce", "--source", "phantom", "--set", "source.rows=4"],
        ["recon", "run.toml", "--center", "1427.5", "--threads", "2"],
        ["distribute", "--mode", "--dest-host"],
    ],
)
def test_our_own_command_lines_pass_as_they_are(words) -> None:
    assert translated(words) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("produce --mode 0", "--image_pv PV"),
        ("produce --mode 3", "--mode 3 is not known"),
        ("produce --mode 1", "--simulation_file"),
        ("produce --mode 2 --num_sinograms many", "--num_sinograms many is not a number"),
        ("produce --mode 1 --simulation_file f.h5.npy", "HDF5 file"),
        ("recon --dest-port 5560", "--dest-host"),
        ("recon --dest-host d -r /exchange/recon", "always /data"),
    ],
)
def test_what_has_no_counterpart_says_so(words, said) -> None:
    with pytest.raises(ConfigError, match=said):
        translated_line(words)


def test_a_detector_is_monitored_over_pvaccess() -> None:
    words = translated_line("produce --mode 0 --image_pv 13SP1:Pva1:Image --num_sinogram_projections 90")
    assert words[words.index("--source") + 1] == "pva"
    assert {"source.channel=13SP1:Pva1:Image", "source.projections=90"} <= set(words)
