"""Volumes written by several ranks: the same file whatever the ranks, and the same error on all of them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ministream import partition, storage
from ministream.errors import StorageError
from ministream.parallel import mpi
from tests.parallel.volumes import state, whole, writer_and_image

pytestmark = pytest.mark.mpi


def names(folder):
    return sorted(file.name for file in folder.iterdir())


class WithoutMpi:
    """The same ranks, but HDF5 gets no communicator: everything goes through rank 0."""

    def __init__(self, comm):
        self._comm = comm
        self.raw = None

    def __getattr__(self, name):
        return getattr(self._comm, name)


WAYS = {
    "auto": "parallel HDF5; snapshots: one writer per rank, overlapped with computation",
    "direct": "one writer per rank, overlapped with computation",
    "hdf5": "parallel HDF5",
    "through rank 0": "HDF5 through rank 0",
}


@pytest.fixture(params=list(WAYS))
def way(request):
    """One of the ways to the disk."""
    return request.param


def writer_by(way, comm, directory, rows, n):
    """The writer that goes this way, and the image it gets."""
    ours = WithoutMpi(comm) if way == "through rank 0" else comm
    return writer_and_image(ours, directory, rows, n, "hdf5" if way == "through rank 0" else way)


@pytest.mark.parametrize(("rows", "n"), [(4, 16), (7, 31), (9, 40)])
def test_every_rank_writes_its_slab(comm, shared_tmp, rows, n, way):
    ours = comm.dup()
    writer, image = writer_by(way, ours, shared_tmp, rows, n)
    if comm.size > 1:
        assert writer.way == WAYS[way]
    paths = [writer.snapshot(0, image, state()), writer.final(image, state())]
    for path in paths:
        assert np.array_equal(storage.read_volume(path), whole(rows, n))
    comm.barrier()
    assert names(shared_tmp) == ["000000-recon.h5", "recon.h5"]
    writer.close()
    ours.free()


def test_many_blocks(comm, shared_tmp, monkeypatch, way):
    monkeypatch.setattr(storage.layout, "SCRATCH_BYTES", 3 * 31 * 4 * 5)
    monkeypatch.setattr(storage.layout, "CHUNK_BYTES", 31 * 4 * 4)  # bands of chunks that no block ends with
    ours = comm.dup()
    writer, image = writer_by(way, ours, shared_tmp, 6, 31)
    assert np.array_equal(storage.read_volume(writer.final(image, state())), whole(6, 31))
    writer.close()
    ours.free()


def test_a_snapshot_is_of_the_moment_it_was_asked_for(comm, shared_tmp):
    """The image goes on at once; the file gets its name while the ranks compute, and nobody waits."""
    ours = comm.dup()
    writer, image = writer_and_image(ours, shared_tmp, 9, 200)
    path = writer.snapshot(3, image, state())
    image[:] = -1
    mpi.wait_until(lambda: writer.poll() or path.exists())
    assert np.array_equal(storage.read_volume(path), whole(9, 200))
    comm.barrier()
    writer.settle()
    assert writer.hidden_s > 0
    writer.close()
    ours.free()


def test_the_next_volume_waits_for_the_one_before(comm, shared_tmp):
    ours = comm.dup()
    writer, image = writer_and_image(ours, shared_tmp, 9, 200)
    for number in range(3):
        image[:, :, 0] = number
        writer.snapshot(number, image, state())
    writer.final(image, state())
    first = partition.slabs(9, comm.size)[comm.rank].first
    for number in range(3):
        assert np.all(storage.read_volume(shared_tmp / f"{number:06d}-recon.h5")[first] == number)
    writer.close()
    ours.free()


def test_closing_leaves_no_half_written_file(comm, shared_tmp):
    ours = comm.dup()
    writer, image = writer_and_image(ours, shared_tmp, 9, 200)
    writer.snapshot(0, image, state())
    writer.close()
    comm.barrier()
    assert names(shared_tmp) == []
    ours.free()


class Apart:
    """Ranks that do not see rank 0's files."""

    def __init__(self, comm):
        self._comm = comm
        self.raw = comm.raw

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def allgather(self, value):
        return [False if one is True else one for one in self._comm.allgather(value)]


def test_ranks_that_see_no_common_directory_write_through_rank_0(comm, shared_tmp):
    ours = comm.dup()
    writer, image = writer_and_image(Apart(ours), shared_tmp, 7, 31)
    assert writer.way == WAYS["through rank 0"]
    assert np.array_equal(storage.read_volume(writer.final(image, state())), whole(7, 31))
    ours.free()


@pytest.fixture
def small_disk(comm, shared_tmp):
    """A file system of 6 MiB, for all ranks."""
    point = shared_tmp / "disk"
    failed = None
    if comm.rank == 0:
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=6m", "ministream-test", str(point)]
        failed = subprocess.run(command, check=False).returncode
    if comm.bcast(failed):
        pytest.skip("cannot mount a tmpfs here")
    yield point
    comm.barrier()
    if comm.rank == 0:
        subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk_fails_on_every_rank(comm, small_disk, way):
    ours = comm.dup()
    writer, image = writer_by(way, ours, small_disk, 9, 300)
    first = writer.snapshot(0, image, state())
    with pytest.raises(StorageError, match=r"000001-recon\.h5: cannot be written: No space left") as caught:
        writer.snapshot(1, image, state())
    assert caught.value.everywhere
    comm.barrier()
    assert names(small_disk) == [first.name]
    assert np.array_equal(storage.read_volume(first), whole(9, 300))
    ours.free()


class LimitAfterLayout:
    """A file system that refuses data on every rank once rank 0 has laid the file out."""

    def __init__(self, comm, limit, after=4):  # the directory, what is seen there and removed again, the lay-out
        self._comm, self._limit, self._agreed, self._after = comm, limit, 0, after

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def agree(self, error):
        self._comm.agree(error)
        self._agreed += 1
        if self._agreed == self._after:
            self._limit()


@contextlib.contextmanager
def limited_files(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_data_that_does_not_reach_the_file_is_noticed(comm, shared_tmp, way):
    """Open MPI's OMPIO reports success for such a write; the read-back must not."""
    with limited_files(1 << 20) as limit:
        ours = LimitAfterLayout(comm.dup(), limit)
        writer, image = writer_by(way, ours, shared_tmp, 9, 300)
        with pytest.raises(StorageError, match=r"recon\.h5: cannot be written") as caught:
            writer.final(image, state())
    assert caught.value.everywhere
    comm.barrier()
    assert names(shared_tmp) == []
    ours.free()


def test_a_failure_behind_the_computing_is_told_to_every_rank(comm, shared_tmp):
    """One rank's write fails while all go on; when they wait for it, all of them learn it."""
    ours = comm.dup()
    with limited_files(1 << 20) as limit:
        last = LimitAfterLayout(ours, limit, after=6 if comm.rank == comm.size - 1 else 0)
        writer, image = writer_and_image(last, shared_tmp, 9, 300)
        earlier = writer.snapshot(0, image, state())
        writer.snapshot(1, image, state())
        with pytest.raises(StorageError, match=r"000001-recon\.h5: cannot be written: File too large") as caught:
            writer.finish()
    assert caught.value.everywhere
    assert [path.name for path in writer.lost] == ["000001-recon.h5"]
    comm.barrier()
    assert names(shared_tmp) == [earlier.name]
    ours.free()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.parallel.volumes import state, writer_and_image
from ministream.parallel import mpi
from ministream.storage import direct
comm = mpi.world()
writer, image = writer_and_image(comm.dup(), Path(sys.argv[1]), 9, 40)
writer.snapshot(0, image, state())
store = direct.Direct._store
def store_then_die(self, *block):
    store(self, *block)
    if comm.rank == 1 and len(list(Path(sys.argv[1]).glob("0*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
direct.Direct._store = store_then_die
writer.snapshot(1, image, state())
writer.final(image, state())
"""


@pytest.mark.skipif("OMPI_COMM_WORLD_SIZE" in os.environ, reason="starts ranks of its own")
def test_a_rank_killed_while_writing_leaves_the_earlier_snapshot(tmp_path):
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    allowed |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI_"))}
    command = ["mpirun", "-n", "2", sys.executable, "-c", KILLED, str(tmp_path)]
    project = Path(__file__).parents[2]
    job = subprocess.run(
        command, cwd=project, env=clean | allowed, check=False, timeout=60, capture_output=True, text=True
    )
    assert job.returncode != 0
    assert f"signal {signal.SIGKILL.value}" in job.stdout + job.stderr
    assert storage.snapshots(tmp_path) == [tmp_path / "000000-recon.h5"]
    assert np.array_equal(storage.read_volume(tmp_path / "000000-recon.h5"), whole(9, 40))
