"""The communicator interface of storage, and the agreement of the ranks on errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import MinistreamError


class GatherHandle(Protocol):
    """A non-blocking gather of one small object per rank on rank 0."""

    def give(self, value: Any) -> None:
        """Send this rank's object; call once."""

    def take(self) -> list[Any] | None:
        """On rank 0 the objects in rank order, None while one is missing."""

    def drop(self) -> None:
        """Cancel pending receives."""


class Communicator(Protocol):
    """The ranks that share a volume; a separate communicator, so that messages of other modules cannot interfere.

    `raw` is the mpi4py communicator that HDF5 takes, or None without MPI.
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

    def gathering(self) -> GatherHandle:
        """Prepare to gather one object of every rank; collective."""

    def send_array(self, array: NDArray[Any], destination: int) -> None:
        """Send one C-contiguous array."""

    def recv_array(self, array: NDArray[Any], source: int) -> None:
        """Receive into one C-contiguous array of the shape and dtype that was sent."""


def together(comm: Communicator, path: Path, action: Callable[..., None], *args: Any, root_only: bool = False) -> None:
    """Run `action` on every rank, or on rank 0 only; a file system error on one rank raises on all ranks.

    No rank starts the next collective operation before all ranks have finished this one.
    Raises the same StorageError, naming `path`, on every rank.
    """
    failure = None
    try:
        if comm.rank == 0 or not root_only:
            action(*args)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError for a failed flush
        failure = atomic.failed(path, error)
    comm.agree(failure)
