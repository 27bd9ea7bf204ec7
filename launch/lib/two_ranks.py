"""Run as `mpirun -n 2 python two_ranks.py 2`: prove that the ranks form one job and can write one HDF5 file.

Prints one line that describes the installation; exits with 1 and a reason where a proof fails.
"""

import sys
import tempfile
from pathlib import Path

from mpi4py import MPI  # before h5py: pip's MPI libraries are found through it

# isort: split
import h5py
import numpy as np

comm = MPI.COMM_WORLD
vendor = f"{MPI.get_vendor()[0]} {'.'.join(map(str, MPI.get_vendor()[1]))}"
parallel = h5py.get_config().mpi


def write(path):
    """One row per rank: together where h5py can, through rank 0 where it cannot."""
    if parallel:
        with h5py.File(path, "w", driver="mpio", comm=comm) as file:
            data = file.create_dataset("data", (comm.size, 4096), "f4", chunks=(1, 4096))
            with data.collective:
                data[comm.rank] = comm.rank
        return
    rows = comm.gather(np.full(4096, comm.rank, "f4"))
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            file["data"] = np.stack(rows)


def main(ranks):
    if comm.size != ranks:
        sys.exit(f"mpirun started singletons: {comm.size} of {ranks} ranks; it does not belong to mpi4py's {vendor}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(comm.bcast(folder)) / "ranks.h5"
        write(path)
        comm.Barrier()
        with h5py.File(path) as file:
            if not np.array_equal(file["data"][:, -1], np.arange(ranks)):
                sys.exit(f"{path}: not what {ranks} ranks wrote ({vendor}, HDF5 {h5py.version.hdf5_version})")
        comm.Barrier()
    if comm.rank == 0:
        kind = "parallel" if parallel else "serial"
        print(f"{vendor}, h5py {h5py.__version__} with {kind} HDF5 {h5py.version.hdf5_version}, {ranks} ranks")


main(int(sys.argv[1]))
