"""A directory of credentials: written by `ministream certs`, read by every server and client.

    ca.crt                    the deployment's certificate authority: everyone has it
    ca.key                    only where certificates are issued
    server.crt  server.key    this machine's control server
    client.crt  client.key    this user
    revoked                   serial numbers (hexadecimal, one a line, `#` starts a comment) that no server accepts
    tokens                    hashed bearer tokens of stock clients
    issued/SERIAL.NAME.SERVER-OR-CLIENT.crt   everything the authority has issued, for renewal and revocation

Keys are 0600 in a 0700 directory. A key that anyone else can read, and anything that anyone else can change, is
refused. Every party gets a separate directory (`--out`); the authority's stays where certificates are issued.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ministream import private
from ministream.errors import ConfigError
from ministream.tunnel import certificates, files
from ministream.tunnel.certificates import KeyPair
from ministream.tunnel.revocations import read_revoked

# A server's key lies on a gateway, within reach of a network: what is stolen there is of use for a month.
DAYS = {"server": 30.0, "client": 365.0}
# What is left of a certificate's life when it is due for renewal.
_DUE = 1 / 3
# Tokens of `certs token` begin with this: they are never sent to an introspection endpoint.
TOKEN_PREFIX = "ministream_"  # noqa: S105 - what every token begins with

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What one party holds. `server` or `client` is None where the directory has no such pair."""

    directory: Path
    ca: bytes
    server_pair: KeyPair | None
    client_pair: KeyPair | None

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read and check a directory.

        Raises ConfigError: missing, expired, readable by others, not our CA's, without a list of revoked certificates.
        """
        path = Path(directory)
        check_directory(path)
        ca = files.read(path / "ca.crt")
        read_revoked(path / "revoked")
        authority = _parse(ca, path / "ca.crt")
        pairs = {usage: _load_pair(path, usage, authority) for usage in ("server", "client")}
        return cls(directory=path, ca=ca, server_pair=pairs["server"], client_pair=pairs["client"])

    @property
    def client_name(self) -> str | None:
        """The identity of its client certificate; None where there is none."""
        return None if self.client_pair is None else certificates.names_of(self.client_pair.parsed())[0]

    @property
    def holds_authority(self) -> bool:
        """Whether the key that signs every certificate lies here too, where no gateway needs it."""
        return (self.directory / "ca.key").exists()

    @property
    def server(self) -> KeyPair:
        """The server's pair. Raises ConfigError where there is none."""
        return self._need(self.server_pair, "server")

    @property
    def client(self) -> KeyPair:
        """The client's pair. Raises ConfigError where there is none."""
        return self._need(self.client_pair, "client")

    def _need(self, pair: KeyPair | None, usage: str) -> KeyPair:
        if pair is None:
            remedy = f"make it with `ministream certs {usage}`"
            raise ConfigError(f"{self.directory} has no {usage}.crt and {usage}.key: {remedy}")
        return pair


def create_authority(directory: Path, *, name: str, days: float) -> None:
    """A new CA in `directory`. Raises ConfigError if one exists: replacing it would invalidate every certificate."""
    if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
        raise ConfigError(f"{directory} already holds a certificate authority: choose another directory")
    files.make_private(directory)
    _write_pair(directory, "ca", certificates.make_ca(check_name(name), days))
    files.write(directory / "revoked", b"# serial numbers of revoked certificates\n", 0o644)


def issue(
    authority: Path, *, name: str, usage: str, hosts: Sequence[str], days: float | None, out: Path
) -> x509.Certificate:
    """Issue a server or client certificate into the directory `out` and record it. Returns the certificate.

    `days` None: as long as is usual for its usage.
    """
    days = DAYS[usage] if days is None else days
    ca = KeyPair(certificate=files.read(authority / "ca.crt"), key=files.read_key(authority / "ca.key"))
    _check_lifetime(ca, days, authority)
    pair = certificates.issue(ca, name=check_name(name), usage=usage, hosts=hosts, days=days)
    files.make_private(authority / "issued")
    serial = pair.parsed().serial_number
    files.write(authority / "issued" / f"{serial:040x}.{name}.{usage}.crt", pair.certificate, 0o644)
    files.make_private(out)
    if out.resolve() != authority.resolve():
        files.write(out / "ca.crt", ca.certificate, 0o644)
        read_revoked(authority / "revoked")
        files.write(out / "revoked", files.read(authority / "revoked"), 0o644)
    _write_pair(out, usage, pair)
    return pair.parsed()


@dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """One certificate that the authority has issued."""

    name: str
    usage: str
    certificate: x509.Certificate

    @property
    def serial(self) -> int:
        """Its serial number, by which it is revoked."""
        return self.certificate.serial_number


def issued(authority: Path) -> list[Issued]:
    """Everything the authority has ever issued, by name and usage, the oldest first."""
    found = []
    for path in (authority / "issued").glob("*.crt"):
        # Versions before 0.2 kept the last certificate of a name alone, without its serial number.
        name, _, usage = path.stem.rpartition(".")
        name = re.sub(r"^[0-9a-f]{40}\.", "", name)
        found.append(Issued(name=name, usage=usage, certificate=decode(files.read(path), path)))
    return sorted(found, key=lambda one: (one.name, one.usage, one.certificate.not_valid_after_utc))


def renew(
    authority: Path, name: str, *, days: float | None, out: Path, revoke_old: bool = False, if_due: bool = False
) -> list[str]:
    """Issue the last certificate of each usage of a name again, for the same hosts. Returns the usages.

    `if_due` leaves those that have more than a third of their life left; `revoke_old` revokes all the earlier ones of
    the usages that were renewed. Raises ConfigError if there are none.
    """
    known = [one for one in issued(authority) if one.name == name]
    if not known:
        raise ConfigError(f"{authority} has issued no certificate to {name!r}: see `ministream certs show`")
    last = {one.usage: one for one in known}
    if if_due:
        last = {usage: one for usage, one in last.items() if is_due(one.certificate)}
    for usage, one in last.items():
        _, hosts = certificates.names_of(one.certificate)
        issue(authority, name=name, usage=usage, hosts=hosts, days=days, out=out)
    if revoke_old:
        _add_revoked(authority, [one.serial for one in known if one.usage in last], name, also=out)
    return list(last)


def is_due(certificate: x509.Certificate) -> bool:
    """Whether less than a third of its life is left."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < _DUE * life


def add_token(directory: Path, name: str, days: float) -> str:
    """A new bearer token; only its hash is kept, in `tokens`, in place of an earlier one of that name."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    path = directory / "tokens"
    files.make_private(directory)
    lines = files.read_key(path).decode().splitlines() if path.exists() else []
    kept = [line for line in lines if line.split()[:1] != [check_name(name)]]
    text = "\n".join([*kept, f"{name} {digest} {time.time() + days * 86400:.0f}", ""])
    files.write(path, text.encode(), 0o600)
    return token


def revoke(authority: Path, name: str) -> list[int]:
    """Put every certificate ever issued to that name (or that hexadecimal serial) on the list. Returns the serials.

    Raises ConfigError if there is none.
    """
    serials = [one.serial for one in issued(authority) if name in (one.name, f"{one.serial:x}")]
    if not serials and re.fullmatch(r"[0-9a-fA-F]{16,40}", name):
        serials = [int(name, 16)]
    if not serials:
        raise ConfigError(f"{authority} has issued no certificate to {name!r}: see `ministream certs show`")
    _add_revoked(authority, serials, name)
    return serials


def _add_revoked(authority: Path, serials: Sequence[int], name: str, also: Path | None = None) -> None:
    """Put serial numbers on the authority's list, and copy the list to the directory `also`."""
    path = authority / "revoked"
    before = files.read(path) if path.exists() else b""
    listed = read_revoked(path) if path.exists() else frozenset()
    lines = "".join(f"{serial:x}  # {name}\n" for serial in serials if serial not in listed)
    files.write(path, before + lines.encode(), 0o644)
    if also is not None and also.resolve() != authority.resolve():
        files.write(also / "revoked", before + lines.encode(), 0o644)


def check_name(name: str) -> str:
    """A certificate's common name, which is also a file name. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: 1 to 64 letters, digits, . _ @ or -, the first a letter or digit")
    return name


def check_directory(directory: Path) -> None:
    """Check that nobody else can change a party's directory. Raises ConfigError."""
    try:
        private.check_folder(directory)
    except OSError as error:
        remedy = "make credentials with `ministream certs`"
        raise ConfigError(f"{directory}: cannot be read ({error.strerror}); {remedy}") from error


def _load_pair(directory: Path, usage: str, authority: x509.Certificate) -> KeyPair | None:
    path = directory / f"{usage}.crt"
    if not path.exists():
        return None
    pair = KeyPair(certificate=files.read(path), key=files.read_key(directory / f"{usage}.key"))
    certificate = _parse(pair.certificate, path)
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as error:
        raise ConfigError(f"{path} was not issued by {directory / 'ca.crt'}: copy both from one authority") from error
    # what `certs` issues; tls_listener.py asks for TLS 1.3, which any kind of key could serve
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} has no elliptic-curve key: make one with `ministream certs {usage}`")
    return pair


def decode(pem: bytes, path: Path) -> x509.Certificate:
    """A certificate file's content. Raises ConfigError for anything else."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except certificates.UNREADABLE as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def _parse(pem: bytes, path: Path) -> x509.Certificate:
    certificate = decode(pem, path)
    now = datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_after_utc < now:
        raise ConfigError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: `ministream certs renew`")
    if certificate.not_valid_before_utc > now:
        raise ConfigError(f"{path} is not valid before {certificate.not_valid_before_utc}: check this machine's clock")
    return certificate


def _check_lifetime(ca: KeyPair, days: float, authority: Path) -> None:
    end = ca.parsed().not_valid_after_utc
    if datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days) > end:
        raise ConfigError(f"{authority / 'ca.crt'} itself expires on {end:%Y-%m-%d}: ask for fewer --days")


def _write_pair(directory: Path, stem: str, pair: KeyPair) -> None:
    files.write(directory / f"{stem}.key", pair.key, 0o600)
    files.write(directory / f"{stem}.crt", pair.certificate, 0o644)
