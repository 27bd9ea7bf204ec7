"""Volumes in the readers of NeXus viewers: what they show first, with which axes, units and title."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.one_rank import COMPLETE, random_image, state, volume_writer

nexusformat = pytest.importorskip("nexusformat.nexus")
silx_io = pytest.importorskip("silx.io")
silx_nxdata = pytest.importorskip("silx.io.nxdata")


@pytest.fixture
def image() -> Any:
    return random_image(5, 33, 5)


def written(folder: Path, image: Any, **changes: Any) -> Path:
    return volume_writer(folder, pixel_size_um=2.0, sample="shale").final(image, state(**changes))


def test_silx_shows_the_volume_first(tmp_path, image):
    with silx_io.open(written(tmp_path, image)) as file:
        plot = silx_nxdata.get_default(file)
        assert (plot.is_valid, plot.issues, plot.interpretation) == (True, [], None)
        per_cm = np.float32(5000)  # pixels of 2 µm
        np.testing.assert_array_equal(plot.signal[()], image.transpose(2, 0, 1) * per_cm)
        assert plot.signal.attrs["units"] == "1/cm"
        assert [axis[0] for axis in plot.axes] == [0.0, 32.0, -32.0]
        assert plot.axes_names == ["z (um)", "y (um)", "x (um)"]
        assert plot.title == "shale, scan s-1, INCOMPLETE: 9 sent, 8 received; 1 projection refused (checksum)"


def test_the_title_of_a_complete_volume_names_sample_and_scan(tmp_path, image):
    with silx_io.open(written(tmp_path, image, **COMPLETE)) as file:
        assert silx_nxdata.get_default(file).title == "shale, scan s-1"


def test_nexusformat_finds_plot_process_and_sample(tmp_path, image):
    root = nexusformat.nxload(written(tmp_path, image))
    plot = root.plottable_data
    assert isinstance(plot, nexusformat.NXdata)
    assert plot.nxsignal.shape == (5, 33, 33)
    assert [axis.nxname for axis in plot.nxaxes] == ["z", "y", "x"]
    assert [axis.attrs["units"] for axis in plot.nxaxes] == ["um"] * 3
    (process,) = root.entry.NXprocess
    assert process.program.nxvalue == "ministream"
    assert process.configuration.data.nxvalue == '{"window": 7}'
    assert root.entry.sample["name"].nxvalue == "shale"


def test_the_definitions_of_nexus_know_every_group_and_field(tmp_path, image):
    validate = pytest.importorskip("nexusformat.nexus.validate")
    warnings, errors = validate.validate_file(str(written(tmp_path, image)), "/entry")
    assert (warnings, errors) == (0, 0)
