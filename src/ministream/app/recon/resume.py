"""Resuming from a checkpoint: the settings that it determines, and the check that it belongs to this scan."""

from __future__ import annotations

import dataclasses
from typing import Any

from ministream import config, log
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.parts import Parts
from ministream.config import AUTO, Config
from ministream.errors import InputError
from ministream.model import Scan
from ministream.parallel.mpi import Comm
from ministream.storage import Checkpoint, open_newest

_LOG = log.get(__name__)

# The fields of a scan that must match those of the checkpoint.
_SAME = ("scan_id", "rows", "cols", "dtype", "projections")
# The tables that determine the image; all others (threads, outputs, connections) may change.
_TABLES = ("window", "recon", "prep")


def found(comm: Comm, settings: Config) -> Checkpoint | None:
    """The checkpoint to continue from, if `[checkpoint] resume` names a folder; collective. Raises InputError."""
    folder = settings.checkpoint.resume
    return open_newest(comm, folder) if folder is not None else None


def settled(settings: Config, checkpoint: Checkpoint) -> Config:
    """The configuration with the tables that the checkpoint determines."""
    saved = checkpoint.values["config"]
    tables = {name: dict(saved[name]) for name in _TABLES}
    mine = {name: getattr(settings.recon, name) for name in ("threads", "hang_timeout_s")}
    tables["recon"] |= mine | {"axis": checkpoint.values["axis_col"], "center": None}
    known = {name: config.parse(type(getattr(settings, name)), tables[name], str(checkpoint.path)) for name in _TABLES}
    if any(getattr(settings, name) != known[name] for name in ("window", "prep")):
        _LOG.info("using the tables %s from %s", ", ".join(f"[{name}]" for name in _TABLES), checkpoint.path)
    return settings.model_copy(update=known)


def check(checkpoint: Checkpoint, scan: Scan) -> None:
    """Raise InputError when the checkpoint belongs to another scan."""
    saved = checkpoint.values["scan"]
    for name in _SAME:
        if saved[name] != getattr(scan, name):
            raise InputError(
                f"{checkpoint.path}: is of a scan whose {name} is {saved[name]!r}, the producer sends one whose {name} "
                f"is {getattr(scan, name)!r}. Connect to the producer of that scan, or start without --resume."
            )


def header(assignment: Assignment) -> dict[str, Any]:
    """The metadata of a checkpoint, in addition to the state of the parts."""
    return {
        "scan": dataclasses.asdict(assignment.scan),
        "config": assignment.config.as_dict(),
        "axis_col": AUTO if assignment.config.recon.finds_axis else assignment.axis_col,
    }


def restore(checkpoint: Checkpoint, comm: Comm, assignment: Assignment, parts: Parts) -> None:
    """Restore the state of the previous run into `parts`; collective. Raises InputError."""
    with comm.together():
        saved = checkpoint.read(assignment.slab.slice, comm.part(assignment.n))
    parts.restore(saved)
    if comm.rank == 0:
        _LOG.info(
            "resumed from %s: %d updates, %d projections used",
            checkpoint.path,
            parts.books.updates,
            parts.books.ledger.used,
        )
