"""The same files with a serial h5py: several ranks, HDF5 without MPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

PROJECT = Path(__file__).parents[2]

JOB = """
import sys
from pathlib import Path
import h5py
assert not h5py.get_config().mpi, h5py.__file__
from tests.parallel.volumes import state, writer_and_image
from ministream.parallel import mpi
comm = mpi.world(3)
writer, image = writer_and_image(comm.dup(), Path(sys.argv[1]), 7, 40, sys.argv[2])
writer.snapshot(0, image, state())
writer.final(image, state())
if comm.rank == 0:
    print(writer.way)
"""


@pytest.fixture(scope="module")
def serial_h5py(tmp_path_factory):
    """A folder with the h5py wheel of the package index, which is built without MPI."""
    target = tmp_path_factory.mktemp("serial")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=h5py", "--target", target]
    installed = subprocess.run([*command, "h5py"], check=False, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"no h5py wheel to be had: {installed.stderr.strip().splitlines()[-1]}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "way"), [("direct", "one writer per rank, overlapped with computation"), ("hdf5", "HDF5 through rank 0")]
)
def test_three_ranks_without_parallel_hdf5(serial_h5py, tmp_path, how, way):
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    allowed |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI_"))}
    path = os.pathsep.join([str(serial_h5py), str(PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = clean | allowed | {"PYTHONPATH": path}
    command = ["mpirun", "-n", "3", sys.executable, "-c", JOB, str(tmp_path), how]
    job = subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    assert way in job.stdout
    expected = np.random.default_rng(11).permutation(7 * 40 * 40).astype(np.float32).reshape(7, 40, 40)
    for name in ("000000-recon.h5", "recon.h5"):
        with h5py.File(tmp_path / name, "r") as file:
            assert np.array_equal(file["data"], expected)
            assert file["data"].attrs["units"] == "1/pixel"
    assert len(list(tmp_path.iterdir())) == 2
