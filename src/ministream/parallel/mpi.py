"""The only module that calls MPI: start-up, the communicator, waiting without busy loops, joint termination.

Only the main thread may call into this module (some MPI builds have no THREAD_MULTIPLE).
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import mpi4py
import numpy as np
from numpy.typing import NDArray

mpi4py.rc.thread_level = "funneled"  # the receive thread and gRPC never call MPI

from mpi4py import MPI  # noqa: E402 - the thread level must be set before MPI starts

from ministream import log  # noqa: E402
from ministream.errors import ConfigError, MachineError, MinistreamError  # noqa: E402

__all__ = ["MPI", "Comm", "Request"]

_LOG = log.get(__name__)

T = TypeVar("T")
N = TypeVar("N", bound=np.generic)

Request = MPI.Request

# Polling starts with the short interval and backs off to the long one.
_NAP_MIN_S = 20e-6
_NAP_MAX_S = 1e-3


class Comm:
    """A communicator: rank, size, and the collectives that the stages use."""

    def __init__(self, raw: MPI.Intracomm) -> None:
        self.raw = raw
        self.rank: int = raw.Get_rank()
        self.size: int = raw.Get_size()
        self._derived: list[Comm] = []

    def dup(self) -> Self:
        """A communicator of the same ranks with separate message traffic."""
        return self._note(type(self)(self.raw.Dup()))

    def split(self, colour: int | None) -> Self | None:
        """The communicator of the ranks with the same `colour`, in the same order, None without one; collective."""
        part = self.raw.Split(MPI.UNDEFINED if colour is None else colour, self.rank)
        return None if part == MPI.COMM_NULL else self._note(type(self)(MPI.Intracomm(part)))

    def free(self) -> None:
        """Free a duplicated communicator, and those derived from it that are not freed yet; collective."""
        for derived in self._derived:
            if derived.raw != MPI.COMM_NULL:
                derived.free()
        self.raw.Free()

    def _note(self, derived: Self) -> Self:
        self._derived.append(derived)
        return derived

    def barrier(self) -> None:
        """Wait until every rank has arrived, with sleeps instead of a busy loop."""
        wait_until(self.raw.Ibarrier().Test)

    def bcast(self, value: T) -> T:
        """Rank 0's small object on every rank."""
        return self.raw.bcast(value, root=0)  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T] | None:
        """One small object of every rank, in rank order, on rank 0; None elsewhere."""
        return self.raw.gather(value, root=0)

    def allgather(self, value: T) -> list[T]:
        """One small object of every rank, in rank order, on every rank."""
        return self.raw.allgather(value)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The element-wise sum over ranks, on every rank."""
        total = np.empty_like(values)
        self.raw.Allreduce(values, total, op=MPI.SUM)
        return total

    def part(self, count: int) -> slice:
        """This rank's share of `count` rows; some ranks get none where rows are few."""
        firsts = self._firsts(count)
        return slice(firsts[self.rank], firsts[self.rank + 1])

    def whole(self, mine: NDArray[N], count: int) -> Callable[[], NDArray[N]]:
        """Start to gather `count` rows, of which each rank has its `part`; calling the result waits for them.

        Collective; the result must be called on every rank before the communicator is freed.
        """
        if self.size == 1:
            return lambda: mine
        everyone = np.empty((count, *mine.shape[1:]), mine.dtype)
        firsts = self._firsts(count)
        counts = [stop - first for first, stop in itertools.pairwise(firsts)]
        rows = row_type(everyone[:1].nbytes)
        sent = [np.ascontiguousarray(mine), len(mine), rows]
        request = self.raw.Iallgatherv(sent, [everyone, (counts, firsts[:-1]), rows])

        def wait() -> NDArray[N]:
            wait_until(request.Test)
            return everyone

        return wait

    def _firsts(self, count: int) -> list[int]:
        """The first row of each rank's part of `count` rows, followed by `count`."""
        return [count * rank // self.size for rank in range(self.size + 1)]

    def start_bcast(self, buffer: NDArray[np.uint8]) -> Request:
        """Start to broadcast rank 0's `buffer` into the `buffer` of every rank."""
        return self.raw.Ibcast(buffer, root=0)

    def start_allgather(self, mine: NDArray[np.uint8], everyone: NDArray[np.uint8]) -> Request:
        """Start to gather `mine` of all ranks, in rank order, into `everyone` on every rank."""
        return self.raw.Iallgather(mine, everyone)

    def send_array(self, array: NDArray[Any], destination: int) -> None:
        """Send one C-contiguous array; the receiver knows its shape and dtype."""
        self.raw.Send(row_buffer(array), dest=destination)

    def recv_array(self, array: NDArray[Any], source: int) -> None:
        """Receive an array sent by `send_array` into one C-contiguous array."""
        self.raw.Recv(row_buffer(array), source=source)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank; if it fails on one, it fails on all, with that rank's error; collective."""
        failed = None
        try:
            yield
        except MinistreamError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - an unexpected error must not leave the other ranks waiting
            _LOG.debug("the failing rank's traceback", exc_info=True)
            failed = MachineError(f"{type(error).__name__}: {error}")
        self.agree(failed)

    def agree(self, error: MinistreamError | None) -> None:
        """Tell every rank whether one has failed; collective; waits without a busy loop.

        Raises, on every rank, the error of the lowest rank that has one.
        """
        self.barrier()
        first = next(((r, e) for r, e in enumerate(self.allgather(error)) if e is not None), None)
        if first is None:
            return
        rank, agreed = first
        if self.size > 1 and rank:
            agreed = type(agreed)(f"rank {rank}: {agreed}")
        agreed.everywhere = True
        raise agreed

    def gathering(self) -> Gathering:
        """Prepare a non-blocking gather of one small object per rank on rank 0; collective."""
        return Gathering(self.raw)

    def node(self) -> Self:
        """The ranks that share this rank's node."""
        return type(self)(MPI.Intracomm(self.raw.Split_type(MPI.COMM_TYPE_SHARED)))


class Gathering:
    """A non-blocking gather of one small object per rank on rank 0. Only one per communicator at a time."""

    _TAG = 1  # arrays have tag 0

    def __init__(self, raw: MPI.Intracomm) -> None:
        self._raw = raw
        senders = range(1, raw.Get_size()) if raw.Get_rank() == 0 else ()
        self._expected = [raw.irecv(source=rank, tag=self._TAG) for rank in senders]
        self._here: list[Any] = [None] * len(self._expected)
        self._own: list[Any] = []
        self._sent: Request | None = None

    def give(self, value: Any) -> None:
        """Send this rank's object; call once."""
        if self._raw.Get_rank():
            self._sent = self._raw.isend(value, dest=0, tag=self._TAG)
        else:
            self._own = [value]

    def take(self) -> list[Any] | None:
        """On rank 0 the objects in rank order, None while one is missing."""
        for place, request in enumerate(self._expected):
            if request != MPI.REQUEST_NULL:
                arrived, value = request.test()
                if arrived:
                    self._here[place] = value
        missing = not self._own or any(request != MPI.REQUEST_NULL for request in self._expected)
        return None if missing else [*self._own, *self._here]

    def drop(self) -> None:
        """Cancel pending receives: a leftover receive could match a message of a communicator created later."""
        for request in self._expected:
            if request != MPI.REQUEST_NULL:
                request.Cancel()
                request.Wait()


def world(ranks_wanted: int | None = None) -> Comm:
    """The communicator of all ranks.

    Raises ConfigError when the launcher did not start the requested number of ranks, or started several that this MPI
    does not join: a launcher of another MPI starts separate one-rank jobs without an error.
    """
    comm = Comm(MPI.COMM_WORLD)
    remedy = "start the job with the mpirun or srun that belongs to it"
    if ranks_wanted is not None and comm.size != ranks_wanted:
        raise ConfigError(f"--ranks {ranks_wanted}: this MPI ({library()}) has started {comm.size}: {remedy}")
    if ranks_wanted is None and comm.size == 1:
        for name, started in launcher_ranks(os.environ).items():
            if started > 1:
                raise ConfigError(
                    f"{name}={started}: the launcher has started {started} processes, but this MPI ({library()}) joins "
                    f"none of them: {remedy}. For separate jobs of one rank add --ranks 1"
                )
    return comm


def library() -> str:
    """Name and version of the MPI library, one line."""
    first = MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0 ")
    return " ".join(first.split())


def thread_level() -> str:
    """The thread support that this MPI provides: single, funneled, serialized or multiple."""
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    return levels[MPI.Query_thread()]


# Processes of a job: Open MPI, MPICH and its relatives (Hydra), MVAPICH, srun.
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def launcher_ranks(environment: Mapping[str, str]) -> dict[str, int]:
    """The number of processes according to the variables of each launcher that set one."""
    return {name: int(text) for name in _LAUNCHERS if (text := environment.get(name, "")).isdecimal()}


def wait_until(done: Callable[[], bool], *, eager_s: float = 0.0) -> None:
    """Call `done` until it returns True, sleeping in between: a waiting rank must not occupy a core.

    For the first `eager_s` seconds it only yields the processor instead of sleeping.
    """
    eager_until = time.monotonic() + eager_s
    while eager_s and time.monotonic() < eager_until:
        if done():
            return
        os.sched_yield()
    nap = _NAP_MIN_S
    while not done():
        time.sleep(nap)
        nap = min(2 * nap, _NAP_MAX_S)


def row_buffer(array: NDArray[Any]) -> list[Any]:
    """An MPI buffer that counts rows, not bytes, so that more than 2 GiB fit MPI's 32-bit counts."""
    rows = array.shape[0]
    row_bytes = array.nbytes // max(rows, 1)
    return [array, rows, row_type(row_bytes)]


def row_type(row_bytes: int) -> MPI.Datatype:
    """A committed datatype with the bytes of one row; created once per size."""
    if row_bytes not in _ROW_TYPES:
        _ROW_TYPES[row_bytes] = MPI.BYTE.Create_contiguous(row_bytes).Commit()
    return _ROW_TYPES[row_bytes]


_ROW_TYPES: dict[int, MPI.Datatype] = {}


def fair_threads(comm: Comm) -> int:
    """Threads for this rank such that all ranks of a node together use each core once; collective.

    A core that several ranks may run on is divided between them.
    """
    mine = os.sched_getaffinity(0)
    node = comm.node()
    everyone = node.allgather(mine)
    node.free()
    share = sum(1 / sum(cpu in other for other in everyone) for cpu in mine)
    return max(1, int(share + 1e-9))


@contextmanager
def ending_together(comm: Comm) -> Iterator[None]:
    """Run a job so that one failing rank stops all ranks, with one readable line.

    An error that every rank raised together is re-raised on rank 0; the other ranks exit silently with
    its exit code. An error on one rank alone is logged there and aborts the job.
    """
    try:
        yield
    except MinistreamError as error:
        if comm.size == 1 or (error.everywhere and comm.rank == 0):
            raise
        if error.everywhere:
            raise SystemExit(int(error.exit_code)) from None
        _abort(comm, error, int(error.exit_code))
    except KeyboardInterrupt as error:
        if comm.size == 1:
            raise
        _abort(comm, error, 128 + 2)
    except Exception as error:
        if comm.size == 1:
            raise
        _LOG.debug("the failing rank's traceback", exc_info=True)
        _abort(comm, error, int(MachineError.exit_code))


def _abort(comm: Comm, error: BaseException, code: int) -> None:
    cause = str(error) if isinstance(error, MinistreamError) else f"{type(error).__name__}: {error}"
    _LOG.error("rank %d of %d on %s failed: %s", comm.rank, comm.size, os.uname().nodename, cause)
    sys.stderr.flush()
    comm.raw.Abort(code)
