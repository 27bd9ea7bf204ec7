"""Both ends of the TraceMQ conversation: the recording replayed, each against the other, and malformed messages."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.errors import ProtocolError, UsageError
from ministream.model import Slab
from ministream.partition import slabs
from ministream.wire import tracemq
from ministream.wire.tracemq import (
    Assigned,
    DistributorSession,
    Finished,
    Projection,
    Requested,
    WorkerJoined,
    WorkerSession,
)
from tests.recordings import tracemq_messages

ASSIGNED = Assigned(rows=5, cols=4, slab=Slab(1, 2))
PIXELS = np.arange(8, dtype=np.float32).reshape(2, 4)


def projection(pixels=PIXELS, projection_id=3):
    return Projection(projection_id=projection_id, theta=0.5, center=2.0, pixels=pixels)


def joined_worker() -> WorkerSession:
    worker = WorkerSession(rank=0, size=2, peer="tcp://dist:5560")
    worker.hello()
    return worker


def assigned_pair() -> tuple[WorkerSession, DistributorSession]:
    worker, server = WorkerSession(rank=0, size=2, peer="tcp://dist:5560"), DistributorSession(peer="worker 0")
    server.receive(worker.hello())
    worker.receive(server.assign(ASSIGNED))
    server.receive(worker.answer())
    return worker, server


def test_the_recording_replays_byte_for_byte_as_the_distributor(shared: Path) -> None:
    sent = np.load(shared / "vectors" / "tracemq-2ranks.npz")
    deal = slabs(5, 2)
    servers = [DistributorSession(peer=f"worker {rank}") for rank in range(2)]
    served = [0, 0]
    due: dict[int, memoryview] = {}
    events = []
    for rank, from_distributor, message in tracemq_messages(shared):
        if from_distributor:
            assert bytes(due.pop(rank)) == message
            continue
        event = servers[rank].receive(message)
        events.append(event)
        match event:
            case WorkerJoined(rank=claimed, size=size):
                assert (claimed, size) == (rank, 2)
                due[rank] = servers[rank].assign(Assigned(rows=5, cols=64, slab=deal[rank]))
            case Requested() if served[rank] < 12:
                k = served[rank]
                pixels = sent["proj"][k, deal[rank].slice]
                due[rank] = servers[rank].projection(
                    Projection(projection_id=20 + k, theta=float(sent["theta"][k]), center=31.25, pixels=pixels)
                )
                served[rank] += 1
            case Requested():
                due[rank] = servers[rank].finish()
    assert events[-2:] == [Finished(), Finished()]
    assert served == [12, 12]


def test_the_recording_replays_as_the_workers(shared: Path) -> None:
    sent = np.load(shared / "vectors" / "tracemq-2ranks.npz")
    workers = [WorkerSession(rank=rank, size=2, peer="recording") for rank in range(2)]
    received: list[list[Projection]] = [[], []]
    started = set()
    for rank, from_distributor, message in tracemq_messages(shared):
        worker = workers[rank]
        if from_distributor:
            event = worker.receive(message)
            if isinstance(event, Projection):
                received[rank].append(event)
            continue
        ours = worker.answer() if rank in started else worker.hello()
        started.add(rank)
        # The original's messages are 8 bytes longer: its header is padded to 32 bytes, and the padding is not cleared.
        assert bytes(ours[:16]) == message[:16]
        assert bytes(ours[24:]) == message[24 : 24 + len(ours) - 24]
    for rank, slab in enumerate(slabs(5, 2)):
        assert workers[rank].assigned == Assigned(rows=5, cols=64, slab=slab)
        assert [one.projection_id for one in received[rank]] == list(range(20, 32))
        assert {one.center for one in received[rank]} == {31.25}
        np.testing.assert_array_equal([one.theta for one in received[rank]], sent["theta"])
        np.testing.assert_array_equal([one.pixels for one in received[rank]], sent["proj"][:, slab.slice])
        assert workers[rank].finished


def test_a_whole_conversation() -> None:
    worker, server = assigned_pair()
    assert worker.assigned == ASSIGNED
    for k in range(3):
        event = worker.receive(server.projection(projection(PIXELS + k, k)))
        assert isinstance(event, Projection)
        assert (event.projection_id, event.theta, event.center) == (k, 0.5, 2.0)
        np.testing.assert_array_equal(event.pixels, PIXELS + k)
        assert server.receive(worker.answer()) == Requested()
    assert worker.receive(server.finish()) == Finished()
    assert server.receive(worker.answer()) == Finished()
    with pytest.raises(ProtocolError, match="after finish"):
        worker.receive(b"")
    with pytest.raises(ProtocolError, match="after finish"):
        server.receive(b"")


def test_the_padding_of_the_original_distributor_is_read_over() -> None:
    worker, server = assigned_pair()
    message = bytearray(server.projection(projection())) + bytes(12)
    struct.pack_into("<Q", message, 16, len(message))
    event = worker.receive(message)
    assert isinstance(event, Projection)
    np.testing.assert_array_equal(event.pixels, PIXELS)


def test_received_pixels_are_a_view_and_sent_ones_may_be_one() -> None:
    worker, server = assigned_pair()
    message = server.projection(projection(np.arange(32, dtype=np.float32).reshape(4, 8)[::2, ::2]))
    event = worker.receive(message)
    assert isinstance(event, Projection)
    assert np.shares_memory(event.pixels, np.frombuffer(message, np.uint8))
    np.testing.assert_array_equal(event.pixels, [[0, 2, 4, 6], [16, 18, 20, 22]])


@pytest.mark.parametrize(
    ("at", "layout", "value", "said"),
    [
        (0, "<Q", 4, "seq is 4, expected 3"),
        (0, "<Q", 2**64 - 1, "seq"),
        (8, "<Q", 2, "type is 0x2, expected DATA_REPLY 0x20 or FINISH 0x00"),
        (8, "<Q", 0x99, "type"),
        (8, "<Q", 0, "body of FINISH"),
        (16, "<Q", 67, "size is 67 in a message of 68"),
        (16, "<Q", 2**64 - 1, "size"),
        (28, "<f", float("nan"), "theta nan"),
        (32, "<f", float("-inf"), "center -inf"),
    ],
)
def test_a_wrong_field_of_a_projection_is_named_with_the_peer(at, layout, value, said) -> None:
    worker, server = assigned_pair()
    message = bytearray(server.projection(projection()))
    struct.pack_into(layout, message, at, value)
    with pytest.raises(ProtocolError, match=f"tcp://dist:5560: .*{said}"):
        worker.receive(message)


@pytest.mark.parametrize("extra", [-1, 17])
def test_a_projection_of_another_size_is_refused(extra) -> None:
    worker, server = assigned_pair()
    message = bytearray(server.projection(projection()))
    message = message[:extra] if extra < 0 else message + bytes(extra)
    struct.pack_into("<Q", message, 16, len(message))
    with pytest.raises(ProtocolError, match="body of DATA_REPLY"):
        worker.receive(message)


@pytest.mark.parametrize(
    "info",
    [(5, 0, 0, 4), (5, 0, 2, 0), (5, 4, 2, 4), (5, 2**32 - 1, 2, 4), (2**32 - 1, 0, 2**32 - 1, 2**32 - 1)],
)
def test_an_impossible_assignment_is_refused_before_any_allocation(info) -> None:
    message = struct.pack("<QQQ4I", 1, 2, 40, *info)
    with pytest.raises(ProtocolError, match="rows"):
        joined_worker().receive(message)


@pytest.mark.parametrize("claim", [(2, 2), (0, 0), (0, 2**32 - 1), (2**32 - 1, 1)])
def test_an_impossible_rank_is_refused(claim) -> None:
    with pytest.raises(ProtocolError, match="worker 0: rank"):
        DistributorSession(peer="worker 0").receive(struct.pack("<QQQ2I", 0, 1, 32, *claim))


def test_the_server_answers_only_what_was_asked() -> None:
    _, server = assigned_pair()
    server.projection(projection())
    with pytest.raises(UsageError, match="DATA_REQUEST has not arrived"):
        server.projection(projection())
    _, server = assigned_pair()
    with pytest.raises(UsageError, match="was assigned"):
        server.projection(projection(PIXELS[:1]))


def test_a_worker_that_does_not_wait_for_its_answer_is_refused() -> None:
    worker, server = assigned_pair()
    with pytest.raises(ProtocolError, match="answered"):
        server.receive(worker.answer())


@settings(max_examples=300)
@given(st.binary(max_size=100))
def test_garbage_ends_in_a_protocol_error(message) -> None:
    worker, server = assigned_pair()
    server.projection(projection())
    with pytest.raises(ProtocolError):
        server.receive(message)
    with pytest.raises(ProtocolError):
        worker.receive(message)
    with pytest.raises(ProtocolError):
        joined_worker().receive(message)


@settings(max_examples=300)
@given(
    seq=st.integers(0, 4),
    kind=st.sampled_from([0, 1, 2, 0x10, 0x20, 0x21]),
    size=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    body=st.binary(max_size=80),
)
def test_almost_right_messages_are_read_within_their_bounds_or_refused(seq, kind, size, body) -> None:
    message = struct.pack("<QQQ", seq, kind, 24 + len(body) if size is None else size) + body
    worker, server = assigned_pair()
    server.projection(projection())
    for party in (worker, server, joined_worker(), DistributorSession(peer="worker 0")):
        try:
            event = party.receive(message)
        except ProtocolError:
            continue
        assert not isinstance(event, Projection) or event.pixels.nbytes <= len(body)


def test_ranks_are_bounded() -> None:
    accepted = struct.pack("<QQQ2I", 0, 1, 32, 5, tracemq.LARGEST_RANKS)
    assert DistributorSession(peer="w").receive(accepted) == WorkerJoined(rank=5, size=tracemq.LARGEST_RANKS)
