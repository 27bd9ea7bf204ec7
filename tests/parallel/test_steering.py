"""An operator changes a running job: all ranks obey between two updates, and the output says so."""

from __future__ import annotations

import io
import json
import threading
from contextlib import contextmanager

import h5py
import pytest
from rich.console import Console

from ministream import config, storage
from ministream.app.recon import live_key
from ministream.app.recon.job import recon
from ministream.app.view.operator import steer
from ministream.errors import ConfigError
from ministream.model import FrameKind
from ministream.transport.native import FrameSender
from tests.parallel.scans import frames, process, producing, scan
from tests.waiting import eventually

__all__ = ["process"]

pytestmark = pytest.mark.mpi


def run(address: str, folder):
    given = {
        "stream": {"connect": address},
        "window": {"length": 4, "step": 2},
        "recon": {"threads": 1, "axis": 7.0},
        "output": {"directory": folder, "live": "tcp://127.0.0.1:0", "pictures": False},
    }
    console = Console(file=io.StringIO())
    return recon(
        lambda: config.load(None, given), ranks=None, announce_to=None, log_level=None, console=console
    )  # fmt: skip


def told(folder) -> list[dict]:
    with h5py.File(folder / storage.FINAL) as file:
        return json.loads(file.attrs["steering"])


def test_commands_are_obeyed_by_all_ranks_and_written_down(comm, shared_tmp):
    def ready() -> None:
        eventually((shared_tmp / live_key.NAME).exists)
        for wrong, said in ((0, "from 1 to"), (1.5, "whole number"), (None, "no value")):
            with pytest.raises(ConfigError, match=said):
                steer(str(shared_tmp), None, "iterations", wrong)
        with pytest.raises(ConfigError, match=r"axis: found 99, expected a detector column from 0 to 15"):
            steer(str(shared_tmp), None, "axis", 99.0)
        with pytest.raises(ConfigError, match=r"expected no value\. Leave it out"):
            steer(str(shared_tmp), None, "snapshot", 3.0)
        for command, value in (("iterations", 3.0), ("snapshot", None), ("step", 1.0), ("axis", 7.5)):
            assert "after the next update" in steer(str(shared_tmp), None, command, value)

    with producing(comm, scan(), ready) as address:
        summary = run(address, shared_tmp)
    if summary is None:
        return
    history = told(shared_tmp)
    assert [(each["command"], each["value"]) for each in history] == [
        ("iterations", 3.0), ("snapshot", None), ("step", 1.0), ("axis", 7.5),
    ]  # fmt: skip
    before = {each["update"] for each in history}.pop()
    assert summary.iterations == [1] * before + [3] * (len(summary.iterations) - before)
    assert len(summary.iterations) > 4  # the steps became shorter, but for those under way
    assert summary.complete
    snapshot = [name for name in summary.files if f"{before:05d}" in name]
    assert len(snapshot) == 1
    assert summary.axis["axis_col"] == 7.5


def test_finish_ends_the_scan_with_what_has_arrived(comm, shared_tmp):
    ended = threading.Event()

    @contextmanager
    def halfway():
        if comm.rank:
            yield comm.bcast("")
            return
        with FrameSender("tcp://127.0.0.1:0", scan()) as sender:

            def send() -> None:
                for frame in frames(scan()):
                    if frame.kind is FrameKind.PROJECTION and frame.index == 4:
                        break
                    sender.send(frame)
                eventually(lambda: sender.report.acked >= 4)
                assert steer(str(shared_tmp), None, "finish", None) == "finish: now"
                ended.wait(30)

            thread = threading.Thread(target=send)
            thread.start()
            yield comm.bcast(sender.address)
            ended.set()
            thread.join(30)

    with halfway() as address:
        summary = run(address, shared_tmp)
    if summary is not None:
        assert "stopped by the operator" in summary.ending
        assert not summary.complete
        assert [each["command"] for each in told(shared_tmp)] == ["finish"]
