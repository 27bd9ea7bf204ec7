"""`python -m benchmarks prep`: what the corrections gain, and what they cost as a share of one SIRT iteration.

Every case is a phantom with the artefact on. PSNR is inside the circle, against the truth, of a filtered back
projection: without the correction, with it, and of the same phantom without the artefact. The cost is that of all
projections of the window, beside one iteration on them. `--pictures DIR` draws a slice before and after.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks._corrected import Slices, psnr, reconstructed
from ministream import config
from ministream.model import FrameKind
from ministream.prep.chain import projection_steps
from ministream.prep.corrections import Corrector
from ministream.prep.sinograms import SinogramCorrector
from ministream.prep.steps import SlabFacts
from ministream.recon import backend, open_algorithm
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zingers": ({"zingers": 4.0}, {}),
    "air": ({"drift": 0.3}, {"width": 5}),
    "sf": ({"rings": 0.1}, {}),
    "fw": ({"rings": 0.1}, {}),
    "vo_all": ({"rings": 0.1}, {}),
}


def main(argv: list[str]) -> int:
    """Run on this machine, print a table, and save the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks prep")
    parser.add_argument("--cols", type=int, default=512, help="of the timings")
    parser.add_argument("--rows", type=int, default=16, help="of the timings")
    parser.add_argument("--projections", type=int, default=180)
    parser.add_argument("--sample", default="foam")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=Path, default=None, help="folder for pictures before and after")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args(argv)
    busy = machine.warn_unless_quiet()
    backend.default().set_threads(options.threads)
    sirt_s = _sirt_s(options)
    rows = [_row("none", {}, {}, options, sirt_s)]
    rows += [_row(name, *case, options, sirt_s) for name, case in CASES.items()]
    machine.show(rows)
    if options.save:
        print(machine.save("prep", argv, rows, busy=busy))
    return 0


def _row(
    name: str, artefact: dict[str, Any], table: dict[str, Any], options: argparse.Namespace, sirt_s: float
) -> dict[str, Any]:
    prep = config.load(None, {"prep": {} if name == "none" else {name: table}}).prep
    share = _prep_s(prep, options) / sirt_s
    if name == "none":
        nothing = dict.fromkeys(("before_db", "after_db", "without_artefact_db"), "")
        return {"correction": name, "artefact": "", "share_of_iteration": round(share, 4), **nothing}
    sample = {"sample": options.sample}
    clean = reconstructed(sample, ())
    before = reconstructed(sample | artefact, ())
    after = reconstructed(sample | artefact, (name,), **{name: table})
    if options.pictures is not None:
        draw(options.pictures / f"correction-{name.replace('_', '-')}.png", before, after)
    return {
        "correction": name,
        "artefact": " ".join(f"{key}={value:g}" for key, value in artefact.items()),
        "share_of_iteration": round(share, 4),
        "before_db": round(psnr(before), 1),
        "after_db": round(psnr(after), 1),
        "without_artefact_db": round(psnr(clean), 1),
    }


def _prep_s(prep: config.PrepSection, options: argparse.Namespace) -> float:
    """Seconds to correct all projections of a window once, the sinograms of one update included; fastest of three."""
    rows, cols, count = options.rows, options.cols, options.projections
    corrector = Corrector(rows=rows, cols=cols, options=prep)
    corrector.add(FrameKind.FLAT, np.full((rows, cols), 40_000, np.uint16))
    corrector.settle()
    window = _window(options)
    facts = SlabFacts(rows=rows, cols=cols)
    assert prep.steps or not projection_steps(prep, facts)
    cleaner = SinogramCorrector(prep, facts, length=count, threads=options.threads)
    raw = [_counts(rows, cols, seed) for seed in range(4)]
    out = np.zeros_like(window.data)
    corrector.correct(raw[0], window.data[0])  # compiles
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for index in range(count):
            corrector.correct(raw[index % len(raw)], window.data[index], float(index))
        if cleaner.active:
            cleaner.clean(window.data, window.angles_rad, out, lambda: None)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _sirt_s(options: argparse.Namespace) -> float:
    """Seconds of one iteration on the window, the fastest of three."""
    window, geometry = _window(options), _geometry(options)
    algorithm = open_algorithm(config.ReconSection(), geometry, options.rows)
    image = backend.default().new_image(geometry, options.rows)
    seconds = []
    for _ in range(4):  # the first compiles, and computes the weights
        began = time.perf_counter()
        algorithm.update(image, window, 1)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _geometry(options: argparse.Namespace) -> Geometry:
    return Geometry(n=options.cols, cols=options.cols, axis_col=(options.cols - 1) / 2)


def _window(options: argparse.Namespace) -> Window:
    count = options.projections
    window = Window(length=count, step=count, cols=options.cols, slices=options.rows)
    for index in range(count):
        window.slot(index, np.pi * index / count)
    return window


def _counts(rows: int, cols: int, seed: int) -> NDArray[np.uint16]:
    across = np.linspace(-1, 1, cols)
    body = 40_000 * np.exp(-2 * np.sqrt(np.clip(0.8**2 - across**2, 0, None)))
    counts: NDArray[np.uint16] = np.random.default_rng(seed).poisson(body, (rows, cols)).astype(np.uint16)
    return counts


def draw(path: Path, before: Slices, after: Slices) -> None:
    """A slice before and after the correction, and its truth, with the same grey values."""
    from matplotlib.figure import Figure

    low, high = np.percentile(before.truth[0], (1, 99.8))
    margin = 0.15 * (high - low)
    figure = Figure(figsize=(9.0, 3.3), layout="compressed", facecolor="white")
    panels = {"before": before.image, "after": after.image, "truth": before.truth}
    for axes, (title, image) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(image[0], cmap="gray", vmin=low - margin, vmax=high + margin)
        axes.set_title(title if title == "truth" else f"{title}: {psnr(before if title == 'before' else after):.1f} dB")
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
