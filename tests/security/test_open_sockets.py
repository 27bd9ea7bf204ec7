"""A socket without authentication that a network reaches is opened only where that is asked for."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest

from ministream import log
from ministream.app.open_network import check_open
from ministream.errors import ConfigError
from tests.integration.jobs import MINISTREAM

SCAN = ["source.rows=2", "source.cols=16", "source.projections=4", "producer.peer_timeout_s=0.2"]
OPEN = "anyone who can reach this address can connect to it"


def outcome(*words: str, settings: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and log of a producer that nobody connects to."""
    given = [word for setting in (*SCAN, *settings) for word in ("--set", setting)]
    command = [*MINISTREAM, "produce", *words, *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def test_a_data_socket_off_loopback_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    listen = ("--listen", "tcp://0.0.0.0:0")
    code, text = outcome(*listen)
    assert code == 2
    assert "--curve, listen on 127.0.0.1 behind a tunnel, or accept it with --open-network" in text
    code, text = outcome(*listen, "--open-network")
    assert code == 4, "it listened, and nobody came"
    assert OPEN in text
    subprocess.run([*MINISTREAM, "certs", "curve", str(tmp_path / "keys")], check=True, capture_output=True)
    code, text = outcome(*listen, "--curve", str(tmp_path / "keys"))
    assert code == 4
    assert OPEN not in text


def test_the_ready_handshake_and_the_published_images_are_asked_for_too() -> None:
    code, text = outcome("--wire", "timage", "--sync", "tcp://*:0")
    assert code == 2
    assert "tcp://*:0: anyone" in text
    command = [*MINISTREAM, "recon", "--connect", "tcp://127.0.0.1:9", "--pub-addr", "tcp://*:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "Publish on 127.0.0.1, or accept it with --open-network" in done.stderr


@pytest.mark.parametrize("url", [None, "tcp://127.0.0.1:0", "tcp://[::1]:5", "tcp://localhost:5", "ipc:///tmp/x"])
def test_what_stays_on_the_machine_is_not_open(url: str | None, caplog: pytest.LogCaptureFixture) -> None:
    log.get("ministream").propagate = True
    with caplog.at_level(logging.WARNING):
        check_open([url], allowed=False, instead="")
        check_open([url], allowed=True, instead="")
    assert not caplog.text


@pytest.mark.parametrize("url", ["tcp://*:5", "tcp://0.0.0.0:5", "tcp://[::]:5", "tcp://beamline:5"])
def test_everything_else_is(url: str) -> None:
    with pytest.raises(ConfigError, match="--open-network"):
        check_open([url], allowed=False, instead="Encrypt")
