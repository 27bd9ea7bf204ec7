"""`ministream try`: one slice for each value, the right one under each label."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from ministream.app.trying import MOST_VALUES, parameter, trial
from ministream.cli import cli
from ministream.errors import ConfigError
from ministream.monitor import contact_sheet

COLS, AXIS = 64, 28.5
INTEGRALS = ("--set", "prep.input=attenuation", "--set", "source.flats=none", "--set", "source.darks=none")


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """A disk off the axis, as a DXchange file of line integrals."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    degrees = np.arange(0.0, 180.0, 2.0)
    centre = AXIS + 10 * np.cos(np.deg2rad(degrees))
    distance = np.arange(COLS) - centre[:, None]
    integrals = 0.1 * np.sqrt(np.clip(6.0**2 - distance**2, 0, None)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.repeat(integrals[:, None], 3, axis=1)
        file["exchange/theta"] = degrees
    return path


def run(*arguments: str):
    return CliRunner().invoke(cli, ["try", *arguments])


def test_each_axis_has_its_slice_and_its_label(scan, tmp_path):
    done = run(str(scan), "--axis", "27:30:0.5", "--out", str(tmp_path), *INTEGRALS)
    assert done.exit_code == 0, (done.output, done.exception)
    assert str(tmp_path / "try-recon-axis.png") in done.output
    with h5py.File(tmp_path / "try-recon-axis.h5") as file:
        stack, values = file["data"][:], file["values"][:]
        assert file["values"].attrs["parameter"] == "recon.axis"
        assert file["data"].attrs["detector_row"] == 1
    np.testing.assert_array_equal(values, [27, 27.5, 28, 28.5, 29, 29.5, 30])
    assert stack.shape == (7, COLS, COLS)
    # the disk is round at its own axis alone: elsewhere it is smeared, and less high
    assert values[np.argmax(np.percentile(stack, 98, axis=(1, 2)))] == AXIS


def test_any_numeric_key_can_be_tried(scan, tmp_path):
    options = ["--algorithm", "sirt", "--iterations", "2", *INTEGRALS, "--set", "recon.axis=28.5"]
    done = run(str(scan), "--try", "recon.relaxation=0.5:1.5:0.5", "--row", "0", "--out", str(tmp_path), *options)
    assert done.exit_code == 0, (done.output, done.exception)
    with h5py.File(tmp_path / "try-recon-relaxation.h5") as file:
        assert len({float(np.abs(image).sum()) for image in file["data"][:]}) == 3


def test_the_parameter_of_a_correction_can_be_tried(scan, tmp_path):
    options = [*INTEGRALS, "--set", "recon.axis=28.5", "--out", str(tmp_path)]
    done = run(str(scan), "--try", "prep.sf.size=3:7:2", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    with h5py.File(tmp_path / "try-prep-sf.size.h5") as file:
        assert len({float(np.abs(image).sum()) for image in file["data"][:]}) == 3
        five = file["data"][1]
    done = run(str(scan), "--axis", "28:28.5:0.5", "--remove-stripe-method", "sf", *INTEGRALS, "--out", str(tmp_path))
    assert done.exit_code == 0, (done.output, done.exception)
    with h5py.File(tmp_path / "try-recon-axis.h5") as file:
        np.testing.assert_array_equal(file["data"][1], five)
    failed = run(str(scan), "--axis", "28:28.5:0.5", "--remove-stripe-method", "ti", *options)
    assert "choose one of none, sf, fw, vo-all" in str(failed.exception)


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("290:292:0.5", (290, 290.5, 291, 291.5, 292), ("290.0", "290.5", "291.0", "291.5", "292.0")),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3), ("0.1", "0.2", "0.3")),
        ("1:2:0.75", (1, 1.75), ("1.00", "1.75")),
        ("5:5:1", (5,), ("5",)),
        ("1e-3:3e-3:1e-3", (0.001, 0.002, 0.003), ("0.001", "0.002", "0.003")),
    ],
)
def test_values_and_labels_are_exact(text, values, labels):
    found = trial("recon.axis", text)
    assert found.values == values
    assert found.labels == labels


@pytest.mark.parametrize(
    ("axis", "given"),
    [
        ("1:2", []),
        ("2:1:1", []),
        ("1:2:0", []),
        ("a:b:c", []),
        ("0:1:nan", []),
        (None, ["axis=1:2:1"]),
        (None, []),
        ("1:2:1", ["recon.axis=1:2:1"]),
        (f"0:{MOST_VALUES}:1", []),
    ],
)
def test_what_is_no_range_is_an_error(axis, given):
    with pytest.raises(ConfigError, match=r"expected|use a larger step"):
        parameter(axis, given)


def test_a_row_that_the_scan_lacks_and_an_unknown_key_are_errors(scan, tmp_path):
    failed = run(str(scan), "--axis", "27:28:1", "--row", "3", "--out", str(tmp_path), *INTEGRALS)
    assert "the scan has rows 0 to 2" in str(failed.exception)
    failed = run(str(scan), "--try", "prep.blur=1:2:1", "--out", str(tmp_path))
    assert "unknown key prep.blur" in str(failed.exception)
    failed = run(str(scan), "--try", "recon.padding=0:1:1", "--set", "recon.axis=auto", "--out", str(tmp_path))
    assert "Give a column with --set recon.axis=COLUMN" in str(failed.exception)


def test_the_contact_sheet_has_a_place_for_every_value(tmp_path):
    for count in (1, 5):
        slices = np.random.default_rng(1).random((count, 8, 8), np.float32)
        path = contact_sheet.draw(slices, [str(k) for k in range(count)], tmp_path / f"{count}.png", title="t")
        assert path.read_bytes().startswith(b"\x89PNG")
