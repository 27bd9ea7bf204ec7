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
        left = self.certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        return left.total_seconds() / 86400


def status(directory: Path) -> list[HeldCertificate]:
    """The certificates in a party's directory. Raises ConfigError for one that others can change, or that is none."""
    check_directory(directory)
    revoked = RevocationList(directory)
    found = []
    for file in ("ca.crt", "server.crt", "client.crt"):
        path = directory / file
        if file == "ca.crt" or path.exists():
            certificate = decode(files.read(path), path)
            name, _ = certificates.names_of(certificate)
            state = "revoked" if certificate.serial_number in revoked else state_of(certificate)
            found.append(HeldCertificate(file=file, name=name, certificate=certificate, state=state))
    return found


def state_of(certificate: x509.Certificate) -> str:
    """valid, expired or not yet valid."""
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        return "expired"
    return "valid" if now >= certificate.not_valid_before_utc else "not yet valid"


def warn_of(credentials: Credentials) -> None:
    """Log what a server's operator should change: a certificate that ends soon, a CA key that is not needed here."""
    for name, pem in {"ca.crt": credentials.ca, "server.crt": credentials.server.certificate}.items():
        path = credentials.directory / name
        certificate = decode(pem, path)
        left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        if left < datetime.timedelta(0):
            _LOG.error("%s has expired, every caller is rejected: ministream certs renew", path)
        elif left < WARN_BEFORE and _long_lived(certificate):
            days = left.total_seconds() / 86400
            _LOG.warning("%s expires in %.1f days: ministream certs renew", path, days)
    if credentials.holds_authority:
        text = (
            "%s holds ca.key, which no server needs: move it away and issue with --out to a separate folder per party"
        )
        _LOG.warning(text, credentials.directory)


def _long_lived(certificate: x509.Certificate) -> bool:
    """One made for a few days, as a pair of jobs has, is not about to expire by mistake."""
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc > 2 * WARN_BEFORE
