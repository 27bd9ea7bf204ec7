"""The image holds every HDF5 library that h5py was linked with in its first stage."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import h5py
import pytest

RECIPE = Path(__file__).parents[2] / "launch" / "Dockerfile"
DPKG = shutil.which("dpkg-query")


@pytest.mark.skipif(DPKG is None, reason="the recipes are for Debian")
def test_the_packages_of_the_hdf5_libraries_are_installed() -> None:
    if not h5py.get_config().mpi:
        pytest.skip("this h5py is not built as in the image")
    modules = Path(h5py.__file__).parent.glob("*.so")
    linked = subprocess.run(["ldd", *modules], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"=> \S*/(libhdf5\S*)", linked))
    assert libraries
    # by name alone: /lib is a link to /usr/lib, and dpkg knows one of the two
    found = [subprocess.run([DPKG, "-S", f"*/{one}"], capture_output=True, text=True, check=False) for one in libraries]
    if any(each.returncode for each in found):
        pytest.skip("this HDF5 is not Debian's")
    packages = {each.stdout.partition(":")[0] for each in found}
    second = RECIPE.read_text().rpartition("FROM ")[2]
    assert {package for package in packages if package not in second} == set()
