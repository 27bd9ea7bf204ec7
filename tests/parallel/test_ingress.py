"""Several ranks receive, each a band of the rows: all ranks get the same frames, whatever happens to one band."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

from ministream import config, partition
from ministream.app.recon.assignment import groups_of
from ministream.app.recon.ingress import Ingress
from ministream.app.recon.producer_link import Route
from ministream.errors import ConfigError, FrameError, PeerError
from ministream.model import Frame, FrameKind, Scan
from ministream.parallel.mpi import wait_until
from ministream.parallel.row_scatter import RowScatter
from ministream.transport.native import FrameSender
from ministream.wire import frames
from ministream.wire.native import Share
from tests.cable import Cable

pytestmark = pytest.mark.mpi

SCAN = Scan(scan_id="s", rows=11, cols=6, projections=40, flats=2, darks=1, dtype="<f4")
STEP = 7


def make_frames(bad_rows=()):
    """The scan's frames; `damage` makes the band bad that has row `row` of projection `index`, for `bad_rows`."""
    rng = np.random.default_rng(3)
    for kind, count in ((FrameKind.DARK, 1), (FrameKind.FLAT, 2), (FrameKind.PROJECTION, 40)):
        for index in range(count):
            pixels = rng.random((SCAN.rows, SCAN.cols), np.float32)
            for at, row in bad_rows:
                if kind is FrameKind.PROJECTION and at == index:
                    pixels[row, 2] = np.nan
            yield Frame(kind=kind, index=index, angle_rad=index / 10, pixels=pixels, acquired_s=1e9 + index)


@dataclass
class Producer:
    """Sends the frames from a thread of rank 0; `cut_after` bytes the connection of one receiving rank is cut once."""

    frames: list[Frame]
    cut_after: int | None = None
    stop_after: int | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    error: Exception | None = None
    report: object = None

    def start(self) -> Route:
        self.sender = self.stack.enter_context(FrameSender("tcp://127.0.0.1:0", SCAN, outage_timeout_s=5.0))
        urls = [self.sender.address]
        if self.cut_after is not None:
            self.cable = self.stack.enter_context(Cable(self.sender.address, cut_after=self.cut_after))
            urls.append(self.cable.address)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return Route(urls=tuple(urls), node=os.uname().nodename)

    def run(self) -> None:
        try:
            for frame in self.frames[: self.stop_after]:
                self.sender.send(frame)
            if self.stop_after is not None:
                self.sender.abort("the shutter closed")
            else:
                self.report = self.sender.finish()
        except PeerError as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.stack.close()


@dataclass
class Outcome:
    """What one rank has got; `ingress` is None where it did not receive."""

    rows: list[tuple[FrameKind, int, np.ndarray]]
    batch_ends: list[int]
    ingress: Ingress | None
    producer: Producer | None


@pytest.fixture(params=[1, 2, 3])
def receiving(request, comm):
    if request.param > comm.size:
        pytest.skip(f"needs {request.param} ranks")
    return request.param


@pytest.fixture(autouse=True)
def damage(monkeypatch):
    """A band that holds a NaN arrives damaged: what the checksum finds on a real line."""

    sound = frames.unpack

    def unpack(header, payload, info):
        frame = sound(header, payload, info)
        if np.isnan(frame.pixels).any():
            name = f"{header.kind.name.lower()} {header.index}"
            raise FrameError(f"{name} does not match its checksum", reason="checksum")
        return frame

    monkeypatch.setattr(frames, "unpack", unpack)


@pytest.fixture(autouse=True)
def handlers():
    """Receiving takes over what signals do."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def receive(comm, receiving, frames, *, credit_frames=4, strict=False, batch=4, signal_at=0, **faults) -> Outcome:
    """Let all ranks take the whole stream, or up to a signal that rank 0 gets when `signal_at` frames are waiting."""
    credit_mib = credit_frames * SCAN.frame_bytes / receiving / 2**20
    settings = config.parse(
        config.Config,
        {"stream": {"ingress": receiving, "credit_mib": credit_mib, "strict": strict, "outage_timeout_s": 5.0}},
        "test",
    )
    producer = Producer(list(frames), **faults) if comm.rank == 0 else None
    group = next(group for group in groups_of(settings, comm.size) if comm.rank in group)
    slabs = partition.slabs(SCAN.rows, comm.size)
    band = partition.band(SCAN.rows, comm.size, group.start, group.stop)
    local = [type(band)(slabs[rank].first - band.first, slabs[rank].rows) for rank in group]
    receivers, members = comm.split(0 if comm.rank == group.start else None), comm.split(group.start)
    with ExitStack() as stack:
        ingress = None
        if receivers is not None:
            ingress = stack.enter_context(Ingress(receivers, settings, None))
            share = Share(first=group.start, last=group.stop, ranks=comm.size)
            assert ingress.wait_for_scan(producer.start() if producer else None, share) == SCAN
            ingress.begin(batch=batch, step=STEP, shape=(band.rows, SCAN.cols))
        distributor = RowScatter(members, SCAN, local, batch, ingress.feed if ingress else None)
        outcome = Outcome([], [], ingress, producer)
        if signal_at and comm.rank == 0:
            wait_until(lambda: ingress.waiting >= signal_at)
            os.kill(os.getpid(), signal.SIGUSR1)
        while (taken := distributor.take()) is not None:
            outcome.rows += [(rows.kind, rows.index, rows.pixels.copy()) for rows in taken]
            outcome.batch_ends.append(sum(kind is FrameKind.PROJECTION for kind, _, _ in outcome.rows))
            if ingress is not None:
                ingress.acknowledge()
        if ingress is not None:
            ingress.conclude()
        distributor.close()
    if producer is not None:
        producer.join()
    return outcome


def expected(comm, without=()):
    own = partition.slabs(SCAN.rows, comm.size)[comm.rank].slice
    return [
        (frame.kind, frame.index, frame.pixels[own])
        for frame in make_frames()
        if frame.kind is not FrameKind.PROJECTION or frame.index not in without
    ]


def everything_arrived(ingress: Ingress) -> bool:
    told, ledger = ingress.announced, ingress.ledger
    return told is not None and ledger.received == told.sent == told.delivered and not ledger.refusals


def assert_same(got, due):
    assert [(kind, index) for kind, index, _ in got] == [(kind, index) for kind, index, _ in due]
    for (_, _, pixels), (_, _, right) in zip(got, due, strict=True):
        np.testing.assert_array_equal(pixels, right)


@pytest.mark.parametrize("credit_frames", [2, 40])
def test_every_rank_gets_its_rows_of_every_frame(comm, receiving, credit_frames):
    outcome = receive(comm, receiving, make_frames(), credit_frames=credit_frames)
    assert_same(outcome.rows, expected(comm))
    assert set(range(STEP, 40, STEP)) <= set(outcome.batch_ends), "a batch must end where an update is due"
    assert len(set(comm.allgather(tuple(outcome.batch_ends)))) == 1
    if outcome.ingress is not None:
        assert everything_arrived(outcome.ingress)
        assert outcome.ingress.ledger.received == outcome.ingress.announced.sent == 40
        assert outcome.ingress.bytes_received == 43 * SCAN.frame_bytes
    if outcome.producer is not None:
        assert outcome.producer.error is None
        assert outcome.producer.report.acked == 43
        assert outcome.producer.report.bands == receiving


@pytest.mark.parametrize("bad", [(3, 5), tuple(range(40)), (39,)])
def test_what_one_band_refuses_is_missing_for_all(comm, receiving, bad):
    last_row = SCAN.rows - 1
    outcome = receive(comm, receiving, make_frames([(index, last_row) for index in bad]), credit_frames=2)
    assert_same(outcome.rows, expected(comm, without=bad))
    if outcome.ingress is not None:
        ledger = outcome.ingress.ledger
        assert (outcome.ingress.announced.sent, ledger.received, ledger.refused) == (40, 40, len(bad))
        assert ledger.refusals == {"projection": {"checksum": len(bad)}}
    if outcome.producer is not None:
        assert outcome.producer.error is None, "every frame is accounted for"


def test_a_frame_that_two_bands_refuse_counts_once(comm, receiving):
    outcome = receive(comm, receiving, make_frames([(4, 0), (4, SCAN.rows - 1)]))
    assert_same(outcome.rows, expected(comm, without=[4]))
    if outcome.ingress is not None:
        assert outcome.ingress.ledger.refused == 1


@pytest.mark.parametrize("cut_after", [700, 2500])
def test_a_band_whose_connection_is_cut_goes_on_where_it_was(comm, receiving, cut_after):
    if receiving == 1:
        pytest.skip("one band: tests/unit/test_transport_stream.py")
    outcome = receive(comm, receiving, make_frames(), cut_after=cut_after)
    assert_same(outcome.rows, expected(comm))
    if outcome.ingress is not None:
        assert everything_arrived(outcome.ingress)
    if outcome.producer is not None:
        assert outcome.producer.cable.connections > 1


def test_a_producer_that_gives_up_ends_all_bands_at_the_same_frame(comm, receiving):
    outcome = receive(comm, receiving, make_frames(), stop_after=20)
    assert_same(outcome.rows, expected(comm)[: len(outcome.rows)])
    assert len(set(comm.allgather(len(outcome.rows)))) == 1
    if outcome.ingress is not None:
        assert not everything_arrived(outcome.ingress)
        assert "the shutter closed" in outcome.ingress.ending


def test_a_signal_takes_what_has_arrived(comm, receiving):
    # credit for all frames, whatever share of the rows rank 0 receives: it acknowledges none before the signal
    outcome = receive(comm, receiving, make_frames(), credit_frames=40, stop_after=20, signal_at=20)
    assert_same(outcome.rows, expected(comm)[: len(outcome.rows)])
    assert len(set(comm.allgather(len(outcome.rows)))) == 1
    assert receiving > 1 or len(outcome.rows) == 20
    if outcome.ingress is not None:
        assert not everything_arrived(outcome.ingress)
        assert outcome.ingress.ledger.received >= len(outcome.rows) - 3, "two flats and a dark"
        assert comm.rank or "stopped by SIGUSR1" in outcome.ingress.ending


def test_the_walltime_limit_takes_what_has_arrived(comm, receiving, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 30))  # the default margin is 60 s
    outcome = receive(comm, receiving, make_frames(), credit_frames=20, stop_after=20)
    assert_same(outcome.rows, expected(comm)[: len(outcome.rows)])
    assert len(set(comm.allgather(len(outcome.rows)))) == 1
    if outcome.ingress is not None:
        assert "stopped by the walltime limit" in outcome.ingress.ending


def test_a_strict_job_ends_for_all_where_one_band_refuses(comm, receiving):
    outcome = receive(comm, receiving, make_frames([(5, SCAN.rows - 1)]), strict=True)
    assert_same(outcome.rows, expected(comm)[: len(outcome.rows)])
    assert len(outcome.rows) == 3 + 5
    with pytest.raises(FrameError, match=r"checksum.*strict"):
        comm.agree(outcome.ingress.failure if outcome.ingress else None)
    if outcome.ingress is not None:
        assert not everything_arrived(outcome.ingress)
        assert "projection 5 does not match its checksum" in outcome.ingress.ending


def test_more_receiving_ranks_than_ranks_are_refused(comm):
    settings = config.parse(config.Config, {"stream": {"ingress": comm.size + 1}}, "test")
    with pytest.raises(ConfigError, match="cannot have so many that receive"):
        groups_of(settings, comm.size)
