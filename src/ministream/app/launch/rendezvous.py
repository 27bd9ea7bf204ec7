"""Where the two jobs of a pair meet: a folder that both can see and nobody else can read.

    pair/            the pair's token, its own certificate authority and the keys of its stream: made whole by
                     whoever comes first
    producer.json    each side's card: where its S2CS listens, its certificate's fingerprint, the token
    recon.json
    producer.end     how each side ended, and why
    recon.end

Either side may come first. The last one to end takes the secrets away; what says how they ended stays.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import ssl
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from ministream import atomic
from ministream.errors import AccessError, ConfigError, ExitCode, PeerLostError, ProtocolError
from ministream.tunnel import credentials, curve
from ministream.tunnel.address import Endpoint, parse_endpoint

JobSide = Literal["producer", "recon"]
PARTNER: dict[JobSide, JobSide] = {"producer": "recon", "recon": "producer"}

# A pair's certificates outlive the longest queue and scan, and no more.
CERTIFICATE_DAYS = 14.0

PROBE_LIMIT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one side tells the other: where its S2CS listens, and how to know it. `job` names it in messages."""

    job: str
    control: str
    fingerprint: str | None = None
    token: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one side ended: its exit code, and one line that says why."""

    code: int
    reason: str

    @property
    def failed(self) -> bool:
        """Whether the side ended otherwise than by finishing its part."""
        return self.code != ExitCode.COMPLETE


class Meeting(Protocol):
    """How one side of a pair knows of the other."""

    folder: Path

    def credentials(self, host: str) -> Path:
        """This side's directory of credentials, for a server on `host`."""

    def curve(self) -> Path:
        """The directory of keys that encrypt the pair's stream end to end."""

    def publish(self, job: str, control: str) -> None:
        """Tell the partner where this side's S2CS listens."""

    def partner(self) -> Card | None:
        """The partner's card; None before it came."""

    def finish(self, outcome: Outcome) -> None:
        """Tell the partner how this side ended."""

    def partner_outcome(self) -> Outcome | None:
        """How the partner ended; None while it has not, or is not known."""


class Rendezvous:
    """A meeting through files.

    Raises AccessError when others could read or replace what lies in the folder, StorageError when it cannot be
    written, ConfigError when its pair has ended.
    """

    def __init__(self, folder: Path, side: JobSide) -> None:
        self.folder = folder.absolute()
        self._side: JobSide = side
        self._pair = self.folder / "pair"
        _make_private(self.folder)
        if (self.folder / f"{side}.end").exists() and self.partner_outcome() is not None:
            raise ConfigError(f"{folder}: the pair that met here has ended: use a fresh folder for every pair")
        _make_once(self._pair)
        self._token = (self._pair / "token").read_text()

    def credentials(self, host: str) -> Path:
        """This side's directory of credentials for a server on `host`, issued by the pair's own authority."""
        own = self._pair / self._side
        for usage, hosts in (("server", [host]), ("client", [])):
            credentials.issue(self._pair, name=self._side, usage=usage, hosts=hosts, days=CERTIFICATE_DAYS - 1, out=own)
        return own

    def curve(self) -> Path:
        """Keys made for this pair, which both sides find here and nobody else."""
        return self._pair / "curve"

    def publish(self, job: str, control: str) -> None:
        """Leave this side's card for the partner; replaces an earlier one."""
        fingerprint = fingerprint_of((self._pair / self._side / "server.crt").read_text())
        card = Card(job=job, control=control, fingerprint=fingerprint, token=self._token)
        _write(self.folder / f"{self._side}.json", card)

    def partner(self) -> Card | None:
        """The partner's card; None before it came. Raises AccessError for a card that is not of this pair."""
        card = _read(self.folder / f"{PARTNER[self._side]}.json", Card)
        if card is not None and not secrets.compare_digest(card.token, self._token):
            raise AccessError(f"{self.folder}: the card of {card.job} is not of this pair: use a fresh folder")
        return card

    def finish(self, outcome: Outcome) -> None:
        """Leave this side's outcome for the partner; the last one to end takes the secrets away."""
        _write(self.folder / f"{self._side}.end", outcome)
        if self.partner_outcome() is not None:
            for card in PARTNER:
                (self.folder / f"{card}.json").unlink(missing_ok=True)
            shutil.rmtree(self._pair, ignore_errors=True)  # both may come here at once

    def partner_outcome(self) -> Outcome | None:
        """How the partner ended; None while it has not."""
        return _read(self.folder / f"{PARTNER[self._side]}.end", Outcome)


class Appointment:
    """A meeting at addresses known beforehand, with credentials that both sides have: nothing is shared but them.

    `producer` is where the producer's S2CS listens, for the side that dials; None for the producer itself.
    `folder` is this side's own: its outcome goes there for whoever submitted it.
    """

    def __init__(self, folder: Path, side: JobSide, credentials_folder: Path, producer: str | None) -> None:
        self.folder = folder.absolute()
        self._side: JobSide = side
        _make_private(self.folder)
        self._credentials = credentials_folder.absolute()
        self._producer = producer

    def credentials(self, host: str) -> Path:
        """The directory of credentials that was given; its server certificate must be for `host`."""
        return self._credentials

    def curve(self) -> Path:
        """Raises ConfigError: the two sides share no folder in which keys could be made for them."""
        raise ConfigError(
            "--curve makes keys where both sides meet: with addresses known beforehand make them by"
            " `ministream certs curve`, and name them as `curve` in [stream] of either side's run file"
        )

    def publish(self, job: str, control: str) -> None:
        """Nobody is told: the addresses are known."""

    def partner(self) -> Card | None:
        """The producer, at the address that was given."""
        return Card(job="the producer", control=self._producer) if self._producer else None

    def finish(self, outcome: Outcome) -> None:
        """The stream tells the partner; the file tells who submitted this side."""
        _write(self.folder / f"{self._side}.end", outcome)

    def partner_outcome(self) -> Outcome | None:
        """Not known here."""
        return None


def fingerprint_of(certificate: str) -> str:
    """SHA-256 of a PEM certificate's DER form, in hexadecimal."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()


def check_fingerprint(card: Card, own: Path) -> None:
    """Make sure that the S2CS which answers at the card's address is the one that wrote the card.

    `own` is this side's directory of credentials. Raises PeerLostError when nobody answers, AccessError when
    somebody else does.
    """
    context = ssl.create_default_context(cafile=str(own / "ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(own / "client.crt", own / "client.key")
    context.set_alpn_protocols(["h2"])
    address = parse_endpoint(card.control)
    try:
        found = _certificate_at(address, context)
    except ssl.SSLError as error:
        raise AccessError(f"{card.job}: its S2CS at {address} is not to be trusted: {error.reason}") from error
    except OSError as error:
        raise PeerLostError(f"{card.job}: its S2CS at {address} does not answer: {error.strerror or error}") from error
    if fingerprint_of(found) != card.fingerprint:
        raise AccessError(f"{card.job}: another server than its own answers at {address}")


def _certificate_at(address: Endpoint, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection((address.host, address.port), PROBE_LIMIT_S) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise atomic.failed(folder, error) from error
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AccessError(f"{folder}: a rendezvous must be yours and closed to others: chmod 700 {folder}")


def _make_once(pair: Path) -> None:
    """Make the folder of the pair's secrets, whole, unless the partner has."""
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
        # Onto a folder that holds something it fails: the partner was faster.
        if not pair.exists():
            raise


def _write(path: Path, value: Card | Outcome) -> None:
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
        raise ProtocolError(f"{path}: not what a partner leaves there: {error}") from error
