"""The producer job with an archive: every frame is on disk, and the archive can be sent in the source's place."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ministream import config
from ministream.app.producer.job import produce
from ministream.app.producer.spool import Spool
from ministream.errors import ConfigError, PeerError, PeerLostError, StorageError
from ministream.model import Frame, Scan
from ministream.storage import archive as archives
from ministream.storage.archive import Archive
from ministream.transport import Arrived, Ended, SenderReport
from ministream.transport.native import FrameReceiver
from tests.native_stream import make_frames, make_scan, same

SOURCE: dict[str, Any] = {"kind": "phantom", "rows": 4, "cols": 16, "projections": 12, "flats": 2, "darks": 1}


@contextmanager
def producing(
    tmp_path: Path, *, outage_timeout_s: float = 600.0, **producer: Any
) -> Iterator[tuple[str, list[SenderReport]]]:
    """Run the producer job in a thread: its address, and its report once it has ended."""
    stream = {"outage_timeout_s": outage_timeout_s}
    settings = config.load(None, {"source": SOURCE, "producer": producer, "stream": stream})
    announcement = tmp_path / "addresses.json"
    announcement.unlink(missing_ok=True)
    reports: list[SenderReport] = []

    def run() -> None:
        with suppress(PeerLostError):
            reports.append(produce(settings, announcement))

    job = threading.Thread(target=run)
    job.start()
    while not announcement.exists():
        job.join(0.01)
        assert job.is_alive() or announcement.exists()
    yield json.loads(announcement.read_text())["data"], reports
    job.join(20)
    assert not job.is_alive()


def received(receiver: FrameReceiver, count: int | None = None) -> list[Frame]:
    """The frames up to the end, or the first `count`, each used as it comes."""
    frames: list[Frame] = []
    while len(frames) != count and not isinstance(event := receiver.next(20), Ended):
        assert isinstance(event, Arrived)
        frames.append(event.frame)
        receiver.ack(event.seq)
    return frames


def streamed(tmp_path: Path, **producer: Any) -> tuple[Scan, list[Frame], SenderReport]:
    """Run the producer job with a receiver that says that it wrote everything; what came, and the job's report."""
    with producing(tmp_path, **producer) as (address, reports), FrameReceiver(address, reports=True) as receiver:
        scan, frames = receiver.scan(20), received(receiver)
        receiver.conclude(written=True, complete=True)
    return scan, frames, reports[0]


def started_again(address: str, whole: int) -> list[Frame]:
    """What a receiver gets that has saved nothing, after one that used half of the scan and was killed."""
    with FrameReceiver(address, saves=True, reports=True, credit_bytes=1) as first:
        first.scan(20)
        received(first, whole // 2)
        first.close("killed", returns=True)
    with FrameReceiver(address, saves=True, reports=True) as second:
        second.scan(20)
        frames = received(second)
        second.conclude(written=True, complete=True)
    return frames


def test_a_receiver_that_starts_again_gets_what_left_the_memory_from_the_archive(tmp_path, caplog):
    whole = SOURCE["darks"] + SOURCE["flats"] + SOURCE["projections"]
    with producing(tmp_path, archive=str(tmp_path / "raw.h5"), hold_mib=1e-6) as (address, reports):
        frames = started_again(address, whole)
    assert [frame.index for frame in frames[-SOURCE["projections"] :]] == list(range(SOURCE["projections"]))
    assert len(frames) == whole
    assert reports[0].written is not None
    assert "cannot continue" not in caplog.text


def test_without_an_archive_a_receiver_that_cannot_start_again_is_foretold(tmp_path, caplog):
    whole = SOURCE["darks"] + SOURCE["flats"] + SOURCE["projections"]
    with (
        producing(tmp_path, hold_mib=1e-6, outage_timeout_s=1.0) as (address, _),
        pytest.raises(PeerError, match=r"was requested, frames .* are held"),
    ):
        started_again(address, whole)
    assert "a job that is killed now cannot continue. Archive the frames (--archive FILE)" in caplog.text


def test_an_archive_holds_what_was_sent_and_is_sent_again_as_the_same_scan(tmp_path):
    archive = tmp_path / "raw.h5"
    scan, frames, report = streamed(tmp_path, archive=str(archive))
    assert report.written is not None
    assert report.written.complete
    again, repeated, _ = streamed(tmp_path, resume=str(archive))
    assert again == scan
    assert all(same(one, other) for one, other in zip(repeated, frames, strict=True))


def test_a_scan_keeps_the_id_that_it_is_given(tmp_path):
    scan, _, _ = streamed(tmp_path, scan_id="2026-11 run 7")
    assert scan.scan_id == "2026-11 run 7"


def test_a_scan_goes_on_without_an_archive_that_is_full(tmp_path, monkeypatch):
    """A detector that does not say how many projections there will be: the limit is met in the middle of the scan."""
    monkeypatch.setattr(archives, "BLOCK_FRAMES", 4)
    scan, frames = make_scan(projections=0), list(make_frames(make_scan()))
    # the acquisition then waits for the receiver, with one frame in memory
    with Archive(tmp_path / "raw.h5", scan, limit_bytes=1e6) as archive:
        archive._limit_bytes = archive.path.stat().st_size
        with Spool(iter(frames), archive, hold_bytes=scan.frame_bytes, stop=lambda: None) as spool:
            assert all(same(one, other) for one, other in zip(spool, frames, strict=True))
    assert "it holds 9 frames. Raise producer.archive_limit_gib" in str(spool.failed)


def test_a_scan_that_an_archive_cannot_hold_is_not_begun(tmp_path):
    settings = config.load(
        None, {"source": SOURCE, "producer": {"archive": str(tmp_path / "raw.h5"), "archive_limit_gib": 1e-6}}
    )
    with pytest.raises(StorageError, match=r"raw.h5: needs .* GiB, 1e-06 GiB are allowed"):
        produce(settings, None)
    assert not (tmp_path / "raw.h5").exists()


def test_dropping_and_archiving_exclude_each_other(tmp_path):
    settings = config.load(
        None,
        {"source": SOURCE, "producer": {"archive": str(tmp_path / "raw.h5"), "overflow": "decimate", "rate": 5.0}},
    )
    with pytest.raises(ConfigError, match="omit one of the two"):
        produce(settings, None)
