"""Machine code is loaded only from a folder that nobody else can change, and a bad folder never ends a run."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHOOSE = """
import sys
from ministream import jit
print(jit._FOLDER)
sys.stdout.flush()
if jit._FOLDER is not None:
    print(oct(jit._FOLDER.stat().st_mode & 0o7777))
"""
ONE_KERNEL = """
from ministream import jit
@jit.jit
def twice(x):
    return 2 * x
jit.compile_all({"twice": lambda: twice(21)})
print(jit._FOLDER)
"""
STRANGER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def run(code: str, *, drop: tuple[str, ...] = (), **settings: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these environment variables; the result's standard error is the log."""
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment |= {name: str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def own_cache(tmp_path: Path) -> Path:
    """Where the program goes when the given folder is rejected."""
    return tmp_path / "own-cache"


def rejected(given: Path, tmp_path: Path) -> str:
    """The log of a process that was given this folder and uses the user's own cache instead."""
    done = run(CHOOSE, NUMBA_CACHE_DIR=given, XDG_CACHE_HOME=own_cache(tmp_path))
    folder, mode = done.stdout.split()
    assert folder.startswith(f"{own_cache(tmp_path).resolve()}/ministream/")
    assert mode == "0o700"
    assert str(given) in done.stderr
    return done.stderr


def test_a_folder_is_made_for_the_user_alone(tmp_path: Path) -> None:
    done = run(CHOOSE, NUMBA_CACHE_DIR=tmp_path / "kernels")
    assert done.stdout.split() == [str(tmp_path / "kernels"), "0o700"]
    assert not done.stderr


def test_a_folder_that_others_can_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir(mode=0o755)
    assert run(CHOOSE, NUMBA_CACHE_DIR=tmp_path / "kernels").stdout.split() == [str(tmp_path / "kernels"), "0o700"]


def test_a_folder_that_others_can_write_is_rejected(tmp_path: Path) -> None:
    given = tmp_path / "kernels"
    given.mkdir()
    given.chmod(0o777)
    assert "can be changed by others" in rejected(given, tmp_path)


def test_a_link_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    given = tmp_path / "kernels"
    given.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in rejected(given, tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_others_can_rename_is_rejected(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "can be replaced by others" in rejected(shared / "kernels", tmp_path)
    # as the machine's own temporary folder is: only owners rename there
    shared.chmod(0o1777)
    assert run(CHOOSE, NUMBA_CACHE_DIR=shared / "kernels").stdout.split()[0] == str(shared / "kernels")


@as_root
def test_a_folder_of_another_user_is_rejected(tmp_path: Path) -> None:
    given = tmp_path / "kernels"
    given.mkdir(mode=0o755)
    os.chown(given, STRANGER, -1)
    assert f"belongs to user {STRANGER}" in rejected(given, tmp_path)


def test_what_others_can_plant_is_never_unpickled(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    given, code = tmp_path / "kernels", tmp_path / "kernel.py"
    code.write_text(ONE_KERNEL)
    start = f"import runpy; runpy.run_path({str(code)!r})"
    run(start, NUMBA_CACHE_DIR=given)
    indices = list(given.rglob("*.nbi"))
    assert indices
    for index in indices:
        index.write_bytes(pickle.dumps(Planted()))
    given.chmod(0o777)
    run(start, NUMBA_CACHE_DIR=given, XDG_CACHE_HOME=own_cache(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    given = tmp_path / "kernels"
    given.mkdir(mode=0o700)
    (given / f"lock-{os.uname().nodename}-twice").symlink_to(tmp_path / "victim")
    code = """
from ministream import jit
try:
    jit.compile_all({"twice": lambda: None})
except OSError as error:
    print(error.errno)
"""
    assert run(code, NUMBA_CACHE_DIR=given).stdout.strip() == str(errno.ELOOP)
    assert not (tmp_path / "victim").exists()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rejected(tmp_path / "file" / "cache", tmp_path)


@as_root
def test_an_unknown_user_without_a_home_has_a_folder_in_the_temporary_directory() -> None:
    # pytest's own folders are closed to others
    temporary = Path(f"/tmp/ministream-test-{os.getpid()}")
    temporary.mkdir()
    temporary.chmod(0o1777)
    # the interpreter itself may lie where only root can read
    code = f"import os, llvmlite.binding, numba, ministream.private\nos.setuid({STRANGER})\n{CHOOSE}"
    try:
        done = run(code, drop=("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), TMPDIR=temporary)
        folder, mode = done.stdout.split()
        assert Path(folder).parent == temporary / f"ministream-kernels-{STRANGER}"
        assert Path(folder).stat().st_uid == STRANGER
        assert mode == "0o700"
        assert "NUMBA_CACHE_DIR" in done.stderr
    finally:
        shutil.rmtree(temporary)


def test_a_disk_that_fills_up_costs_no_result(tmp_path: Path) -> None:
    limit = "import resource\nfrom ministream import jit\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    code = tmp_path / "kernel.py"
    code.write_text(limit + ONE_KERNEL)
    done = run(f"import runpy; runpy.run_path({str(code)!r})", NUMBA_CACHE_DIR=tmp_path / "kernels")
    assert "compiled kernel not kept" in done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_file_system_without_locks_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "nolock.c").write_text(
        "#include <errno.h>\nint flock(int fd, int how) { (void)fd; (void)how; errno = ENOLCK; return -1; }\n"
    )
    library = tmp_path / "nolock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c"], check=True)
    code = tmp_path / "kernel.py"
    code.write_text(ONE_KERNEL)
    done = run(f"import runpy; runpy.run_path({str(code)!r})", LD_PRELOAD=library, TMPDIR=tmp_path)
    assert "No locks available" in done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path
    assert not Path(done.stdout.strip()).exists(), "removed with the process"
