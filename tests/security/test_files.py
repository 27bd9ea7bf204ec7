"""What anybody else could have changed or read is not believed: keys, lists, tokens, policies, and their folder."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ministream import log, private
from ministream.errors import ConfigError
from ministream.tunnel import certificates, credentials, curve
from ministream.tunnel.auth import Introspection, IntrospectionSection, TokenFile
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import Access
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.policy import Policy
from ministream.tunnel.revocations import RevocationList
from tests.integration.tunnel_ends import make_credentials

STRANGER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def party(tmp_path: Path) -> Path:
    """A party's folder, with everything that can be in one."""
    folder = make_credentials(tmp_path / "d").directory
    credentials.add_token(folder, "bob", 1)
    curve.create(folder)
    for name in ("policy.toml", "oauth.secret"):
        (folder / name).touch(mode=0o600)
    return folder


def introspection(path: Path) -> None:
    Introspection(IntrospectionSection(url="https://example.org", client_id="x", client_secret_file=str(path)))


# Each file that decides about access, and what reads it.
READERS: dict[str, Callable[[Path], object]] = {
    "ca.crt": lambda path: Credentials.load(path.parent),
    "server.crt": lambda path: Credentials.load(path.parent),
    "server.key": lambda path: Credentials.load(path.parent),
    "client.key": lambda path: Credentials.load(path.parent),
    "ca.key": lambda path: credentials.issue(path.parent, name="x", usage="client", hosts=[], days=1, out=path.parent),
    "revoked": lambda path: 1 in RevocationList(path.parent),
    "tokens": TokenFile,
    "policy.toml": Policy.load,
    "oauth.secret": introspection,
    "producer.secret": lambda path: curve.load(path.parent, "producer"),
    "receiver.public": lambda path: curve.load(path.parent, "producer"),
}
SECRETS = ("server.key", "client.key", "ca.key", "tokens", "oauth.secret", "producer.secret")


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_others_can_change_is_refused(party: Path, name: str) -> None:
    if name == "receiver.public":
        (party / name).write_text("ab" * 32)
    READERS[name](party / name)
    (party / name).chmod(0o602)
    with pytest.raises(ConfigError, match=r"can be (changed|read) by others"):
        READERS[name](party / name)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_others_can_read_is_refused(party: Path, name: str) -> None:
    (party / name).chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600"):
        READERS[name](party / name)
    (party / name).chmod(0o600)
    READERS[name](party / name)


@as_root
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_user_is_refused(party: Path, name: str) -> None:
    os.chown(party / name, STRANGER, -1)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}, .*chown"):
        READERS[name](party / name)


def test_a_folder_that_others_can_change_is_refused(party: Path) -> None:
    party.chmod(0o777)
    with pytest.raises(ConfigError, match="can be changed by others"):
        Credentials.load(party)


def test_a_pipe_in_a_files_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.toml", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        Policy.load(tmp_path / "policy.toml")


def test_the_check_is_made_on_what_is_read(tmp_path: Path) -> None:
    """A link leads to the file that is judged, so that another one cannot be put in its place."""
    (tmp_path / "real").touch(mode=0o666)
    (tmp_path / "real").chmod(0o666)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="can be changed by others"):
        private.read_file(tmp_path / "link", secret=False)


def test_a_revocation_list_that_has_gone_lets_nobody_in(party: Path) -> None:
    listed = RevocationList(party)
    assert 1 not in listed
    (party / "revoked").unlink()
    with pytest.raises(ConfigError, match="is missing: copy it from the authority's directory"):
        assert 1 in listed
    with pytest.raises(ConfigError, match=r"no certificate was ever revoked \(touch .*revoked\)"):
        Credentials.load(party)
    (party / "revoked").touch()
    assert 1 not in listed
    Credentials.load(party)


def test_a_gateway_is_warned_of_an_authoritys_key(
    party: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    with ControlServer(side="PROD", credentials=Credentials.load(party)):
        pass
    assert "ca.key, which no server needs" in caplog.text
    caplog.clear()
    out = tmp_path / "gateway"
    credentials.issue(party, name="gw", usage="server", hosts=["localhost"], days=1, out=out)
    assert not (out / "ca.key").exists()
    with ControlServer(side="PROD", credentials=Credentials.load(out)):
        pass
    assert not caplog.text


@pytest.mark.parametrize(("days", "told"), [(40, False), (2, False), (None, True)])
def test_a_certificate_that_expires_soon_is_said_at_start(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    days: float | None,
    told: bool,
) -> None:
    """One of 40 days is not; nor is one made for two days; one of 40 days in its last 12 is."""
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    authority, out = tmp_path / "ca", tmp_path / "gateway"
    credentials.create_authority(authority, name="ca", days=100)
    if days is None:
        began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=28)
        monkeypatch.setattr(certificates, "_CLOCK_SKEW", datetime.datetime.now(datetime.UTC) - began)
    credentials.issue(authority, name="gw", usage="server", hosts=["localhost"], days=days or 12, out=out)
    with ControlServer(side="PROD", credentials=Credentials.load(out)):
        pass
    assert ("expires in 12.0 days: ministream certs renew" in caplog.text) is told


def test_a_client_is_told_that_its_certificate_expires_soon(
    party: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.get("ministream"), "propagate", True)
    Access.of(Credentials.load(party))
    assert not caplog.text
    monkeypatch.setattr(certificates, "_CLOCK_SKEW", datetime.timedelta(days=28))
    authority, out = tmp_path / "ca", tmp_path / "jane"
    credentials.create_authority(authority, name="ca", days=100)
    credentials.issue(authority, name="jane", usage="client", hosts=[], days=12, out=out)
    Access.of(Credentials.load(out))
    assert f"{out / 'client.crt'} expires in 12.0 days: ministream certs renew" in caplog.text
