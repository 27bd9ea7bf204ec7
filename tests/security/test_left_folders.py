"""Folders of processes that were killed: the next one removes them, and no other's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ministream.private import LockedFolder

HOLD = """
import sys, time
from ministream.private import LockedFolder
print(LockedFolder("s2cs-", sys.argv[1]).path, flush=True)
time.sleep(60)
"""


def aged(path: Path) -> Path:
    """As it is some minutes later."""
    os.utime(path, (time.time() - 300,) * 2)
    return path


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "s2cs-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    others = {aged(tmp_path / "elsewhere"), tmp_path / "s2cs-link"}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = aged(Path(process.stdout.readline().strip()))
        (left / "grpc").touch()
        aged(left)
        LockedFolder("s2cs-", str(tmp_path)).remove()
        assert left.is_dir(), "its process lives"
        process.send_signal(signal.SIGKILL)
    mine = LockedFolder("s2cs-", str(tmp_path))
    assert set(tmp_path.iterdir()) == {mine.path, *others}
    mine.remove()
    mine.remove()
    assert set(tmp_path.iterdir()) == others


def test_a_folder_that_is_just_being_made_is_left_alone(tmp_path: Path) -> None:
    young = tmp_path / "s2cs-young"
    young.mkdir()
    LockedFolder("s2cs-", str(tmp_path)).remove()
    assert young.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's folder")
def test_another_users_folder_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "s2cs-foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    aged(foreign)
    LockedFolder("s2cs-", str(tmp_path)).remove()
    assert foreign.is_dir()
