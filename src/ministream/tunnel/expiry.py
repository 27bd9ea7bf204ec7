"""When the certificates of a party end: for `certs status`, for the log of a running server, for `doctor`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ministream import log
from ministream.tunnel import certificates, files
from ministream.tunnel.credentials import Credentials, check_directory, decode
from ministream.tunnel.revocations import RevocationList

WARN_BEFORE = datetime.timedelta(days=14)
FILES = ("ca.crt", "server.crt", "client.crt")
"""The certificates that a party may have."""

_LOG = log.get(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldCertificate:
    """One certificate in a party's directory, and whether it can be used."""

    file: str
    name: str
    certificate: x509.Certificate
    state: str

    @property
    def days_left(self) -> float:
        """Days until it expires, negative afterwards."""
        return _left(self.certificate).total_seconds() / 86400


def status(directory: Path) -> list[HeldCertificate]:
    """The certificates in a party's directory. Raises ConfigError for one that others can change, or that is none."""
    check_directory(directory)
    return [held(directory, file) for file in FILES if file == "ca.crt" or (directory / file).exists()]


def held(directory: Path, file: str) -> HeldCertificate:
    """One of `FILES` of a party's directory. Raises ConfigError as `status` does."""
    path = directory / file
    certificate = decode(files.read(path), path)
    name, _ = certificates.names_of(certificate)
    state = "revoked" if certificate.serial_number in RevocationList(directory) else state_of(certificate)
    return HeldCertificate(file=file, name=name, certificate=certificate, state=state)


def state_of(certificate: x509.Certificate) -> str:
    """valid, expired or not yet valid."""
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        return "expired"
    return "valid" if now >= certificate.not_valid_before_utc else "not yet valid"


def warn_of(credentials: Credentials) -> None:
    """Log what a server's operator should change: a certificate that ends soon, a CA key that is not needed here."""
    _warn_of_end(credentials.directory / "ca.crt", credentials.ca)
    _warn_of_end(credentials.directory / "server.crt", credentials.server.certificate)
    if credentials.holds_authority:
        text = (
            "%s holds ca.key, which no server needs: move it away and issue with --out to a separate folder per party"
        )
        _LOG.warning(text, credentials.directory)


def warn_of_client(credentials: Credentials) -> None:
    """Log that a client's certificate ends soon."""
    _warn_of_end(credentials.directory / "client.crt", credentials.client.certificate)


def is_soon(certificate: x509.Certificate) -> bool:
    """Whether it ends within 14 days.

    One that was made for a few days, as a pair of jobs has, is not about to expire by mistake.
    """
    long_lived = certificate.not_valid_after_utc - certificate.not_valid_before_utc > 2 * WARN_BEFORE
    return long_lived and _left(certificate) < WARN_BEFORE


def _warn_of_end(path: Path, pem: bytes) -> None:
    certificate = decode(pem, path)
    if _left(certificate) < datetime.timedelta(0):
        _LOG.error("%s has expired, every caller is rejected: ministream certs renew", path)
    elif is_soon(certificate):
        days = _left(certificate).total_seconds() / 86400
        _LOG.warning("%s expires in %.1f days: ministream certs renew", path, days)


def _left(certificate: x509.Certificate) -> datetime.timedelta:
    return certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
