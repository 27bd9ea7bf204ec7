"""The live view's socket: viewers that have the key get the newest state; one that does not read costs nothing."""

from __future__ import annotations

import dataclasses
import json
import stat
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ministream.app.recon import live_key
from ministream.app.recon.live_key import LiveKey
from ministream.app.recon.live_server import MAX_COMMANDS, MAX_VIEWERS, LiveServer
from ministream.app.view.live_feed import LiveFeed
from ministream.app.view.operator import steer
from ministream.errors import AccessError, ConfigError, ProtocolError, VersionError
from ministream.transport import dial
from ministream.wire import live
from ministream.wire.live import JobState, Look, Picture, ScanFacts, Shape, UpdateRecord
from tests.waiting import eventually

LOOPBACK = "tcp://127.0.0.1:0"
SLICE, PROJECTION = Picture("z", 3), Picture("projection")
FACTS = ScanFacts(
    scan_id="s-1", sample="foam", rows=8, cols=16, n=16, projections=90, pixel_size_um=1.5, algorithm="sirt", ranks=2,
    threads=1,
)  # fmt: skip


def state(server: LiveServer, **changes) -> JobState:
    known = {
        "job": server.job, "number": 0, "phase": "live", "text": "", "scan": FACTS, "elapsed_s": 1.0,
        "ledger": {"received": 5}, "losses": {}, "per_s": 2.0, "lag": 1, "behind_s": 0.5,
        "latency_s": {"p50": 0.4, "p99": None}, "update": 1,
    }  # fmt: skip
    return JobState(**known | changes)


def shown(picture: Picture, value: float, side: int = 16) -> dict:
    return {Shape(picture=picture, update=1, rows=side, cols=side): np.full((side, side), value, np.float32)}


def record(index: int) -> UpdateRecord:
    return UpdateRecord(index, 1.0 * index, 5 * index, 0.1, 2.0, None, {})


@pytest.fixture
def key() -> LiveKey:
    return LiveKey.new()


@pytest.fixture
def server(key):
    with LiveServer(LOOPBACK, key.for_server()) as server:
        yield server


@pytest.fixture
def feed(server, key):
    with LiveFeed(lambda: (server.address, key.for_viewer()), "here") as feed:
        yield feed


def publish(server: LiveServer, **changes) -> None:
    server.publish(state(server, **changes), arrived_s=time.monotonic())


def test_a_viewer_sees_states_updates_and_the_pictures_that_it_wants(server, feed):
    feed.want([SLICE, PROJECTION])
    server.updated(record(1))
    publish(server)
    eventually(lambda: set(server.wanted()) == {SLICE, PROJECTION})
    server.show(shown(SLICE, 7) | shown(Picture("z", 4), 1))
    publish(server, update=2)
    eventually(lambda: SLICE in feed.shown().pictures)
    assert set(feed.shown().pictures) == {SLICE}
    shape, pixels = feed.shown().pictures[SLICE]
    assert shape.update == 1
    assert (pixels == 7).all()
    server.updated(record(2))
    server.updated(record(2))
    publish(server)
    eventually(lambda: [one.index for one in feed.shown().updates] == [1, 2])
    assert feed.shown().condition == "live"
    assert feed.shown().state.scan == FACTS


def test_a_picture_that_another_viewer_brought_is_there_at_once(server, key, feed):
    feed.want([SLICE])
    publish(server)
    eventually(lambda: server.wanted() == (SLICE,))
    server.show(shown(SLICE, 7))
    publish(server)
    with LiveFeed(lambda: (server.address, key.for_viewer()), "there") as second:
        eventually(lambda: second.shown().state is not None)
        second.want([SLICE])
        eventually(lambda: SLICE in second.shown().pictures)


def test_ten_viewers_see_a_picture_each(server, key):
    with ExitStack() as stack:
        feeds = [stack.enter_context(LiveFeed(lambda: (server.address, key.for_viewer()), "here")) for _ in range(10)]
        publish(server)
        for index, feed in enumerate(feeds):
            feed.want([Picture("z", index)])
        eventually(lambda: len(server.wanted()) == len(feeds))
        for picture in server.wanted():
            server.show(shown(picture, picture.index))
        publish(server)
        for index, feed in enumerate(feeds):
            eventually(lambda feed=feed: len(feed.shown().pictures) == 1)
            (picture, (_, pixels)) = next(iter(feed.shown().pictures.items()))
            assert (picture, pixels[0, 0]) == (Picture("z", index), index)


def test_a_silent_scan_and_a_silent_job_are_stalled(key):
    with (
        LiveServer(LOOPBACK, key.for_server(), stalled_s=0.2) as server,
        LiveFeed(lambda: (server.address, key.for_viewer()), "here") as feed,
    ):
        server.publish(state(server), arrived_s=time.monotonic() - 99)
        eventually(lambda: feed.shown().condition == "stalled")
        assert feed.shown().text.startswith("no projection for 99 s")
        eventually(lambda: feed.shown().text.startswith("rank 0 has not responded for"))
        publish(server, phase="finished", text="all")
        eventually(lambda: feed.shown().condition == "finished")


def test_the_last_state_reaches_those_who_still_ask(key):
    with (
        LiveServer(LOOPBACK, key.for_server()) as server,
        LiveFeed(lambda: (server.address, key.for_viewer()), "here") as feed,
    ):
        publish(server)
        eventually(lambda: feed.shown().condition == "live")
        publish(server, phase="incomplete", text="3 dropped")
        server.close(5.0)
        eventually(lambda: feed.shown().condition == "incomplete")
        assert feed.shown().text == "3 dropped"


def test_a_job_that_starts_again_is_found(key):
    running: list[LiveServer] = []
    with LiveFeed(lambda: (running[-1].address, key.for_viewer()) if running else None, "here") as feed:
        assert feed.shown().condition == "waiting"
        with LiveServer(LOOPBACK, key.for_server()) as first:
            running.append(first)
            first.updated(record(1))
            publish(first)
            eventually(lambda: feed.shown().condition == "live")
        running.clear()
        eventually(lambda: feed.shown().condition == "lost")
        with LiveServer(LOOPBACK, key.for_server()) as second:
            running.append(second)
            publish(second)
            eventually(lambda: feed.shown().condition == "live" and feed.shown().state.job == second.job)
            assert not feed.shown().updates


def test_without_the_key_nothing_is_answered(server):
    publish(server)
    stranger = LiveKey.new()
    misled = LiveKey(server=None, server_public=live_key.LiveKey.new().server_public, viewer=stranger.viewer)
    for keys in (stranger.for_viewer(), misled.for_viewer(), None):
        channel = dial(server.address, max_message_bytes=1 << 20, keys=keys)
        channel.send([live.encode(Look())])
        eventually(lambda channel=channel: channel.recv(0.1) is not None or channel.broken)
        assert channel.broken
        channel.close()


def test_a_viewer_that_does_not_read_is_sent_one_answer(server, key):
    """It asks 200 times for a picture of 4 MB, and the job publishes 200 times."""
    side, channel = 1024, dial(server.address, max_message_bytes=1 << 23, keys=key.for_viewer())
    for _ in range(200):
        channel.send([live.encode(Look(pictures=(SLICE,)))])
    eventually(lambda: server.wanted() == (SLICE,))
    with LiveFeed(lambda: (server.address, key.for_viewer()), "here") as feed:
        for update in range(1, 201):
            server.show(shown(SLICE, update, side))
            publish(server, update=update)
        eventually(lambda: feed.shown().state is not None and feed.shown().state.update == 200)
    answers = 0
    while channel.recv(0.3) is not None:
        answers += 1
    channel.close()
    assert answers == 1


def test_malformed_requests_do_not_end_the_service(server, key, feed):
    channel = dial(server.address, max_message_bytes=1 << 20, keys=key.for_viewer())
    for parts in ([b""], [b"\xff" * 100], [b"a", b"b"], [live.encode(Look(version=7))]):
        channel.send(parts)
    publish(server)
    eventually(lambda: feed.shown().condition == "live")
    channel.close()


@pytest.fixture
def steered(key):
    """A server that is steered, but refuses an axis."""

    def check(command, value):
        if command == "axis":
            raise ConfigError(f"axis {value:g}: expected less.")

    with LiveServer(LOOPBACK, key.for_server(), operator=key.operator, check=check) as server:
        yield server


def key_file(folder: Path, key: LiveKey, address: str) -> Path:
    key.write(folder, address)
    return folder / live_key.NAME


def test_commands_with_the_operators_token_are_handed_over(steered, key, tmp_path):
    path = key_file(tmp_path, key, steered.address)
    assert steer(str(tmp_path), None, "iterations", 3.0) == "iterations: after the next update"
    assert steer(steered.address, path, "finish", None) == "finish: now"
    command = [sys.executable, "-m", "ministream", "ctl", str(tmp_path), "step", "4"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert shown.stdout == "step: after the next update\n"
    assert steered.commands() == [("iterations", 3.0), ("finish", None), ("step", 4.0)]
    with pytest.raises(ConfigError, match="axis 9: expected less"):
        steer(str(tmp_path), None, "axis", 9.0)
    for _ in range(MAX_COMMANDS):
        steer(str(tmp_path), None, "snapshot", None)
    with pytest.raises(ConfigError, match="wait for the next update"):
        steer(str(tmp_path), None, "snapshot", None)
    assert steered.commands() == [("snapshot", None)] * MAX_COMMANDS


def test_without_the_operators_token_nothing_is_steered(steered, server, key, tmp_path, caplog):
    for operator in (bytes(32), LiveKey.new().operator):
        key_file(tmp_path, dataclasses.replace(key, operator=operator), steered.address)
        with pytest.raises(AccessError, match=r"operator's token of this job: copy \.live\.json"):
            steer(str(tmp_path), None, "finish", None)
    key_file(tmp_path, dataclasses.replace(key, operator=None), steered.address)
    with pytest.raises(AccessError, match="it is a copy for viewers"):
        steer(str(tmp_path), None, "finish", None)
    key_file(tmp_path, key, server.address)  # a job that nobody may steer
    with pytest.raises(AccessError, match="operator's token"):
        steer(str(tmp_path), None, "finish", None)
    assert not steered.commands()
    assert "refused: finish without the operator's token" in caplog.text


def test_steering_needs_a_job(tmp_path):
    with pytest.raises(ConfigError, match=r"Start it with --live tcp://127\.0\.0\.1:0"):
        steer(str(tmp_path), None, "finish", None)
    with pytest.raises(ConfigError, match=r"name the copy with --key FILE"):
        steer("tcp://127.0.0.1:9", None, "finish", None)


def test_viewers_are_limited(server, key, caplog):
    publish(server)
    channels = [dial(server.address, max_message_bytes=1 << 20, keys=key.for_viewer()) for _ in range(MAX_VIEWERS + 1)]
    for channel in channels:
        channel.send([live.encode(Look())])
    answered = 0
    for channel in channels:
        answered += channel.recv(1.0) is not None
    for channel in channels:
        channel.close()
    assert answered == MAX_VIEWERS
    assert f"more than {MAX_VIEWERS} viewers" in caplog.text


def test_the_key_file_is_private_and_keeps_its_keys(tmp_path: Path, key):
    key.write(tmp_path, "tcp://127.0.0.1:7")
    path = tmp_path / live_key.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert live_key.read(path) == (key, "tcp://127.0.0.1:7")
    assert live_key.of_job(tmp_path) == key
    copy = {name: value for name, value in json.loads(path.read_text()).items() if name != "server"}
    path.write_text(json.dumps(copy))
    assert live_key.read(path)[0].for_viewer() == key.for_viewer()
    with pytest.raises(ConfigError, match=r"copy for viewers\. Remove it"):
        live_key.of_job(tmp_path).for_server()
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600"):
        live_key.read(path)


@pytest.mark.parametrize("text", ["", "{}", '{"viewer": 3}', '{"viewer": "00", "server_public": "00", "address": ""}'])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, text):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"key: is not the key file .* Copy \.live\.json"):
        live_key.read(path)


def test_other_versions_and_wrong_sizes_are_refused():
    with pytest.raises(VersionError, match="received version 2, expected 1"):
        live.decode(live.encode(Look(version=2)), Look)
    with pytest.raises(ProtocolError, match="malformed"):
        live.decode(b"\x80", Look)
    good = live.encode(Look(pictures=(Picture("tilted", -3, "fbp", 30.0, 1.5),)))
    assert live.decode(good, Look).pictures[0].tilt_deg == 1.5
    for value in (float("nan"), float("inf"), 91.0):
        bad = good.replace(struct.pack(">d", 1.5), struct.pack(">d", value))
        with pytest.raises(ProtocolError, match="malformed"):
            live.decode(bad, Look)
    with pytest.raises(ProtocolError, match="do not fit"):
        live.pixels_of([Shape(picture=SLICE, update=1, rows=2, cols=2)], [memoryview(b"1234")])
