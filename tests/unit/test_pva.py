"""A live detector over PVAccess: a real server process that plays areaDetector, loses updates, and comes back."""

from __future__ import annotations

import configparser
import importlib.util
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ministream import config
from ministream.errors import ConfigError, InputError, UsageError
from ministream.model import Frame, FrameKind
from ministream.source import Source, _codecs, describe, open_source

pytest.importorskip("p4p")

from tests.pva_detector import PACK

CHANNEL = "SIM:Pva1:Image"
DETECTOR = Path(__file__).parents[1] / "pva_detector.py"
AREA_DETECTOR = Path(__file__).parents[1] / "pvapy_detector.py"


class Detector:
    """The server's process."""

    def __init__(self, port: str = "0", script: Path = DETECTOR) -> None:
        command = [sys.executable, str(script), port]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self._line()

    def image(self, number: int, angle: float | None = None, **facts: Any) -> None:
        """Post one image; its angle is a tenth of its number in degrees."""
        attributes = {"SampleRotary": number / 10 if angle is None else angle} | facts.pop("attributes", {})
        self._say("image " + json.dumps({"id": number, "attributes": attributes} | facts))

    def burst(self, count: int, first: int, period_s: float) -> None:
        self._say(f"burst {count} {first} {period_s}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def detector() -> Iterator[Detector]:
    made = Detector()
    yield made
    made.close()


def monitored(detector: Detector, **options: Any) -> Source:
    known: dict[str, Any] = {"channel": CHANNEL, "servers": [f"127.0.0.1:{detector.port}"], "stall_timeout_s": 10.0}
    return open_source(config.SourceSection(kind="pva", **known | options), order="sequential", repeat=1)


def numbers(frames: list[Frame]) -> list[int]:
    return [int(frame.pixels[0, 0]) for frame in frames]


def test_images_come_with_their_angles(detector: Detector) -> None:
    detector.image(3)
    with monitored(detector, projections=5) as source:
        scan = source.describe()
        assert (scan.rows, scan.cols, scan.dtype, scan.projections, scan.axis_col) == (4, 6, "<u2", 5, None)
        for number in range(4, 9):
            detector.image(number)
        frames = list(source.frames())
        assert source.dropped == 0
    assert numbers(frames) == [4, 5, 6, 7, 8]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.rad2deg([frame.angle_rad for frame in frames]), [0.4, 0.5, 0.6, 0.7, 0.8])
    assert [frame.acquired_s for frame in frames] == [1_700_000_004 + k for k in range(5)]
    assert not any(np.shares_memory(a.pixels, b.pixels) for a, b in itertools.pairwise(frames))


def test_missed_updates_are_counted_and_leave_their_place(detector: Detector) -> None:
    detector.image(10)
    with monitored(detector, projections=8) as source:
        for number in (11, 12, 15, 18):
            detector.image(number)
        frames = list(source.frames())
        assert [frame.index for frame in frames] == [0, 1, 4, 7]
        assert source.dropped == 4


def test_a_burst_that_is_not_taken_at_once_loses_nothing(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, projections=400, queue=256) as source:
        detector.burst(400, 1, 0.0005)
        frames = list(source.frames())
        assert source.dropped == 0
    assert numbers(frames) == list(range(1, 401))


def test_numbers_that_repeat_or_begin_anew_count_nothing(detector: Detector, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("ministream"), "propagate", True)
    detector.image(500_000)
    with monitored(detector, projections=6) as source:
        for number in (500_001, 500_001, 1, 2, 300_000, 300_002):
            detector.image(number)
        frames = list(source.frames())
        assert source.dropped == 1
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert "uniqueId is 500001 in two images: images that are lost cannot be counted" in caplog.text
    assert "uniqueId went from 500001 to 1: the detector numbers its images anew" in caplog.text
    assert caplog.text.count("numbers its images anew") == 1, "said once"


def test_losses_never_exceed_the_scan(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, projections=5) as source:
        detector.image(1)
        detector.image(1000)
        assert numbers(list(source.frames())) == [1]
        assert source.dropped == 4


@pytest.mark.parametrize("word", ["NaN", "inf"])
def test_a_projection_without_a_finite_angle_leaves_a_gap(detector: Detector, word: str) -> None:
    detector.image(0)
    with monitored(detector, projections=3) as source:
        detector.image(1)
        detector.image(2, attributes={"SampleRotary": word})
        detector.image(3)
        frames = list(source.frames())
        assert source.dropped == 1
    assert [frame.index for frame in frames] == [0, 2]


def test_a_channel_without_images_is_named(detector: Detector) -> None:
    with pytest.raises(InputError, match=r"SIM:Temperature: the channel has epics:nt/NTScalar.*expected epics:nt/NTND"):
        monitored(detector, channel="SIM:Temperature")


def test_an_overrun_is_counted(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, queue=4, stall_timeout_s=1.0) as source:
        detector.burst(300, 1, 0.0)
        frames = list(source.frames())
        assert len(frames) + source.dropped == 300
        assert source.dropped > 0


def test_flats_and_darks_are_told_by_their_attribute(detector: Detector) -> None:
    detector.image(0)
    kinds = [(2, FrameKind.DARK), ("FlatField", FrameKind.FLAT), (1.0, FrameKind.FLAT), (0, FrameKind.PROJECTION)]
    with monitored(detector, projections=2, flats=3, darks=1, stall_timeout_s=10.0) as source:
        for number, (said, _) in enumerate(kinds, start=1):
            detector.image(number, attributes={"FrameType": said})
        detector.image(5, attributes={"FrameType": "Projection"})
        detector.image(6, attributes={"FrameType": "Projection"})
        detector.image(7, attributes={"FrameType": "flat"})
        frames = list(source.frames())
        assert (source.describe().flats, source.describe().darks) == (3, 1)
        assert source.dropped == 0
    expected = [kind for _, kind in kinds] + [FrameKind.PROJECTION, FrameKind.FLAT]
    assert [frame.kind for frame in frames] == expected
    assert [frame.index for frame in frames] == [0, 0, 1, 0, 1, 2]
    assert [frame.position for frame in frames] == [0, 0, 0, 0, 1, 2], "the last flat is taken after the scan"


def test_angles_from_start_and_step(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, projections=2, angle_attribute="None") as source:
        for number in (1, 2):
            detector.image(number, attributes={"StartPos": 10.0, "ScanDelta": 0.5})
        np.testing.assert_allclose(np.rad2deg([frame.angle_rad for frame in source.frames()]), [10.0, 10.5])
    with monitored(detector, projections=2, angles={"start": 1.0, "step": 2.0}, angle_unit="radians") as source:
        detector.image(3)
        detector.image(4)
        assert [frame.angle_rad for frame in source.frames()] == [1.0, 3.0]


def test_absent_angles_are_named_with_a_remedy_that_works(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, angle_attribute="Omega") as source:
        detector.image(1)
        with pytest.raises(InputError, match=r"no attribute Omega.*they have SampleRotary.*'source\.angles=\{start=0"):
            list(source.frames())


def test_a_detector_that_has_no_image_yet_is_waited_for(detector: Detector) -> None:
    thread = threading.Timer(0.5, detector.image, (1,))
    thread.start()
    with monitored(detector, projections=2) as source:
        thread.join()
        detector.image(2)
        assert numbers(list(source.frames())) == [1, 2]


def test_the_scan_ends_when_nothing_comes_any_more(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, projections=5, stall_timeout_s=0.5) as source:
        detector.image(1)
        assert numbers(list(source.frames())) == [1]
        assert source.dropped == 4


def test_a_server_that_goes_and_comes_back(detector: Detector) -> None:
    detector.image(0)
    with monitored(
        detector, projections=4, stall_timeout_s=90.0
    ) as source:  # p4p looks for a lost server ever less often
        detector.image(1)
        frames = source.frames()
        first = next(frames)
        detector.close()
        again = Detector(detector.port)
        try:
            thread = threading.Thread(target=lambda: rest.extend(frames))
            rest: list[Frame] = []
            again.image(3)
            thread.start()
            while not rest and thread.is_alive():
                thread.join(0.05)
            assert rest, "nothing came after the server was back"
            again.image(4)
            thread.join(20)
            assert not thread.is_alive()
        finally:
            again.close()
        assert numbers([first, *rest]) == [1, 3, 4]
        assert source.dropped == 1


@pytest.fixture
def area_detector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Detector]:
    """A server of pvAccessCPP, the library in areaDetector itself, found over a UDP port of its own."""
    if importlib.util.find_spec("pvaccess") is None:
        pytest.skip("pvapy is not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
    monkeypatch.setenv("EPICS_PVA_BROADCAST_PORT", port)
    monkeypatch.setenv("EPICS_PVA_AUTO_ADDR_LIST", "NO")
    made = Detector(port, AREA_DETECTOR)
    yield made
    made.close()


def test_the_servers_of_area_detector_itself_are_found_and_lose_nothing_at_rate(area_detector: Detector) -> None:
    with monitored(area_detector, servers=["127.0.0.1"], projections=500) as source:
        area_detector.burst(500, 1, 0.0005)
        frames = list(source.frames())
        assert source.dropped == 0
    assert numbers(frames) == list(range(1, 501))
    np.testing.assert_allclose(np.rad2deg([frame.angle_rad for frame in frames]), np.arange(1, 501) / 10)
    assert [frame.acquired_s for frame in frames[:2]] == [1_700_000_001, 1_700_000_002]


def test_frames_that_area_detector_drops_are_counted_also_while_it_is_away(area_detector: Detector) -> None:
    with monitored(area_detector, servers=["127.0.0.1"], projections=9, stall_timeout_s=90.0) as source:
        for number in (1, 2, 5):
            area_detector.image(number)
        frames = source.frames()
        found = [next(frames) for _ in range(3)]
        area_detector.close()
        again = Detector(area_detector.port, AREA_DETECTOR)
        try:
            again.image(7)
            found.append(next(frames))
            for number in (8, 9):
                again.image(number)
            found += frames
        finally:
            again.close()
        assert source.dropped == 3
    assert numbers(found) == [1, 2, 5, 7, 8, 9]
    assert [frame.index for frame in found] == [0, 1, 4, 6, 7, 8]


def test_an_overrun_of_area_detector_is_counted(area_detector: Detector) -> None:
    with monitored(area_detector, servers=["127.0.0.1"], queue=4, stall_timeout_s=1.0) as source:
        area_detector.burst(300, 1, 0.0)
        frames = list(source.frames())
        assert len(frames) + source.dropped == 300
        assert source.dropped > 0


def test_waiting_can_be_stopped_from_another_thread(detector: Detector) -> None:
    detector.image(0)
    with monitored(detector, stall_timeout_s=60.0) as source:
        left: list[Frame] = []
        thread = threading.Thread(target=lambda: left.extend(source.frames()))
        thread.start()
        source.stop()
        thread.join(10)
        assert not thread.is_alive()
    source.close()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_compressed_images_are_unpacked(detector: Detector, dtype: str) -> None:
    """An odd number of pixels, more than a block of bitshuffle holds: the last block is shorter, some are bare."""
    size = {"rows": 61, "cols": 83, "dtype": dtype, "ramp": True}
    codecs = ["zlib", "lz4", "bslz4", "blosc"]
    detector.image(0, **size)
    with monitored(detector, projections=len(codecs) + 1) as source:
        for number, codec in enumerate(codecs, start=1):
            detector.image(number, codec=codec, **size)
        detector.image(5, **size)
        for number, frame in enumerate(source.frames(), start=1):
            expected = number + np.arange(61 * 83).reshape(61, 83)
            assert frame.pixels.dtype == dtype
            np.testing.assert_array_equal(frame.pixels, expected)


def test_jpeg_is_unpacked(detector: Detector) -> None:
    detector.image(0, dtype="uint8", rows=16, cols=16)
    with monitored(detector, projections=1) as source:
        detector.image(1, dtype="uint8", rows=16, cols=16, codec="jpeg", ramp=True)
        (frame,) = source.frames()
    np.testing.assert_allclose(frame.pixels.astype(int), 1 + np.arange(256).reshape(16, 16) % 255, atol=4)


@pytest.mark.parametrize("codec", PACK)
def test_no_part_of_a_compressed_image_is_taken_for_the_image(codec: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 11), np.uint8)
    packed = np.frombuffer(PACK[codec](pixels), np.uint8)
    assert _codecs.unpack(codec, packed, pixels.shape, pixels.dtype).shape == pixels.shape
    for size in range(packed.size):
        with pytest.raises(ValueError, match=r"."):
            _codecs.unpack(codec, packed[:size], pixels.shape, pixels.dtype)


@pytest.mark.parametrize("codec", ["zlib", "lz4", "bslz4", "blosc", "jpeg"])
@pytest.mark.parametrize("damage", ["cut", "noise", "other size"])
def test_damaged_images_are_errors_and_take_no_memory(codec: str, damage: str) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    packed = np.frombuffer(PACK[codec](pixels), np.uint8)
    shape = (64, 64)
    if damage == "cut":
        packed = packed[: packed.size // 2]
    elif damage == "noise":
        packed = np.random.default_rng(0).integers(0, 255, packed.size, np.uint8)
    else:
        shape = (8, 32)
    with pytest.raises(ValueError, match=r"."):
        _codecs.unpack(codec, packed, shape, pixels.dtype)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    message = r"'lz4', which needs the Python package imagecodecs.*pip install 'ministream\[pva-codecs\]'.*zlib or None"
    with pytest.raises(ConfigError, match=message):
        _codecs.unpack("lz4", np.zeros(4, np.uint8), (2, 2), np.dtype(np.uint8))
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert "imagecodecs" in setup["options.extras_require"]["pva-codecs"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"codec": "packbits"}, "compressed with 'packbits', expected one of zlib, lz4.*or to None"),
        ({"codec": "lz4", "scalar": 0}, "image 1 is compressed with 'lz4', and codec.parameters does not name"),
        ({"codec": "zlib", "packed_bytes": 9}, "image 1, compressed with 'zlib', is damaged: .* cut short"),
        ({"codec": "bslz4", "packed_bytes": 9}, "image 1, compressed with 'bslz4', is damaged"),
        ({"rows": 5}, "image 1 has 5 x 6 uint16, expected 4 x 6 uint16"),
        ({"dtype": "float32"}, "image 1 has 4 x 6 float32, expected 4 x 6 uint16"),
        ({"colour": True}, r"has dimensions \[6, 4, 6\], expected columns and rows.*ColorMode to Mono"),
        (
            {"attributes": {"SampleRotary": "home"}},
            "attribute SampleRotary is 'home', expected a number.*angle_attribute",
        ),
        ({"attributes": {"FrameType": float("nan")}}, "FrameType is nan, expected 0, 1 or 2"),
        ({"attributes": {"FrameType": 9}}, r"FrameType is 9.*--set source\.type_attribute=NAME"),
    ],
)
def test_images_that_cannot_be_used_are_named(detector: Detector, facts: dict[str, Any], message: str) -> None:
    detector.image(0)
    with monitored(detector) as source:
        detector.image(1, **facts)
        with pytest.raises(UsageError, match=message):
            list(source.frames())


def test_a_channel_that_is_not_there_is_named(detector: Detector) -> None:
    with pytest.raises(InputError, match=r"NONE:Image: no image within 0\.3 s.*--set source\.servers"):
        monitored(detector, channel="NONE:Image", connect_timeout_s=0.3)


def test_describing_connects_to_nothing() -> None:
    section = config.SourceSection(kind="pva", channel="NONE:Image")
    assert describe(section, order="sequential", repeat=1) is None
    with pytest.raises(ConfigError, match="channel"):
        describe(config.SourceSection(kind="pva"), order="sequential", repeat=1)
    with pytest.raises(ConfigError, match="need start and step"):
        open_source(config.SourceSection(kind="pva", channel="X", angles={"stop": 180.0}), order="sequential", repeat=1)
