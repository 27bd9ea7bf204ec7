"""Fourier correlation against a direct computation, what theory expects of noise, and a known blur; the command."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from ministream import resolution
from ministream.cli import cli
from ministream.errors import ConfigError, InputError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(24, 24), (25, 25), (16, 20), (16, 17, 18)])
def test_the_sums_are_those_of_the_definition(shape):
    """The definition by van Heel and Schatz, ring by ring over the whole transform."""
    first, second = noise(*shape), noise(*shape) + noise(*shape, seed=1)
    a, b = (np.fft.fftn(resolution._windowed(half).astype(np.float64)) for half in (first, second))
    sides = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    ring = np.rint(np.sqrt(sum(side**2 for side in sides)) * max(shape))
    found = resolution._correlation(resolution._sums(first, second))
    for number, (correlation, voxels) in enumerate(zip(found.correlation, found.voxels, strict=True), 1):
        inside = ring == number
        power = math.sqrt((abs(a[inside]) ** 2).sum() * (abs(b[inside]) ** 2).sum())
        assert correlation == pytest.approx((a[inside] * b[inside].conj()).sum().real / power, abs=1e-5)
        assert voxels == inside.sum()


def test_the_correlation_of_noisy_halves_is_that_of_their_signal_to_noise():
    """FRC = SNR / (1 + SNR) in every ring: J. Frank and L. Al-Ali, Nature 256 (1975) 376."""
    pairs = []
    for seed in range(0, 60, 3):
        signal = 2 * noise(64, 64, seed=seed)
        pairs.append((signal + noise(64, 64, seed=seed + 1), signal + noise(64, 64, seed=seed + 2)))
    found = resolution.ring_correlation(pairs)
    assert found.correlation[3:] == pytest.approx(4 / 5, abs=0.05)
    assert found.resolution_half_bit is None


def test_pure_noise_stays_below_the_half_bit_threshold():
    found = resolution.shell_correlation(noise(32, 32, 32), noise(32, 32, 32, seed=1))
    assert (found.correlation[3:] < found.half_bit[3:]).all()
    assert found.resolution_half_bit > 10


def test_the_threshold_is_that_of_the_paper():
    """0.4142 / (2 + 0.4142) where very many voxels are averaged: half a bit per voxel in the sum of both halves."""
    sums = np.ones((4, 1))
    sums[3] = 1e12
    assert resolution._correlation(sums).half_bit[0] == pytest.approx((2**0.5 - 1) / (2**0.5 + 1), abs=1e-4)


@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
def test_a_known_cutoff_is_found(cutoff):
    """A signal with no power above a frequency, in little noise."""
    n = 128
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    signal = np.fft.ifft2(np.fft.fft2(noise(n, n)) * (radius <= cutoff)).real.astype(np.float32)
    halves = [signal + 0.02 * noise(n, n, seed=seed) for seed in (1, 2)]
    found = resolution.ring_correlation([(halves[0], halves[1])])
    assert 1 / found.resolution_half_bit == pytest.approx(cutoff, abs=0.02)
    assert 1 / found.resolution_one_seventh == pytest.approx(cutoff, abs=0.02)


def test_contrast_to_noise_is_the_definition():
    background = noise(50, 50)
    signal = np.full((10, 10), 3.0, np.float32)
    expected = abs(3 - background.mean()) / background.std(ddof=1)
    assert resolution.contrast_to_noise(signal, background) == pytest.approx(expected)
    assert resolution.contrast_to_noise(signal, np.zeros((4, 4), np.float32)) == math.inf


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="differ in shape"):
        resolution.ring_correlation([(noise(8, 8), noise(8, 9))])
    with pytest.raises(InputError, match="no slices"):
        resolution.ring_correlation([])
    with pytest.raises(InputError, match="NaN"):
        resolution.ring_correlation([(noise(8, 8), np.full((8, 8), np.nan, np.float32))])
    with pytest.raises(InputError, match="expected 16 or more"):
        resolution.shell_correlation(noise(15, 20, 20), noise(15, 20, 20))
    with pytest.raises(InputError, match="the signal has 1 pixels"):
        resolution.contrast_to_noise(noise(1, 1), noise(8, 8))


# ── the command ──

PAGE = (Path(__file__).parents[2] / "docs" / "quality.md").read_text()

COLS = 64
INTEGRALS = ("--set", "prep.input=attenuation", "--set", "source.flats=none", "--set", "source.darks=none")


def quality(*arguments: object) -> dict:
    done = CliRunner().invoke(cli, ["quality", *map(str, arguments), "--json", "-"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.output)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A disk of radius 20 in 32 rows, 180 noisy projections over half a turn, pixels of 2 µm."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    distance = np.arange(COLS) - (COLS - 1) / 2
    profile = 0.1 * np.sqrt(np.clip(20.0**2 - distance**2, 0, None)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["exchange/data"] = profile + 0.02 * noise(180, 32, COLS)
        file["exchange/theta"] = np.arange(180.0)
    return path


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Two volumes of 20 × 40 × 40 with a box in noise."""
    folder = tmp_path_factory.mktemp("halves")
    for seed, name in enumerate("ab"):
        volume = noise(20, 40, 40, seed=seed)
        volume[:, 10:20, 10:20] += 5
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"] = volume
    return folder / "a.h5", folder / "b.h5"


def test_the_resolution_of_two_volumes_by_ring_and_shell(halves):
    report = quality(*halves, "--resolution")
    first, second = (h5py.File(path)["data"][:] for path in halves)
    expected = resolution.shell_correlation(first, second)
    assert report["shell"]["correlation"] == pytest.approx(expected.correlation)
    assert report["shell"]["resolution_pixels_half_bit"] == pytest.approx(expected.resolution_half_bit)
    assert len(report["slices"]) == 20
    assert "shell" not in quality(*halves, "--resolution", "--slices", "::2")


def test_the_table_names_both_thresholds(halves):
    done = CliRunner().invoke(cli, ["quality", *map(str, halves), "--resolution"])
    assert "half-bit threshold" in done.output
    assert done.output.count(" pixels") == 4


def test_the_halves_of_a_scan_are_its_even_and_odd_projections(scan):
    one = quality(scan, "--halves", *INTEGRALS)
    assert one["slices"] == [16]
    assert one["ring"]["correlation"][1] > 0.9  # the disk
    assert max(one["ring"]["correlation"][-4:]) < 0.7  # noise
    many = quality(scan, "--halves", "--slices", "0:16", *INTEGRALS)
    assert many["slices"] == list(range(16))
    assert many["shell"]["correlation"][0] > 0.9


def test_the_same_projections_twice_would_correlate_fully(scan, tmp_path):
    with h5py.File(scan) as file, h5py.File(tmp_path / "doubled.h5", "w") as doubled:
        doubled["exchange/data"] = np.repeat(file["exchange/data"][:], 2, axis=0)
        doubled["exchange/theta"] = np.repeat(file["exchange/theta"][:], 2)
    report = quality(tmp_path / "doubled.h5", "--halves", *INTEGRALS)
    assert report["ring"]["correlation"] == pytest.approx(np.ones(len(report["ring"]["correlation"])), abs=1e-4)
    assert report["ring"]["resolution_pixels_half_bit"] is None


def test_contrast_to_noise_of_regions(halves):
    report = quality(halves[0], "--signal", "11:19,11:19", "--background", "25:40,0:40", "--slices", "3:5")
    plane = h5py.File(halves[0])["data"][3]
    expected = resolution.contrast_to_noise(plane[11:19, 11:19], plane[25:40])
    assert report["slices"][0] == {"slice": 3, "contrast_to_noise": pytest.approx(expected)}
    assert report["mean"] == pytest.approx(5, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolution"], "name both, or a recorded scan with --halves"),
        (["--resolution", "--halves"], "choose one"),
        (["--signal", "0:9,0:9"], "give both --signal R:R,C:C and --background"),
        (["--signal", "0:9,0:9", "--background", "0:9"], "--background 0:9: expected rows and columns"),
        (["--signal", "0:9,0:99", "--background", "0:9,0:9"], "within 40 × 40, such as 0:9,10:19"),
        (["--halves", "--set", "recon.axis=auto"], "--set recon.axis=COLUMN"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_remedy(halves, options, message):
    with pytest.raises(ConfigError) as failed:
        quality(halves[0], *options)
    assert message in str(failed.value)


def test_the_commands_of_the_page(scan, halves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "run").mkdir(parents=True)
    names = ("a.h5", halves[0]), ("b.h5", halves[1]), ("reference.h5", halves[1])
    for name, file in (*names, ("scan.h5", scan), ("results/run/recon.h5", halves[0])):
        (tmp_path / name).symlink_to(file)
    commands = re.findall(r"^    ministream quality (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        more = INTEGRALS if "--halves" in command else ()
        assert quality(*shlex.split(command), *more)
