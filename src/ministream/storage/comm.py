"""What storage needs of the ranks, and how they agree that something failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import MinistreamError


class Gathering(Protocol):
    """One small object from every rank on its way to rank 0, for which nobody waits."""

    def give(self, value: Any) -> None:
        """This rank's object; once."""

    def take(self) -> list[Any] | None:
        """On rank 0 the objects in rank order, None as long as one is missing."""

    def drop(self) -> None:
        """Expect nothing more."""


class Communicator(Protocol):
    """The ranks that share a volume; a communicator of storage's own, so that no other message mixes in.

    `raw` is the mpi4py communicator that HDF5 takes, or None in a run without MPI.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def raw(self) -> Any: ...

    def allgather(self, value: Any) -> list[Any]:
        """One small object of every rank, in rank order, on every rank."""

    def agree(self, error: MinistreamError | None) -> None:
        """Collective: raise on every rank the error of the lowest rank that has one."""

    def gathering(self) -> Gathering:
        """Prepare to gather one object of every rank; collective."""

    def send_array(self, array: NDArray[Any], destination: int) -> None:
        """Send one C-contiguous array."""

    def recv_array(self, array: NDArray[Any], source: int) -> None:
        """Receive into one C-contiguous array of the shape and dtype that was sent."""


def together(comm: Communicator, path: Path, action: Callable[..., None], *args: Any, root_only: bool = False) -> None:
    """Run `action` on every rank, or on rank 0 only; refused by the file system on one rank, it fails on all.

    Nobody goes on to the next collective operation before everybody is known to have finished this one.
    Raises the same StorageError, naming `path`, on every rank.
    """
    failure = None
    try:
        if comm.rank == 0 or not root_only:
            action(*args)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError for a failed flush
        failure = atomic.failed(path, error)
    comm.agree(failure)
