"""Limits of the operating system that a job runs into: open files, locked memory, shared memory."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from ministream.app.doctor.finding import Finding, Subject, doubtful, good

# A relay has two sockets per connection, and its control server admits 512 connections.
FILES = 2048
# Open MPI's segment of a rank (btl_vader_segment_size) takes 4 MiB.
SHARED_MIB_PER_RANK = 8
SHARED = Path("/dev/shm")  # noqa: S108 - measured, never written to
_RDMA = Path("/dev/infiniband")
_UNLIMITED = resource.RLIM_INFINITY


def examine(subject: Subject) -> Iterator[Finding]:
    """Open files, locked memory, shared memory."""
    yield _open_files()
    yield _locked_memory()
    yield _shared_memory(subject.ranks)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {_text(soft)} (hard limit {_text(hard)})"
    if soft == _UNLIMITED or soft >= FILES:
        return good("open files", found)
    if hard == _UNLIMITED or hard >= FILES:
        return doubtful("open files", found, f"before starting the job: ulimit -S -n {FILES}")
    remedy = f"ask the administrator for a hard limit of {FILES} (nofile in /etc/security/limits.conf)"
    return doubtful("open files", found, remedy)


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == _UNLIMITED else f"at most {soft >> 20} MiB"
    if soft == _UNLIMITED or not _RDMA.exists():
        return good("locked memory", found + ("" if _RDMA.exists() else ", no InfiniBand here that needs it"))
    remedy = "InfiniBand needs it: ulimit -l unlimited, or memlock in /etc/security/limits.conf"
    return doubtful("locked memory", found, remedy)


def _shared_memory(ranks: int) -> Finding:
    free_mib = shutil.disk_usage(SHARED).free >> 20
    found = f"{free_mib} MiB free in {SHARED}"
    if free_mib >= ranks * SHARED_MIB_PER_RANK:
        return good("shared memory", found)
    remedy = (
        f"{ranks} ranks need {ranks * SHARED_MIB_PER_RANK} MiB: start the container with --shm-size=1g, or set "
        "OMPI_MCA_btl_vader_backing_directory to a local folder"
    )
    return doubtful("shared memory", found, remedy)


def _text(limit: int) -> str:
    return "unlimited" if limit == _UNLIMITED else str(limit)
