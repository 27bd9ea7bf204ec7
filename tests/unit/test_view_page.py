"""What the page shows of a state, without a browser, and the feed of a volume file."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest
from bokeh.document import Document
from bokeh.events import ButtonClick

from ministream.app.recon import live_key
from ministream.app.recon.live_server import LiveServer
from ministream.app.view.folder_feed import FolderFeed
from ministream.app.view.volume_feed import VolumeFeed
from ministream.errors import ConfigError, InputError
from ministream.model import Notice
from ministream.view import texts
from ministream.view.charts import StageBars
from ministream.view.feed import Shown
from ministream.view.page import Page, Wanted
from ministream.view.steering import SteeringControls
from ministream.view.theme import Theme
from ministream.view.units import Units
from ministream.wire.live import PHASES, Happening, JobState, Picture, ScanFacts
from tests.unit.one_rank import random_image, state, volume_writer
from tests.waiting import eventually

FACTS = ScanFacts(
    scan_id="<i>s</i>", sample="<b>foam</b>", rows=8, cols=16, n=16, projections=90, pixel_size_um=2.5,
    algorithm="sirt", ranks=2, threads=1,
)  # fmt: skip
TILTABLE = msgspec.structs.replace(FACTS, tilted=True, fbp=True)
STATE = JobState(
    job="j", number=1, phase="live", text="", scan=FACTS, elapsed_s=75.0, ledger={"received": 5, "mended": 1},
    losses={"projection checksum": 3}, per_s=2.0, lag=1, behind_s=0.5, latency_s={"p50": 0.4, "p99": None}, update=1,
    notices=(Notice(code="angles-duplicate", text="<script>"),), happenings=(Happening(0.0, "WARNING", "<img>"),),
)  # fmt: skip


class Fixed:
    """A feed that shows one thing, and keeps what was asked for."""

    def __init__(self, shown: Shown) -> None:
        self.now = shown
        self.wanted: list[Picture] = []

    def want(self, pictures) -> None:
        self.wanted = list(pictures)

    def shown(self) -> Shown:
        return self.now


@pytest.mark.parametrize("condition", [*PHASES, "lost"])
def test_every_state_has_a_word_of_its_own(condition):
    html = texts.status(Shown(condition=condition, text="why & how", state=STATE))
    words = {"finished": "FINISHED, COMPLETE", "lost": "CONNECTION LOST"}
    assert f'<span class="word">{words.get(condition, condition.upper())}</span>' in html
    assert ("why &amp; how" in html) == (condition != "live")
    assert ("5 of 90 projections received" in html) == (condition == "live")


def test_what_comes_from_the_job_is_escaped():
    shown = Shown(condition="live", state=STATE)
    html = "".join(text(shown) for text in (texts.heading, texts.tiles, texts.losses, texts.warnings, texts.happenings))
    assert "&lt;b&gt;foam" in html
    assert "&lt;script&gt;" in html
    assert "&lt;img&gt;" in html
    assert not any(tag in html for tag in ("<b>foam", "<script", "<img", "<i>s"))
    assert "projection checksum" in html


def test_units_follow_the_pixel_size():
    assert Units.of(FACTS) == Units(length="mm", pixel=0.0025, attenuation="1/cm", scale=4000.0)


def test_the_page_asks_for_the_middle_and_for_what_the_sliders_choose():
    feed = Fixed(Shown(serial=1, condition="live", state=STATE))
    document = Document()
    wanted = Wanted(feed)
    Page(document, feed, wanted)
    middle = [Picture("z", 3), Picture("y", 7), Picture("x", 7), Picture("projection"), Picture("sinogram", 3)]
    assert feed.wanted == middle
    slider = document.get_model_by_name("z-slider")
    assert (slider.end, slider.disabled) == (7, False)
    slider.value = 5
    assert Picture("z", 5) in feed.wanted
    assert Picture("sinogram", 5) in feed.wanted
    assert Picture("z", 3) not in feed.wanted
    wanted.change(7, (Picture("z", 1),))
    assert feed.wanted[0] == Picture("z", 1)
    wanted.change(7, ())
    assert Picture("z", 1) not in feed.wanted


def test_the_page_asks_for_slices_on_demand_and_for_a_tilted_plane():
    feed = Fixed(Shown(serial=1, condition="live", state=msgspec.structs.replace(STATE, scan=TILTABLE)))
    document = Document()
    Page(document, feed, Wanted(feed))
    named = document.get_model_by_name
    named("by").value = "filtered back projection"
    assert feed.wanted == [
        Picture("z", 3, "fbp"), Picture("y", 7, "fbp"), Picture("x", 7, "fbp"), Picture("projection"),
        Picture("sinogram", 3),
    ]  # fmt: skip
    named("slant").active = True
    named("azimuth-slider").value = -30
    named("tilted-slider").value = 5
    assert feed.wanted[3] == Picture("tilted", 5, "fbp", azimuth_deg=-30.0, tilt_deg=45.0)
    named("slant").active = False
    assert all(picture.kind != "tilted" for picture in feed.wanted)


def test_a_scan_without_slices_on_demand_offers_none():
    document = Document()
    Page(document, Fixed(Shown(serial=1, condition="live", state=STATE)), Wanted(Fixed(Shown())))
    assert document.get_model_by_name("by").disabled
    assert document.get_model_by_name("slant").disabled


def test_an_operators_page_sends_commands_and_shows_the_answer():
    asked = []

    def steer(command, value):
        asked.append((command, value))
        if command == "axis":
            raise ConfigError("axis: <no>")
        return f"{command}: now"

    document = Document()
    controls = SteeringControls(document, steer)
    named = {widget.name: widget for widget in controls.widgets}
    assert SteeringControls(document, None).widgets == []
    for command, value, said in (("finish", None, "finish: now"), ("axis", 7.5, "axis: &lt;no&gt;")):
        named["command"].value, named["value"].value = command, value or 1
        named["send"]._trigger_event(ButtonClick(named["send"]))
        eventually(lambda: document.session_callbacks)
        (callback,) = document.session_callbacks
        callback.callback()
        assert said in named["answer"].text
        assert named["send"].disabled is False
    assert asked == [("finish", None), ("axis", 7.5)]


def test_a_volume_file_is_a_feed(tmp_path):
    image = random_image(5, 33, 8)
    writer = volume_writer(tmp_path, pixel_size_um=2.0)
    path = writer.final(image, state(warnings=(Notice(code="some-code", text="said"),)))
    writer.close()
    with VolumeFeed(path) as feed:
        feed.want([Picture("z", 4), Picture("y", 2), Picture("projection"), Picture("z", 5)])
        shown = feed.shown()
    assert shown.condition == "incomplete"
    assert shown.text == "; ".join(state().missing)
    assert shown.state.scan.pixel_size_um == 2.0
    assert [notice.code for notice in shown.state.notices] == ["some-code"]
    assert set(shown.pictures) == {Picture("z", 4), Picture("y", 2)}
    np.testing.assert_allclose(shown.pictures[Picture("z", 4)][1], image[:, :, 4], rtol=1e-6)
    np.testing.assert_allclose(shown.pictures[Picture("y", 2)][1], image[2, :, :5].T, rtol=1e-6)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.h5").write_text("no volume")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        VolumeFeed(tmp_path / "a.h5")


def test_a_page_on_another_node_is_refused(tmp_path):
    from ministream.app.launch.launcher import launch
    from ministream.app.launch.plan import Plan

    plan = Plan(run=None, out=tmp_path / "out", view=True, launcher=("srun",), ranks=1)
    with pytest.raises(ConfigError, match="leave it out here"):
        launch(plan)


def test_a_folder_shows_the_volume_after_its_job(tmp_path):
    image = random_image(5, 33, 8)
    with FolderFeed(tmp_path) as feed:
        key = live_key.of_job(tmp_path)
        with LiveServer("tcp://127.0.0.1:0", key.for_server()) as server:
            key.write(tmp_path, server.address)
            server.publish(msgspec.structs.replace(STATE, job=server.job), arrived_s=time.monotonic())
            eventually(lambda: feed.shown().condition == "live")
            writer = volume_writer(tmp_path)
            writer.final(image, state())
            writer.close()
            ended = msgspec.structs.replace(STATE, job=server.job, phase="incomplete", text="2 missing")
            server.publish(ended, arrived_s=time.monotonic())
            eventually(lambda: feed.shown().condition == "incomplete")
            server.close(5.0)
        (tmp_path / live_key.NAME).unlink()
        feed.want([Picture("z", 4)])
        shown = feed.shown()
        assert (shown.condition, shown.text) == ("incomplete", "2 missing")
        np.testing.assert_array_equal(shown.pictures[Picture("z", 4)][1], image[:, :, 4])
        with LiveServer("tcp://127.0.0.1:0", key.for_server()) as server:
            key.write(tmp_path, server.address)
            server.publish(msgspec.structs.replace(STATE, job=server.job), arrived_s=time.monotonic())
            eventually(lambda: feed.shown().condition == "live")
            assert not feed.shown().pictures


def test_short_stages_are_shown_as_one():
    bars = StageBars(Theme())
    bars.show([{f"stage {k}": float(k) for k in range(10)}, {"stage 9": 1.0, "stage 0": 2.0}])
    shown = {name: list(values) for name, values in bars.source.data.items()}
    assert list(shown.pop("rank")) == [0, 1]
    assert set(shown) == {*(f"stage {k}" for k in range(3, 10)), "other"}
    assert shown["stage 9"] == [9.0, 1.0]
    assert shown["other"] == [0 + 1 + 2, 2.0]
