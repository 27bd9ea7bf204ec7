"""The systemd unit starts what exists, and stops it with a signal that it heeds."""

from __future__ import annotations

import configparser
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import typer.main

from ministream.app.recon.ingress import STOP_SIGNALS
from ministream.cli import cli
from ministream.errors import ExitCode

UNIT = Path(__file__).parents[2] / "launch" / "ministream-serve.service"


def section(name: str) -> dict[str, str]:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    return dict(unit[name])


def test_the_command_line_is_one_that_the_program_has() -> None:
    shell, flag, script = shlex.split(section("Service")["ExecStart"])
    assert (shell, flag) == ("/bin/sh", "-c")
    words = shlex.split(script.partition(" ministream ")[2])
    command = typer.main.get_command(cli).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_it_is_stopped_by_a_signal_that_ends_a_scan_in_order() -> None:
    service = section("Service")
    assert signal.Signals[service["KillSignal"]] in STOP_SIGNALS
    assert service["KillMode"] == "mixed"  # the signal goes to mpirun alone, which passes it on
    assert int(service["SuccessExitStatus"]) == ExitCode.INCOMPLETE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit() -> None:
    told = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True, check=False)
    assert "Unknown" not in told.stderr
