"""launch/setup.sh in each of its ways, each on a copy of the checkout with a .venv of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.integration.jobs import MINISTREAM

PROJECT = Path(__file__).resolve().parents[2]
NOBODY = 65534
SMALL = '[source]\nkind = "phantom"\nrows = 8\ncols = 32\nprojections = 30\n[window]\nlength = 20\nstep = 10\n'
MPI_COMMANDS = re.compile(r"mpi|hydra|h5pcc|h5pfc|ompi|orte|opal|osh|prte|pmix")

pytestmark = pytest.mark.timeout(600)


def copy_checkout(copy: Path) -> Path:
    """The working tree without anything that was built in it.

    Kernels are not compiled, which takes most of a minute for every copy; the test run's own set-up compiles them.
    """
    built = shutil.ignore_patterns(".git", ".venv", "results", "build", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(PROJECT, copy, ignore=built)
    (copy / "launch" / "lib" / "compile_kernels.py").write_text("")
    return copy


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path / "checkout")


def plain_environment(**more: str) -> dict[str, str]:
    """This process's environment without the one that pytest runs in; bytecode is left out to save time."""
    ours = re.compile(r"OMPI_|PRTE_|PMIX_|(VIRTUAL_ENV|CONDA_PREFIX|PYTHONPATH|LD_LIBRARY_PATH|MPI4PY_MPIABI)$")
    kept = {key: value for key, value in os.environ.items() if not ours.match(key)}
    folders = [folder for folder in kept["PATH"].split(":") if not folder.startswith(sys.prefix)]
    return kept | {"PATH": ":".join(folders), "PIP_NO_COMPILE": "1"} | more


def run(command: list[str], environment: Mapping[str, str], cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        env=dict(environment),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    print(" ".join(command), done.stdout, sep="\n")
    return done


def setup(
    checkout: Path, *arguments: str, env: Mapping[str, str] | None = None, user: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run launch/setup.sh from another folder, as a prefix command `user` where one is given."""
    script = ["bash", str(checkout / "launch/setup.sh"), *arguments]
    return run([*(user or []), *script], env or plain_environment())


def by_hand(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` as a user does who has sourced the environment file."""
    source = f". '{checkout}/.venv/ministream-env.sh' && {command}"
    return run(["bash", "-c", source], plain_environment())


def two_ranks(checkout: Path, launcher: str = "mpirun") -> str:
    return f"{launcher} -n 2 python '{checkout}/launch/lib/two_ranks.py' 2"


def spare_extras(checkout: Path) -> None:
    """Leave out what has nothing to do with MPI, to save time; hdf5plugin, which wants h5py, stays."""
    config = checkout / "setup.cfg"
    text, count = re.subn(r"ministream\[quality,.*\]", "ministream[codecs]", config.read_text(), count=1)
    assert count == 1
    config.write_text(text)


def assert_done(checkout: Path, env: Mapping[str, str] | None = None) -> None:
    """A second run has nothing to do and says so at once."""
    again = setup(checkout, env=env)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert setup(checkout, "--check", env=env).returncode == 0


def volume(results: Path) -> NDArray[np.float32]:
    with h5py.File(results / "recon.h5") as file:
        found: NDArray[np.float32] = file["data"][:]
    assert np.abs(found).max() > 0
    return found


needs_stack = pytest.mark.skipif(
    not (shutil.which("mpicc.openmpi") and list(Path("/usr/lib").glob("*/hdf5/openmpi"))),
    reason="needs Debian's Open MPI and parallel HDF5",
)


@needs_stack
@pytest.mark.slow
def test_h5py_is_built_for_the_mpi_that_is_here(checkout: Path) -> None:
    spare_extras(checkout)
    check = setup(checkout, "--check", "--mpi", "openmpi")
    assert check.returncode == 1
    assert "way     build" in check.stdout
    assert not (checkout / ".venv").exists()

    done = setup(checkout, "--mpi", "openmpi")
    assert done.returncode == 0
    assert re.search(r"ready in .*Open MPI .* parallel HDF5 .*, 2 ranks", done.stdout)
    assert "parallel HDF5" in by_hand(checkout, two_ranks(checkout)).stdout
    assert by_hand(checkout, "ministream --version").returncode == 0
    assert_done(checkout)

    # A package that depends on h5py can have replaced it by pip's serial one of the same version.
    by_hand(checkout, "pip install -q --force-reinstall --no-deps --only-binary=:all: h5py==3.16.0")
    check = setup(checkout, "--check")
    assert check.returncode == 1
    assert "to do   h5py" in check.stdout
    assert "to do   .venv" not in check.stdout
    assert setup(checkout).returncode == 0
    assert "parallel HDF5" in by_hand(checkout, two_ranks(checkout)).stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("mpirun.mpich") and not (os.geteuid() == 0 and shutil.which("apt-get")),
    reason="needs Debian's MPICH, or root to install it",
)
def test_mpich_beside_open_mpi(checkout: Path) -> None:
    spare_extras(checkout)
    done = setup(checkout, "--mpi", "mpich")
    assert done.returncode == 0
    assert re.search(r"ready in .*MPICH .* parallel HDF5 .*, 2 ranks", done.stdout)
    assert_done(checkout)
    assert "to do   .venv" in setup(checkout, "--check", "--mpi", "openmpi").stdout

    # A pair of jobs gives the volume that it gives here.
    (checkout / "run.toml").write_text(SMALL)
    ran = by_hand(checkout, f"cd '{checkout}' && ministream launch run.toml --ranks 2 --out mpich")
    assert ran.returncode == 0
    # It has no package for the quality of the phantom's volume, which is no reason to lose the volume.
    assert "quality is not measured" in ran.stdout
    assert json.loads((checkout / "mpich/summary.json").read_text())["storage"].startswith("parallel HDF5")
    here = run([*MINISTREAM, "launch", "run.toml", "--ranks", "1", "--out", "here"], os.environ, checkout)
    assert here.returncode == 0
    np.testing.assert_allclose(*(volume(checkout / folder) for folder in ("mpich", "here")), rtol=0, atol=0.1)

    if shutil.which("mpirun.openmpi"):
        wrong = by_hand(checkout, two_ranks(checkout, "mpirun.openmpi"))
        assert wrong.returncode != 0
        assert "mpirun started singletons: 1 of 2 ranks" in wrong.stdout


def snapshot(folder: Path) -> dict[str, tuple[float, int]]:
    return {str(path): (path.lstat().st_mtime, path.lstat().st_size) for path in folder.rglob("*")}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """An environment such as a module or conda gives: mpi4py, a parallel h5py, not all that Mini-Stream needs."""
    h5py = pytest.importorskip("h5py")
    if not h5py.get_config().mpi:
        pytest.skip("needs a parallel h5py")
    folder = tmp_path / "cluster"
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], plain_environment())
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    absent = re.compile(r"ministream|__editable__|rich|msgspec|distutils|__pycache__|.*\.pth$")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not absent.match(path.name):
            (packages / path.name).symlink_to(path)
    return folder


@pytest.mark.slow
def test_an_environment_that_has_it_all_stays_untouched(checkout: Path, cluster: Path) -> None:
    env = plain_environment(VIRTUAL_ENV=str(cluster))
    before = snapshot(cluster)
    done = setup(checkout, env=env)
    assert done.returncode == 0
    assert f".venv over {cluster}/bin/python" in done.stdout
    assert snapshot(cluster) == before

    origins = by_hand(checkout, "python -c 'import h5py, rich; print(h5py.__file__, rich.__file__)'").stdout
    assert f"{cluster}/lib" in origins
    assert f"{checkout}/.venv/lib" in origins
    assert by_hand(checkout, two_ranks(checkout)).returncode == 0
    assert_done(checkout)


def test_an_environment_that_is_too_old_is_left_aside(checkout: Path, cluster: Path) -> None:
    config = checkout / "setup.cfg"
    config.write_text(re.sub(r"h5py>=\S+", "h5py>=99", config.read_text()))
    check = setup(checkout, "--check", env=plain_environment(VIRTUAL_ENV=str(cluster)))
    assert re.search(rf"note: {cluster}\S* is left aside: h5py \S+ is older than 99", check.stdout)
    assert "way     environment" not in check.stdout


@dataclass(frozen=True, kw_only=True)
class Outsider:
    """Somebody without root on a machine without MPI; `prefix` starts a command as that user."""

    checkout: Path
    commands: Path
    env: dict[str, str]
    prefix: list[str]

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return setup(self.checkout, *arguments, env=self.env, user=self.prefix)


@pytest.fixture
def outsider() -> Iterator[Outsider]:
    python = next(filter(suits_everybody, ["/usr/bin/python3", f"{sys.base_prefix}/bin/python3"]), None)
    if python is None:
        pytest.skip("needs a Python 3.11 with ensurepip that every user may run")
    with tempfile.TemporaryDirectory(prefix="ministream-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        env = plain_environment(
            PATH=str(commands_but_mpi(folder / "commands")),
            HOME=f"{name}/home",
            TMPDIR=f"{name}/tmp",
            XDG_CACHE_HOME=f"{name}/home/cache",
            PYTHON=python,
        )
        checkout = copy_checkout(folder / "checkout")
        if os.geteuid() == 0:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        yield Outsider(checkout=checkout, commands=folder / "commands", env=env, prefix=as_nobody())


def as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def suits_everybody(python: str) -> bool:
    code = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    return run([*as_nobody(), "env", python, "-c", code], plain_environment()).returncode == 0


def commands_but_mpi(folder: Path) -> Path:
    """Links to every command of this machine but MPI's."""
    folder.mkdir()
    for source in reversed(plain_environment()["PATH"].split(":")):
        for command in Path(source).glob("*"):
            if not MPI_COMMANDS.match(command.name):
                (folder / command.name).unlink(missing_ok=True)
                (folder / command.name).symlink_to(command)
    return folder


@pytest.mark.slow
def test_pip_alone_without_root_and_without_mpi(outsider: Outsider) -> None:
    done = outsider.setup()
    assert done.returncode == 0
    assert "serial h5py and Open MPI from pip" in done.stdout
    assert "rank 0 gathers" in done.stdout, "what it costs"
    assert "load modules" in done.stdout, "what to load"
    assert "libhdf5-openmpi-dev" in done.stdout, "what to ask for"
    assert re.search(r"ready in .*Open MPI .* serial HDF5 .*, 2 ranks", done.stdout)
    assert "nothing to do" in outsider.setup().stdout


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs Debian's Open MPI")
def test_an_mpi_without_parallel_hdf5_is_used_as_it_is(outsider: Outsider) -> None:
    (outsider.commands / "mpirun").symlink_to(str(shutil.which("mpirun.openmpi")))
    check = outsider.setup("--check")
    assert check.returncode == 1
    assert re.search(r"way     pip: .venv with a serial h5py and Open MPI \d", check.stdout)


def test_a_failing_step_shows_the_end_of_the_log_and_the_remedy(checkout: Path, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    env = plain_environment(
        PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=nowhere, PIP_RETRIES="0", XDG_CACHE_HOME=str(tmp_path)
    )
    env = {key: value for key, value in env.items() if key != "PIP_FIND_LINKS"}
    done = setup(checkout, env=env)
    assert done.returncode == 1
    assert "No matching distribution found for setuptools" in done.stdout
    assert "setup.sh: '.venv' failed. Is the network there" in done.stdout
    assert str(tmp_path / "ministream/setup.log") in done.stdout
    assert not (checkout / ".venv/ministream-setup").exists()


def test_an_old_python_is_named(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = setup(checkout, env=plain_environment(PYTHON=str(old)))
    assert done.returncode == 2
    assert f"Mini-Stream needs Python 3.11 or later; {old} is: Python 3.9.2" in done.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("arguments", [["--wiht-tests"], ["--mpi", "lam"], ["--mpi"]])
def test_a_wrong_option_is_a_usage_error(checkout: Path, arguments: list[str]) -> None:
    done = setup(checkout, *arguments)
    assert done.returncode == 2
    assert "setup.sh: " in done.stdout
    assert not (checkout / ".venv").exists()
