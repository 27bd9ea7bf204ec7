"""The live view of a job on several ranks shows what is in the volume."""

from __future__ import annotations

import io
from contextlib import ExitStack

import numpy as np
import pytest
from rich.console import Console

from ministream import config, storage
from ministream.app.recon import live_key, live_pictures
from ministream.app.recon.job import recon
from ministream.app.recon.observers import live
from ministream.app.view.live_feed import LiveFeed
from ministream.model import to_per_cm
from ministream.wire.live import Picture
from tests.parallel.scans import ROWS, N, process, producing, scan
from tests.waiting import HANG_S, eventually

__all__ = ["process"]

pytestmark = pytest.mark.mpi

PICTURES = [Picture(kind, index) for kind, index in (("z", 0), ("z", ROWS - 1), ("y", 5), ("x", 9), ("sinogram", 2))]
SLICES = [Picture(kind, index, "fbp") for kind, index in (("z", 0), ("z", ROWS - 1), ("y", 5), ("x", 9))]
TILTED = Picture("tilted", 1, azimuth_deg=40.0, tilt_deg=50.0)
BY_FBP = Picture("tilted", 1, "fbp", azimuth_deg=40.0, tilt_deg=50.0)


@pytest.mark.parametrize(("kind", "step"), [("sirt", 1), ("fbp", 1), ("fbp", 2)])
def test_the_pictures_are_planes_of_the_volume(comm, shared_tmp, monkeypatch, kind, step):
    monkeypatch.setattr(live_pictures, "MAX_SIDE", N // step)
    monkeypatch.setattr(live, "LINGER_S", HANG_S)  # on a busy machine the last pictures may take long
    key = shared_tmp / live_key.NAME

    def target():
        if not key.exists():
            return None
        keys, address = live_key.read(key)
        return address, keys.for_viewer()

    with ExitStack() as stack:
        feed = stack.enter_context(LiveFeed(target, "here")) if comm.rank == 0 else None

        def ready() -> None:
            feed.want([*PICTURES, *SLICES, TILTED, BY_FBP, Picture("projection"), Picture("z", ROWS)])
            eventually(lambda: {one.kind for one in feed.shown().pictures} == {"z", "y", "x", "tilted"})
            assert feed.shown().condition == "waiting"

        with producing(comm, scan(projections=9), ready, left_out=[3]) as address:
            given = {
                "stream": {"connect": address},
                "window": {"length": 4, "step": 2},
                "recon": {"threads": 1, "kind": kind},
                "output": {"directory": shared_tmp, "live": "tcp://127.0.0.1:0", "pictures": False},
            }
            recon(
                lambda: config.load(None, given), ranks=None, announce_to=None, log_level=None,
                console=Console(file=io.StringIO()),
            )  # fmt: skip
        if feed is None:
            return
        eventually(lambda: feed.shown().condition == "incomplete")  # one projection was dropped
        shown = feed.shown()
        volume, per_cm = storage.read_volume(shared_tmp / storage.FINAL), to_per_cm(shown.state.scan.pixel_size_um)
        planes = {kind: found for (kind, _), (_, found) in pictures_by_name(shown).items()}
        assert set(planes) == {"z", "y", "x", "tilted", "sinogram", "projection"}
        assert {picture for picture in shown.pictures if picture.by == "fbp"} == {*SLICES, BY_FBP}
        for picture, (shape, found) in shown.pictures.items():
            if picture.kind in "zyx" and (kind == "fbp" or picture.by == "image"):
                assert shape.update == 4
                plane = volume.take(picture.index, "zyx".index(picture.kind))
                tolerance = 0.0 if picture.by == "image" else 1e-5 * per_cm
                np.testing.assert_allclose(found * per_cm, plane[::step, ::step], rtol=1e-6, atol=tolerance)
        assert shown.pictures[TILTED][1].any()
        if kind == "fbp":
            # between pixels the image is interpolated, while slices on demand are exact
            image, exact = (shown.pictures[picture][1] for picture in (TILTED, BY_FBP))
            assert np.corrcoef(image.ravel(), exact.ravel())[0, 1] > 0.9
        assert planes["projection"].shape == (ROWS // step, N // step)
        assert planes["sinogram"].shape == (4 // step, N // step)
        assert [update.projections for update in shown.updates] == [2, 4, 6, 8]
        assert len(shown.state.stages) == comm.size
        assert shown.state.ledger["written"] == 8
        assert shown.state.losses == {"drop-oldest": 1}
        assert not key.exists()


def pictures_by_name(shown):
    return {(picture.kind, picture.index): held for picture, held in shown.pictures.items()}
