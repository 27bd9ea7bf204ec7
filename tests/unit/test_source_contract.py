"""What every source promises, run over every one that is registered."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import types

import numpy as np
import pytest

from ministream import config, registry, source
from ministream.app import check
from ministream.app.launch import launcher
from ministream.app.launch.plan import Plan
from ministream.errors import ConfigError, InputError, UsageError
from ministream.model import FrameKind, Scan, Slab
from ministream.source._order import ORDERS
from tests.source_examples import EXAMPLES

LIVE = {"pva"}
AS_RECORDED = {"replay"}


def test_sources_with_one_order_are_those_that_say_so():
    plugins = {kind: registry.load("ministream.source", kind) for kind in registry.names("ministream.source")}
    assert {kind for kind, plugin in plugins.items() if issubclass(plugin.Source, source.Live)} == LIVE
    assert {kind for kind, plugin in plugins.items() if issubclass(plugin.Source, source.AsRecorded)} == AS_RECORDED


@pytest.fixture(params=sorted(set(registry.names("ministream.source")) - LIVE))
def section(request, tmp_path):
    """`[source]` of every registered source."""
    assert request.param in EXAMPLES, f"give source {request.param!r} an example here"
    return config.SourceSection(kind=request.param, **EXAMPLES[request.param](tmp_path))


@pytest.fixture(params=sorted(set(registry.names("ministream.source")) - LIVE - AS_RECORDED))
def recorded(request, tmp_path):
    """`[source]` of every source that is played in any order."""
    return config.SourceSection(kind=request.param, **EXAMPLES[request.param](tmp_path))


def opened(section, order="sequential", repeat=1):
    return source.open_source(section, order=order, repeat=repeat)


def test_options_are_a_section_that_refuses_unknown_keys(section):
    plugin = registry.load("ministream.source", section.kind)
    assert issubclass(plugin.Options, config.Section)
    unknown = config.SourceSection(kind=section.kind, **section.options, no_such_option=1)
    with pytest.raises(ConfigError, match=rf"\[source\] {section.kind}: unknown key no_such_option"):
        opened(unknown)


def test_every_option_but_the_plain_ones_is_described(section):
    plugin = registry.load("ministream.source", section.kind)
    plain = {"file", "rows", "cols", "projections", "flats", "darks", "sample", "seed", "pixel_size_um"}
    bare = {name for name, field in plugin.Options.model_fields.items() if not field.description}
    assert bare <= plain


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_frames_are_those_that_the_scan_announces(section, order, repeat):
    if section.kind in AS_RECORDED and (order, repeat) != ("sequential", 1):
        with pytest.raises(ConfigError, match=f"order = '{order}', repeat = {repeat}: .* has one order.* Omit order"):
            opened(section, order, repeat)
        return
    with opened(section, order, repeat) as played:
        scan = played.describe()
        before = time.time()
        frames = list(played.frames())
    assert (scan.rows, scan.cols, scan.projections, scan.flats, scan.darks) == (3, 10, 7 * repeat, 2, 3)
    expected = [
        (kind, index)
        for kind, count in ((FrameKind.DARK, 3), (FrameKind.FLAT, 2), (FrameKind.PROJECTION, 7 * repeat))
        for index in range(count)
    ]
    assert [(f.kind, f.index) for f in frames] == expected
    assert all(f.pixels.shape == (3, 10) and f.pixels.dtype.str == scan.dtype for f in frames)
    assert all(f.pixels.flags.c_contiguous and f.pixels.dtype.isnative for f in frames)
    times = [before, *(f.acquired_s for f in frames), time.time()]
    assert times == sorted(times)


@pytest.mark.parametrize("order", ORDERS)
def test_passes_repeat_the_same_distinct_angles(recorded, order):
    with opened(recorded, order, repeat=2) as played:
        angles = [f.angle_rad for f in played.frames() if f.kind is FrameKind.PROJECTION]
    assert angles[:7] == angles[7:]
    assert len(set(angles)) == 7
    assert all(isinstance(angle, float) and 0 <= angle < np.pi for angle in angles)


def test_frames_own_their_pixels(section):
    """A frame waits in the spool while the next ones are made."""
    with opened(section) as played:
        frames = list(played.frames())
    assert not any(np.shares_memory(a.pixels, b.pixels) for a, b in itertools.combinations(frames, 2))


def test_frames_are_made_when_they_are_asked_for(section):
    with opened(section) as played:
        first = next(played.frames())
        asked = time.time()
        second = next(itertools.islice(played.frames(), 1, None))
    assert first.acquired_s <= asked <= second.acquired_s


def test_a_scan_keeps_its_id_when_its_producer_starts_again(section):
    with opened(section) as one, opened(section) as other:
        assert one.describe().scan_id == other.describe().scan_id, "the same after a restart"


def test_another_number_of_passes_is_another_scan(recorded):
    with opened(recorded) as one, opened(recorded, repeat=2) as longer:
        assert longer.describe().scan_id != one.describe().scan_id


def test_unknown_order_is_refused(recorded):
    with pytest.raises(UsageError, match="unknown order 'random'"):
        opened(recorded, order="random")


def test_closing_twice_is_harmless(section):
    played = opened(section)
    played.close()
    played.close()


def test_a_truth_that_is_offered_can_be_followed(section):
    with opened(section) as played:
        scan = played.describe()
    image = source.truth(scan, Slab(1, 2), n=12, at=0.5)
    if scan.truth is None:
        assert image is None
    else:
        assert json.loads(scan.truth)["source"] == section.kind
        assert (image.shape, image.dtype) == ((2, 12, 12), np.float32)


def test_unknown_source_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown source 'beam': choose one of .*dxchange.*phantom"):
        opened(config.SourceSection(kind="beam"))


class Detector(source.Live):
    """A live source, of which a test can see that it was connected to."""

    connected = 0

    def __init__(self, options):
        type(self).connected += 1

    def describe(self):
        return Scan(scan_id="live", rows=2, cols=8, projections=0, flats=0, darks=0, dtype="<u2")

    def frames(self):
        return iter(())

    def close(self):
        pass


@pytest.fixture
def live(monkeypatch):
    """`[source]` of a live source that is registered for the test."""
    plugin = types.ModuleType("ministream.source.detector")
    plugin.Source, plugin.Options = Detector, type("Options", (config.Section,), {})
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda package, name: plugin if name == "detector" else load(package, name))
    monkeypatch.setattr(Detector, "connected", 0)
    return config.SourceSection(kind="detector")


def test_a_live_source_is_not_connected_to_before_it_runs(live):
    assert source.describe(live, order="sequential", repeat=1) is None
    assert Detector.connected == 0
    with pytest.raises(ConfigError, match="unknown key no_such_option"):
        source.describe(config.SourceSection(kind="detector", no_such_option=1), order="sequential", repeat=1)
    with source.open_source(live, order="sequential", repeat=1) as detector:
        assert detector.describe().projections == 0
    assert Detector.connected == 1


@pytest.mark.parametrize(("order", "repeat"), [("interlaced", 1), ("sequential", 2)])
@pytest.mark.parametrize("use", [source.open_source, source.describe])
def test_a_live_source_has_one_order_and_one_pass(live, use, order, repeat):
    with pytest.raises(
        ConfigError, match=rf"order = '{order}', repeat = {repeat}: .*detector has one order.*Omit order"
    ):
        use(live, order=order, repeat=repeat)
    assert Detector.connected == 0


def test_a_home_folder_that_is_not_known_is_an_error_of_the_input():
    section = config.SourceSection(kind="dxchange", file="~no-such-user/scan.h5")
    with pytest.raises(InputError, match="home folder of this user is not known"):
        source.describe(section, order="sequential", repeat=1)


def test_check_and_launch_leave_a_live_source_alone(live, tmp_path):
    run = tmp_path / "run.toml"
    run.write_text('[source]\nkind = "detector"\n')
    launcher.check_ranks(Plan(run=run, out=tmp_path, ranks=64), config.load(run))
    with pytest.raises(ConfigError, match=r"detector is live: .*--set source\.kind=phantom"):
        check.check(config.load(run, {"output": {"directory": str(tmp_path)}}), 1)
    assert Detector.connected == 0


def test_describing_a_source_is_what_opening_it_says(section):
    playback = ("sequential", 1) if section.kind in AS_RECORDED else ("interlaced", 2)
    described = source.describe(section, order=playback[0], repeat=playback[1])
    with opened(section, *playback) as played:
        facts = dataclasses.replace(described, scan_id=played.describe().scan_id)
        assert facts == played.describe()
        assert played.describe() is played.describe()
