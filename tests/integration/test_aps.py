"""Each process of aps-mini-apps replaced by ours, by its own command line, on a real scan."""

from __future__ import annotations

import contextlib
import math
import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import zmq

from ministream.partition import slabs
from ministream.wire import timage
from ministream.wire.tracemq import Assigned, DistributorSession, Projection
from tests.integration.jobs import MINISTREAM, Job, Lab, lab
from tests.ports import free_ports
from tests.recordings import timage_messages
from tests.waiting import HANG_S

WINDOW = shlex.split("--window-length 181 --window-step 181 --window-iter 5")


def supplied(count: int) -> dict[str, int]:
    """The ledger of a scan of which everything is in the volume."""
    every = dict.fromkeys(("delivered", "sent", "received", "used", "imaged", "written"), count)
    return every | dict.fromkeys(("dropped", "refused", "repeated", "mended"), 0)


SUPPLIED = supplied(181)


def volume(folder: Path) -> np.ndarray:
    with h5py.File(folder / "recon.h5") as file:
        return file["data"][:]


@pytest.fixture(scope="module")
def native(tooth: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The volume that the native path makes of the scan."""
    folder = tmp_path_factory.mktemp("native")
    with lab(folder) as jobs:
        producer = jobs.produce("--file", str(tooth))
        address = jobs.announced("producer", producer)["data"]
        reconstruction = jobs.recon(1, "--connect", address, "-c", "296", *WINDOW)
        assert reconstruction.wait() == 0, reconstruction.text
    return volume(folder / "out")


def publish(jobs: Lab, tooth: Path, *more: str, projections_s: str = "0") -> list[str]:
    """Our producer under the options of `DAQStream.py`; what a reader needs to say."""
    words = ["--mode", "1", "--simulation_file", str(tooth), "--projection_sleep", projections_s]
    words += ["--publisher_addr", "tcp://127.0.0.1:0", "--synch_addr", "tcp://127.0.0.1:0", "--synch_count", "1"]
    found = jobs.announced("producer", jobs.produce(*words, *more))
    return [found["data"], found["sync"]]


def distribute(jobs: Lab, *words: str) -> list[str]:
    """Our distributor; how its workers find it, in the options of `sirt_stream`."""
    announce = jobs.folder / "distributor.json"
    command = [*MINISTREAM, "distribute", *words, "--normalize", "--mlog", "--degree_to_radian"]
    command += ["--my_distributor_addr", f"tcp://127.0.0.1:{free_ports(4)}", "--announce", str(announce)]
    found = jobs.announced("distributor", jobs.start("distributor", command))
    return ["--dest-host", "127.0.0.1", "--dest-port", found["workers"].rpartition(":")[2]]


def reconstruct(jobs: Lab, ranks: int, *words: str) -> Job:
    job = jobs.recon(ranks, *words, "-c", "296", *WINDOW)
    assert job.wait() == 0, "\n".join(one.text for one in jobs.jobs)
    return job


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("order", ["false", "true"])
def test_daq_wire_into_the_job(jobs, tooth, native, ranks, order) -> None:
    data, sync = publish(jobs, tooth, "--set", f"aps.original_order={order}")
    reconstruct(jobs, ranks, "--source-wire", "timage", "--connect", data, "--sync", sync, "--pixel-dtype", "float32")
    assert jobs.summary()["complete"]
    assert jobs.summary()["projections"] == SUPPLIED
    np.testing.assert_allclose(volume(jobs.out), native, atol=1e-4 * native.max())


def test_daq_wire_into_our_distributor_into_the_job(jobs, tooth, native) -> None:
    data, sync = publish(jobs, tooth)
    source = ["--data_source_addr", data, "--data_source_synch_addr", sync, "--cast_to_float32"]
    workers = distribute(jobs, *source, "--num_sinograms", "2", "--num_columns", "640")
    reconstruct(jobs, 2, *workers)
    assert jobs.summary()["complete"]
    assert jobs.summary()["projections"] == SUPPLIED
    np.testing.assert_allclose(volume(jobs.out), native, atol=1e-4 * native.max())


def test_stripes_are_removed_on_the_way(jobs, tooth, native) -> None:
    data, sync = publish(jobs, tooth)
    source = ["--data_source_addr", data, "--data_source_synch_addr", sync, "--cast_to_float32"]
    reconstruct(jobs, 1, *distribute(jobs, *source, "--remove_stripes", "--stripes-over", "70"))
    assert jobs.summary()["projections"] == SUPPLIED
    cleaned = volume(jobs.out)
    # this scan has hardly any
    assert np.corrcoef(cleaned.ravel(), native.ravel())[0, 1] > 0.999
    assert not np.allclose(cleaned, native, atol=1e-4 * native.max())


@pytest.mark.parametrize("by_itself", [False, True])
def test_daq_wire_through_the_tunnel_of_both_jobs(jobs, tooth, native, by_itself) -> None:
    credentials = ["--credentials", str(jobs.folder / "credentials")]
    subprocess.run([*MINISTREAM, "certs", "init", credentials[1]], check=True, capture_output=True)
    words = ["--mode", "1", "--simulation_file", str(tooth), "--control", "127.0.0.1:0", *credentials]
    words += ["--publisher_addr", "tcp://127.0.0.1:0", "--synch_addr", "tcp://127.0.0.1:0"]
    prod = jobs.announced("producer", jobs.produce(*words))["control"]
    words = ["--source-wire", "timage", "--pixel-dtype", "float32", "-c", "296", *credentials, *WINDOW]
    if by_itself:
        reconstruction = jobs.recon(2, *words, "--producer", prod, "--sync", "tcp://through.the.tunnel:0")
    else:
        reconstruction = jobs.recon(2, *words, "--control", "127.0.0.1:0")
        cons = jobs.announced("recon", reconstruction)["control"]
        command = [*MINISTREAM, "connect", "--prod", prod, "--cons", cons, "--num-conn", "2", *credentials]
        subprocess.run(command, check=True, timeout=60)
    assert reconstruction.wait() == 0, "\n".join(job.text for job in jobs.jobs)
    summary = jobs.summary()
    assert summary["projections"] == SUPPLIED
    assert "TLS" in summary["tunnel"]["cipher"]
    np.testing.assert_allclose(volume(jobs.out), native, atol=1e-4 * native.max())


@pytest.mark.parametrize("ranks", [2, 1])
def test_every_rank_is_a_worker_of_its_own(jobs, tooth, native, ranks) -> None:
    data, sync = publish(jobs, tooth)
    source = ["--data_source_addr", data, "--data_source_synch_addr", sync, "--cast_to_float32"]
    reconstruct(jobs, ranks, *distribute(jobs, *source), "--set", "aps.every_rank=true")
    assert jobs.jobs[1].wait() == 0
    assert f"to {ranks} workers" in jobs.jobs[1].text
    assert jobs.summary()["complete"]
    assert jobs.summary()["projections"] == SUPPLIED
    np.testing.assert_allclose(volume(jobs.out), native, atol=1e-4 * native.max())


@contextmanager
def lock_step(projections: Sequence[Sequence[Projection]], rows: int, cols: int) -> Iterator[list[str]]:
    """A distributor like the original, for as many workers as each projection has parts; how they find it."""
    ranks = len(projections[0])
    base = free_ports(ranks)
    with zmq.Context() as context:
        sockets = [context.socket(zmq.REP) for _ in range(ranks)]
        for rank, socket in enumerate(sockets):
            socket.set(zmq.LINGER, 0)
            socket.bind(f"tcp://127.0.0.1:{base + rank}")
        over = threading.Event()

        def heard(socket: zmq.Socket[bytes]) -> bytes:
            while not socket.poll(50):
                if over.is_set():
                    raise EOFError
            return socket.recv()

        def play() -> None:
            with contextlib.suppress(EOFError), contextlib.ExitStack() as stack:
                parties = [DistributorSession(peer=f"worker {rank}") for rank in range(ranks)]
                for socket in sockets:
                    stack.enter_context(socket)
                for party, socket, slab in zip(parties, sockets, slabs(rows, ranks), strict=True):
                    party.receive(heard(socket))
                    socket.send(party.assign(Assigned(rows=rows, cols=cols, slab=slab)))
                for parts in projections:
                    for party, socket, part in zip(parties, sockets, parts, strict=True):
                        party.receive(heard(socket))
                        socket.send(party.projection(part))
                for party, socket in zip(parties, sockets, strict=True):
                    party.receive(heard(socket))
                    socket.send(party.finish())
                for party, socket in zip(parties, sockets, strict=True):
                    party.receive(heard(socket))

        thread = threading.Thread(target=play)
        thread.start()
        yield ["--dest-host", "127.0.0.1", "--dest-port", str(base), "--set", "aps.every_rank=true"]
        over.set()
        thread.join()


@pytest.mark.parametrize(("strict", "code"), [([], 3), (["--strict"], 4)])
def test_what_one_rank_refuses_none_uses(jobs, strict, code) -> None:
    pixels = np.linspace(0.5, 1.5, 128, dtype=np.float32).reshape(2, 64)
    turn = [[Projection(projection_id=k, theta=k / 4, center=32.0, pixels=pixels) for _ in range(2)] for k in range(12)]
    turn[5][1] = msgspec.structs.replace(turn[5][1], theta=math.nan)
    with lock_step(turn, 4, 64) as workers:
        job = jobs.recon(2, *workers, "--window-length", "6", "--window-step", "6", *strict)
        assert job.wait() == code, job.text
    assert "theta nan" in job.text
    assert "Traceback" not in job.text
    if not strict:
        projections = jobs.summary()["projections"]
        assert (projections["refused"], projections["received"], projections["used"]) == (1, 12, 11)
        assert jobs.summary()["updates"] == 2


def test_native_stream_into_our_distributor_into_the_job(jobs, tooth, native) -> None:
    address = jobs.announced("producer", jobs.produce("--file", str(tooth)))["data"]
    workers = distribute(jobs, "--source-wire", "native", "--connect", address)
    reconstruct(jobs, 1, *workers)
    np.testing.assert_allclose(volume(jobs.out), native, atol=1e-4 * native.max())


@contextmanager
def played(messages: Sequence[bytes]) -> Iterator[list[str]]:
    """A publisher like the original, which sends the messages once a subscriber is ready; how a reader finds it."""
    with zmq.Context() as context, context.socket(zmq.PUB) as pub, context.socket(zmq.REP) as rep:
        pub.set(zmq.SNDHWM, 0)
        for one in (pub, rep):
            one.bind("tcp://127.0.0.1:0")
        data, sync = (one.get_string(zmq.LAST_ENDPOINT) for one in (pub, rep))

        def play() -> None:
            if rep.poll(int(1000 * HANG_S)):
                rep.send(rep.recv())
                for message in messages:
                    pub.send(message)

        thread = threading.Thread(target=play)
        thread.start()
        yield ["--source-wire", "timage", "--connect", data, "--sync", sync, "--pixel-dtype", "float32"]
        thread.join()


def test_the_recorded_original_into_the_job(jobs, shared, native) -> None:
    with played(timage_messages(shared)) as source:
        reconstruct(jobs, 1, *source)
    assert jobs.summary()["complete"]
    # The original sends its last dark ten times, so the darks differ a little from the file's.
    assert np.corrcoef(volume(jobs.out).ravel(), native.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize(("strict", "code"), [([], 3), (["--strict"], 4)])
def test_bad_messages_are_counted_or_end_a_strict_job(jobs, shared, strict, code) -> None:
    messages = timage_messages(shared)
    messages[190:190] = [b"garbage", messages[2][:-1], messages[3][:40]]
    del messages[195]
    with played(messages) as source:
        job = jobs.recon(1, *source, *WINDOW, *strict)
        assert job.wait() == code, job.text
    assert "Traceback" not in job.text
    if not strict:
        projections = jobs.summary()["projections"]
        assert (projections["refused"], projections["received"], projections["sent"]) == (3, 183, 184)
        assert "1 sequence numbers are missing" in job.text


def test_a_publisher_that_falls_silent_leaves_what_has_come(jobs, shared) -> None:
    with played(timage_messages(shared)[:-1]) as source:
        job = jobs.recon(1, *source, *WINDOW, "--stall-timeout", "2")
        assert job.wait() == 3, job.text
    assert jobs.summary()["projections"]["used"] == 181
    assert "and no end_data" in job.text


def test_the_dataset_is_repeated_as_the_original_repeats_it(jobs, tooth) -> None:
    data, sync = publish(jobs, tooth, "--d_iteration", "2", "--iteration_sleep", "0.2")
    reconstruct(jobs, 1, "--source-wire", "timage", "--connect", data, "--sync", sync, "--pixel-dtype", "float32")
    assert jobs.summary()["projections"] == supplied(362)
    assert jobs.summary()["updates"] == 2


class Viewer(threading.Thread):
    """Keeps what is published at an address that may not be there yet."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.connect(address)
        self._enough = threading.Event()
        self.images: list[timage.Image] = []
        self.start()

    def run(self) -> None:
        while not self._enough.is_set() or self._socket.poll(200):
            if self._socket.poll(50):
                message = self._socket.recv()
                if message != timage.END_OF_DATA:
                    self.images.append(timage.decode(message))
        self._socket.close(linger=0)
        self._context.term()

    def stop(self) -> list[timage.Image]:
        self._enough.set()
        self.join()
        return self.images


def test_reconstructions_are_published_and_written_as_the_original_does(jobs, tooth) -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)}"
    viewer = Viewer(address)
    data, sync = publish(jobs, tooth, projections_s="0.01")
    job = jobs.recon(
        *(2, "--source-wire", "timage", "--connect", data, "--sync", sync, "--pixel-dtype", "float32", "-c", "296"),
        *("--pub-addr", address, "--pub-freq", "2", "--write-freq", "2"),
        *("--window-length", "60", "--window-step", "30", "--window-iter", "1"),
    )
    assert job.wait() == 0, job.text
    images = viewer.stop()
    updates = jobs.summary()["updates"]
    assert updates == 7
    assert [image.seq for image in images] == [2, 4, 6]
    assert {image.dims for image in images} == {(2, 640, 640)}
    assert {image.center for image in images} == {296.0}
    with h5py.File(jobs.out / "000004-recon.h5") as file:
        np.testing.assert_array_equal(images[1].pixels("float32"), file["data"][:])


def test_corrected_projections_are_republished(jobs, tooth) -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)}"
    viewer = Viewer(address)
    data, sync = publish(jobs, tooth, projections_s="0.01")
    command = ["distribute", "--data_source_addr", data, "--data_source_synch_addr", sync, "--cast_to_float32"]
    command += ["--normalize", "--my_publisher_addr", address, "--my_publisher_freq", "2"]
    job = jobs.start("distributor", [*MINISTREAM, *command])
    assert job.wait() == 0, job.text
    images = viewer.stop()
    with h5py.File(tooth) as file:
        exchange = file["exchange"]
        raw, flats, darks = exchange["data"][:], exchange["data_white"][:], exchange["data_dark"][:]
        theta = exchange["theta"][:]
    dark = darks.mean(axis=0)
    for image in images:
        expected = (raw[image.unique_id] - dark) / (flats.mean(axis=0) - dark)
        np.testing.assert_allclose(image.pixels("float32")[0], expected, rtol=1e-4)
        assert image.rotation == pytest.approx(np.radians(theta[image.unique_id]), abs=1e-5)
    # What was published before the viewer came is not seen.
    seen = [image.unique_id for image in images]
    assert seen == list(range(seen[0], 181, 2))
    assert len(seen) > 60


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pixel-dtype", "uint16"], 2, "--pixel-dtype float32 would fit"),
        ([], 2, "give --pixel-dtype"),
        (["--pixel-dtype", "float33"], 2, "pixel_dtype"),
        (["--pixel-dtype", "float32", "--angle-unit", "radians"], 0, "--angle-unit degrees"),
    ],
)
def test_what_the_wire_does_not_tell_must_be_said_rightly(jobs, tooth, words, code, said) -> None:
    data, sync = publish(jobs, tooth, "--set", "producer.peer_timeout_s=12")
    job = jobs.recon(1, "--source-wire", "timage", "--connect", data, "--sync", sync, *words, *WINDOW)
    assert job.wait() == code, job.text
    assert said in job.text
    assert "Traceback" not in job.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--beg_sinogram", "1000", "--num_sinograms", "2"], "rows 0 to 1"),
        (["--num_columns", "2560"], "640 columns"),
    ],
)
def test_rows_that_the_scan_does_not_have_are_named(jobs, tooth, words, said) -> None:
    data, sync = publish(jobs, tooth, "--set", "producer.peer_timeout_s=3")
    command = ["distribute", "--data_source_addr", data, "--data_source_synch_addr", sync, "--cast_to_float32", *words]
    job = jobs.start("distributor", [*MINISTREAM, *command])
    assert job.wait() == 2
    assert said in job.text
