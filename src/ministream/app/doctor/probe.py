"""The program that `doctor` starts as ranks: they write one volume together, rank 0 reads it and tells the result.

mpirun -n RANKS python -m ministream.app.doctor.probe RANKS FOLDER RESULT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ministream import partition
from ministream.errors import StorageError
from ministream.ledger import Ledger
from ministream.model import Scan, Slab
from ministream.parallel import mpi
from ministream.storage import VolumeState, VolumeWriter, read_volume

# 32 MiB per rank.
_N = 512
_SLICES = 32


def main(ranks: int, folder: Path, result: Path) -> None:
    """Write, read back, tell. Started as separate jobs, every one of them tells so."""
    comm = mpi.world()
    told: dict[str, Any] = {
        "ranks": comm.size,
        "library": mpi.library(),
        "thread_level": mpi.thread_level(),
        "failure": "",
    }
    if comm.size == ranks:
        told |= _written(comm, ranks, folder)
    if comm.rank == 0:
        part = result.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(result)


def _written(comm: mpi.Comm, ranks: int, folder: Path) -> dict[str, Any]:
    scan = Scan(
        scan_id="doctor", rows=_SLICES * ranks, cols=_N, projections=0, flats=0, darks=0, dtype="<u2"
    )  # fmt: skip
    slabs = partition.slabs(scan.rows, ranks)
    image = np.full((_N, _N, _SLICES), comm.rank, np.float32)
    writer = VolumeWriter(
        comm.dup(), folder, scan=scan, n=_N, slab=slabs[comm.rank], axis_col=scan.axis_or_middle, config={}, how="hdf5"
    )
    began = time.perf_counter()
    try:
        path = writer.final(image, VolumeState(ledger=Ledger(), updates=0, elapsed_s=0.0))
    except StorageError as error:
        return {"failure": str(error)}
    finally:
        writer.close()
    seconds = time.perf_counter() - began
    failure = _difference(path, slabs) if comm.rank == 0 else ""
    comm.barrier()
    return {
        "failure": failure,
        "way": writer.way,
        "parallel": writer.collective,
        "mib": image.nbytes * ranks / 2**20,
        "seconds": seconds,
    }


def _difference(path: Path, slabs: tuple[Slab, ...]) -> str:
    volume = read_volume(path)
    wrong = [rank for rank, slab in enumerate(slabs) if not (volume[slab.slice] == rank).all()]
    return f"{path}: the slices of ranks {wrong} are not what they wrote" if wrong else ""


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
