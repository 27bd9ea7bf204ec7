"""Who calls: certificates, hashed tokens, a real introspection endpoint; and that doubt means no."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ministream.errors import ConfigError
from ministream.tunnel import credentials
from ministream.tunnel.auth import Authenticator, Introspection, IntrospectionSection, TokenFile, Verifier
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.revocations import RevocationList
from ministream.tunnel.tls_listener import Caller


def authenticator(*verifiers: Verifier, directory: Path | None = None, anonymous: bool = False) -> Authenticator:
    revocations = RevocationList(directory) if directory else None
    return Authenticator(revocations=revocations, verifiers=verifiers, anonymous_allowed=anonymous)


def identify(judge: Authenticator, caller: Caller | None = None, token: str | None = None) -> str:
    metadata = {} if token is None else {"authorization": token}
    return asyncio.run(judge.identify(caller, metadata))


def refused(judge: Authenticator, caller: Caller | None = None, token: str | None = None) -> str:
    with pytest.raises(RefusedError) as caught:
        identify(judge, caller, token)
    assert caught.value.code is Code.UNAUTHENTICATED
    return str(caught.value)


STRANGER = Caller(name=None, serial=None, address="127.0.0.1")
ALICE = Caller(name="alice", serial=0xA11CE, address="127.0.0.1")


def test_a_certificate_names_its_owner() -> None:
    assert identify(authenticator(), ALICE) == "alice"


def test_a_revoked_certificate_is_refused_even_with_a_token(tmp_path: Path) -> None:
    (tmp_path / "revoked").write_text(f"{ALICE.serial:x}\n")
    token = credentials.add_token(tmp_path, "bob", 1)
    judge = authenticator(TokenFile(tmp_path / "tokens"), directory=tmp_path)
    assert "revoked" in refused(judge, ALICE, token)


def test_a_stranger_is_told_what_is_missing() -> None:
    text = refused(authenticator(), STRANGER, "INVALID_TOKEN")
    assert "certs client" in text
    assert "--allow-token" in text


def test_tokens_name_their_bearer_and_nobody_else(tmp_path: Path) -> None:
    token = credentials.add_token(tmp_path, "alice", 1)
    judge = authenticator(TokenFile(tmp_path / "tokens"))
    assert identify(judge, STRANGER, token) == "token:alice"
    assert identify(judge, STRANGER, f"Bearer {token}") == "token:alice"
    for wrong in ("INVALID_TOKEN", "", token[:-1], token + "x", "x" * 10_000, "\N{SNOWMAN}"):
        refused(judge, STRANGER, wrong)
    refused(judge, STRANGER)


def test_expired_tokens_are_refused(tmp_path: Path) -> None:
    token = credentials.add_token(tmp_path, "alice", -1)
    refused(authenticator(TokenFile(tmp_path / "tokens")), STRANGER, token)


def test_a_token_file_is_read_anew(tmp_path: Path) -> None:
    old = credentials.add_token(tmp_path, "alice", 1)
    judge = authenticator(TokenFile(tmp_path / "tokens"))
    new = credentials.add_token(tmp_path, "alice", 1)
    refused(judge, STRANGER, old)
    assert identify(judge, STRANGER, new) == "token:alice"


@pytest.mark.parametrize("line", ["alice", "alice zz", "alice 00", "alice " + "0" * 64 + " soon", "a/b " + "0" * 64])
def test_a_broken_token_file_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "tokens").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"tokens|letters"):
        TokenFile(tmp_path / "tokens")


def test_invalid_token_is_anonymous_where_that_is_allowed() -> None:
    assert identify(authenticator(anonymous=True), STRANGER, "INVALID_TOKEN") == "anonymous"
    assert identify(authenticator(anonymous=True), None) == "anonymous"


class Endpoint(HTTPServer):
    """An OAuth 2 introspection endpoint that knows some tokens."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        token = urllib.parse.parse_qs(body)["token"][0]
        self.server.asked.append((token, self.headers["Authorization"]))
        answer = json.dumps(self.server.tokens.get(token, {"active": False})).encode()
        self.send_response(self.server.status)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def judge(endpoint: Endpoint, tmp_path: Path) -> Authenticator:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("s3cret\n")
    section = IntrospectionSection(
        url=f"http://127.0.0.1:{endpoint.server_port}/introspect",
        client_id="ministream",
        client_secret_file=str(tmp_path / "secret"),
        scope="scistream",
        audience="us",
    )
    return authenticator(Introspection(section))


GOOD = {"active": True, "username": "bob@anl.gov", "scope": "openid scistream", "aud": ["us", "them"]}


def test_the_endpoint_names_the_bearer_and_is_asked_once(endpoint: Endpoint, judge: Authenticator) -> None:
    endpoint.tokens["t"] = GOOD
    assert identify(judge, STRANGER, "t") == "oauth:bob@anl.gov"
    assert identify(judge, STRANGER, "t") == "oauth:bob@anl.gov"
    (asked,) = endpoint.asked
    assert asked == ("t", "Basic " + base64.b64encode(b"ministream:s3cret").decode())


@pytest.mark.parametrize(
    "change",
    [
        {"active": False},
        {"active": "true"},
        {"scope": "openid"},
        {"scope": "scistreamer"},
        {"aud": "them"},
        {"aud": None},
        {"username": None},
        {"username": 7},
        {"exp": time.time() - 1},
    ],
)
def test_a_token_that_is_not_quite_right_is_refused(
    endpoint: Endpoint, judge: Authenticator, change: dict[str, Any]
) -> None:
    endpoint.tokens["t"] = GOOD | change
    refused(judge, STRANGER, "t")


@pytest.mark.parametrize("status", [302, 401, 500])
def test_an_endpoint_that_fails_lets_nobody_in(endpoint: Endpoint, judge: Authenticator, status: int) -> None:
    endpoint.tokens["t"] = GOOD
    endpoint.status = status
    with pytest.raises(RefusedError) as caught:
        identify(judge, STRANGER, "t")
    assert caught.value.code is Code.UNAVAILABLE
    assert "s3cret" not in str(caught.value)
    assert len(endpoint.asked) == 1
    endpoint.status = 200
    assert identify(judge, STRANGER, "t") == "oauth:bob@anl.gov"
