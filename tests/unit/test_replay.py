"""A recorded stream is played as it was sent, or refused with what is wrong with it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.app.producer.accounting import AccountedSender
from ministream.app.producer.backlog import Backlog
from ministream.app.producer.job import produce
from ministream.errors import ConfigError, IncompleteError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.plausibility import calibration
from ministream.source import Source, describe, open_source
from ministream.storage.archive import Archive
from ministream.transport import Arrived, Ended, Omitted
from ministream.transport.native import FrameReceiver, FrameSender
from tests.native_stream import make_frame, make_frames, make_scan, same

SCAN = make_scan()


def played(path: Path, **options: Any) -> Source:
    section = config.SourceSection(kind="replay", **{"file": str(path), "speed": "unlimited"} | options)
    return open_source(section, order="sequential", repeat=1)


def recorded(path: Path, frames: list[Frame], scan: Scan = SCAN, dropped: int | None = 0) -> Path:
    with Archive(path, scan) as archive:
        for frame in frames:
            archive.append(frame)
        archive.dropped = dropped
    return path


def received(receiver: FrameReceiver) -> Iterator[Frame | Omitted | Ended]:
    """Everything of a stream up to its end."""
    while not isinstance(event := receiver.next(20), Ended):
        if isinstance(event, Arrived):
            receiver.ack(event.seq)
            yield event.frame
        elif event is not None:
            assert isinstance(event, Omitted)
            yield event
    receiver.conclude(written=True, complete=True)
    yield event


def streamed(folder: Path, source: dict[str, Any], **producer: Any) -> tuple[Scan, list[Any]]:
    """What a receiver gets from the producer job."""
    settings = config.load(None, {"source": source, "producer": producer})
    announcement = folder / "addresses.json"
    announcement.unlink(missing_ok=True)
    job = threading.Thread(target=produce, args=(settings, announcement))
    job.start()
    while not announcement.exists():
        job.join(0.01)
        assert job.is_alive() or announcement.exists()
    with FrameReceiver(json.loads(announcement.read_text())["data"], reports=True) as receiver:
        scan, entries = receiver.scan(20), list(received(receiver))
    job.join(20)
    return scan, entries


def test_what_was_recorded_is_sent_again_as_it_was(tmp_path: Path) -> None:
    phantom = {"kind": "phantom", "rows": 4, "cols": 16, "projections": 12, "flats": 2, "flats_after": 1, "darks": 1}
    recording = str(tmp_path / "recording.h5")
    scan, sent = streamed(tmp_path, phantom, record=recording, order="golden-angle")
    again, repeated = streamed(tmp_path, {"kind": "replay", "file": recording, "speed": 50})
    assert again == scan
    assert repeated[-1] == sent[-1]
    assert len(sent) == 17
    assert all(same(one, other) for one, other in zip(sent[:-1], repeated[:-1], strict=True))


def test_frames_keep_their_places_in_the_stream(tmp_path: Path) -> None:
    frames = list(make_frames(SCAN))
    interleaved = [frames[k] for k in (2, 0, 3, 1, 4, *range(5, 12))]
    with played(recorded(tmp_path / "recording.h5", interleaved)) as source:
        assert all(same(one, other) for one, other in zip(source.frames(), interleaved, strict=True))


def test_projections_dropped_while_recording_are_lost_at_the_replay(tmp_path: Path) -> None:
    frames = [frame for frame in make_frames(SCAN) if (frame.kind, frame.index) not in DROPPED]
    recording = recorded(tmp_path / "recording.h5", frames, dropped=3)
    _, entries = streamed(tmp_path, {"kind": "replay", "file": str(recording)})
    lost = [entry for entry in entries if isinstance(entry, Omitted)]
    assert [(entry.indices, entry.reason) for entry in lost] == [((2, 3), "source"), ((6,), "source")]
    assert entries[-1].totals.drops == {"source": 3}


DROPPED = {(FrameKind.PROJECTION, index) for index in (2, 3, 6)}


def test_what_the_overflow_policy_drops_is_not_recorded_and_counts(tmp_path: Path) -> None:
    """The receiver comes when the acquisition is over: reports of drops wait for the end of the calibration."""
    scan = make_scan(projections=50)
    over = threading.Event()

    def acquisition() -> Iterator[Frame]:
        yield from (frame for frame in make_frames(scan) if (frame.kind, frame.index) not in DROPPED)
        over.set()

    with (
        FrameSender("tcp://127.0.0.1:0", scan) as sender,
        Archive(tmp_path / "recording.h5", scan) as record,
        Backlog(acquisition(), overflow="drop-oldest", limit=4, stop=lambda: None) as backlog,
    ):
        assert over.wait(10)
        accounted = AccountedSender(sender, scan, record)
        with FrameReceiver(sender.address) as receiver:
            reader = threading.Thread(target=lambda: entries.extend(received(receiver)))
            entries: list[Any] = []
            reader.start()
            for frame in backlog:
                accounted.drop(backlog.drops(), policy="drop-oldest")
                accounted.send(frame)
            report = accounted.finish(3)
            reader.join(10)
    kinds = [entry.kind if isinstance(entry, Frame) else type(entry) for entry in entries]
    assert kinds[:5] == [FrameKind.DARK] * 2 + [FrameKind.FLAT] * 3
    assert set(kinds[5:-5]) == {Omitted}
    assert entries[-1].totals.drops == {"drop-oldest": 43, "source": 3}
    assert report.dropped == 46
    with played(tmp_path / "recording.h5") as source:
        assert source.dropped == 3
        assert [frame.index for frame in source.frames()][-4:] == [46, 47, 48, 49]
    again = tmp_path / "again.h5"
    _, repeated = streamed(tmp_path, {"kind": "replay", "file": str(tmp_path / "recording.h5")}, record=str(again))
    assert repeated[-1].totals.drops == entries[-1].totals.drops
    assert left_out(repeated) == left_out(entries)
    _, repeated = streamed(tmp_path, {"kind": "replay", "file": str(again)}, archive=str(tmp_path / "archive.h5"))
    assert repeated[-1].totals.drops == entries[-1].totals.drops
    with played(tmp_path / "archive.h5") as source:
        assert (source.dropped, set(source.policies.values()), len(source.policies)) == (3, {"drop-oldest"}, 43)


def left_out(entries: list[Any]) -> dict[str, set[int]]:
    """The projections that were left out, by policy."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        if isinstance(entry, Omitted):
            found.setdefault(entry.reason, set()).update(entry.indices)
    return found


def test_projections_that_were_dropped_last_keep_their_policy(tmp_path: Path) -> None:
    frames = [frame for frame in make_frames(SCAN) if frame.kind is not FrameKind.PROJECTION or frame.index < 4]
    with Archive(tmp_path / "recording.h5", SCAN) as archive:
        for frame in frames:
            archive.append(frame)
        archive.dropped = 3
        archive.omit(dict.fromkeys((4, 5, 6), "decimate"))
    _, entries = streamed(tmp_path, {"kind": "replay", "file": str(tmp_path / "recording.h5")})
    assert left_out(entries) == {"decimate": {4, 5, 6}}
    assert entries[-1].totals.drops == {"decimate": 3}


def at_times(path: Path, projections_s: float) -> Path:
    """A recording whose projections came so many seconds after the calibration."""
    recording = recorded(path, list(make_frames(SCAN)))
    with h5py.File(recording, "r+") as file:
        for name, at_s in (("data_dark", 0.0), ("data_white", 0.0), ("data", projections_s)):
            records = file[f"ministream/{name}"][()]
            records["recorded_s"] = 1.7e9 + at_s
            file[f"ministream/{name}"][()] = records
    return recording


def with_late_flats(scan: Scan) -> list[Frame]:
    """A detector that takes its last two flats after the projections."""
    frames = [frame for frame in make_frames(scan) if (frame.kind, frame.index) != (FrameKind.FLAT, 2)]
    late = [make_frame(scan, FrameKind.FLAT, index) for index in (2, 3)]
    return [*frames, *(replace(frame, position=7.0) for frame in late)]


def test_flats_after_the_projections_are_in_the_archive_and_not_sent(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("ministream"), "propagate", True)
    frames = with_late_flats(SCAN)
    archive = recorded(tmp_path / "archive.h5", frames)
    _, entries = streamed(tmp_path, {"kind": "replay", "file": str(archive)})
    assert all(same(one, other) for one, other in zip(entries[:-1], frames[:-2], strict=True))
    assert entries[-1].totals.flats == 2
    assert "flat 2 came after the first projection" in caplog.text
    assert "2 flats and darks came after the first projection" in caplog.text
    with played(archive) as source:
        assert all(same(one, other) for one, other in zip(source.frames(), frames, strict=True))


def test_the_remedy_for_late_flats_uses_them(tmp_path: Path) -> None:
    archive = recorded(tmp_path / "archive.h5", with_late_flats(SCAN))
    section = config.SourceSection(kind="dxchange", file=str(archive))
    with open_source(section, order="sequential", repeat=1) as source:
        flats = [frame for frame in source.frames() if frame.kind is FrameKind.FLAT]
    assert [(frame.index, frame.position) for frame in flats] == [(0, 0), (1, 0), (2, 7), (3, 7)]
    expected = [make_frame(SCAN, FrameKind.FLAT, index).pixels for index in range(4)]
    np.testing.assert_array_equal([frame.pixels for frame in flats], expected)


@pytest.mark.parametrize(
    ("arrived", "text"),
    [
        ({FrameKind.FLAT: 3, FrameKind.DARK: 2}, ""),
        ({FrameKind.FLAT: 1, FrameKind.DARK: 2}, "1 of 3 flats came before the first projection"),
        ({FrameKind.FLAT: 1, FrameKind.DARK: 0}, "1 of 3 flats and 0 of 2 darks came before the first projection"),
    ],
)
def test_calibration_that_came_too_late_is_a_notice(arrived: dict[FrameKind, int], text: str) -> None:
    found = calibration.late(arrived, {FrameKind.FLAT: 3, FrameKind.DARK: 2})
    assert [each.code for each in found] == (["calibration-late"] if text else [])
    assert all(each.text.startswith(text) for each in found)


@pytest.mark.parametrize(("speed", "least_s"), [("original", 0.2), (2, 0.1), (0.5, 0.4)])
def test_a_replay_keeps_the_times_between_frames(tmp_path: Path, speed: Any, least_s: float) -> None:
    with played(at_times(tmp_path / "recording.h5", 0.2), speed=speed) as source:
        started = time.monotonic()
        assert len(list(source.frames())) == 12
        assert time.monotonic() - started >= least_s


def test_a_replay_that_waits_can_be_stopped(tmp_path: Path) -> None:
    with played(at_times(tmp_path / "recording.h5", 3600), speed="original") as source:
        frames = source.frames()
        calibration = [next(frames) for _ in range(5)]
        threading.Timer(0.05, source.stop).start()
        assert list(frames) == []
        assert len(calibration) == 5


def test_times_of_the_replay_can_stand_in_for_the_recorded_ones(tmp_path: Path) -> None:
    frames = list(make_frames(SCAN))
    with played(recorded(tmp_path / "recording.h5", frames), times="now") as source:
        times = [time.time(), *(frame.acquired_s for frame in source.frames()), time.time()]
    assert times == sorted(times)


def test_a_recording_that_was_interrupted_ends_incomplete(tmp_path: Path) -> None:
    frames = list(make_frames(SCAN))[:9]
    with played(recorded(tmp_path / "known.h5", frames, dropped=None)) as source:
        assert len(list(source.frames())) == 9
        assert source.dropped == 3
    unknown = recorded(tmp_path / "unknown.h5", frames, replace(SCAN, projections=0), dropped=None)
    with played(unknown) as source, pytest.raises(IncompleteError, match=r"unknown\.h5.*interrupted after 4 proj"):
        list(source.frames())


def test_describing_a_recording_opens_it(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "recording.h5", list(make_frames(SCAN)))
    section = config.SourceSection(kind="replay", file=str(recording))
    assert describe(section, order="sequential", repeat=1) == SCAN


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="speed"):
        played(tmp_path / "recording.h5", speed=0)
    with pytest.raises(InputError, match=r"absent\.h5"):
        played(tmp_path / "absent.h5")


def remove(name: str) -> Any:
    return lambda file: file.__delitem__(name)


def another_format(file: h5py.File) -> None:
    file["ministream"].attrs["format"] = 1


def no_scan(file: h5py.File) -> None:
    file["ministream"].attrs["scan"] = "{"


def wrong_scan(file: h5py.File) -> None:
    facts = json.loads(file["ministream"].attrs["scan"]) | {"rows": "three"}
    file["ministream"].attrs["scan"] = json.dumps(facts)


def other_rows(file: h5py.File) -> None:
    facts = json.loads(file["ministream"].attrs["scan"]) | {"rows": 4}
    file["ministream"].attrs["scan"] = json.dumps(facts)


def no_records(file: h5py.File) -> None:
    del file["ministream/data"]
    file["ministream/data"] = np.zeros(7)


def a_gap(file: h5py.File) -> None:
    records = file["ministream/data_white"][()]
    records["place"] += 1
    file["ministream/data_white"][()] = records


def odd_policies(file: h5py.File) -> None:
    file["ministream/omitted"] = np.array([(3, b"Drop\n")], [("index", "<i8"), ("policy", "S32")])


def no_policies(file: h5py.File) -> None:
    file["ministream/omitted"] = np.zeros(2)


def nothing_held(file: h5py.File) -> None:
    for name in ("data", "data_white", "data_dark"):
        records = file[f"ministream/{name}"][()]
        records["held"] = 0
        file[f"ministream/{name}"][()] = records


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("ministream"), "no dataset /ministream/data, expected a recording.*--source dxchange"),
        (remove("exchange/data"), "no dataset /exchange/data, expected a recording"),
        (another_format, "recording of format 1, expected 2.*--source dxchange"),
        (no_scan, "/ministream cannot be read"),
        (wrong_scan, "is damaged: scan rows: .*Copy it again"),
        (other_rows, "/ministream/data_dark does not describe /exchange/data_dark"),
        (no_records, "/ministream/data does not describe /exchange/data"),
        (a_gap, "frames are missing within the stream"),
        (odd_policies, r"/ministream/omitted names a policy 'Drop\\n'"),
        (no_policies, "/ministream/omitted holds float64"),
        (nothing_held, "holds no frame"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    recording = recorded(tmp_path / "recording.h5", list(make_frames(SCAN)))
    with h5py.File(recording, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=rf"recording\.h5: .*{message}"):
        played(recording)


def test_a_recording_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "recording.h5", list(make_frames(SCAN)))
    with recording.open("r+b") as file:
        file.truncate(recording.stat().st_size // 2)
    with pytest.raises(InputError, match=r"recording\.h5"):
        played(recording)


def test_the_remedy_for_a_file_that_is_no_recording_plays_it(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "recording.h5", list(make_frames(SCAN)))
    with h5py.File(recording, "r+") as file:
        del file["ministream"]
    with open_source(
        config.SourceSection(kind="dxchange", file=str(recording)), order="sequential", repeat=1
    ) as source:
        assert len(list(source.frames())) == 12
