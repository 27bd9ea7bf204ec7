"""What stands between a source that does not wait and a receiver that is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ministream.app.producer.backlog import Backlog
from ministream.errors import InputError
from ministream.model import Frame, FrameKind


def frame(kind: FrameKind, index: int) -> Frame:
    return Frame(kind=kind, index=index, angle_rad=0.0, pixels=np.zeros((1, 1)), acquired_s=0.0)


def acquisition(count: int, done: threading.Event) -> Iterator[Frame]:
    """Three darks, then `count` projections, as fast as they are taken; `done` says when all were."""
    yield from (frame(FrameKind.DARK, index) for index in range(3))
    yield from (frame(FrameKind.PROJECTION, index) for index in range(count))
    done.set()


def taken(overflow, limit: int, count: int) -> tuple[list[Frame], int]:
    """What reaches a receiver that takes nothing before the acquisition has ended, and what was dropped."""
    done = threading.Event()
    with Backlog(acquisition(count, done), overflow=overflow, limit=limit, stop=lambda: None) as backlog:
        assert done.wait(10)
        frames = list(backlog)
    return frames, backlog.dropped


def indices(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames if frame.kind is FrameKind.PROJECTION]


def test_drop_oldest_keeps_the_newest_projections() -> None:
    frames, dropped = taken("drop-oldest", 4, 10)
    assert indices(frames) == [6, 7, 8, 9]
    assert dropped == 6


@pytest.mark.parametrize("count", [5, 9, 64, 1000])
def test_decimate_keeps_projections_from_the_whole_scan(count: int) -> None:
    frames, dropped = taken("decimate", 4, count)
    assert len(indices(frames)) + dropped == count
    assert 2 <= len(indices(frames)) <= 4
    assert indices(frames)[-1] >= count - 4
    assert indices(frames) == sorted(set(indices(frames)))


def test_calibration_is_never_dropped() -> None:
    frames, _ = taken("drop-oldest", 1, 50)
    assert [f.index for f in frames if f.kind is FrameKind.DARK] == [0, 1, 2]


def test_nothing_is_dropped_while_the_receiver_keeps_up() -> None:
    frames, dropped = taken("decimate", 50, 50)
    assert indices(frames) == list(range(50))
    assert dropped == 0


def test_an_error_of_the_source_comes_after_the_frames_before_it() -> None:
    def failing() -> Iterator[Frame]:
        yield frame(FrameKind.PROJECTION, 0)
        raise InputError("scan.h5: image 1 cannot be read")

    with Backlog(failing(), overflow="drop-oldest", limit=4, stop=lambda: None) as backlog:
        frames = iter(backlog)
        assert next(frames).index == 0
        with pytest.raises(InputError, match="image 1"):
            next(frames)


def test_a_sender_that_fails_ends_a_source_that_waits() -> None:
    stopped = threading.Event()

    def waiting() -> Iterator[Frame]:
        yield frame(FrameKind.PROJECTION, 0)
        assert stopped.wait(10)

    with (
        pytest.raises(ConnectionError),
        Backlog(waiting(), overflow="drop-oldest", limit=4, stop=stopped.set) as backlog,
    ):
        for _ in backlog:
            raise ConnectionError
    assert stopped.is_set()
