"""Who may do what on a control port, and what a refusal tells."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from ministream import log
from ministream.app.gateway.control_server import embedded
from ministream.config import TunnelSection
from ministream.errors import AccessError, PeerLostError
from ministream.tunnel import certificates, credentials
from ministream.tunnel.auth import Introspection, IntrospectionSection, TokenFile
from ministream.tunnel.certificates import KeyPair
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access, ControlClient
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.refusal import Code, RefusedError
from tests.integration.tunnel_ends import make_credentials


def sessions(server: ControlServer, access: Access) -> list[object]:
    with ControlClient(server.address, access) as client:
        return list(client.sessions())


def test_a_jobs_server_takes_calls_from_its_own_client_only(tmp_path: Path) -> None:
    own = make_credentials(tmp_path / "d", "beamline", "visitor")
    visitor = Access.of(Credentials.load(tmp_path / "visitor"))
    section = TunnelSection(control="127.0.0.1:0", credentials=own.directory)
    with embedded(section, "PROD", targets=["127.0.0.1:1"]) as server:
        assert sessions(server, Access.of(own)) == []
        with pytest.raises(AccessError, match=r"'visitor' may not use this server: .*\[identities\].*clients"):
            sessions(server, visitor)
    # the remedy, followed
    with embedded(section.model_copy(update={"clients": ("visitor",)}), "PROD", targets=["127.0.0.1:1"]) as server:
        assert sessions(server, visitor) == []


def test_a_job_without_a_client_of_its_own_is_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    authority = make_credentials(tmp_path / "d").directory
    credentials.issue(authority, name="gw", usage="server", hosts=["127.0.0.1"], days=1, out=tmp_path / "gw")
    section = TunnelSection(control="127.0.0.1:0", credentials=tmp_path / "gw")
    with embedded(section, "PROD", targets=["127.0.0.1:1"]):
        pass
    assert "tunnel.clients" in caplog.text


def test_a_client_does_not_talk_to_a_server_whose_certificate_is_revoked(tmp_path: Path) -> None:
    own = make_credentials(tmp_path / "d")
    with ControlServer(side="PROD", credentials=own) as server:
        assert sessions(server, Access.of(own)) == []
        credentials.revoke(own.directory, "gw")
        with pytest.raises(AccessError, match="is revoked: ask its operator"):
            sessions(server, Access.of(own))


def test_a_certificate_cannot_pass_for_a_token(tmp_path: Path) -> None:
    """An authority of a site's own may sign any name; one that looks like a token's is refused."""
    own = make_credentials(tmp_path / "d")
    ca = KeyPair(certificate=own.ca, key=(own.directory / "ca.key").read_bytes())
    pair = certificates.issue(ca, name="token:bob", usage="client", hosts=[], days=1)
    with ControlServer(side="PROD", credentials=own) as server, pytest.raises(PeerLostError):
        sessions(server, Access(ca=own.ca, pair=pair))


def test_an_internal_error_tells_the_caller_a_number_and_the_log_the_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    own = make_credentials(tmp_path / "d", "operator", "other")
    other = Credentials.load(tmp_path / "other")
    with ControlServer(side="PROD", credentials=own) as server:
        (own.directory / "revoked").write_text("not a number\n")
        with caplog.at_level(logging.ERROR), pytest.raises(PeerLostError) as caught:
            sessions(server, Access.of(other))
    text = str(caught.value)
    assert str(tmp_path) not in text
    number = text.partition("see its log for ")[2].split()[0]
    assert number in caplog.text
    assert "revoked:1" in caplog.text


class _Endpoint(Introspection):
    """An endpoint that counts what it is asked, and answers nothing good."""

    def __init__(self, folder: Path) -> None:
        (folder / "secret").touch(mode=0o600)
        section = IntrospectionSection(
            url="https://127.0.0.1:1/", client_id="x", client_secret_file=str(folder / "secret"), timeout_s=0.1
        )
        super().__init__(section)
        self.asked: list[str] = []

    def _ask(self, token: str) -> dict[str, object]:
        self.asked.append(token)
        return {"active": False}


def test_our_own_tokens_are_never_shown_to_the_endpoint(tmp_path: Path) -> None:
    token = credentials.add_token(tmp_path, "bob", 1)
    assert token.startswith("ministream_")
    endpoint = _Endpoint(tmp_path)
    assert asyncio.run(TokenFile(tmp_path / "tokens").identity(token)) == "token:bob"
    for own in (token, token + "x", "ministream_expired"):
        assert asyncio.run(endpoint.identity(own)) is None
    assert endpoint.asked == []
    assert asyncio.run(endpoint.identity("somebody else's")) is None
    assert endpoint.asked == ["somebody else's"]


def test_made_up_tokens_ask_the_endpoint_so_often_and_no_more(tmp_path: Path) -> None:
    endpoint = _Endpoint(tmp_path)
    began = time.monotonic()
    with pytest.raises(RefusedError) as caught:
        for number in range(1000):
            asyncio.run(endpoint.identity(f"made up {number}"))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    if time.monotonic() - began < 60:
        assert len(endpoint.asked) == 120
