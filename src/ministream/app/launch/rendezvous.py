"""How the two jobs of a pair find each other: through a shared folder that nobody else can read.

    pair/            the pair's token, its own certificate authority and the keys of its stream: created atomically
                     by the side that comes first
    producer.json    each side's contact: address of its S2CS, fingerprint of its certificate, token
    recon.json
    producer.end     each side's outcome: exit code and reason
    recon.end

Either side may come first. The authority's key is removed once both sides have their certificates. Each side removes
its own secrets at its end; the last one, or one that fails, removes all of them. The outcomes stay.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import ssl
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec
from cryptography.hazmat.primitives import hashes

from ministream import atomic, log, private
from ministream.errors import AccessError, ConfigError, ExitCode, PeerLostError, ProtocolError
from ministream.tunnel import credentials, curve
from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.peer_certificate import certificate_at, context_for

JobSide = Literal["producer", "recon"]
PARTNER: dict[JobSide, JobSide] = {"producer": "recon", "recon": "producer"}

# A pair's certificates outlive the longest queue and scan, but not much more.
CERTIFICATE_DAYS = 14.0

PROBE_LIMIT_S = 10.0

_CURVE_END: dict[JobSide, curve.StreamEnd] = {"producer": "producer", "recon": "receiver"}

T = TypeVar("T")
_LOG = log.get(__name__)


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A side's contact for the other: the address and identity of its S2CS, and the node that it runs on.

    `job` names it in messages.
    """

    job: str
    control: str
    node: str = ""
    fingerprint: str | None = None
    token: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one side ended: its exit code, and the reason in one line."""

    code: int
    reason: str

    @property
    def failed(self) -> bool:
        """Whether the side ended without finishing its part."""
        return self.code != ExitCode.COMPLETE


class Rendezvous(Protocol):
    """How one side of a pair finds the other."""

    folder: Path

    def credentials(self, *hosts: str) -> Path:
        """This side's directory of credentials, for a server under these names."""

    def curve(self) -> Path:
        """The directory of keys that encrypt the pair's stream end to end."""

    def publish(self, job: str, control: str) -> None:
        """Publish the address of this side's S2CS to the partner."""

    def partner(self) -> Contact | None:
        """The partner's contact; None before it has arrived."""

    def finish(self, outcome: Outcome) -> None:
        """Tell the partner how this side ended."""

    def partner_outcome(self) -> Outcome | None:
        """How the partner ended; None while it runs, or where that is unknown."""


class SharedFolder:
    """A rendezvous through files.

    Raises AccessError for a folder that others can read or change, StorageError for one that cannot be written,
    ConfigError for one whose pair has ended.
    """

    def __init__(self, folder: Path, side: JobSide) -> None:
        self.folder = folder.absolute()
        self._side: JobSide = side
        self._pair = self.folder / "pair"
        _make_private(self.folder)
        if (self.folder / f"{side}.end").exists() and self.partner_outcome() is not None:
            raise ConfigError(f"{folder}: its pair has ended. Use a new folder for every pair")
        _make_once(self._pair)
        self._token = (self._pair / "token").read_text()

    def credentials(self, *hosts: str) -> Path:
        """This side's directory of credentials for a server under these names, issued by the pair's own authority.

        The authority's key is removed as soon as both sides have theirs; a restarted side reuses its own.
        """
        own = self._pair / self._side
        if (self._pair / "ca.key").exists() or not (own / "client.crt").exists():
            lifetime = CERTIFICATE_DAYS - 1
            for usage, names in (("server", hosts), ("client", ())):
                credentials.issue(self._pair, name=self._side, usage=usage, hosts=names, days=lifetime, out=own)
        if (self._pair / PARTNER[self._side] / "client.crt").exists():
            _remove(self._pair / "ca.key")
        return own

    def curve(self) -> Path:
        """Keys created for this pair; only its two sides can read them."""
        return self._pair / "curve"

    def publish(self, job: str, control: str) -> None:
        """Write this side's contact for the partner; replaces an earlier one."""
        fingerprint = fingerprint_of((self._pair / self._side / "server.crt").read_text())
        node = os.uname().nodename
        contact = Contact(job=job, control=control, node=node, fingerprint=fingerprint, token=self._token)
        _write(self.folder / f"{self._side}.json", contact)

    def partner(self) -> Contact | None:
        """The partner's contact; None before it has arrived.

        Raises AccessError for one of another pair, ConfigError for a local address of another node.
        """
        contact = _read(self.folder / f"{PARTNER[self._side]}.json", Contact)
        if contact is not None and not secrets.compare_digest(contact.token, self._token):
            raise AccessError(
                f"{self.folder}: the contact of {contact.job} belongs to another pair. Use a new folder for every pair"
            )
        if contact is not None:
            _check_reachable(contact)
        return contact

    def finish(self, outcome: Outcome) -> None:
        """Write this side's outcome for the partner, and remove this side's secrets; those of both sides when this one
        failed or ends last, because the partner then starts nothing new.
        """
        _write(self.folder / f"{self._side}.end", outcome)
        own = (self._pair / self._side, self._pair / "curve" / f"{_CURVE_END[self._side]}.secret")
        for path in (*own, self.folder / f"{self._side}.json"):
            _remove(path)
        if outcome.failed or self.partner_outcome() is not None:
            _remove(self.folder / f"{PARTNER[self._side]}.json")
            _remove(self._pair)

    def partner_outcome(self) -> Outcome | None:
        """How the partner ended; None while it runs."""
        return _read(self.folder / f"{PARTNER[self._side]}.end", Outcome)


class KnownAddresses:
    """A rendezvous at known addresses, with credentials of one authority on both sides, and no shared folder.

    `producer` is the address of the producer's S2CS; None on the producer's side. `folder` belongs to this side: its
    outcome goes there for the submitting script.
    """

    def __init__(self, folder: Path, side: JobSide, credentials_folder: Path, producer: str | None) -> None:
        self.folder = folder.absolute()
        self._side: JobSide = side
        _make_private(self.folder)
        self._credentials = credentials_folder.absolute()
        self._producer = producer

    def credentials(self, *hosts: str) -> Path:
        """The given directory of credentials; its server certificate must be for `hosts`."""
        return self._credentials

    def curve(self) -> Path:
        """Raises ConfigError: the two sides share no folder for keys."""
        raise ConfigError(
            "--curve creates keys in a shared rendezvous folder, which is missing. Create them with "
            "`ministream certs curve DIR`, and name DIR as `curve` in [stream] of both run files"
        )

    def publish(self, job: str, control: str) -> None:
        """Nothing to do: the addresses are known."""

    def partner(self) -> Contact | None:
        """The producer, at its known address."""
        return Contact(job="the producer", control=self._producer) if self._producer else None

    def finish(self, outcome: Outcome) -> None:
        """Write the outcome for the submitting script; the partner learns it from the stream."""
        _write(self.folder / f"{self._side}.end", outcome)

    def partner_outcome(self) -> Outcome | None:
        """Unknown without a shared folder."""
        return None


def _check_reachable(contact: Contact) -> None:
    """A loopback address of another node names this one here. Raises ConfigError."""
    here = os.uname().nodename
    if contact.node and contact.node != here and parse_endpoint(contact.control).is_loopback:
        raise ConfigError(
            f"{contact.job} listens on {contact.control}, which only {contact.node} itself can reach, and this is "
            f"{here}. Start it with --host NAME, a name or address of {contact.node} in a network of both nodes"
        )


def fingerprint_of(certificate: str) -> str:
    """SHA-256 of a PEM certificate's DER form, in hexadecimal."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()


def check_fingerprint(contact: Contact, own: Path) -> None:
    """Check that the S2CS at the contact's address has the contact's certificate.

    `own` is this side's directory of credentials. Raises PeerLostError when no server answers, AccessError for
    another certificate.
    """
    context = context_for((own / "ca.crt").read_bytes())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    address = parse_endpoint(contact.control)
    try:
        found = certificate_at(address, context, PROBE_LIMIT_S).fingerprint(hashes.SHA256()).hex()
    except ssl.SSLError as error:
        raise AccessError(f"{contact.job}: certificate at {address} is not trusted: {error.reason}") from error
    except OSError as error:
        cause = error.strerror or error
        raise PeerLostError(f"{contact.job}: its S2CS at {address} does not answer: {cause}") from error
    if found != contact.fingerprint:
        raise AccessError(f"{contact.job}: certificate at {address} does not match the partner's fingerprint")


def _make_private(folder: Path) -> None:
    try:
        there = folder.exists()
        if there and folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise AccessError(f"{folder}: other users can read this rendezvous folder. Restrict it: chmod 700 {folder}")
        private.make_folder(folder, group_may_replace=True)
    except ConfigError as error:
        raise AccessError(f"rendezvous: {error}") from error
    except OSError as error:
        raise atomic.failed(folder, error) from error


def _remove(path: Path) -> None:
    """Remove a file or folder of secrets; both sides may do so at the same time."""

    def failed(_: object, where: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            _LOG.warning("%s could not be removed (%s): it holds secrets, remove it by hand", where, error)

    if path.is_dir():
        shutil.rmtree(path, onerror=lambda function, where, info: failed(function, where, info[1]))
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        failed(None, str(path), error)


def _make_once(pair: Path) -> None:
    """Create the folder of the pair's secrets as a whole, unless the partner has."""
    if pair.exists():
        return
    try:
        mine = Path(tempfile.mkdtemp(prefix=".pair-", dir=pair.parent))
        try:
            credentials.create_authority(mine, name="pair", days=CERTIFICATE_DAYS)
            curve.create(mine / "curve")
            _write_text(mine / "token", secrets.token_hex(32))
            _rename_unless_there(mine, pair)
        finally:
            shutil.rmtree(mine, ignore_errors=True)
    except OSError as error:
        raise atomic.failed(pair, error) from error


def _rename_unless_there(mine: Path, pair: Path) -> None:
    try:
        mine.rename(pair)
    except OSError:
        # rename onto a folder with content fails: the partner created it first
        if not pair.exists():
            raise


def _write(path: Path, value: Contact | Outcome) -> None:
    with atomic.replacing(path) as part:
        _write_text(part, msgspec.json.encode(value).decode())


def _write_text(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise atomic.failed(path, error) from error
    except msgspec.DecodeError as error:
        raise ProtocolError(f"{path}: not a valid {kind.__name__.lower()} of a partner: {error}") from error
