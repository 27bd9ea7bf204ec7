"""Coverage-guided fuzzing of what the tunnel reads from outside: names, addresses, rules, offers, policy, key files.

    pip install atheris
    python tests/fuzz/fuzz_tunnel_parsers.py -max_total_time=300 [CORPUS]

The first byte chooses the reader. Any error but a refusal or a configuration error is a finding, and so is a value
that breaks what the reader promises. The fuzzer ends the interpreter hard, so a folder stays in TMPDIR.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris
from harness import fuzz

with atheris.instrument_imports(include=["ministream.tunnel"]):
    from ministream.errors import ConfigError
    from ministream.tunnel import curve
    from ministream.tunnel.address import check_uid, parse_endpoint
    from ministream.tunnel.auth import TokenFile
    from ministream.tunnel.certificates import check_peer, make_session_pair
    from ministream.tunnel.policy import Policy, Target
    from ministream.tunnel.refusal import RefusedError
    from ministream.tunnel.revocations import RevocationList, read_revoked

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
UID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def uid(data: bytes) -> None:
    """What is taken is harmless wherever it is written."""
    text = data.decode("utf-8", "replace")
    check_uid(text)
    assert UID.fullmatch(text)


def listener(data: bytes) -> None:
    """What is taken is read again as the same."""
    endpoint = parse_endpoint(data.decode("utf-8", "replace"))
    assert 1 <= endpoint.port <= 65535
    assert parse_endpoint(str(endpoint)) == endpoint
    assert not set(str(endpoint)) & set("\n\r \0;{}#\"'\\")


def rule(data: bytes) -> None:
    """A rule of allowed targets."""
    found = Target.parse(data.decode("utf-8", "replace"))
    assert 1 <= found.first <= found.last <= 65535


def offer(data: bytes) -> None:
    """What the other side's data server is said to be: one clean certificate."""
    assert check_peer(data).count("BEGIN CERTIFICATE") == 1


def policy(data: bytes) -> None:
    """A policy file."""
    path = FOLDER / "policy.toml"
    path.write_bytes(data)
    Policy.load(path)


def revoked(data: bytes) -> None:
    """The list of revoked certificates; a broken one lets nobody in."""
    path = FOLDER / "revoked"
    path.write_bytes(data)
    assert (1 in RevocationList(FOLDER)) is (1 in read_revoked(path))


def tokens(data: bytes) -> None:
    """The file of hashed tokens."""
    path = FOLDER / "tokens"
    path.write_bytes(data)
    TokenFile(path)


def keys(data: bytes) -> None:
    """Keys of end-to-end encryption."""
    secret = FOLDER / "producer.secret"
    secret.touch(mode=0o600)
    first, _, second = data.partition(b"\0")
    secret.write_bytes(first)
    (FOLDER / "receiver.public").write_bytes(second)
    assert len(curve.load(FOLDER, "producer").secret) == 32


READERS: tuple[Callable[[bytes], None], ...] = (uid, listener, rule, offer, policy, revoked, tokens, keys)


def one(data: bytes) -> None:
    """The first byte chooses, the rest is read."""
    if data:
        with contextlib.suppress(ConfigError, RefusedError):
            READERS[data[0] % len(READERS)](data[1:])


def seeds() -> Iterator[bytes]:
    """What each reader takes."""
    good = (
        b"4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3",
        b"[2001:db8::1]:5000",
        b"10.0.0.0/8:7000-7010",
        make_session_pair(1).certificate,
        b'targets = ["*:*"]\nport_range = [5100, 5200]\n[quota]\nsessions = 3\n[identities.a]\nroles = ["PROD"]\n',
        b"1f # lost\n",
        b"name " + b"ab" * 32 + b" 1e9\n",
        b"01" * 32 + b"\0" + b"23" * 32,
    )
    for number, text in enumerate(good):
        yield bytes([number]) + text


if __name__ == "__main__":
    fuzz(one, seeds())
