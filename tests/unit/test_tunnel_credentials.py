"""The private authority: what is issued, what is refused, who can read it."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ministream.errors import ConfigError
from ministream.tunnel import certificates, credentials, expiry
from ministream.tunnel.credentials import Credentials
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.revocations import RevocationList, read_revoked


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "authority"
    credentials.create_authority(directory, name="ca", days=100)
    credentials.issue(directory, name="gw", usage="server", hosts=["127.0.0.1", "gw.org"], days=10, out=directory)
    credentials.issue(directory, name="alice", usage="client", hosts=[], days=10, out=directory)
    return directory


def test_a_directory_is_what_each_side_needs(authority: Path) -> None:
    loaded = Credentials.load(authority)
    name, hosts = certificates.names_of(loaded.server.parsed())
    assert (name, hosts) == ("gw", ("127.0.0.1", "gw.org"))
    assert certificates.names_of(loaded.client.parsed())[0] == "alice"
    assert "PRIVATE KEY" not in repr(loaded)


def test_keys_are_private_on_disk(authority: Path) -> None:
    keys = list(authority.rglob("*.key"))
    assert {key.name for key in keys} == {"ca.key", "server.key", "client.key"}
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.stat().st_mode) == 0o700
    assert not list(authority.rglob("*.part"))


def test_a_key_that_others_can_read_is_refused(authority: Path) -> None:
    (authority / "client.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"client\.key can be read by others: chmod 600"):
        Credentials.load(authority)


def test_another_machine_gets_no_more_than_it_needs(authority: Path, tmp_path: Path) -> None:
    out = tmp_path / "bob"
    credentials.issue(authority, name="bob", usage="client", hosts=[], days=10, out=out)
    assert {path.name for path in out.iterdir()} == {"ca.crt", "client.crt", "client.key", "revoked"}
    loaded = Credentials.load(out)
    with pytest.raises(ConfigError, match="ministream certs server"):
        _ = loaded.server


def test_certificates_of_another_authority_are_refused(authority: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    credentials.create_authority(other, name="other", days=100)
    (authority / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="was not issued by"):
        Credentials.load(authority)


def test_expired_certificates_are_refused_with_the_remedy(authority: Path) -> None:
    credentials.issue(authority, name="old", usage="client", hosts=[], days=-0.001, out=authority)
    with pytest.raises(ConfigError, match=r"client\.crt expired on .*certs renew"):
        Credentials.load(authority)
    (usage,) = credentials.renew(authority, "old", days=1, out=authority)
    assert usage == "client"
    assert certificates.names_of(Credentials.load(authority).client.parsed())[0] == "old"


def test_renewal_keeps_the_hosts_and_changes_the_key(authority: Path) -> None:
    before = Credentials.load(authority).server
    assert credentials.renew(authority, "gw", days=20, out=authority) == ["server"]
    after = Credentials.load(authority).server
    assert certificates.names_of(after.parsed()) == certificates.names_of(before.parsed())
    assert after.key != before.key
    assert after.parsed().serial_number != before.parsed().serial_number


def test_revocation_is_seen_at_once(authority: Path) -> None:
    serial = Credentials.load(authority).client.parsed().serial_number
    listed = RevocationList(authority)
    assert serial not in listed
    assert credentials.revoke(authority, "alice") == [serial]
    assert serial in listed
    other = Credentials.load(authority).server.parsed().serial_number
    assert credentials.revoke(authority, f"{other:x}") == [other]
    assert {serial, other} <= read_revoked(authority / "revoked")


def test_every_certificate_of_a_name_is_on_record_and_revoked_together(authority: Path) -> None:
    first = Credentials.load(authority).client.parsed().serial_number
    credentials.renew(authority, "alice", days=10, out=authority)
    second = Credentials.load(authority).client.parsed().serial_number
    third = credentials.issue(authority, name="alice", usage="client", hosts=[], days=1, out=authority).serial_number
    assert {one.serial for one in credentials.issued(authority) if one.name == "alice"} == {first, second, third}
    assert set(credentials.revoke(authority, "alice")) == {first, second, third}
    listed = RevocationList(authority)
    assert all(serial in listed for serial in (first, second, third))


def test_renewal_can_revoke_what_it_replaces(authority: Path, tmp_path: Path) -> None:
    old = Credentials.load(authority).client.parsed().serial_number
    out = tmp_path / "alice"
    credentials.renew(authority, "alice", days=10, out=out, revoke_old=True)
    assert read_revoked(authority / "revoked") == read_revoked(out / "revoked") == {old}
    assert Credentials.load(out).client.parsed().serial_number not in RevocationList(out)


def test_records_of_earlier_versions_are_read(authority: Path) -> None:
    (record,) = (authority / "issued").glob("*.alice.client.crt")
    record.rename(record.with_name("alice.client.crt"))
    assert [one.name for one in credentials.issued(authority)] == ["alice", "gw"]


def test_status_says_what_a_party_holds(authority: Path) -> None:
    assert [(one.file, one.name, one.state) for one in expiry.status(authority)] == [
        ("ca.crt", "ca", "valid"),
        ("server.crt", "gw", "valid"),
        ("client.crt", "alice", "valid"),
    ]
    credentials.revoke(authority, "alice")
    assert expiry.status(authority)[-1].state == "revoked"


def test_a_broken_revocation_list_lets_nobody_in(authority: Path) -> None:
    (authority / "revoked").write_text("# fine\nnot-hex\n")
    with pytest.raises(ConfigError, match="revoked:2"):
        assert 1 not in RevocationList(authority)


def test_unknown_names_and_second_authorities_are_refused(authority: Path) -> None:
    with pytest.raises(ConfigError, match="certs show"):
        credentials.revoke(authority, "nobody")
    with pytest.raises(ConfigError, match="certs show"):
        credentials.renew(authority, "nobody", days=1, out=authority)
    with pytest.raises(ConfigError, match="already holds a certificate authority"):
        credentials.create_authority(authority, name="ca", days=1)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 65, "a\n"])
def test_names_that_are_no_file_names_are_refused(authority: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        credentials.issue(authority, name=name, usage="client", hosts=[], days=1, out=authority)
    assert len(list((authority / "issued").iterdir())) == 2


def test_nothing_outlives_its_authority(authority: Path) -> None:
    with pytest.raises(ConfigError, match="fewer --days"):
        credentials.issue(authority, name="x", usage="client", hosts=[], days=1000, out=authority)


def test_tokens_are_kept_as_hashes_one_a_name(authority: Path) -> None:
    first, second = (credentials.add_token(authority, "bob", 1) for _ in range(2))
    assert first != second
    assert len(first) >= 43
    text = (authority / "tokens").read_text()
    assert first not in text
    assert second not in text
    assert len(text.splitlines()) == 1
    assert stat.S_IMODE((authority / "tokens").stat().st_mode) == 0o600


def test_a_session_certificate_can_sign_nothing() -> None:
    pair = certificates.make_session_pair(1)
    parsed = pair.parsed()
    key = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert not parsed.extensions.get_extension_for_class(certificates.x509.BasicConstraints).value.ca
    assert certificates.check_peer(pair.certificate).encode() == pair.certificate
    assert certificates.make_session_pair(1).certificate != pair.certificate


def of_another_version() -> bytes:
    """A certificate that says version 35; there are 1 to 3."""
    der = certificates.make_session_pair(1).parsed().public_bytes(serialization.Encoding.DER)
    wrong = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020122"), 1)
    assert wrong != der
    return ssl.DER_cert_to_PEM_cert(wrong).encode()


NO_CERTIFICATES = [
    b"",
    b"psk:00",
    b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    of_another_version(),
]


@pytest.mark.parametrize("offer", NO_CERTIFICATES)
def test_offers_that_are_no_certificates_are_refused(offer: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        certificates.check_peer(offer)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("content", NO_CERTIFICATES)
def test_files_that_are_no_certificates_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt is not a PEM certificate"):
        credentials.decode(content, tmp_path / "ca.crt")


def test_what_follows_the_first_certificate_of_an_offer_is_dropped() -> None:
    one, two = (certificates.make_session_pair(1).certificate for _ in range(2))
    assert certificates.check_peer(one + two).encode() == one
