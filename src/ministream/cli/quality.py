"""`ministream quality`: compare volumes as the quality check of aps-mini-apps does; resolution, contrast."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ministream.cli import SetOption
from ministream.cli.resolution import contrast, contrast_table, of_halves, of_scan
from ministream.cli.resolution import table as resolution_table
from ministream.errors import ConfigError, InputError

COLUMNS = {
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "uqi": ("UQI", "{:.4f}"),
    "mse": ("MSE", "{:.6f}"),
    "psnr": ("PSNR dB", "{:.2f}"),
    "nrmse": ("NRMSE", "{:.4f}"),
    "correlation": ("corr.", "{:.5f}"),
}


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("quality")(quality)


def quality(
    image: Annotated[Path, typer.Argument(metavar="A.h5", help="Volume to compare.", show_default=False)],
    reference: Annotated[
        Path | None,
        typer.Argument(
            metavar="B.h5",
            help="Reference; default: recon.h5 beside A. If A is recon.h5: every snapshot beside it is compared.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Dataset [slice, row, col] in the files.")] = "/data",
    reference_dataset: Annotated[
        str | None, typer.Option(help="Dataset in B, if its name differs.", metavar="TEXT")
    ] = None,
    transpose: Annotated[
        bool, typer.Option("--transpose", help="A is from sirt_stream, whose slices are transposed.")
    ] = False,
    slices: Annotated[
        str | None, typer.Option(help="Slices to compare, as in Python: 10, 0:100 or ::8.", metavar="RANGE")
    ] = None,
    resolution: Annotated[
        bool,
        typer.Option("--resolution", help="A and B are from halves of a scan: Fourier ring and shell correlation."),
    ] = False,
    halves: Annotated[
        bool, typer.Option("--halves", help="A is a recorded scan: the same, from its even and odd projections.")
    ] = False,
    signal: Annotated[
        str | None, typer.Option(help="Contrast-to-noise of A: rows and columns of the signal.", metavar="R:R,C:C")
    ] = None,
    background: Annotated[
        str | None, typer.Option(help="Rows and columns of the background.", metavar="R:R,C:C")
    ] = None,
    settings: SetOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers here (- for standard output).", metavar="FILE")
    ] = None,
) -> None:
    """MS-SSIM, SSIM, UQI, MSE and PSNR as iqcheck.py computes them, with NRMSE and correlation.

    Or the resolution from two halves of a scan, or contrast-to-noise. Example: ministream quality scan.h5 --halves
    """
    _check_choice(resolution, halves, signal, background, reference)
    names = (dataset, reference_dataset or dataset)
    if halves:
        report = of_scan(image, partial(_rows, slices), settings)
        shown = resolution_table(report)
    elif resolution and reference is not None:
        report, shown = _resolution(image, reference, names, slices)
    elif signal is not None and background is not None:
        report, shown = _contrast(image, dataset, slices, signal, background)
    else:
        report, shown = _comparison(image, reference, names, transpose, slices)
    if json_file is None or str(json_file) != "-":
        Console().print(shown)
    if json_file is not None:
        _write(report, json_file)


def _check_choice(
    resolution: bool, halves: bool, signal: str | None, background: str | None, reference: Path | None
) -> None:
    regions = signal is not None or background is not None
    if resolution + halves + regions > 1:
        raise ConfigError("--resolution, --halves and --signal with --background are three commands: choose one")
    if regions and (signal is None or background is None):
        raise ConfigError("contrast-to-noise has two regions: give both --signal R:R,C:C and --background R:R,C:C")
    if resolution and reference is None:
        raise ConfigError("--resolution compares two volumes: name both, or a recorded scan with --halves")


def _rows(chosen: str | None, count: int) -> list[int]:
    """The rows of a scan that `--slices` selects; the middle one by default."""
    return [count // 2] if chosen is None else _numbers(chosen, count)


def _resolution(image: Path, reference: Path, names: tuple[str, str], slices: str | None) -> tuple[Any, Table]:
    from ministream.storage import Volume

    with Volume(image, names[0]) as first, Volume(reference, names[1]) as second:
        report = of_halves(first, second, partial(_numbers, slices))
    return report, resolution_table(report)


def _contrast(image: Path, dataset: str, slices: str | None, signal: str, background: str) -> tuple[Any, Table]:
    from ministream.storage import Volume

    with Volume(image, dataset) as volume:
        report = contrast(volume, partial(_rows, slices), signal, background)
    return report, contrast_table(report)


def _comparison(
    image: Path, reference: Path | None, names: tuple[str, str], transpose: bool, slices: str | None
) -> tuple[Any, Table]:
    from ministream.storage import Volume

    reference_path, images = _pairs(image, reference)
    with Volume(reference_path, names[1]) as truth:
        results = []
        for path in images:
            with Volume(path, names[0]) as volume:
                results.append(_compare(volume, truth, transpose, slices))
    report = {"reference": str(reference_path), "volumes": results}
    return report, _table(report)


def _pairs(image: Path, reference: Path | None) -> tuple[Path, list[Path]]:
    from ministream.storage import FINAL, snapshots

    if not image.exists():
        raise InputError(f"{image}: no such file")
    if reference is not None:
        return reference, [image]
    final = image.parent / FINAL
    if image.name != FINAL:
        if not final.exists():
            raise ConfigError(f"{image}: {final} does not exist. Name a reference as the second volume")
        return final, [image]
    found = snapshots(image.parent)
    if not found:
        raise ConfigError(f"{image}: no snapshots beside it. Name a reference as the second volume")
    return final, found


def _compare(volume: Any, truth: Any, transpose: bool, chosen: str | None) -> dict[str, Any]:
    from ministream import quality as metrics

    if volume.shape != truth.shape:
        raise InputError(
            f"{volume.path} is {list(volume.shape)} and {truth.path} is {list(truth.shape)} [slice, row, col]: "
            "volumes of one shape are expected"
        )
    numbers = _numbers(chosen, volume.shape[0])
    rows = []
    for number in numbers:
        plane, ideal = (one.plane(0, number) * one.per_pixel for one in (volume, truth))
        try:
            rows.append(metrics.compare(plane.T if transpose else plane, ideal))
        except InputError as error:
            raise InputError(f"{volume.path} against {truth.path}, slice {number}: {error}") from error
    return {
        "file": str(volume.path),
        "projections": volume.attributes.get("projections_used"),
        "ms_ssim_scales": metrics.ms_ssim_scales(volume.shape[1:]),
        "slices": [{"slice": number} | dataclasses.asdict(row) for number, row in zip(numbers, rows, strict=True)],
        "mean": dataclasses.asdict(metrics.SliceQuality.mean(rows)),
    }


def _numbers(chosen: str | None, slices: int) -> list[int]:
    if chosen is None:
        return list(range(slices))
    try:
        parts = [int(part) if part else None for part in chosen.split(":")]
        numbers = list(range(slices)[slice(*parts)]) if len(parts) > 1 else [range(slices)[int(chosen)]]
    except (ValueError, TypeError, IndexError):
        numbers = []
    if not numbers:
        raise ConfigError(f"--slices {chosen}: selects none of the slices 0 to {slices - 1}. Write 10, 0:100 or ::8")
    return numbers


def _table(report: dict[str, Any]) -> Table:
    table = Table(title=f"against {report['reference']}", title_justify="left", caption_justify="left")
    table.add_column("volume" if len(report["volumes"]) > 1 else "slice", justify="right", no_wrap=True)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    if len(report["volumes"]) > 1:
        for volume in report["volumes"]:
            table.add_row(Path(volume["file"]).name.removesuffix("-recon.h5"), *_cells(volume["mean"]))
    else:
        (volume,) = report["volumes"]
        for row in volume["slices"]:
            table.add_row(str(row["slice"]), *_cells(row))
        table.add_section()
        table.add_row("mean", *_cells(volume["mean"]))
    scales = report["volumes"][0]["ms_ssim_scales"]
    if scales < 5:
        table.caption = f"MS-SSIM on {scales} of 5 scales: the slices are too small for all 5"
    return table


def _cells(row: dict[str, float]) -> list[str]:
    return [form.format(row[name]) for name, (_, form) in COLUMNS.items()]


def _write(report: dict[str, Any], file: Path) -> None:
    from ministream import atomic

    text = json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    with atomic.replacing(file) as part:
        part.write_text(text)


def _finite(value: Any) -> Any:
    """JSON has no infinity and NaN: they become null. NumPy's numbers become Python's."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
