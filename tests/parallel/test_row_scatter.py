"""Every rank gets its own rows of every frame, whatever the number of ranks, and rank 0 copies none."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.parallel import mpi
from ministream.parallel.row_scatter import RowScatter
from ministream.partition import slabs

pytestmark = pytest.mark.mpi

ROWS, COLS, COUNT = 7, 5, 23


def scan(dtype="<u2"):
    return Scan(scan_id="s", rows=ROWS, cols=COLS, projections=COUNT, flats=0, darks=0, dtype=dtype)


def frames(dtype="<u2"):
    rng = np.random.default_rng(1)
    for index in range(COUNT):
        pixels = rng.integers(0, 60000, (ROWS, COLS)).astype(dtype)
        pixels.flags.writeable = False  # as a receive buffer is
        yield Frame(
            kind=FrameKind.PROJECTION,
            index=index,
            angle_rad=index / 10,
            pixels=pixels,
            acquired_s=1e9 + index,
            position=index / 4,
        )


def feeder(batch, dtype="<u2"):
    """Hands out between zero and `batch` frames per call."""
    waiting, calls = list(frames(dtype)), 0

    def feed():
        nonlocal calls
        calls += 1
        count = calls % (batch + 1)
        taken, waiting[:count] = waiting[:count], []
        return taken if taken or waiting else None

    return feed


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "|u1"])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_rank_gets_its_rows_in_order(comm, batch, dtype):
    shares = slabs(ROWS, comm.size)
    distributor = RowScatter(comm, scan(dtype), shares, batch, feeder(batch, dtype) if comm.rank == 0 else None)
    seen = []
    while (rows := distributor.take()) is not None:
        assert 1 <= len(rows) <= batch
        seen += [(row.index, row.angle_rad, row.acquired_s, row.position, row.kind, row.pixels.copy()) for row in rows]
    distributor.close()
    assert distributor.take() is None
    assert len(seen) == COUNT
    for (index, angle, acquired, position, kind, pixels), sent in zip(seen, frames(dtype), strict=True):
        assert (index, angle, acquired, position, kind) == (
            sent.index,
            sent.angle_rad,
            sent.acquired_s,
            sent.position,
            sent.kind,
        )
        np.testing.assert_array_equal(pixels, sent.pixels[shares[comm.rank].slice])


def test_rank_0_sees_its_rows_in_the_receive_buffer_itself(comm):
    sent = list(frames())
    batches = iter([sent[:2], None])
    distributor = RowScatter(
        comm, scan(), slabs(ROWS, comm.size), 2, (lambda: next(batches)) if comm.rank == 0 else None
    )
    rows = distributor.take()
    if comm.rank == 0:
        assert np.shares_memory(rows[0].pixels, sent[0].pixels)
    assert distributor.take() is None
    distributor.close()


def test_a_wait_is_for_frames_or_for_rank_0(comm):
    """A second without frames is nobody's fault; a second in which rank 0 computes makes the others idle."""
    sent, began = list(frames()), []

    def feed():
        began.append(time.perf_counter())
        if fed == [] and began[-1] - began[0] < 0.5:
            return []
        fed.append(len(fed))
        return sent[:1] if len(fed) < 3 else None

    fed = []
    distributor = RowScatter(comm, scan(), slabs(ROWS, comm.size), 1, feed if comm.rank == 0 else None)
    calls = []

    def taken(poll=lambda: None):
        """The seconds that taking a batch takes."""
        start = time.perf_counter()
        assert distributor.take(poll) is not None
        return time.perf_counter() - start

    took = taken(lambda: calls.append(1))
    assert calls
    assert distributor.waits.idle_s < took / 2
    if comm.rank == 0:
        time.sleep(0.5)
    took = taken()
    if comm.rank:
        assert distributor.waits.idle_s > took / 2
        assert distributor.waits.scatter_s < took / 2
    assert distributor.take() is None
    distributor.close()


def test_an_error_of_one_rank_is_raised_on_all(comm):
    mine = InputError("no such file") if comm.rank == comm.size - 1 else None
    with pytest.raises(InputError, match="no such file") as caught:
        comm.agree(mine)
    assert caught.value.everywhere
    comm.agree(None)


def test_sums_and_gathers(comm):
    total = comm.sum(np.array([1.0, float(comm.rank)]))
    np.testing.assert_allclose(total, [comm.size, comm.size * (comm.size - 1) / 2])
    assert comm.allgather(comm.rank) == list(range(comm.size))


def test_gathering_waits_for_nobody(comm):
    """Rank 0 has nothing before the last rank has given, then everything in rank order; and again."""
    for turn in range(2):
        gathering = comm.gathering()
        comm.barrier()
        if comm.rank != comm.size - 1:
            gathering.give((turn, comm.rank))
        if comm.rank == 0:
            assert gathering.take() is None
        comm.barrier()
        if comm.rank == comm.size - 1:
            gathering.give((turn, comm.rank))
        if comm.rank == 0:
            mpi.wait_until(lambda: gathering.take() is not None)  # noqa: B023 - called at once
            assert gathering.take() == [(turn, rank) for rank in range(comm.size)]
        comm.barrier()


def test_only_what_leaves_rank_0_counts_as_scattered(comm):
    sent = list(frames())
    batches = iter([sent[:2], None])
    shares = slabs(ROWS, comm.size)
    distributor = RowScatter(comm, scan(), shares, 2, (lambda: next(batches)) if comm.rank == 0 else None)
    while distributor.take() is not None:
        pass
    others = (ROWS - shares[0].rows) * COLS * 2 * 2
    assert distributor.bytes_scattered == (others if comm.rank == 0 else 0)
    distributor.close()


def test_threads_fill_the_node_once(comm):
    import os

    threads = mpi.fair_threads(comm)
    cores = len(set().union(*comm.allgather(os.sched_getaffinity(0))))
    assert 1 <= threads <= cores
    if comm.size <= cores:
        assert sum(comm.allgather(threads)) <= cores


def test_ranks_of_one_colour_have_a_communicator_of_their_own(comm):
    part = comm.split(comm.rank % 2)
    assert part.allgather(comm.rank) == [rank for rank in range(comm.size) if rank % 2 == comm.rank % 2]
    part.free()
    first = comm.split(0 if comm.rank == 0 else None)
    assert (first is None) == (comm.rank > 0)
    if first is not None:
        assert first.size == 1
        first.free()


def test_ranks_that_the_launcher_did_not_start_are_missed(comm):
    with pytest.raises(ConfigError, match="mpirun or srun"):
        mpi.world(comm.size + 1)


def test_arrays_travel_by_rows(comm):
    if comm.size == 1:
        pytest.skip("needs two ranks")
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    if comm.rank == 1:
        comm.send_array(array, 0)
    elif comm.rank == 0:
        got = np.empty_like(array)
        comm.recv_array(got, 1)
        np.testing.assert_array_equal(got, array)
