"""Continuing from a checkpoint: what of the configuration it decides, and whether it is of this scan."""

from __future__ import annotations

import dataclasses
from typing import Any

from ministream import config, log
from ministream.app.recon.assignment import Assignment
from ministream.app.recon.parts import Parts
from ministream.config import Config
from ministream.errors import InputError
from ministream.model import Scan
from ministream.parallel.mpi import Comm
from ministream.storage import Checkpoint, open_newest

_LOG = log.get(__name__)

# What a scan must have in common with that of the checkpoint.
_SAME = ("scan_id", "rows", "cols", "dtype", "projections")
# What makes the image; the rest (threads, outputs, connections) may be others.
_TABLES = ("window", "recon", "prep")


def found(comm: Comm, settings: Config) -> Checkpoint | None:
    """The checkpoint to continue from, if `[checkpoint] resume` names a folder; collective. Raises InputError."""
    folder = settings.checkpoint.resume
    return open_newest(comm, folder) if folder is not None else None


def settled(settings: Config, checkpoint: Checkpoint) -> Config:
    """The configuration with the tables that the checkpoint decides."""
    saved = checkpoint.values["config"]
    tables = {name: dict(saved[name]) for name in _TABLES}
    tables["recon"] |= {"threads": settings.recon.threads, "axis": checkpoint.values["axis_col"], "center": None}
    known = {name: config.parse(type(getattr(settings, name)), tables[name], str(checkpoint.path)) for name in _TABLES}
    if any(getattr(settings, name) != known[name] for name in ("window", "prep")):
        _LOG.info("the tables %s are those of %s", ", ".join(f"[{name}]" for name in _TABLES), checkpoint.path)
    return settings.model_copy(update=known)


def check(checkpoint: Checkpoint, scan: Scan) -> None:
    """Raises InputError when `scan` is not the one that the checkpoint is of."""
    saved = checkpoint.values["scan"]
    for name in _SAME:
        if saved[name] != getattr(scan, name):
            raise InputError(
                f"{checkpoint.path}: is of a scan whose {name} is {saved[name]!r}, the producer sends one whose {name} "
                f"is {getattr(scan, name)!r}. Connect to the producer of that scan, or start without --resume."
            )


def header(assignment: Assignment) -> dict[str, Any]:
    """What a checkpoint says about its run, beside the state of the parts."""
    return {
        "scan": dataclasses.asdict(assignment.scan),
        "config": assignment.config.as_dict(),
        "axis_col": assignment.axis_col,
    }


def restore(checkpoint: Checkpoint, comm: Comm, assignment: Assignment, parts: Parts) -> None:
    """Put the state of the run before into `parts`; collective. Raises InputError."""
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
