"""Figures of a scaling study, for a paper: speed-up, efficiency, and where the time goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]

# In the order of a projection's way; the colours keep their distance for the colour-blind too.
STAGES = {
    "receive": "#dddddd",
    "scatter": "#ee8866",
    "prep": "#66ccee",
    "forward": "#4477aa",
    "back": "#228833",
    "update": "#ccbb44",
    "write": "#ee6677",
    "idle": "#888888",
}
MARKERS = "osD^vP*X"
INCHES = (3.5, 2.8)  # one column of a journal


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every figure as PNG and PDF; returns the files."""
    files: list[Path] = []
    for mode in ("strong", "weak"):
        chosen = [row for row in rows if row["mode"] == mode]
        if chosen:
            files += _save(_scaling(chosen, mode), folder / f"{mode}-scaling")
            files += _save(_stages(chosen), folder / f"{mode}-stages")
    return files


def _scaling(rows: Sequence[Row], mode: str) -> Figure:
    volumes = _volumes(rows, mode)
    threads = sorted({row["threads"] for row in rows})
    figure = Figure(figsize=(INCHES[0], INCHES[1] + 0.07 * len(volumes) * len(threads)), layout="constrained")
    axes = figure.subplots()
    cores = sorted({_cores(row) for row in rows})
    axes.plot(cores, [core / cores[0] for core in cores], color="black", linewidth=0.8, linestyle="--", label="ideal")
    for number, (volume, members) in enumerate(sorted(volumes.items())):
        first = min(members, key=_cores)
        for count, marker in zip(threads, MARKERS * 4, strict=False):
            # every line begins where the volume has the fewest cores
            line = {_cores(row): row["gups"] for row in (first, *members) if row is first or row["threads"] == count}
            if len(line) > 1 or first["threads"] == count:
                points = sorted((n, gups / first["gups"] * _cores(first) / cores[0]) for n, gups in line.items())
                label = f"{volume}, {count} thread{'s' * (count > 1)} per rank"
                style = {"color": f"C{number}", "marker": marker, "markersize": 4, "linewidth": 1}
                axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(cores, [str(core) for core in cores])
    axes.set_xlabel("cores (ranks × threads)")
    axes.tick_params(labelsize=7)
    axes.set_ylabel("speed-up" if mode == "strong" else "scaled speed-up")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(linewidth=0.3)
    figure.legend(fontsize=6, frameon=False, ncols=2, loc="outside lower center")
    return figure


def _stages(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(INCHES[0], 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: (row["n"], row["rows"], row["ranks"], row["threads"]), reverse=True)
    names = [f"{row['n']}² × {row['rows']}, {row['ranks']} × {row['threads']}" for row in ordered]
    left = [0.0] * len(ordered)
    for stage, colour in STAGES.items():
        seconds = [row["stages"].get(stage, {"median": 0.0})["median"] for row in ordered]
        if any(seconds):
            axes.barh(names, seconds, left=left, color=colour, label=stage, height=0.7)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.margins(x=0.05, y=0.02)
    axes.set_xlabel("seconds (median over ranks)")
    axes.set_ylabel("volume, ranks × threads", fontsize=8)
    axes.tick_params(labelsize=6)
    axes.legend(fontsize=6, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _volumes(rows: Sequence[Row], mode: str) -> dict[str, list[Row]]:
    """The rows by what they reconstruct: the volume, or in a weak study what of it each rank has."""
    volumes = defaultdict(list)
    for row in rows:
        slices = row["rows"] if mode == "strong" else row["rows"] // row["ranks"]
        volumes[f"{row['n']}² × {slices}{' per rank' if mode == 'weak' else ''}"].append(row)
    return volumes


def _cores(row: Row) -> int:
    return int(row["ranks"] * row["threads"])


def _save(figure: Figure, stem: Path) -> list[Path]:
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=200)
    return files
