"""The web page of the live view, in a real browser beside real jobs.

MINISTREAM_SCREENSHOTS names a folder for the pictures of the documents.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ministream.app.recon import live_key
from tests.integration.jobs import MINISTREAM, Job, Lab
from tests.unit.one_rank import random_image, state, volume_writer
from tests.waiting import HANG_S, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FONT_SETTLED_MS = 600
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SCAN = {
    "source.sample": "foam", "source.rows": 48, "source.cols": 192, "source.projections": 240, "source.i0": 60000.0,
    "source.pixel_size_um": 3.25, "producer.order": "golden-angle", "producer.rate": 40.0, "window.length": 120,
    "window.step": 20, "window.iterations": 4, "recon.relaxation": 1.9, "recon.circular_mask": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def url_of(job: Job) -> str:
    """The address that `ministream view` has printed."""
    found: list[str] = []
    job.until(lambda: found.extend(re.findall(r"live view: (http://\S+)", job.text)) or found)
    return found[0]


def pair(out: Path, **changes) -> list[str]:
    settings = [
        word
        for key, value in (SCAN | changes).items()
        for word in ("--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    ]
    return [*MINISTREAM, "launch", "--ranks", "2", "--threads", "1", "--out", str(out), *settings]


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

    def title(self, name: str) -> str:
        return self.page.evaluate(f"model('{name}').title.text")

    def until_title(self, name: str, pattern: str) -> None:
        self.page.wait_for_function(f"/{pattern}/.test(model('{name}').title.text)", timeout=HANG_S * 1000)

    def until_status(self, word: str) -> None:
        self.page.locator(".status .word", has_text=word).wait_for(timeout=HANG_S * 1000)


def test_the_page_follows_a_job_and_the_next_one(browser, jobs: Lab, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "token").write_text("a-token-of-the-test")
    (tmp_path / "token").chmod(0o600)
    view = jobs.start(
        "view", [*MINISTREAM, "view", str(out), "--prefix", "/user/me", "--token-file", str(tmp_path / "token")]
    )
    page = browser.new_page(viewport=WIDE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url_of(view))
    seen, shots = Seen(page), Shots(page, tmp_path)
    seen.until_status("WAITING")
    shots.take("view-waiting")

    job = jobs.start("pair", [*pair(out), "--recon-options=--live tcp://127.0.0.1:0"])
    seen.until_status("LIVE")
    seen.until_title("z", "Slice 23 after update [1-9]")
    seen.until_title("sinogram", "row 23")
    page.locator("body").press("ArrowRight")
    seen.until_title("z", "Slice 24 ")
    page.evaluate("model('x-slider').value = 60")
    seen.until_title("x", "Column 60 ")
    seen.until_title("z", "after update ([5-9]|1[0-9])")
    shots.take("view")
    shots.take("view-phone", PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("body").press("l")
    page.wait_for_function("document.body.classList.contains('light')")
    shots.take("view-light")
    page.locator("body").press("l")
    seen.until_status("FINISHED, COMPLETE")
    assert job.wait() == 0
    assert seen.title("z").startswith("Slice 24 after update 12")
    assert not (out / live_key.NAME).exists()

    job = jobs.start("again", [*pair(out), "--view", "--recon-options=--write-freq 1"])
    seen.until_status("LIVE")
    seen.until_title("z", "Slice 24 after update [1-9]")
    assert fetch(url_of(job))[0] == 200
    job.signal(2)
    seen.until_status("INCOMPLETE")
    assert job.wait() == 3
    view.signal(15)
    assert view.wait() == 0
    page.locator("#gone").wait_for(state="visible", timeout=HANG_S * 1000)
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
