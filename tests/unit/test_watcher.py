"""What a killed launcher started ends, and its private folder and its pair's secrets are gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ministream.app.launch.rendezvous import SharedFolder
from ministream.app.launch.watcher import Watcher, end_marked, marked
from tests.waiting import eventually

# A launcher with a private folder, a pair, and two children: one deaf to SIGTERM, one that left its session.
LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
import os
from ministream.app.launch.watcher import Watcher
private, folder = Path(sys.argv[1]), Path(sys.argv[2])
with Watcher(private) as watcher:
    watcher.answer_for(folder, "recon")
    environment = os.environ | watcher.environment
    deaf = "trap '' TERM; while true; do sleep 0.1; done"
    subprocess.Popen(["sh", "-c", deaf], env=environment, start_new_session=True)
    subprocess.Popen(["setsid", "sleep", "60"], env=environment)
    print(*watcher.environment.values(), flush=True)
    time.sleep({seconds})
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    private, pair = tmp_path / "private", tmp_path / "pair"
    private.mkdir()
    (private / "secret").touch()
    SharedFolder(pair, "producer").credentials("localhost")
    return private, pair


def start(folders: tuple[Path, Path], seconds: float) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", LAUNCHER.format(seconds=seconds), *map(str, folders)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    with launcher.stdout as told:
        return launcher, told.readline().strip()


def test_a_launcher_that_is_killed_leaves_nothing(folders: tuple[Path, Path]) -> None:
    private, folder = folders
    launcher, mark = start(folders, 60)
    assert len(marked(mark)) >= 2
    launcher.kill()
    launcher.wait()
    eventually(lambda: not marked(mark) and not private.exists(), lambda: f"left: {marked(mark)}, {private}")
    partner = SharedFolder(folder, "producer").partner_outcome()
    assert partner is not None
    assert (partner.code, partner.reason) == (4, "its launcher was killed")


def test_a_launcher_that_ends_in_order_is_left_alone(folders: tuple[Path, Path]) -> None:
    private, folder = folders
    launcher, mark = start(folders, 0.0)
    try:
        assert launcher.wait(30) == 0
        assert private.exists()
        assert not (folder / "recon.end").exists()
        assert marked(mark)
    finally:
        end_marked(mark)
    assert not marked(mark)


def test_marks_are_different(tmp_path: Path) -> None:
    with Watcher(tmp_path) as one, Watcher(tmp_path) as two:
        assert one.environment != two.environment
