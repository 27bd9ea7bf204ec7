"""Print what one Python has for Mini-Stream, one `key value` per line; needs nothing beyond the standard library.

Keys: `folders` (where it finds packages, joined by `:`), `mpi` (openmpi 4.1.4, mpich 4.0.2, …), `h5py`, `hdf5`,
`parallel` (yes or no: h5py built for MPI) and `old` (what is older than setup.cfg asks for). It ends with the
traceback of the first import that fails, so the keys from there on are absent. MPI is loaded but not initialised.
"""

import configparser
import importlib
import re
import site
import sys
from pathlib import Path

SETUP_CFG = Path(__file__).resolve().parents[2] / "setup.cfg"
MPI_STACK = ("numpy", "mpi4py", "h5py")


def minimum_versions():
    """The lowest versions of the MPI stack that setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(SETUP_CFG)
    wanted = re.findall(r"^([\w-]+)>=([\d.]+)$", config["options"]["install_requires"], re.MULTILINE)
    return {name: version for name, version in wanted if name in MPI_STACK}


def as_numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def mpi_library():
    """Flavour and version of the library that mpi4py loads."""
    mpi4py = importlib.import_module("mpi4py")
    mpi4py.rc.initialize = False
    vendor, version = importlib.import_module("mpi4py.MPI").get_vendor()
    return f"{vendor.lower().replace(' ', '')} {'.'.join(map(str, version))}"


def too_old(modules):
    """Which of these imported modules are older than Mini-Stream needs, one phrase each."""
    for name, minimum in minimum_versions().items():
        version = modules[name].__version__
        if as_numbers(version) < as_numbers(minimum):
            yield f"{name} {version} is older than {minimum}"


def package_folders():
    """Where this Python finds packages, PYTHONPATH included, the standard library left out."""
    stdlib = Path(site.__file__).parent
    folders = [Path(entry) for entry in sys.path[1:] if entry]
    return [str(folder) for folder in folders if folder.is_dir() and folder not in (stdlib, stdlib / "lib-dynload")]


def main():
    print("folders", ":".join(package_folders()))
    print("mpi", mpi_library())
    modules = {name: importlib.import_module(name) for name in MPI_STACK}
    h5py = modules["h5py"]
    print("h5py", h5py.__version__)
    print("hdf5", h5py.version.hdf5_version)
    print("parallel", "yes" if h5py.get_config().mpi else "no")
    print("old", "; ".join(too_old(modules)))


main()
