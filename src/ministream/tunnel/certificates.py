"""X.509 certificates: the private CA of a deployment, its servers and clients, and a session's certificates."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ministream.tunnel.refusal import Code, RefusedError

# Some programs require a name check; security rests on trusting this certificate alone.
SESSION_NAME = "session.ministream"
_OFFER_BYTES = 8192
_CLOCK_SKEW = datetime.timedelta(minutes=5)
_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A certificate and its private key, PEM. The repr omits the key."""

    certificate: bytes
    key: bytes = field(repr=False)

    def parsed(self) -> x509.Certificate:
        """The certificate as an object."""
        return x509.load_pem_x509_certificate(self.certificate)


def make_ca(name: str, days: float) -> KeyPair:
    """A self-signed certificate authority; it may sign end entities only."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key.public_key(), days).issuer_name(_name(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(ca: KeyPair, *, name: str, usage: str, hosts: Sequence[str], days: float) -> KeyPair:
    """An end entity of the CA: `usage` is server or client, `hosts` its subject alternative names."""
    authority = ca.parsed()
    ca_key = serialization.load_pem_private_key(ca.key, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key.public_key(), days).issuer_name(authority.subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([_USAGES[usage]]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_san(h) for h in hosts]), critical=False)
    return _pair(builder.sign(ca_key, hashes.SHA256()), key)


def make_session_pair(days: float) -> KeyPair:
    """The credentials of one side of one session: self-signed, trusted only by the other side's relay."""
    name = f"ministream session {x509.random_serial_number():x}"[:60]
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, key.public_key(), days).issuer_name(_name(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SESSION_NAME)]), critical=False)
    return _pair(builder.sign(key, hashes.SHA256()), key)


UNREADABLE = (ValueError, x509.InvalidVersion)
"""What reading a certificate raises for other bytes; InvalidVersion is no ValueError."""


def check_peer(offer: bytes) -> str:
    """The other side's session certificate as one clean PEM block. Raises RefusedError (INVALID_ARGUMENT)."""
    try:
        certificate = x509.load_pem_x509_certificate(offer[:_OFFER_BYTES])
    except UNREADABLE:
        text = "the other side's offer is not a certificate: use compatible data servers (--kind) on both sides"
        raise RefusedError(Code.INVALID_ARGUMENT, text) from None
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def names_of(certificate: x509.Certificate) -> tuple[str, tuple[str, ...]]:
    """Common name and subject alternative names."""
    attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    common = str(attributes[0].value) if attributes else ""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return common, ()
    return common, tuple(str(name.value) for name in extension)


def _builder(name: str, public_key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(_name(name)).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + datetime.timedelta(days=days))


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate=certificate.public_bytes(encoding), key=pem)
