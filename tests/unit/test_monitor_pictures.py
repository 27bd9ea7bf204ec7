"""Pictures: every kind of volume gives a PNG, without warnings and without leftovers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ministream.errors import StorageError
from ministream.monitor import curves, pictures
from ministream.monitor._figure import Scale, attenuation_label, grey_window

pytest.importorskip("matplotlib")


class Memory:
    """A volume in memory."""

    def __init__(self, values, **attributes):
        self.values, self.attributes = values, attributes
        self.shape = values.shape
        self.path = Path("memory.h5")

    def plane(self, axis, index):
        return self.values.take(index, axis)


def volume(slices=6, n=20, **attributes):
    return Memory(np.random.default_rng(2).random((slices, n, n), dtype=np.float32), **attributes)


def pixels(path):
    """The picture as an array; fails when it is not a readable PNG."""
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize(
    ("slices", "known"),
    [(1, {}), (2, {"pixel_size_um": 2.0, "units": "1/cm"}), (6, {"pixel_size_um": 500.0}), (50, {})],
)
def test_orthogonal_planes(tmp_path, slices, known):
    pictures.orthogonal(volume(slices, **known), tmp_path / "orthogonal.png")
    assert pixels(tmp_path / "orthogonal.png").std() > 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["orthogonal.png"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_volume_without_contrast(tmp_path, value):
    pictures.orthogonal(Memory(np.full((3, 9, 9), value, np.float32)), tmp_path / "flat.png")
    assert pixels(tmp_path / "flat.png").size


@pytest.mark.parametrize("slices", [1, 4])
def test_against_the_truth(tmp_path, slices):
    image = volume(slices, scan_id="s", sample="shale", projections_used=9, complete=False)
    truth = Memory(np.zeros(image.shape, np.float32))
    pictures.against_truth(image, truth, tmp_path / "truth.png")
    assert pixels(tmp_path / "truth.png").std() > 0.05


@pytest.mark.parametrize("count", [1, 3, 21])
def test_over_time(tmp_path, count):
    moments = [volume(2, projections_used=10 * i, elapsed_s=float(i)) for i in range(count)]
    pictures.over_time(moments, tmp_path / "over-time.png")
    assert pixels(tmp_path / "over-time.png").std() > 0.05


def test_the_first_and_the_last_snapshot_are_always_shown():
    assert pictures._spread(list(range(21)))[0] == 0
    assert pictures._spread(list(range(21)))[-1] == 20
    assert len(pictures._spread(list(range(21)))) == 8


def test_the_grey_window_ignores_a_few_extreme_pixels():
    plane = np.linspace(0, 1, 10000, dtype=np.float32)
    plane[:10], plane[-10:] = -1e6, 1e6
    low, high = grey_window([plane.reshape(100, 100)])
    assert 0 <= low < 0.01
    assert 0.99 < high <= 1


def test_units_follow_the_pixel_size():
    assert Scale.of(volume()).unit == "pixel"
    assert Scale.of(volume(pixel_size_um=2.0)).unit == "µm"
    millimetres = Scale.of(volume(pixel_size_um=500.0))
    assert (millimetres.unit, millimetres.pixel) == ("mm", 0.5)
    assert attenuation_label(volume(units="1/cm")) == "linear attenuation (1/cm)"
    assert attenuation_label(volume()) == "linear attenuation (1/pixel)"


def test_curves_of_quality(tmp_path):
    rows = [{"projections": 10 * i, "seconds": float(i), "ssim": i / 5, "psnr": 20.0 + i} for i in range(1, 5)]
    curves.quality(rows, tmp_path / "quality.png", "the truth")
    curves.quality(rows[:1], tmp_path / "one.png", "volume.h5")
    assert pixels(tmp_path / "quality.png").std() > 0.02
    assert pixels(tmp_path / "one.png").size


def test_a_picture_that_cannot_be_written_names_its_file(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/o\.png: cannot be written"):
        pictures.orthogonal(volume(), tmp_path / "nowhere" / "o.png")
