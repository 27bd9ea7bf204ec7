"""Certificates end while servers and sessions run: nothing goes on under one that has expired or was revoked."""

from __future__ import annotations

import datetime
import logging
import ssl
from pathlib import Path

import pytest

from ministream import log
from ministream.app.gateway.control_server import embedded
from ministream.config import TunnelSection
from ministream.tunnel import client, credentials
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy
from tests.integration.tunnel_ends import Echo, dial, echoed, echoing, is_cut, make_credentials
from tests.waiting import eventually

SECONDS = 1 / 86400


@pytest.fixture
def own(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path / "d", "operator", "jane")


def ends_a_session(own: Credentials, user: Access, producer: Echo, lapse: object) -> None:
    """A session that carries bytes until `lapse()`, and then ends with its ports."""
    servers = {"credentials": own, "allow_token": True}
    with (
        ControlServer(side="PROD", targets=[producer.address], **servers) as prod,
        ControlServer(side="CONS", **servers) as cons,
    ):
        opened = client.connect(prod.address, cons.address, None, access=user)
        with dial(opened.cons_listeners[0]) as sock:
            assert echoed(sock, b"ping") == b"ping"
            lapse()
            assert is_cut(sock)
        eventually(lambda: not prod.sessions() and not cons.sessions())


@pytest.fixture
def tokens(own: Credentials) -> str:
    return credentials.add_token(own.directory, "bob", 1)


def test_a_session_ends_when_its_owners_certificate_is_revoked(own: Credentials, tokens: str) -> None:
    jane = Access.of(Credentials.load(own.directory.parent / "jane"))
    with echoing() as producer:
        ends_a_session(own, jane, producer, lambda: credentials.revoke(own.directory, "jane"))


def test_a_session_ends_when_its_owners_certificate_expires(own: Credentials, tokens: str) -> None:
    out = own.directory.parent / "jane"
    credentials.issue(own.directory, name="jane", usage="client", hosts=[], days=8 * SECONDS, out=out)
    with echoing() as producer:
        ends_a_session(own, Access.of(Credentials.load(out)), producer, lambda: None)


def test_a_session_ends_when_its_owners_token_is_removed(own: Credentials, tokens: str) -> None:
    bearer = Access(ca=own.ca, token=tokens)
    with echoing() as producer:
        ends_a_session(own, bearer, producer, lambda: (own.directory / "tokens").write_text(""))


def test_a_missing_list_ends_no_open_session(own: Credentials, caplog: pytest.LogCaptureFixture) -> None:
    """The operator is told; what was admitted before goes on, and nobody new is admitted."""
    caplog.set_level(logging.ERROR)
    log.get("ministream").propagate = True
    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=own, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=own) as cons,
        client.session(prod.address, cons.address, own) as opened,
        dial(opened.cons_listeners[0]) as sock,
    ):
        assert echoed(sock, b"ping") == b"ping"
        (own.directory / "revoked").unlink()
        eventually(lambda: "open sessions go on" in caplog.text)
        assert echoed(sock, b"ping") == b"ping"
        (own.directory / "revoked").touch()


def test_a_running_server_takes_up_its_renewed_certificate(own: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ministream.tunnel.control._RELOAD_S", 0.02)
    context = ssl.create_default_context(cadata=own.ca.decode())

    def serial(address: str) -> int:
        with dial(address) as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            return int(sock.getpeercert()["serialNumber"], 16)

    before = own.server.parsed().serial_number
    with ControlServer(side="PROD", credentials=own) as server:
        assert serial(server.address) == before
        credentials.renew(own.directory, "gw", days=1, out=own.directory)
        after = Credentials.load(own.directory).server.parsed().serial_number
        eventually(lambda: serial(server.address) == after)
        # one that does not fit is not taken up
        (own.directory / "server.crt").write_bytes((own.directory / "client.crt").read_bytes())
        assert serial(server.address) == after
    assert before != after


def test_only_what_is_due_is_renewed(own: Credentials) -> None:
    def renew(name: str) -> list[str]:
        return credentials.renew(own.directory, name, days=1, out=own.directory, if_due=True)

    # a certificate begins five minutes ago, for clocks that differ: those are most of this one's life
    credentials.issue(own.directory, name="old", usage="server", hosts=["localhost"], days=SECONDS, out=own.directory)
    assert renew("gw") == []
    assert renew("old") == ["server"]
    assert renew("old") == []


def test_a_servers_certificate_is_short_lived(own: Credentials, tmp_path: Path) -> None:
    with pytest.raises(credentials.ConfigError, match="itself expires"):
        credentials.issue(own.directory, name="gw", usage="server", hosts=["h"], days=None, out=tmp_path / "gw")
    credentials.create_authority(tmp_path / "ca", name="ca", days=400)
    made = credentials.issue(tmp_path / "ca", name="gw", usage="server", hosts=["h"], days=None, out=tmp_path / "gw")
    assert made.not_valid_after_utc - made.not_valid_before_utc < datetime.timedelta(days=31)


def test_a_gateways_sessions_end_after_a_week_and_a_jobs_with_the_job(own: Credentials) -> None:
    assert Policy().quota.lifetime_s == 7 * 86400
    assert Policy.for_job(["jane"]).quota.lifetime_s == 0
    server = embedded(TunnelSection(control="127.0.0.1:0", credentials=own.directory), "CONS")
    assert server is not None
    with server:
        assert server._policy.quota.lifetime_s == 0
