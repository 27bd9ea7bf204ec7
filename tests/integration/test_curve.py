"""Both jobs by command line with end-to-end encryption: neither the gateways nor who taps them see a pixel."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cable import Tap
from tests.integration.jobs import MINISTREAM, Lab

PATIENCE = ["--set", "stream.connect_timeout_s=3.0", "--outage-timeout", "3"]


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """A folder per side, with what that side needs and no more."""
    made = tmp_path / "keys"
    command(["certs", "curve", made])
    folders = {}
    for side, other in (("producer", "receiver"), ("receiver", "producer")):
        folders[side] = tmp_path / f"keys-of-{side}"
        folders[side].mkdir(mode=0o700)
        for name in (f"{side}.secret", f"{other}.public"):
            shutil.copy2(made / name, folders[side])
    return folders


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small DXchange file of counts that look like nothing else."""
    counts = np.random.default_rng(7).integers(500, 600, (24, 4, 32)).astype(np.uint16)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = counts
        file["exchange/data_white"] = np.full((2, 4, 32), 1000, np.uint16)
        file["exchange/data_dark"] = np.zeros((2, 4, 32), np.uint16)
        file["exchange/theta"] = np.linspace(0, 180, 24, endpoint=False)
    return path


def command(words: list[object]) -> str:
    return subprocess.run(
        [*MINISTREAM, *map(str, words)], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def projections(scan: Path) -> list[bytes]:
    """The first bytes of every projection, as they would go over a wire in the clear."""
    with h5py.File(scan) as file:
        return [projection.tobytes()[:64] for projection in file["exchange/data"][:]]


def gateway(jobs: Lab, target: str, credentials: list[str]) -> str:
    """A gateway of its own before the producer; its control address."""
    announced = ["--announce", str(jobs.folder / "gateway.json")]
    job = jobs.start(
        "gateway",
        [
            *MINISTREAM,
            "s2cs",
            "--side",
            "PROD",
            "--listen",
            "127.0.0.1:0",
            "--target",
            target,
            *credentials,
            *announced,
        ],
    )
    return jobs.announced("gateway", job)["control"]


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_gateway_sees_no_pixel(jobs: Lab, keys: dict[str, Path], scan: Path, tmp_path: Path, encrypted: bool) -> None:
    command(["certs", "init", tmp_path / "credentials"])
    credentials = ["--credentials", str(tmp_path / "credentials")]
    ours = ["--curve", str(keys["producer"])] if encrypted else []
    theirs = ["--curve", str(keys["receiver"])] if encrypted else []
    producer = jobs.produce("--file", str(scan), *ours)
    with Tap(jobs.announced("producer", producer)["data"]) as tap:
        control = gateway(jobs, tap.address.removeprefix("tcp://"), credentials)
        reconstruction = jobs.recon(2, "--producer", control, *credentials, *theirs)
        assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    jobs.jobs[1].process.terminate()
    summary = jobs.summary()
    assert summary["complete"]
    assert "TLS" in summary["tunnel"]["cipher"]
    assert summary["tunnel"]["outward"] >= summary["bytes"] > summary["tunnel"]["inward"] > 0
    assert summary["end_to_end"] == ("CURVE" if encrypted else None)
    assert ("end to end" in reconstruction.text) is encrypted
    seen = tap.seen
    assert len(seen) > 24 * 4 * 32 * 2
    assert [piece in seen for piece in projections(scan)] == [not encrypted] * 24
    secrets = [(folder / f"{side}.secret").read_text().strip() for side, folder in keys.items()]
    with h5py.File(jobs.out / "recon.h5") as file:
        told = json.dumps(summary) + str(file.attrs["config"]) + "".join(job.text for job in jobs.jobs)
    assert not any(secret in told for secret in secrets)


def test_a_receiver_that_is_not_listed_ends_with_a_clear_error(
    jobs: Lab, keys: dict[str, Path], scan: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    command(["certs", "curve", stranger, "--side", "receiver"])
    shutil.copy2(keys["receiver"] / "producer.public", stranger)
    assert_refused(jobs, scan, ["--curve", keys["producer"]], ["--curve", stranger], "is not among those")


def test_a_producer_with_another_key_gets_no_receiver(
    jobs: Lab, keys: dict[str, Path], scan: Path, tmp_path: Path
) -> None:
    impostor = tmp_path / "impostor"
    command(["certs", "curve", impostor, "--side", "producer"])
    shutil.copy2(keys["producer"] / "receiver.public", impostor)
    assert_refused(
        jobs, scan, ["--curve", impostor], ["--curve", keys["receiver"]], "compare --curve and the public keys"
    )


@pytest.mark.parametrize("side", ["producer", "receiver"])
def test_encryption_on_one_side_only_is_said(jobs: Lab, keys: dict[str, Path], scan: Path, side: str) -> None:
    options = {name: ["--curve", keys[name]] if name == side else [] for name in keys}
    assert_refused(jobs, scan, options["producer"], options["receiver"], "--curve")


def assert_refused(jobs: Lab, scan: Path, ours: list[object], theirs: list[object], why: str) -> None:
    """Both jobs end in time with exit code 4, the reconstruction with one line that says why; nothing is written."""
    patience = ["--set", "producer.peer_timeout_s=15.0"]
    producer = jobs.produce("--file", str(scan), *map(str, ours), *patience)
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(1, "--connect", address, *map(str, theirs), *PATIENCE)
    assert (reconstruction.wait(), producer.wait()) == (4, 4), reconstruction.text + producer.text
    lines = [line for line in reconstruction.text.splitlines() if line.startswith("ministream: ")]
    assert len(lines) == 1, reconstruction.text
    assert why in lines[0]
    assert "connection" in producer.text
    assert "Traceback" not in reconstruction.text + producer.text
    assert not (jobs.out / "recon.h5").exists()


def test_keys_that_cannot_be_used_are_refused_before_anything_starts(jobs: Lab, keys: dict[str, Path]) -> None:
    (keys["producer"] / "producer.secret").chmod(0o644)
    (keys["receiver"] / "producer.public").unlink()
    ours, theirs = ["--curve", str(keys["producer"])], ["--curve", str(keys["receiver"])]
    check = [*MINISTREAM, "check", "--ranks", "1", "--set", f"stream.curve={keys['receiver']}"]
    for start, remedy in (
        (lambda: jobs.produce(*ours), "chmod 600"),
        (lambda: jobs.produce(*ours, "--wire", "timage"), "leave out curve"),
        (lambda: jobs.start("check", check), "ministream certs curve"),
        (lambda: jobs.recon(2, "--connect", "tcp://127.0.0.1:9", *theirs), "ministream certs curve"),
    ):
        job = start()
        assert job.wait() == 2, job.text
        lines = [line for line in job.text.splitlines() if line.startswith("ministream: ")]
        assert len(lines) == 1, job.text
        assert remedy in lines[0]


def test_keys_by_command_line(tmp_path: Path) -> None:
    said = command(["certs", "curve", tmp_path / "keys"])
    assert "producer.secret for the producer alone, producer.public for the receiver" in said
    for words, remedy in (
        ([tmp_path / "keys"], "already exists"),
        ([tmp_path / "other", "--side", "both"], "choose producer or receiver"),
    ):
        process = subprocess.run(
            [*MINISTREAM, "certs", "curve", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
        )
        assert process.returncode == 2
        assert remedy in process.stderr
    assert not (tmp_path / "other").exists()
