"""A producer's socket that a network reaches is never open without a word."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.jobs import MINISTREAM

SCAN = ["source.rows=2", "source.cols=16", "source.projections=4", "producer.peer_timeout_s=0.2"]


def log_of(tmp_path: Path, *settings: str, listen: str, curve: bool = False) -> str:
    """What a producer writes that nobody connects to."""
    words = [word for setting in (*SCAN, *settings) for word in ("--set", setting)]
    if curve:
        subprocess.run([*MINISTREAM, "certs", "curve", str(tmp_path / "keys")], check=True, capture_output=True)
        words += ["--curve", str(tmp_path / "keys")]
    command = [*MINISTREAM, "produce", "--listen", listen, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    return done.stderr


def test_a_data_socket_off_loopback_is_warned_of(tmp_path: Path) -> None:
    assert "--set producer.open_network=true" in log_of(tmp_path, listen="tcp://0.0.0.0:0")


@pytest.mark.parametrize(
    ("listen", "settings", "curve"),
    [
        ("tcp://127.0.0.1:0", (), False),
        ("tcp://0.0.0.0:0", ("producer.open_network=true",), False),
        ("tcp://0.0.0.0:0", (), True),
    ],
)
def test_what_is_closed_or_intended_is_not(tmp_path: Path, listen: str, settings: tuple[str, ...], curve: bool) -> None:
    assert "no authentication" not in log_of(tmp_path, *settings, listen=listen, curve=curve)
