"""Metrics against independent computations: skimage and sewar called as the original does, and plain NumPy."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys

import h5py
import numpy as np
import pytest

from ministream import quality
from ministream.cli import quality as command
from ministream.errors import ConfigError, InputError
from ministream.quality import LiveQuality, QualitySums

pytest.importorskip("skimage")
pytest.importorskip("sewar")


def pair(slices=3, n=48, noise=0.05):
    rng = np.random.default_rng(8)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, k) for k in (slices, n, n)), indexing="ij")
    truth = ((x**2 + 2 * y**2 + 0.3 * z**2 < 0.6) + 0.5 * ((x - 0.2) ** 2 + y**2 < 0.1)).astype(np.float32)
    return (truth + noise * rng.standard_normal(truth.shape)).astype(np.float32), truth


def test_sums_agree_with_a_direct_computation():
    from skimage.metrics import structural_similarity

    image, truth = pair()
    inside = quality.circle(48)
    a, b = image[:, inside].astype(np.float64), truth[:, inside].astype(np.float64)
    settings = {"data_range": 1.5, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    maps = [structural_similarity(i, t, **settings)[1] for i, t in zip(image, truth, strict=True)]
    mean = quality.slab_quality(image, truth, 1.5).mean()
    assert mean["ssim"] == pytest.approx(np.mean([m[inside].mean() for m in maps]), abs=1e-6)
    assert mean["psnr"] == pytest.approx(10 * math.log10(1.5**2 / np.mean((a - b) ** 2)), abs=1e-9)
    assert mean["nrmse"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-9)
    assert mean["correlation"] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
def test_the_ranks_do_not_matter(cuts):
    image, truth = pair()
    low, high = quality.value_range(truth)
    parts = [quality.slab_quality(image[i:j], truth[i:j], high - low) for i, j in itertools.pairwise(cuts)]
    assert QualitySums.total(parts).mean() == pytest.approx(quality.slab_quality(image, truth, high - low).mean())


def test_the_image_may_be_a_view_of_the_slices_innermost():
    image, truth = pair()
    innermost = np.ascontiguousarray(image.transpose(1, 2, 0))
    assert quality.slab_quality(innermost.transpose(2, 0, 1), truth, 1.5) == quality.slab_quality(image, truth, 1.5)


def test_what_lies_outside_the_circle_does_not_count():
    image, truth = pair()
    spoiled = image.copy()
    spoiled[:, ~quality.circle(48)] = 7.0
    before, after = quality.slab_quality(image, truth, 1.5).mean(), quality.slab_quality(spoiled, truth, 1.5).mean()
    assert (after["psnr"], after["correlation"]) == (before["psnr"], before["correlation"])


def test_a_perfect_image():
    _, truth = pair()
    mean = quality.slab_quality(truth, truth, 1.5).mean()
    assert mean["ssim"] == pytest.approx(1.0)
    assert mean["psnr"] == math.inf
    assert mean["nrmse"] == 0.0
    assert mean["correlation"] == pytest.approx(1.0)


def test_an_empty_truth_is_not_a_crash():
    image = np.zeros((1, 16, 16), np.float32)
    mean = quality.slab_quality(image, image, 0.0).mean()
    assert mean["ssim"] == pytest.approx(1.0)
    assert math.isnan(mean["correlation"])


def iqcheck(image, reference):
    """The five numbers that iqcheck.py prints for files `image` and `reference`, in its order."""
    from sewar.full_ref import mse, msssim, psnr, ssim, uqi
    from skimage.exposure import adjust_gamma, rescale_intensity

    first, second = (
        adjust_gamma(rescale_intensity(np.rot90(x)[::-1], out_range=(0.0, 1.0)), 1, 1) for x in (image, reference)
    )
    first8, second8 = ((x * 255).astype(np.uint8) for x in (first, second))
    return (
        msssim(second8, first8),
        ssim(second8, first8)[0],
        uqi(second, first),
        mse(second, first),
        psnr(second8, first8),
    )


def test_the_numbers_are_those_of_iqcheck():
    image, reference = pair(1, 200)
    ours = quality.compare(image[0], reference[0])
    expected = iqcheck(image[0], reference[0])
    assert (ours.ms_ssim, ours.ssim, ours.uqi, ours.mse, ours.psnr) == pytest.approx(expected, rel=1e-12)


def test_the_real_pair_of_reconstructions(shared):
    with h5py.File(shared / "reference" / "tooth-sirt-100.h5", "r") as file:
        tomopy, trace = file["tomopy"][0], file["trace"][0].T
    ours = quality.compare(trace, tomopy)
    assert (ours.ms_ssim, ours.ssim, ours.uqi) == pytest.approx(iqcheck(trace, tomopy)[:3], rel=1e-12)
    assert ours.correlation > 0.9999
    assert ours.nrmse < 0.01


def test_small_slices_lose_scales_and_then_are_refused():
    assert [quality.ms_ssim_scales((n, n)) for n in (11, 21, 22, 44, 175, 176, 640)] == [1, 1, 2, 3, 4, 5, 5]
    image, reference = pair(1, 12)
    assert quality.compare(image[0], reference[0]).ssim < 1
    with pytest.raises(InputError, match="smaller than the 11-pixel window"):
        quality.compare(image[0, :8, :8], reference[0, :8, :8])
    with pytest.raises(InputError, match="smaller than the 11-pixel window"):
        quality.slab_quality(image[:, :8, :8], reference[:, :8, :8], 1.0)


def test_unlike_or_broken_slices_are_refused():
    image, reference = pair(1, 16)
    with pytest.raises(InputError, match="differ in shape"):
        quality.compare(image[0], reference[0, :15])
    with pytest.raises(InputError, match="differ in shape"):
        quality.slab_quality(image, reference[:, :15], 1.0)
    reference[0, 3, 3] = np.nan
    with pytest.raises(InputError, match="the reference has NaN"):
        quality.compare(image[0], reference[0])


def test_a_missing_extra_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"quality needs the Python package 'skimages'.*ministream\[quality\]"):
        quality._extra("skimages.metrics")


def test_live_rows_grow_a_table(tmp_path):
    image, truth = pair()
    live = LiveQuality(tmp_path / "quality.csv")
    for update in (1, 2):
        live.add(quality.slab_quality(image, truth, 1.5), update=update, projections=9 * update, seconds=0.5 * update)
        with (tmp_path / "quality.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == update
    assert [row["projections"] for row in live.rows] == [9, 18]
    assert float(table[1]["ssim"]) == live.rows[1]["ssim"]


@pytest.fixture
def volumes(tmp_path):
    image, truth = pair(2, 40)
    for name, values in (("000001-recon.h5", image), ("recon.h5", truth)):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"] = values
    return tmp_path


def ministream_quality(*arguments):
    import typer
    from typer.testing import CliRunner

    cli = typer.Typer()
    command.register(cli)
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_command_compares_two_volumes(volumes):
    result = ministream_quality(volumes / "000001-recon.h5", volumes / "recon.h5", "--json", volumes / "q.json")
    assert result.exit_code == 0, result.output
    assert "mean" in result.output
    assert "2 of 5 scales" in result.output
    report = json.loads((volumes / "q.json").read_text())
    (volume,) = report["volumes"]
    assert [row["slice"] for row in volume["slices"]] == [0, 1]
    image, truth = pair(2, 40)
    assert volume["slices"][1]["ms_ssim"] == pytest.approx(iqcheck_small(image[1], truth[1]))
    assert volume["mean"]["mse"] == pytest.approx(np.mean([row["mse"] for row in volume["slices"]]))


def iqcheck_small(image, reference):
    with pytest.warns(UserWarning, match="too small"):
        return iqcheck(image, reference)[0]


def test_without_a_second_volume_the_final_one_is_the_reference(volumes):
    one = ministream_quality(volumes / "000001-recon.h5", "--json", "-")
    every = ministream_quality(volumes / "recon.h5", "--json", "-")
    assert json.loads(one.output) == json.loads(every.output)
    (volumes / "000001-recon.h5").unlink()
    assert "no snapshots beside it" in str(ministream_quality(volumes / "recon.h5").exception)
    (volumes / "recon.h5").rename(volumes / "other.h5")
    assert "Name a reference" in str(ministream_quality(volumes / "other.h5").exception)
    assert f"{volumes / 'recon.h5'}: no such file" in str(ministream_quality(volumes / "recon.h5").exception)


def test_a_volume_of_sirt_stream_is_turned(volumes):
    with h5py.File(volumes / "recon.h5", "r") as file, h5py.File(volumes / "turned.h5", "w") as turned:
        turned["recon"] = np.swapaxes(file["data"][...], 1, 2)
    arguments = (volumes / "turned.h5", volumes / "recon.h5", "--dataset", "recon", "--reference-dataset", "data")
    result = ministream_quality(*arguments, "--transpose", "--slices", "1", "--json", "-")
    (row,) = json.loads(result.output)["volumes"][0]["slices"]
    assert (row["slice"], row["nrmse"], row["psnr"]) == (1, 0.0, None)


@pytest.mark.parametrize("chosen", ["9", "x", "5:", "::0", "1:2:3:4", ""])
def test_slices_that_are_none_are_refused(volumes, chosen):
    result = ministream_quality(volumes / "000001-recon.h5", "--slices", chosen)
    assert isinstance(result.exception, ConfigError)
    assert "selects none of the slices 0 to 1" in str(result.exception)


def test_volumes_of_another_shape_are_named(volumes):
    with h5py.File(volumes / "big.h5", "w") as file:
        file["data"] = np.ones((2, 41, 41), np.float32)
    result = ministream_quality(volumes / "big.h5", volumes / "recon.h5")
    assert isinstance(result.exception, InputError)
    assert "big.h5 is [2, 41, 41]" in str(result.exception)


def test_what_cannot_be_compared_is_known_before_there_is_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    quality.check_possible((11, 11))
    with pytest.raises(InputError, match="10 × 10"):
        quality.check_possible((10, 10))
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"ministream\[quality\]"):
        quality.check_possible((11, 11))
