"""A directory of credentials: written by `ministream certs`, read by every server and client.

    ca.crt                    the deployment's certificate authority: everyone has it
    ca.key                    only where certificates are issued
    server.crt  server.key    this machine's control server
    client.crt  client.key    this user
    revoked                   serial numbers (hexadecimal, one a line, `#` starts a remark) that no server accepts
    tokens                    hashed bearer tokens of stock clients
    issued/NAME.SERVER-OR-CLIENT.crt   what the authority has issued, for renewal and revocation

Keys are 0600 in a 0700 directory, and are refused if anyone else can read them.
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

from ministream.errors import ConfigError
from ministream.tunnel import certificates, files
from ministream.tunnel.certificates import KeyPair

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
        """Read and check a directory. Raises ConfigError: missing, expired, readable by others, not our CA's."""
        path = Path(directory)
        ca = files.read(path / "ca.crt")
        authority = _parse(ca, path / "ca.crt")
        pairs = {usage: _load_pair(path, usage, authority) for usage in ("server", "client")}
        return cls(directory=path, ca=ca, server_pair=pairs["server"], client_pair=pairs["client"])

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


class RevocationList:
    """The file `revoked` of a credentials directory; read again whenever it has changed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "revoked"
        self._stamp: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def __contains__(self, serial: int) -> bool:
        """Raises ConfigError for a file that cannot be understood: nobody is let in by accident."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._serials = read_revoked(self._path)
            self._stamp = stamp
        return serial in self._serials


def read_revoked(path: Path) -> frozenset[int]:
    """The serial numbers in a revocation file. Raises ConfigError naming the line."""
    serials = set()
    for number, line in enumerate(files.read(path).decode("utf-8", "replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        try:
            if text:
                serials.add(int(text, 16))
        except ValueError:
            raise ConfigError(f"{path}:{number}: {text!r} is not a hexadecimal serial number") from None
    return frozenset(serials)


def create_authority(directory: Path, *, name: str, days: float) -> None:
    """A new CA in `directory`. Raises ConfigError if one is there: replacing it would cut everybody off."""
    if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
        raise ConfigError(f"{directory} holds a certificate authority already: choose another directory")
    files.make_private(directory)
    _write_pair(directory, "ca", certificates.make_ca(check_name(name), days))
    files.write(directory / "revoked", b"# serial numbers of revoked certificates\n", 0o644)


def issue(authority: Path, *, name: str, usage: str, hosts: Sequence[str], days: float, out: Path) -> x509.Certificate:
    """Issue a server or client certificate into the directory `out` and record it. Returns the certificate."""
    ca = KeyPair(certificate=files.read(authority / "ca.crt"), key=files.read_key(authority / "ca.key"))
    _check_lifetime(ca, days, authority)
    pair = certificates.issue(ca, name=check_name(name), usage=usage, hosts=hosts, days=days)
    files.make_private(authority / "issued")
    files.write(authority / "issued" / f"{name}.{usage}.crt", pair.certificate, 0o644)
    files.make_private(out)
    if out.resolve() != authority.resolve():
        files.write(out / "ca.crt", ca.certificate, 0o644)
        if (authority / "revoked").exists():
            files.write(out / "revoked", files.read(authority / "revoked"), 0o644)
    _write_pair(out, usage, pair)
    return pair.parsed()


def issued(authority: Path) -> dict[tuple[str, str], x509.Certificate]:
    """Everything the authority has issued and not replaced, by (name, usage); what has expired too."""
    found = {}
    for path in sorted((authority / "issued").glob("*.crt")):
        name, _, usage = path.stem.rpartition(".")
        found[name, usage] = _decode(files.read(path), path)
    return found


def renew(authority: Path, name: str, *, days: float, out: Path) -> list[str]:
    """Issue every certificate of a name again, for the same hosts. Returns their usages; ConfigError if none."""
    found = {usage: certificate for (owner, usage), certificate in issued(authority).items() if owner == name}
    if not found:
        raise ConfigError(f"{authority} has issued no certificate to {name!r}: see `ministream certs show`")
    for usage, certificate in found.items():
        _, hosts = certificates.names_of(certificate)
        issue(authority, name=name, usage=usage, hosts=hosts, days=days, out=out)
    return list(found)


def state_of(certificate: x509.Certificate) -> str:
    """valid, expired or not yet valid."""
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        return "expired"
    return "valid" if now >= certificate.not_valid_before_utc else "not yet valid"


def add_token(directory: Path, name: str, days: float) -> str:
    """A new bearer token; only its hash is kept, in `tokens`, in place of an earlier one of that name."""
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    path = directory / "tokens"
    files.make_private(directory)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.split()[:1] != [check_name(name)]]
    text = "\n".join([*kept, f"{name} {digest} {time.time() + days * 86400:.0f}", ""])
    files.write(path, text.encode(), 0o600)
    return token


def revoke(authority: Path, name: str) -> list[int]:
    """Put every certificate of that name (or of that hexadecimal serial) on the list. Raises ConfigError if none."""
    known = issued(authority)
    serials = [c.serial_number for (owner, _), c in known.items() if name in (owner, f"{c.serial_number:x}")]
    if not serials and re.fullmatch(r"[0-9a-fA-F]{16,40}", name):
        serials = [int(name, 16)]
    if not serials:
        raise ConfigError(f"{authority} has issued no certificate to {name!r}: see `ministream certs show`")
    before = files.read(authority / "revoked") if (authority / "revoked").exists() else b""
    lines = "".join(f"{serial:x}  # {name}\n" for serial in serials)
    files.write(authority / "revoked", before + lines.encode(), 0o644)
    return serials


def check_name(name: str) -> str:
    """A certificate's common name, which is also a file name. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: 1 to 64 letters, digits, . _ @ or -, the first a letter or digit")
    return name


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
    # control.py rules TLS 1.2 out by leaving it no cipher that works with an elliptic-curve key.
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} has no elliptic-curve key: make one with `ministream certs {usage}`")
    return pair


def _decode(pem: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def _parse(pem: bytes, path: Path) -> x509.Certificate:
    certificate = _decode(pem, path)
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
