"""Interface of every wire, and of its senders and receivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

from ministream.config import Config
from ministream.errors import ConfigError
from ministream.model import CurveKeys, Frame, Scan
from ministream.wire.native import Share, Totals, Written
from ministream.wire.session import Arrived, Ended, Lost, Omitted, Refused

Event: TypeAlias = Arrived | Refused | Omitted | Ended | Lost


@dataclass(frozen=True, kw_only=True, slots=True)
class SenderReport:
    """What a sender has done.

    `seconds` runs from the first frame; `bytes` are pixels, each frame counted once; `retransmitted` frames were sent
    again, after a connection was lost or because they had arrived damaged (`asked_again` times); `blocked_s` is the
    part of `seconds` that `send` waited for credit. Of the frames, `acked` were used by the receiver, `refused` of them
    as bad; `dropped` projections were left out on purpose. Where `bands` receivers share the rows, `acked` is the
    least, `refused` the greatest, and the other two count bands. `written` is what the receivers' job said about its
    volume at the end, None where it reported nothing. `unacknowledged` frames are not used by the receiver yet, None on
    a wire without acknowledgements.
    """

    projections: int
    bytes: int
    seconds: float
    darks: int = 0
    flats: int = 0
    dropped: int = 0
    acked: int = 0
    refused: int = 0
    retransmitted: int = 0
    asked_again: int = 0
    blocked_s: float = 0.0
    bands: int = 1
    unacknowledged: int | None = None
    written: Written | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamReport:
    """What one stream of a scan has carried, over how many `connections`, one after the other."""

    frames: int
    bytes: int
    connections: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiverReport:
    """What a receiver has done: whole frames, bad ones, and how often it had to connect.

    `asked_again` counts damaged frames that were sent again, `repeated` frames that arrived twice. `streams` says what
    came over each of the connections over which the scan is striped.
    """

    received: int
    refused: int
    acked: int
    bytes: int
    dialled: int
    asked_again: int = 0
    repeated: int = 0
    streams: tuple[StreamReport, ...] = ()


class Sender(AbstractContextManager["Sender"], Protocol):
    """Sends one scan."""

    @property
    def addresses(self) -> Sequence[str]:
        """Every address to connect to, the data first."""
        ...

    def send(self, frame: Frame, again: Callable[[], Frame] | None = None) -> None:
        """Send one frame; wait for credit. A sender that keeps frames may read one once more with `again`."""
        ...

    def omit(self, indices: Sequence[int], *, reason: str, at_s: float) -> None:
        """Tell the receiver which projections are left out by the policy `reason`, the last one at UNIX time `at_s`."""
        ...

    def finish(self, dropped: int = 0) -> SenderReport:
        """Send the end of the scan, and say what was sent; `dropped` projections never left the source."""
        ...

    @property
    def report(self) -> SenderReport:
        """What has been sent so far."""
        ...


class Receiver(AbstractContextManager["Receiver"], Protocol):
    """Receives one scan."""

    def scan(self) -> Scan:
        """Wait until the scan is described."""
        ...

    def next(self, timeout_s: float) -> Event | None:
        """The next event; None when the timeout expires."""
        ...

    def ack(self, seq: int) -> None:
        """Every frame up to and including `seq` has been used."""
        ...

    def save(self, seq: int) -> None:
        """Every frame up to and including `seq` is safe: a job that is started again does not need it."""
        ...

    def conclude(self, *, written: bool, complete: bool, text: str = "") -> None:
        """After the end: tell the producer whether a volume was written, and whether everything is in it."""
        ...

    @property
    def report(self) -> ReceiverReport:
        """What has arrived so far."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivingRank:
    """Which of `count` receiving ranks a receiver is, and the rows that it receives.

    A rank of a restarted job says what it held of which scan; `saves` that it will call `save`.
    """

    number: int = 0
    count: int = 1
    share: Share = field(default_factory=Share)
    scan_id: str = ""
    held: Totals | None = None
    saves: bool = False


ALONE = ReceivingRank()
"""One receiver for all rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reception:
    """What a receiver is made for; see `Wire.receiver`."""

    urls: Sequence[str]
    rank: ReceivingRank = ALONE
    subscribers: int | None = None
    keys: CurveKeys | None = None


class Wire:
    """One wire, as a configuration sets it up; a plug-in's class `Wire` derives from it.

    `sends`: the producer job can send on it. `encrypts`: keys can encrypt it from end to end. `shares_rows`: several
    receivers can share the rows of a scan. `stripes`: a receiver can use several connections. `every_rank`: every rank
    can receive its own rows. `corrected`: its projections are corrected already. `calibration_first`: it carries no
    flats and darks after the first projection.
    """

    sends: ClassVar[bool] = False
    encrypts: ClassVar[bool] = False
    shares_rows: ClassVar[bool] = False
    stripes: ClassVar[bool] = False
    every_rank: ClassVar[bool] = False
    corrected: ClassVar[bool] = False
    calibration_first: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self._config = config

    def sender(self, scan: Scan, *, keys: CurveKeys | None = None) -> Sender:
        """A sender at `[producer] listen`. Raises ConfigError for an address that cannot be bound."""
        raise ConfigError("the producer job cannot send on this wire: choose another with --wire")

    def receiver(
        self,
        urls: Sequence[str],
        *,
        rank: ReceivingRank = ALONE,
        subscribers: int | None = None,
        keys: CurveKeys | None = None,
    ) -> Receiver:
        """A receiver of what is sent at `urls`: the data, and behind a tunnel the sync socket.

        `subscribers` says for how many subscribers it stands, `[aps] subscribers` unless given; a wire whose senders
        do not count them ignores it. Raises ConfigError for missing or invalid settings.
        """
        return self._receiver(Reception(urls=urls, rank=rank, subscribers=subscribers, keys=keys))

    def _receiver(self, asked: Reception) -> Receiver:
        raise ConfigError("the reconstruction job cannot receive on this wire: choose another with --source-wire")

    @property
    def source_passes(self) -> int:
        """How often the source itself repeats its projections."""
        return self._config.producer.repeat

    def played(self, frames: Callable[[], Iterator[Frame]]) -> Iterator[Frame]:
        """A source's frames in the order and as often as this wire sends them."""
        return frames()
