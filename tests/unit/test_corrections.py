"""The optional corrections: each against the published method on the same data, and what it does to the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks._corrected import psnr, reconstructed
from ministream import config, registry
from ministream.app.recon.assignment import resolve
from ministream.errors import ConfigError
from ministream.model import FrameKind, Scan
from ministream.prep import chain, kernels
from ministream.prep.corrections import Corrector
from ministream.prep.sinograms import SinogramCorrector
from ministream.prep.steps import SlabFacts

ROWS, COLS, PROJECTIONS = 19, 96, 90
NAMES = registry.names(config.CORRECTIONS)
STAGES = {name: registry.load(config.CORRECTIONS, name).Step.stage for name in NAMES}
FACTS = SlabFacts(rows=ROWS, cols=COLS, pixel_size_um=1.0, energy_kev=20.0)


def prep(*names: str, **tables: dict[str, Any]) -> config.PrepSection:
    return config.load(None, {"prep": {"steps": list(names), **tables}}).prep


def step(name: str, **options: Any) -> Any:
    module = registry.load(config.CORRECTIONS, name)
    return module.Step(module.Options(**options), FACTS)


def transmissions(seed: int = 0) -> NDArray[np.float32]:
    """A smooth projection [ROWS, COLS] with noise, air at both edges."""
    across = np.linspace(-1, 1, COLS)
    body = np.exp(-np.sqrt(np.clip(0.6**2 - across**2, 0, None))) * np.ones((ROWS, 1))
    return (body + np.random.default_rng(seed).normal(0, 0.01, (ROWS, COLS))).astype(np.float32)


def sinogram(stripes: float = 0.0) -> NDArray[np.float32]:
    """A disc off the axis [PROJECTIONS, COLS], some columns brighter than their neighbours."""
    angles = np.linspace(0, np.pi, PROJECTIONS, endpoint=False)[:, None]
    u = np.arange(COLS) - COLS / 2 - 12 * np.cos(angles)
    body = np.sqrt(np.clip(25**2 - u**2, 0, None)) / 25
    uneven = np.zeros(COLS)
    uneven[[20, 41, 42, 70]] = stripes
    noise = np.random.default_rng(3).normal(0, 0.003, body.shape)
    return (body + uneven + noise).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    """Defaults are valid and complete, the purpose is said, and a clean projection or sinogram nearly stays."""
    module = registry.load(config.CORRECTIONS, name)
    assert len(module.__doc__.splitlines()[0]) > 20
    assert all(field.description for field in module.Options.model_fields.values())
    options = chain.complete(prep(name))
    assert set(options.tables[name]) == set(module.Options.model_fields)
    if STAGES[name] == "projection":
        before = transmissions()
        pixels = before.copy()
        assert step(name).apply(pixels) == 0
        assert np.abs(pixels - before).mean() < 0.02
    else:
        found = step(name)
        assert found.least >= 2
        before = sinogram()
        cleaned = found.clean(before.copy())
        assert cleaned.shape == before.shape
        assert np.sqrt(np.mean((cleaned - before) ** 2)) < 0.03


@pytest.mark.parametrize("name", [name for name in NAMES if STAGES[name] == "sinogram"])
def test_stripes_become_weaker(name: str) -> None:
    clean, spoiled = sinogram(), sinogram(stripes=0.2)
    before, after = (np.linalg.norm(found - clean) for found in (spoiled, step(name).clean(spoiled.copy())))
    assert after < 0.75 * before


@pytest.mark.parametrize("size", [3, 5, 9])
def test_zingers_are_those_of_the_median_difference_filter(size: int) -> None:
    spoiled = transmissions()
    hit = np.random.default_rng(1).permutation(spoiled.size)[:60]
    spoiled.flat[hit] += np.random.default_rng(2).uniform(0.1, 3, 60).astype(np.float32)
    median = ndimage.median_filter(spoiled, size=(1, size), mode="mirror")
    found = spoiled - median >= np.float32(0.3)
    mended = spoiled.copy()
    count = step("zingers", size=size, threshold=0.3).apply(mended)
    assert count == np.count_nonzero(found) > 20
    np.testing.assert_array_equal(mended, np.where(found, median, spoiled))


def test_air_at_both_edges_becomes_one() -> None:
    across = np.linspace(0, 1, COLS)
    beam = (0.8 + 0.1 * np.arange(ROWS)[:, None] / ROWS) + 0.05 * across
    clean = transmissions()
    clean[:, :10] = clean[:, -10:] = 1
    pixels = (clean * beam).astype(np.float32)
    left, right = pixels[:, :10].mean(axis=1), pixels[:, -10:].mean(axis=1)
    expected = pixels / (left[:, None] + (right - left)[:, None] * across)
    step("air", width=10).apply(pixels)
    np.testing.assert_allclose(pixels, expected, rtol=1e-5)
    assert np.abs(pixels - clean).max() < 0.01


def test_without_light_at_an_edge_the_row_stays() -> None:
    pixels = np.zeros((ROWS, COLS), np.float32)
    pixels[:, 40] = 0.5
    step("air").apply(pixels)
    assert pixels[0, 40] == 0.5


def test_air_wider_than_half_the_projection_is_refused_and_the_remedy_works() -> None:
    with pytest.raises(ConfigError, match=r"--set prep\.air\.width=4") as refused:
        chain.projection_steps(prep("air", air={"width": 60}), FACTS)
    width = int(str(refused.value).rpartition("=")[2])
    assert chain.projection_steps(prep("air", air={"width": width}), FACTS)


def corrected(options: config.PrepSection, raw: NDArray[Any]) -> tuple[NDArray[np.float32], Any, Corrector]:
    corrector = Corrector(rows=ROWS, cols=COLS, options=options)
    for level in (40000, 40020):
        corrector.add(FrameKind.FLAT, np.full((ROWS, COLS), level, np.uint16))
    corrector.add(FrameKind.DARK, np.full((ROWS, COLS), 100, np.uint16))
    out = np.zeros((COLS, 32), np.float32)
    mended = corrector.correct(raw, out)
    assert not out[:, ROWS:].any()
    return out[:, :ROWS].T, mended, corrector


def test_a_step_that_changes_nothing_changes_no_bit() -> None:
    raw = (100 + 39910 * transmissions()).astype(np.uint16)
    raw[3, 5], raw[7, 9] = 90, 65535
    plain, mended, one = corrected(prep(), raw)
    stepped, also, other = corrected(prep("zingers", zingers={"threshold": 1e4}), raw)
    np.testing.assert_array_equal(stepped, plain)
    assert also == mended
    np.testing.assert_array_equal(one.measures, other.measures)


def test_all_kernels_are_compiled_before_the_first_projection() -> None:
    """Ranks that compile one kernel at the same time, in the middle of a run, can crash."""
    corrector = Corrector(rows=ROWS, cols=COLS, options=prep("zingers"))
    compiled = [list(kernel.signatures) for kernel in (kernels.correct, kernels.mend_outliers)]
    corrector.add(FrameKind.FLAT, np.full((ROWS, COLS), 40000, np.uint16))
    corrector.correct(np.full((ROWS, COLS), 20000, np.uint16), np.zeros((COLS, 32), np.float32))
    assert [list(kernel.signatures) for kernel in (kernels.correct, kernels.mend_outliers)] == compiled


def test_mended_zingers_are_counted() -> None:
    raw = (100 + 39910 * transmissions()).astype(np.uint16)
    raw[3, 5] = raw[7, 60] = 65535
    found, mended, _ = corrected(prep("zingers"), raw)
    assert mended.zinger == mended.total == 2
    assert np.isfinite(found).all()
    assert found[7, 60] == pytest.approx(np.median(np.delete(found[7, 58:63], 2)), abs=0.02)


@pytest.mark.parametrize(("count", "ring"), [(3, False), (2, True)])
def test_zingers_in_flats_leave_no_ring(count: int, ring: bool) -> None:
    """Two flats do not tell which of them is right."""
    corrector = Corrector(rows=ROWS, cols=COLS, options=prep("zingers", zingers={"threshold": 0.3}))
    for index in range(count):
        flat = np.full((ROWS, COLS), 40000 + index, np.uint16)
        flat[index, 40] = 65535
        corrector.add(FrameKind.FLAT, flat)
    out = np.zeros((COLS, 32), np.float32)
    corrector.correct(np.full((ROWS, COLS), 20000, np.uint16), out)
    assert (np.abs(out[40, :count] - np.log(2)).max() > 0.1) == ring


def test_steps_run_in_the_order_that_is_given() -> None:
    """A zinger at the edge spoils the air, unless it is mended before."""
    raw = (100 + 39910 * transmissions()).astype(np.uint16)
    raw[4, 2] = 65535
    right, wrong = (corrected(prep(*names), raw)[0] for names in (("zingers", "air"), ("air", "zingers")))
    assert abs(np.median(right[4, :8])) < 0.01 < abs(np.median(wrong[4, :8]))


def test_line_integrals_have_no_transmissions_to_correct() -> None:
    with pytest.raises(ConfigError, match="zingers: expected transmissions or counts"):
        Corrector(rows=ROWS, cols=COLS, options=config.PrepSection(input="attenuation", steps=("zingers",)))


@pytest.mark.parametrize("threads", [1, 3])
def test_sinograms_are_cleaned_in_the_order_of_angles_whatever_the_slots(threads: int) -> None:
    """Every slice equals the library's result for that slice alone; the window stays as it is."""
    removal = pytest.importorskip("algotom.prep.removal")
    slices, padded = 19, 32
    order = np.random.default_rng(0).permutation(PROJECTIONS)
    data = np.zeros((PROJECTIONS, COLS, padded), np.float32)
    for k in range(slices):
        data[:, :, k] = sinogram(0.01 * k)[order]
    before, out = data.copy(), np.zeros_like(data)
    facts = SlabFacts(rows=slices, cols=COLS)
    cleaner = SinogramCorrector(prep("vo_all"), facts, length=PROJECTIONS, threads=threads)
    cleaner.clean(data, np.linspace(0, np.pi, PROJECTIONS, endpoint=False)[order], out, lambda: None)
    np.testing.assert_array_equal(data, before)
    assert not out[:, :, slices:].any()
    for k in (0, 18):
        expected = -np.log(removal.remove_all_stripe(np.exp(-sinogram(0.01 * k)), snr=3.0, la_size=21, sm_size=5))
        np.testing.assert_allclose(out[np.argsort(order), :, k], expected, atol=1e-5)


def test_a_sinogram_without_noise_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("algotom")
    flat = np.zeros((PROJECTIONS, COLS), np.float32)
    found = step("vo_all")
    for _ in range(2):
        np.testing.assert_array_equal(found.clean(flat), flat)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_window_that_is_too_short_is_refused_and_the_remedy_works() -> None:
    with pytest.raises(ConfigError, match="vo_all needs 30 projections, the window holds 20") as refused:
        SinogramCorrector(prep("vo_all"), FACTS, length=20)
    length = int(str(refused.value).partition("--window-length ")[2].split()[0])
    assert SinogramCorrector(prep("vo_all"), FACTS, length=length).active


def test_a_step_waits_until_the_window_holds_enough(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cleaner = SinogramCorrector(prep("vo_all"), SlabFacts(rows=1, cols=COLS), length=90)
    data = sinogram(0.2)[:20, :, None]
    out = np.zeros_like(data)
    for _ in range(2):
        cleaner.clean(data, np.arange(20.0), out, lambda: None)
    np.testing.assert_array_equal(out, data)
    assert [record.getMessage() for record in caplog.records] == [
        "prep.steps: vo_all needs 30 projections, 20 are here: it starts later"
    ]
    assert cleaner.left_out == (("vo_all", 30),)
    data = sinogram(0.2)[:40, :, None]
    cleaner.clean(data, np.arange(40.0), np.zeros_like(data), lambda: None)
    assert not cleaner.left_out


def test_tables_name_their_step_and_keep_the_other_keys() -> None:
    found = config.load(None, {"prep": {"zingers.size": 3, "zingers.threshold": 0.5, "steps": ["air"]}})
    assert found.prep.steps == ("air", "zingers")
    assert found.as_dict()["prep"]["zingers"] == {"size": 3, "threshold": 0.5}
    assert config.parse(config.Config, found.as_dict(), "again") == found


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": ["zinger"]}, "choose one of .*zingers"),
        ({"steps": ["air", "air"]}, "air more than once"),
        ({"zingers": {"size": 4}}, r"\[prep\.zingers\]: size = 4: expected an odd number, such as 5"),
        ({"zingers": {"width": 4}}, r"\[prep\.zingers\]: unknown key width"),
    ],
)
def test_wrong_parameters_are_named(values: dict[str, Any], says: str) -> None:
    scan = Scan(scan_id="s", rows=4, cols=COLS, projections=90, flats=1, darks=1, dtype="<u2")
    with pytest.raises(ConfigError, match=says):
        resolve(config.load(None, {"prep": values}), scan)


@pytest.mark.parametrize("sample", ["foam", "shepp-logan"])
@pytest.mark.parametrize(
    ("artefact", "name", "gain_db"),
    [
        ({"zingers": 4.0}, "zingers", 12.0),
        ({"drift": 0.3}, "air", 2.0),
        ({"rings": 0.1}, "sf", 6.0),
        ({"rings": 0.1}, "fw", 6.0),
        ({"rings": 0.1}, "vo_all", 4.0),
    ],
)
def test_the_image_is_better_than_without(artefact: dict[str, float], name: str, gain_db: float, sample: str) -> None:
    options = {"width": 5} if name == "air" else {}
    scan = {"sample": sample, **artefact}
    clean, before, after = (
        psnr(each)
        for each in (
            reconstructed({"sample": sample}, ()),
            reconstructed(scan, ()),
            reconstructed(scan, (name,), **{name: options}),
        )
    )
    print(f"{sample} {artefact} {name}: {before:.1f} -> {after:.1f} of {clean:.1f} dB")
    assert before + gain_db < after < clean + 0.5
