"""Plots image quality over projections used and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ministream.monitor._figure import INK, LINES, new_figure, quiet_axes, save

METRICS = {"ssim": "SSIM", "psnr": "PSNR (dB)", "nrmse": "NRMSE", "correlation": "correlation"}


def quality(rows: Sequence[Mapping[str, float]], path: Path, reference: str) -> None:
    """Draw the metrics in `rows` (one per update: `projections`, `seconds`, `ssim`, `psnr`, …) to a PNG.

    `reference` names the volume to compare with. Raises StorageError, and ConfigError without matplotlib.
    """
    metrics = [name for name in METRICS if name in rows[0]]
    figure = new_figure(9.0, 2.1 * len(metrics) + 1.0, layout="constrained")
    figure.suptitle(f"Quality during the scan, against {reference}", fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(len(metrics), 2, squeeze=False, sharex="col", sharey="row")
    for line, name in enumerate(metrics):
        for axes, abscissa in zip(grid[line], ("projections", "seconds"), strict=True):
            colour = LINES[line % len(LINES)]
            across, up = [row[abscissa] for row in rows], [row[name] for row in rows]
            axes.plot(across, up, color=colour, linewidth=1.6, marker="o", markersize=3.5)
            axes.grid(color="#e4e4e4", linewidth=0.6)
            axes.margins(x=0.03, y=0.12)
        last = rows[-1][name]
        grid[line, 1].annotate(
            f"{last:.4g}",
            (rows[-1]["seconds"], last),
            xytext=(-4, 7),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=INK,
        )
        grid[line, 0].set_ylabel(METRICS[name])
    grid[-1, 0].set_xlabel("projections used")
    grid[-1, 1].set_xlabel("time (s)")
    for axes in grid.flat:
        quiet_axes(axes)
    save(figure, path)
