"""The Python interface: an array becomes a volume, a live stream is iterated; no launcher, no MPI."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import ministream
from ministream import reconstruct, stream
from ministream.errors import ConfigError, FrameError, InputError, PeerLostError
from ministream.model import FrameKind
from ministream.source import phantom
from ministream.transport.native import FrameSender
from tests.native_stream import make_frames, make_scan

ROWS, N, PROJECTIONS = 3, 48, 60


@pytest.fixture(scope="module")
def counts() -> dict[FrameKind, np.ndarray]:
    options = phantom.Options(sample="shepp-logan", rows=ROWS, cols=N, projections=PROJECTIONS, axis=25.0, i0=1e5)
    source = phantom.Source(options, order="sequential", repeat=1)
    found: dict[FrameKind, list[np.ndarray]] = {kind: [] for kind in FrameKind}
    for frame in source.frames():
        found[frame.kind].append(frame.pixels)
    return {kind: np.stack(frames) for kind, frames in found.items()}


@pytest.fixture(scope="module")
def lines(counts) -> np.ndarray:
    flat, dark = counts[FrameKind.FLAT].mean(0), counts[FrameKind.DARK].mean(0)
    return -np.log((counts[FrameKind.PROJECTION] - dark) / (flat - dark)).astype(np.float32)


ANGLES = np.arange(PROJECTIONS) * 180 / PROJECTIONS


def test_an_array_becomes_a_volume(counts, lines):
    volume = reconstruct(lines, ANGLES, axis=25.0, iterations=40)
    assert volume.shape == (ROWS, N, N)
    assert volume.dtype == np.float32
    by_fbp = reconstruct(lines, ANGLES, axis=25.0, algorithm="fbp", filter="ramp", threads=1)
    assert np.corrcoef(volume.ravel(), by_fbp.ravel())[0, 1] > 0.9
    corrected = reconstruct(
        counts[FrameKind.PROJECTION], ANGLES, flats=counts[FrameKind.FLAT], darks=counts[FrameKind.DARK], axis=25.0,
        iterations=40,
    )  # fmt: skip
    np.testing.assert_allclose(corrected, volume, atol=1e-4)


def test_the_axis_is_found(lines):
    found = reconstruct(lines, ANGLES, axis="auto", algorithm="fbp")
    right, wrong = (reconstruct(lines, ANGLES, axis=column, algorithm="fbp") for column in (25.0, 22.0))
    assert np.abs(found - right).mean() < 0.3 * np.abs(wrong - right).mean()


def test_what_is_no_scan_is_refused(lines):
    broken = lines.copy()
    broken[3, 0, 5] = np.nan
    for arguments, said in (
        ((lines[:, 0], ANGLES), r"found shape \(60, 48\) .*expected numbers \[projection, row, col\]"),
        ((lines, ANGLES[:-1]), r"angles_deg: found shape \(59,\), expected 60"),
        ((broken, ANGLES), r"1 contain values that are not finite, the first is 3"),
    ):
        with pytest.raises(InputError, match=said):
            reconstruct(*arguments)
    with pytest.raises(InputError, match=r"flats: found \(2, 48\), expected \(3, 48\)"):
        reconstruct(lines, ANGLES, flats=np.ones((1, 2, N)))
    with pytest.raises(ConfigError, match="unknown algorithms 'magic': choose one of"):
        reconstruct(lines, ANGLES, algorithm="magic")
    with pytest.raises(ConfigError, match="relaxation"):
        reconstruct(lines, ANGLES, relaxation=7.0)
    with pytest.raises(ConfigError, match="rotation axis 99: expected a detector column"):
        reconstruct(lines, ANGLES, axis=99.0)
    with pytest.raises(ConfigError, match=r"a half acquisition.*field='detector'"):
        reconstruct(lines, ANGLES, axis=6.0)
    assert reconstruct(lines[:, :1], ANGLES, axis=6.0, field="detector", iterations=1).shape == (1, N, N)
    assert reconstruct(lines[:, :1], ANGLES, iterations=1).shape == (1, N, N)


@contextmanager
def sending(
    counts: dict[FrameKind, np.ndarray], *, stop_at: int = PROJECTIONS, left_out: frozenset[int] = frozenset()
) -> Iterator[str]:
    """A producer of the counts, that leaves before projection `stop_at`; its failure ends the test."""
    scan = make_scan(rows=ROWS, cols=N, projections=PROJECTIONS, flats=2, darks=2, dtype="<u2", axis_col=25.0)
    failed: list[BaseException] = []
    with FrameSender("tcp://127.0.0.1:0", scan) as sender:

        def send() -> None:
            try:
                for frame in make_frames(scan):
                    if frame.kind is FrameKind.PROJECTION and frame.index >= stop_at:
                        return sender.abort("the shutter closed")
                    if frame.kind is FrameKind.PROJECTION and frame.index in left_out:
                        sender.omit([frame.index], reason="drop-oldest", at_s=0.0)
                        continue
                    angle = math.radians(ANGLES[frame.index]) if frame.kind is FrameKind.PROJECTION else 0.0
                    pixels = np.ascontiguousarray(counts[frame.kind][frame.index], "<u2")
                    sender.send(replace(frame, pixels=pixels, angle_rad=angle))
                sender.finish()
            except PeerLostError as error:
                failed.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        yield sender.address
        thread.join(30)
        assert not thread.is_alive()
        assert not failed, failed


def test_a_live_stream_is_iterated(counts):
    with sending(counts) as url:
        updates = list(stream(url, window=40, step=20, iterations=2))
    # the end may come some time after the last projection: the image is then shown once more
    assert [(each.index, each.projections) for each in updates[:3]] == [(1, 20), (2, 40), (3, 60)]
    assert [each.last for each in updates].index(True) == len(updates) - 1
    assert {(each.index, each.projections) for each in updates[3:]} <= {(3, 60)}
    assert updates[0].volume.shape == (ROWS, N, N)
    assert all(each.missing == 0 and each.first_row == 0 for each in updates)
    with sending(counts) as url:
        *_, last = stream(url, iterations=30)
    assert last.last
    flats, darks = counts[FrameKind.FLAT][:2], counts[FrameKind.DARK][:2]
    expected = reconstruct(
        counts[FrameKind.PROJECTION], ANGLES, flats=flats, darks=darks, axis=25.0, iterations=30
    )  # fmt: skip
    np.testing.assert_allclose(last.volume, expected, atol=1e-5)


def test_a_scan_that_is_cut_short_is_no_whole_one(counts):
    with sending(counts, stop_at=50) as url:
        updates = []
        with pytest.raises(PeerLostError, match=r"the shutter closed.*after 50 projections"):
            updates.extend(stream(url, window=40, step=20))
    assert [(each.projections, each.last) for each in updates] == [(20, False), (40, False), (50, True)]


def test_what_is_missing_at_the_end_is_told(counts):
    with sending(counts, left_out=frozenset(range(40, PROJECTIONS))) as url:
        updates = list(stream(url, window=40, step=20))
    assert (updates[-1].projections, updates[-1].missing, updates[-1].last) == (40, 20, True)
    with (
        sending(counts, left_out=frozenset(range(PROJECTIONS))) as url,
        pytest.raises(FrameError, match="60 are missing"),
    ):
        list(stream(url))


def test_a_producer_that_stays_away_is_lost():
    with pytest.raises(PeerLostError):
        next(stream("tcp://127.0.0.1:9", timeout_s=0.3))
    with pytest.raises(ConfigError, match="not an address"):
        next(stream("nowhere"))


def test_no_mpi_is_started():
    code = (
        "import sys, numpy\n"
        "from ministream import reconstruct\n"
        "reconstruct(numpy.ones((4, 1, 8)), [0, 45, 90, 135], iterations=1)\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    # the environment of Python, without what MPI_Init has added to that of the process in another test
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=dict(os.environ))


def test_the_package_has_nothing_else():
    assert {"reconstruct", "stream", "LiveUpdate"} <= set(ministream.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ministream.nothing
