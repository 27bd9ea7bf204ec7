"""MPI and parallel HDF5: ranks are really started, and write one file together into the folder of the results."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ministream.app import placement
from ministream.app.doctor.checks.folder import existing
from ministream.app.doctor.finding import Finding, Subject, bad, doubtful, good
from ministream.app.launch.processes import Child
from ministream.errors import ConfigError, MachineError

_LIMIT_S = 120.0
_END_S = 5.0
_PROBE = "ministream.app.doctor.probe"
_SETUP = "load the MPI module, or make the environment again: bash launch/setup.sh --fresh"


def examine(subject: Subject) -> Iterator[Finding]:
    """MPI, then HDF5 where MPI works."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing(subject.folder)) as name:
            told = _run(subject, Path(name))
    except (ConfigError, MachineError) as error:
        yield bad("MPI", str(error), _SETUP)
        return
    except OSError:
        return  # the folder's own check reports it
    if isinstance(told, str):
        yield bad("MPI", told, _SETUP)
        return
    yield _mpi(told, subject.ranks)
    if told["ranks"] == subject.ranks:
        yield _hdf5(told)


def _run(subject: Subject, folder: Path) -> dict[str, Any] | str:
    """What rank 0 has told, or why it has not."""
    prefix: Sequence[str] = subject.launcher
    environment: dict[str, str] = {}
    if not prefix:
        prefix, environment = placement.mpirun(subject.ranks, 1, placement.granted())
    result = folder / "result.json"
    command = [*prefix, sys.executable, "-P", "-m", _PROBE, str(subject.ranks), str(folder), str(result)]
    with Child("ranks", command, environment) as child:
        if child.wait(_LIMIT_S) is None:
            return f"{subject.ranks} ranks did not end within {_LIMIT_S:.0f} s"
        if not result.exists():
            return f"{subject.ranks} ranks ended without a result: {child.explanation or f'exit code {child.code}'}"
    return dict(json.loads(result.read_text()))


def _mpi(told: dict[str, Any], ranks: int) -> Finding:
    found = f"{told['library']}, {told['ranks']} ranks, thread level {told['thread_level']}"
    if told["ranks"] != ranks:
        wrong = f"{ranks} ranks were started as {ranks} jobs of one rank ({told['library']})"
        return bad("MPI", wrong, "start them with the mpirun or srun that belongs to this MPI (--launcher)")
    if told["thread_level"] == "single":
        return doubtful("MPI", found, "other threads than MPI's may disturb it: use a build with thread support")
    return good("MPI", found)


def _hdf5(told: dict[str, Any]) -> Finding:
    if told["failure"]:
        remedy = "choose another folder with --out; HDF5_USE_FILE_LOCKING=FALSE where the file system has no locks"
        return bad("parallel HDF5", told["failure"], remedy)
    found = f"{told['way']}: {told['mib']:.0f} MiB in {told['seconds']:.2f} s, read back equal"
    if told["parallel"]:
        return good("parallel HDF5", found)
    remedy = "h5py is a serial build: load modules with a parallel HDF5, then bash launch/setup.sh --fresh"
    return doubtful("parallel HDF5", found, remedy)
