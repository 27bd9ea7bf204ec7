"""What `ministream quality` says of resolution and contrast-to-noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ministream import config
from ministream.cli import overrides
from ministream.cli.jobs import kind_of
from ministream.errors import ConfigError, InputError

if TYPE_CHECKING:
    from ministream.resolution import FourierCorrelation
    from ministream.storage import Volume

Choose = Callable[[int], list[int]]


def of_scan(scan: Path, choose: Choose, settings: list[str] | None) -> dict[str, Any]:
    """Resolution from the even and the odd projections of a recorded scan."""
    from ministream.app.halves import half_sets

    settled = config.load(
        None,
        overrides(settings, source={"kind": kind_of(scan), "file": str(scan)}, recon={"kind": _algorithm(settings)}),
    )
    pixel: list[float | None] = []

    def rows(known: Any) -> list[int]:
        pixel.append(known.pixel_size_um)
        return choose(known.rows)

    numbers, first, second = half_sets(settled, rows)
    return {"halves": [f"{scan}, even projections", f"{scan}, odd projections"]} | _report(
        numbers, first, second, pixel[0]
    )


def of_halves(first: Volume, second: Volume, choose: Choose) -> dict[str, Any]:
    """Resolution from two volumes."""
    if first.shape != second.shape:
        raise InputError(
            f"{first.path} is {list(first.shape)} and {second.path} is {list(second.shape)} [slice, row, col]: "
            "halves of one shape are expected"
        )
    numbers = choose(first.shape[0])
    a, b = (np.stack([half.plane(0, number) for number in numbers]) for half in (first, second))
    names = {"halves": [str(first.path), str(second.path)]}
    return names | _report(numbers, a, b, first.attributes.get("pixel_size_um"))


def _report(numbers: list[int], first: Any, second: Any, pixel: float | None) -> dict[str, Any]:
    from ministream import resolution

    report: dict[str, Any] = {"slices": numbers, "pixel_size_um": pixel}
    report["ring"] = _curve(resolution.ring_correlation(zip(first, second, strict=True)))
    consecutive = numbers == list(range(numbers[0], numbers[-1] + 1))
    if consecutive and len(numbers) >= resolution.FEWEST:
        report["shell"] = _curve(resolution.shell_correlation(first, second))
    return report


def _curve(found: FourierCorrelation) -> dict[str, Any]:
    return {
        "resolution_pixels_half_bit": found.resolution_half_bit,
        "resolution_pixels_one_seventh": found.resolution_one_seventh,
        "cycles_per_pixel": found.frequency.tolist(),
        "correlation": found.correlation.tolist(),
        "half_bit": found.half_bit.tolist(),
    }


def _algorithm(settings: list[str] | None) -> str | None:
    return None if any(text.startswith("recon.kind") for text in settings or []) else "fbp"


def table(report: dict[str, Any]) -> Table:
    """Resolution at both thresholds."""
    shown = Table(title=" against ".join(report["halves"]), title_justify="left", caption_justify="left")
    shown.add_column("Fourier correlation", no_wrap=True)
    shown.add_column("half-bit threshold", no_wrap=True)
    shown.add_column("threshold 1/7", no_wrap=True)
    for name in ("ring", "shell"):
        if name in report:
            values = (report[name][f"resolution_pixels_{which}"] for which in ("half_bit", "one_seventh"))
            shown.add_row(name, *(_length(value, report["pixel_size_um"]) for value in values))
    shown.caption = "Each half has half of the projections: an image of all is at least as sharp."
    return shown


def _length(pixels: float | None, pixel_size_um: float | None) -> str:
    if pixels is None:
        return "better than 2 pixels"
    return f"{pixels:.2f} pixels" + ("" if pixel_size_um is None else f", {pixels * pixel_size_um:.4g} µm")


def contrast(volume: Volume, choose: Choose, signal: str, background: str) -> dict[str, Any]:
    """Contrast-to-noise of two regions, slice by slice."""
    from ministream.resolution import contrast_to_noise

    regions = [_region(volume, option, text) for option, text in (("--signal", signal), ("--background", background))]
    rows = []
    for number in choose(volume.shape[0]):
        plane = volume.plane(0, number)
        rows.append({"slice": number, "contrast_to_noise": contrast_to_noise(*(plane[region] for region in regions))})
    mean = float(np.mean([row["contrast_to_noise"] for row in rows]))
    return {"file": str(volume.path), "signal": signal, "background": background, "slices": rows, "mean": mean}


def _region(volume: Volume, option: str, text: str) -> tuple[slice, slice]:
    """Image rows and columns `FIRST:END,FIRST:END`, as in Python."""
    _, rows, cols = volume.shape
    try:
        (a, b), (c, d) = (tuple(map(int, part.split(":"))) for part in text.split(","))
    except ValueError:
        a, b, c, d = 0, 0, 0, 0
    if not (0 <= a < b <= rows and 0 <= c < d <= cols):
        raise ConfigError(
            f"{option} {text}: expected rows and columns FIRST:END,FIRST:END within {rows} × {cols}, such as 0:9,10:19"
        )
    return slice(a, b), slice(c, d)


def contrast_table(report: dict[str, Any]) -> Table:
    """Contrast-to-noise of every slice, and the mean."""
    shown = Table(title=report["file"], title_justify="left")
    shown.add_column("slice", justify="right")
    shown.add_column("contrast-to-noise", justify="right")
    for row in report["slices"]:
        shown.add_row(str(row["slice"]), f"{row['contrast_to_noise']:.2f}")
    shown.add_section()
    shown.add_row("mean", f"{report['mean']:.2f}")
    return shown
