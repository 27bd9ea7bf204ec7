"""The real programs of aps-mini-apps beside ours, each pair joined as a user would join it.

They run where MINISTREAM_ORIGINALS names a folder in which, at any depth, lie `DAQStream.py`,
`ModDistStreamPubDemo.py`, `iqcheck.py` and a built `sirt_stream`, and PYTHONPATH leads to what the scripts import.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.integration.jobs import MINISTREAM, Job, Lab, lab
from tests.ports import free_ports

ORIGINALS = os.environ.get("MINISTREAM_ORIGINALS")
pytestmark = pytest.mark.skipif(ORIGINALS is None, reason="MINISTREAM_ORIGINALS names no folder of aps-mini-apps")

CENTER = "296"
WINDOW = ["--window-length", "181", "--window-step", "181", "--window-iter", "5"]
OURS = [*WINDOW, "-c", CENTER]
SIZE = ["--beg_sinogram", "0", "--num_sinograms", "2", "--num_columns", "640"]
STEPS = ["--cast_to_float32", "--normalize", "--mlog", "--degree_to_radian"]


def original(name: str) -> str:
    """Where the program is; a folder that lacks it fails the test."""
    found = sorted(Path(str(ORIGINALS)).rglob(name))
    assert found, f"no {name} in {ORIGINALS}"
    return str(found[0])


class Deployment:
    """One deployment: data at `data`, sync at `sync`, workers from port `workers` on."""

    def __init__(self, jobs: Lab, tooth: Path) -> None:
        self.jobs, self.tooth = jobs, tooth
        ports = free_ports(8)
        self.data, self.sync, self.workers = f"tcp://127.0.0.1:{ports}", f"tcp://127.0.0.1:{ports + 1}", ports + 2
        self.published = f"tcp://127.0.0.1:{ports + 5}"

    def _python(self, name: str, script: str, *words: str) -> Job:
        command = ["env", "-C", str(self.jobs.folder), sys.executable, "-u", original(script), *words]
        return self.jobs.start(name, command)

    def _daq(self, subscribers: int, *what: str) -> list[str]:
        what = what or ("--mode", "1", "--simulation_file", str(self.tooth), "--projection_sleep", "0")
        return [*what, "--publisher_addr", self.data, "--synch_addr", self.sync, "--synch_count", str(subscribers)]

    def their_daq(self, subscribers: int = 1, *what: str) -> Job:
        """`DAQStream.py`, waiting for so many to say ready."""
        return self._python("daq", "DAQStream.py", *self._daq(subscribers, *what))

    def our_daq(self, subscribers: int = 1, *what: str) -> Job:
        """`ministream produce` with the same words."""
        return self.jobs.produce(*self._daq(subscribers, *what))

    def _distributor(self, *steps: str) -> list[str]:
        words = ["--data_source_addr", self.data, "--data_source_synch_addr", self.sync]
        words += [] if "--num_columns" in steps else SIZE
        return [*words, "--my_distributor_addr", f"tcp://127.0.0.1:{self.workers}", *(steps or STEPS)]

    def their_distributor(self, *steps: str) -> Job:
        """`ModDistStreamPubDemo.py`."""
        return self._python("distributor", "ModDistStreamPubDemo.py", *self._distributor(*steps))

    def our_distributor(self, *steps: str) -> Job:
        """`ministream distribute` with the same words."""
        return self.jobs.start("distributor", [*MINISTREAM, "distribute", *self._distributor(*steps)])

    def their_workers(self, ranks: int) -> Job:
        """`sirt_stream`, one update from the whole scan."""
        self.jobs.out.mkdir()
        words = ["--dest-host", "127.0.0.1", "--dest-port", str(self.workers), *WINDOW, "-c", CENTER, "-t", "1"]
        words += ["--write-freq", "1", "--recon-output-dir", str(self.jobs.out), "--pub-addr", self.published]
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        return self.jobs.start("workers", [*launcher, original("sirt_stream"), *words])

    def our_workers(self, ranks: int, *words: str) -> Job:
        """Our job in their place."""
        found = ["--dest-host", "127.0.0.1", "--dest-port", str(self.workers), *OURS, *words]
        return self.jobs.recon(ranks, *found)

    def ended(self, *jobs: Job) -> None:
        """Every one of the jobs ended well."""
        for job in jobs:
            assert job.wait() == 0, "\n".join(one.text for one in self.jobs.jobs)


def ours(folder: Path) -> np.ndarray:
    """The volume that our job wrote."""
    with h5py.File(folder / "recon.h5") as file:
        return file["data"][:]


def theirs(folder: Path) -> np.ndarray:
    """The volume that `sirt_stream` wrote, in our orientation."""
    with h5py.File(folder / "000000-recon.h5") as file:
        return file["data"][:].transpose(0, 2, 1)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation inside the circle that every projection sees."""
    n = a.shape[-1]
    y, x = np.ogrid[:n, :n]
    inside = (x - n / 2) ** 2 + (y - n / 2) ** 2 < (0.9 * n / 2) ** 2
    return float(np.corrcoef(a[:, inside].ravel(), b[:, inside].ravel())[0, 1])


@pytest.fixture
def deployment(tmp_path, tooth):
    with lab(tmp_path) as jobs:
        yield Deployment(jobs, tooth)


@pytest.fixture(scope="module")
def native(tooth: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The volume that the native path makes of the scan."""
    folder = tmp_path_factory.mktemp("native")
    with lab(folder) as jobs:
        address = jobs.announced("producer", jobs.produce("--file", str(tooth)))["data"]
        job = jobs.recon(1, "--connect", address, *OURS)
        assert job.wait() == 0, job.text
    return ours(folder / "out")


@pytest.mark.parametrize("subscribers", [1, 2])
def test_their_daq_into_our_job(deployment, native, subscribers) -> None:
    daq = deployment.their_daq(subscribers)
    words = ["--source-wire", "timage", "--connect", deployment.data, "--sync", deployment.sync]
    words += ["--pixel-dtype", "float32", "--set", f"aps.subscribers={subscribers}"]
    job = deployment.jobs.recon(1, *words, *OURS)
    deployment.ended(job, daq)
    assert deployment.jobs.summary()["complete"]
    assert deployment.jobs.summary()["projections"]["used"] == 181
    # The original sends its last dark ten times, so the darks differ a little from the file's.
    assert alike(ours(deployment.jobs.out), native) > 0.9999


@pytest.mark.parametrize(("ranks", "mode"), [(1, []), (2, []), (2, ["--set", "aps.every_rank=true"])])
def test_our_daq_into_their_distributor_into_our_job(deployment, native, ranks, mode) -> None:
    workers = 2 if mode else 1
    daq = deployment.our_daq(workers)
    distributor = deployment.their_distributor()
    job = deployment.our_workers(ranks, *mode)
    deployment.ended(job, distributor, daq)
    assert deployment.jobs.summary()["complete"]
    assert deployment.jobs.summary()["projections"]["used"] == 181
    np.testing.assert_allclose(ours(deployment.jobs.out), native, atol=1e-4 * native.max())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("daq", ["theirs", "ours"])
def test_our_distributor_into_their_workers(deployment, native, daq, ranks) -> None:
    daq = deployment.their_daq(ranks) if daq == "theirs" else deployment.our_daq(ranks)
    distributor = deployment.our_distributor()
    workers = deployment.their_workers(ranks)
    deployment.ended(distributor, daq)
    workers.stop()  # it does not end by itself
    assert f"distributed 181 projections to {ranks} workers" in distributor.text
    assert alike(theirs(deployment.jobs.out), native) > 0.99


def test_both_distributors_give_their_worker_the_same(deployment, tmp_path_factory, tooth) -> None:
    daq = deployment.our_daq()
    distributor = deployment.their_distributor(*STEPS, "--remove_invalids", "--check_seq")
    workers = deployment.their_workers(1)
    deployment.ended(distributor, daq)
    workers.stop()
    with lab(tmp_path_factory.mktemp("again")) as jobs:
        again = Deployment(jobs, tooth)
        daq = again.our_daq()
        distributor = again.our_distributor(*STEPS, "--remove_invalids", "--check_seq")
        workers = again.their_workers(1)
        again.ended(distributor, daq)
        workers.stop()
        expected, found = theirs(deployment.jobs.out), theirs(jobs.out)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.nanmax(expected))


@pytest.mark.parametrize("daq", ["theirs", "ours"])
@pytest.mark.parametrize("distributor", ["theirs", "ours"])
def test_the_test_mode_sends_uint16(deployment, daq, distributor) -> None:
    what = ["--mode", "2", "--num_sinograms", "4", "--num_sinogram_columns", "32", "--num_sinogram_projections", "40"]
    daq = (deployment.their_daq if daq == "theirs" else deployment.our_daq)(1, *what)
    steps = ["--beg_sinogram", "1", "--num_sinograms", "2", "--num_columns", "32"]
    steps += ["--uint16_to_float32", "--degree_to_radian"]
    distributor = (deployment.their_distributor if distributor == "theirs" else deployment.our_distributor)(*steps)
    words = ["--window-length", "40", "--window-step", "40", "-c", "16"]
    job = deployment.jobs.recon(1, "--dest-host", "127.0.0.1", "--dest-port", str(deployment.workers), *words)
    deployment.ended(job, distributor, daq)
    assert deployment.jobs.summary()["projections"]["used"] == 40
    assert ours(deployment.jobs.out).shape == (2, 32, 32)


def test_the_quality_check_prints_our_numbers(shared, tmp_path) -> None:
    # The original knows only files of its own: the two that it opens are put in their place.
    reference = shared / "reference" / "tooth-sirt-100.h5"
    rng = np.random.default_rng(0)
    with h5py.File(reference) as file:
        a = file["trace"][:]
    b = a + rng.normal(0, a.std() / 4, a.shape).astype(np.float32)
    script = Path(original("iqcheck.py")).read_text()
    takes_arguments = "argv" in script or "argparse" in script  # its later form, which prints one line
    paths = [str(tmp_path / f"{name}.h5") for name in "ab"]
    for number, (path, volume) in enumerate(zip(paths, (a, b), strict=True), 1):
        with h5py.File(path, "w") as file:
            file["data"] = volume
        script, count = re.subn(rf"^f{number} = .*$", f"f{number} = {path!r}", script, flags=re.MULTILINE)
        assert count == 1 or takes_arguments
    command = [sys.executable, original("iqcheck.py"), *paths] if takes_arguments else [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    printed = dict(part.split(": ", 1) for part in re.split(r"; |\n", done.stdout.strip()))
    command = [*MINISTREAM, "quality", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--json", "-"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = report["volumes"][0]["slices"][0]
    assert complex(printed["MS-SSIM"].strip("()")).real == pytest.approx(found["ms_ssim"], rel=1e-9)
    ssim = re.findall(r"\d\.[\de.-]+", printed["SSIM"])[0]  # of a pair of numbers, the first
    assert float(ssim) == pytest.approx(found["ssim"], rel=1e-9)
    for name in ("UQI", "MSE", "PSNR"):
        assert float(printed[name]) == pytest.approx(found[name.lower()], rel=1e-9)


def test_their_serializer_reads_what_we_publish(deployment) -> None:
    reader = f"""
import sys, zmq
sys.path.insert(0, {str(Path(original("TraceSerializer.py")).parent)!r})
import TraceSerializer
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"")
socket.connect(sys.argv[1])
image = TraceSerializer.ImageSerializer().deserialize(socket.recv())
dims = image.Dims()
print(dims.Z(), dims.Y(), dims.X(), image.Itype(), image.TdataAsNumpy().size)
"""
    address = f"tcp://127.0.0.1:{deployment.workers + 4}"
    viewer = deployment.jobs.start("viewer", [sys.executable, "-c", reader, address])
    daq = deployment.our_daq()
    distributor = deployment.their_distributor()
    job = deployment.our_workers(1, "--window-step", "30", "--window-length", "60", "--pub-addr", address)
    deployment.ended(job, distributor, daq, viewer)
    assert viewer.text.split() == ["2", "640", "640", "0", str(2 * 640 * 640 * 4)]
