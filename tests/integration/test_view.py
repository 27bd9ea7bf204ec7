"""The web page of the live view, in a real browser, beside rank 0's end of a job.

MINISTREAM_SCREENSHOTS names a folder in which its pictures are kept.
"""

from __future__ import annotations

import functools
import http.client
import math
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ministream import reconstruct
from ministream.app.recon import live_key
from ministream.app.recon.live_server import LiveServer
from ministream.model import FrameKind
from ministream.recon.backend import cpu
from ministream.recon.geometry import Geometry
from ministream.recon.planes import Plane
from ministream.source import phantom
from ministream.view.theme import LIGHT
from ministream.wire.live import JobState, Picture, ScanFacts, Shape, UpdateRecord
from tests.integration.jobs import MINISTREAM, Job, Lab
from tests.unit.one_rank import random_image, state, volume_writer
from tests.waiting import HANG_S, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FONT_SETTLED_MS = 600
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
FACTS = ScanFacts(
    scan_id="s-1", sample="foam", rows=48, cols=160, n=160, projections=120, pixel_size_um=3.25, algorithm="sirt",
    ranks=2, threads=1, tilted=True, fbp=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def url_of(job: Job, name: str = "live view") -> str:
    """The address that `ministream view` has printed."""
    found: list[str] = []
    job.until(lambda: found.extend(re.findall(rf"{name}: (http://\S+)", job.text)) or found)
    return found[0]


class Shots:
    """Pictures of a page."""

    def __init__(self, page, folder: Path) -> None:
        self._page = page
        self._folder = Path(os.environ.get("MINISTREAM_SCREENSHOTS", folder))
        self._folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str, size: dict[str, int] = WIDE) -> None:
        self._page.set_viewport_size(size)
        self._page.wait_for_timeout(FONT_SETTLED_MS)
        self._page.screenshot(path=self._folder / f"{name}.png", full_page=True)
        self._page.set_viewport_size(WIDE)


class Seen:
    """What a page shows."""

    def __init__(self, page) -> None:
        self.page = page

    @property
    def status(self) -> str:
        return self.page.locator(".status .word").inner_text(timeout=HANG_S * 1000)

    def until_title(self, name: str, pattern: str) -> None:
        self.page.wait_for_function(f"/{pattern}/.test(model('{name}').title.text)", timeout=HANG_S * 1000)

    def until_status(self, word: str) -> None:
        self.page.locator(".status .word", has_text=word).wait_for(timeout=HANG_S * 1000)


@functools.cache
def sample() -> tuple[np.ndarray, np.ndarray]:
    """A foam: its line integrals [projection, row, col] and its volume [row, col, slice]."""
    options = phantom.Options(
        sample="foam",
        rows=FACTS.rows,
        cols=FACTS.cols,
        projections=FACTS.projections,
        i0=2e4,
        dtype="float32",
        fixed_pattern=0,
    )
    source = phantom.Source(options, order="sequential", repeat=1)
    frames = [source.frame(FrameKind.PROJECTION, index).pixels for index in range(FACTS.projections)]
    lines = -np.log(np.maximum(np.stack(frames) - options.dark, 0.5) / options.i0).astype(np.float32)
    volume = reconstruct(lines, np.arange(FACTS.projections) * 180 / FACTS.projections, algorithm="fbp")
    image = cpu.new_image(Geometry(n=FACTS.n, cols=FACTS.cols, axis_col=0.0), FACTS.rows)
    image[:, :, : FACTS.rows] = volume.transpose(1, 2, 0)
    return lines, image


def plane(picture: Picture) -> np.ndarray:
    """What a job would show."""
    lines, image = sample()
    match picture.kind:
        case "projection":
            return lines[-1]
        case "sinogram":
            return lines[:, picture.index]
        case "z":
            return image[:, :, picture.index]
        case "y":
            return image[picture.index, :, : FACTS.rows].T
        case "x":
            return image[:, picture.index, : FACTS.rows].T
    angles = {"azimuth_rad": math.radians(picture.azimuth_deg), "tilt_rad": math.radians(picture.tilt_deg)}
    tilted = Plane.tilted(FACTS.n, FACTS.rows, **angles, offset=picture.index, step=1.0)
    return cpu.image_plane(image, tilted, 0, FACTS.rows)


def published(server: LiveServer, update: int, **changes) -> None:
    """What a job publishes after an update: the pictures that are wanted, and its state."""
    pictures = {}
    for picture in server.wanted():
        pixels = np.ascontiguousarray(plane(picture))
        shape = Shape(picture=picture, update=update, rows=pixels.shape[0], cols=pixels.shape[1], angle_deg=179.2)
        pictures[shape] = pixels
    server.show(pictures)
    if update:
        server.updated(UpdateRecord(update, 1.5 * update, 20 * update, 100.0 / update, 14.5, 0.4, {}))
    known = {
        "job": server.job, "number": 0, "phase": "live", "text": "", "scan": FACTS, "elapsed_s": 1.5 * update,
        "ledger": {"received": 20 * update, "imaged": 20 * update, "mended": 3}, "losses": {"drop-oldest": 5},
        "per_s": 14.5, "lag": 0, "behind_s": 0.4, "latency_s": {"p50": 0.3, "p99": 0.6}, "update": update,
        "stages": ({"forward": 1.0 * update, "back": 0.7 * update}, {"forward": 0.9 * update, "back": 0.8 * update}),
    }  # fmt: skip
    server.publish(JobState(**known | changes), arrived_s=time.monotonic())


@contextmanager
def serving(folder: Path) -> Iterator[LiveServer]:
    """Rank 0's end of a job that writes to `folder`."""
    key = live_key.of_job(folder)
    with LiveServer("tcp://127.0.0.1:0", key.for_server(), operator=key.operator) as server:
        key.write(folder, server.address)
        yield server
        server.close(5.0)
    (folder / live_key.NAME).unlink()


def steers(browser, view: Job, server: LiveServer, watched) -> None:
    """The operator's page steers, the viewers' page has no control for it."""
    assert watched.evaluate("model('command') === undefined")
    page = browser.new_page(viewport=WIDE)
    page.goto(url_of(view, "with steering"))
    page.wait_for_function("typeof model === 'function' && model('command') !== undefined", timeout=HANG_S * 1000)
    page.evaluate("model('command').value = 'iterations'; model('value').value = 5")
    page.wait_for_function("model('value').disabled === false", timeout=HANG_S * 1000)
    page.get_by_role("button", name="Send").click()
    page.get_by_text("iterations: after the next update").wait_for(timeout=HANG_S * 1000)
    assert server.commands() == [("iterations", 5.0)]
    page.close()


def test_the_page_follows_a_job_and_the_next_one(browser, jobs: Lab, tmp_path: Path):
    out, token = tmp_path / "out", tmp_path / "token"
    out.mkdir()
    token.write_text("a-token-of-the-test")
    token.chmod(0o600)
    view = jobs.start("view", [*MINISTREAM, "view", str(out), "--prefix", "/user/me", "--token-file", str(token)])
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(HANG_S * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url_of(view))
    seen, shots = Seen(page), Shots(page, tmp_path)
    seen.until_status("WAITING")
    with serving(out) as server:
        published(server, 0, phase="waiting", text="no projection has arrived")
        eventually(lambda: len(server.wanted()) == 5)
        published(server, 1)
        seen.until_status("LIVE")
        seen.until_title("z", "Slice 23 after update 1")
        seen.until_title("sinogram", "row 23")
        page.locator("body").press("ArrowRight")
        page.evaluate("model('x-slider').value = 60")
        eventually(lambda: {Picture("z", 24), Picture("x", 60)} <= set(server.wanted()))
        page.locator("body").press("t")
        page.evaluate("model('by').value = 'filtered back projection'")
        page.evaluate("model('azimuth-slider').value = -30")
        tilted = Picture("tilted", 0, "fbp", -30.0, 45.0)
        eventually(lambda: {Picture("z", 24, "fbp"), Picture("x", 60, "fbp"), tilted} <= set(server.wanted()))
        published(server, 2)
        seen.until_title("tilted", "azimuth -30°, tilt 45°, offset 0 by filtered back projection, after update 2")
        shots.take("view-tilted")
        page.locator("body").press("t")
        page.evaluate("model('by').value = 'the algorithm'")
        eventually(lambda: set(server.wanted()) & {tilted, Picture("z", 24, "fbp")} == set())
        for update in range(3, 7):
            published(server, update)
        seen.until_title("z", "Slice 24 after update 6")
        seen.until_title("x", "Column 60 after update 6")
        shots.take("view")
        shots.take("view-phone", PHONE)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.locator("body").press("l")
        page.wait_for_function("document.body.classList.contains('light')")
        page.wait_for_function(f"model('sinogram').title.text_color === '{LIGHT.text}'")
        shots.take("view-light")
        steers(browser, view, server, page)
        published(server, 7, phase="finished", text="all")
        seen.until_status("FINISHED, COMPLETE")
    with serving(out) as server:
        published(server, 1)
        seen.until_status("LIVE")
        eventually(lambda: Picture("z", 24) in server.wanted())
        published(server, 2)
        seen.until_title("z", "Slice 24 after update 2")
        published(server, 3, phase="incomplete", text="5 dropped")
        seen.until_status("INCOMPLETE")
    view.signal(15)
    assert view.wait() == 0
    page.locator("#gone").wait_for(state="visible")
    assert not errors
    page.close()


def fetch(url: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=HANG_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def websocket_closes(host: str) -> bool:
    """Whether a websocket without the token is ended by the server."""
    connection = http.client.HTTPConnection(host, timeout=HANG_S)
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    connection.request("GET", "/ws", headers=upgrade | {"Sec-WebSocket-Protocol": "bokeh, token"})
    ended = False
    while connection.sock is not None and not ended:
        ended = not connection.sock.recv(4096)
    connection.close()
    return ended


def test_a_volume_is_shown_to_those_who_have_the_token(jobs: Lab, tmp_path: Path):
    writer = volume_writer(tmp_path, sample="a secret sample")
    volume = writer.final(random_image(5, 33, 8), state())
    writer.close()
    view = jobs.start("view", [*MINISTREAM, "view", str(volume)])
    url = url_of(view)
    parts = urllib.parse.urlsplit(url)
    bare = f"http://{parts.netloc}"
    status, text = fetch(url)
    assert (status, "Mini-Stream" in text) == (200, True)
    for path in ("/", "/?token=wrong", "/?token=", "/metadata", "/autoload.js?bokeh-autoload-element=1"):
        status, text = fetch(bare + path)
        assert status == 403, path
        assert "secret sample" not in text
        assert "Token required" in text
    assert websocket_closes(parts.netloc)
    login = urllib.request.Request(f"{bare}/login", data=b"token=wrong")
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(login, timeout=HANG_S)
    refused.value.close()
    view.signal(15)
    assert view.wait() == 0
    assert "GET /ws" not in view.text  # a stranger does not fill the terminal


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tcp://127.0.0.1:9", r"needs its key file\. Copy \.live\.json"),
        ("nowhere", "no such file or folder"),
    ],
)
def test_what_cannot_be_shown_is_refused(jobs: Lab, target: str, said: str):
    view = jobs.start("view", [*MINISTREAM, "view", target])
    assert view.wait() == 2
    eventually(lambda: re.search(said, view.text))
