"""`ministream convert`: a volume as TIFF stack, OME-Zarr, picture or film."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ministream.cli import ERRORS
from ministream.errors import ConfigError


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("convert")(convert)


def convert(
    volume: Annotated[
        Path, typer.Argument(metavar="VOLUME.h5", help="Volume, or a folder with recon.h5.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Ends with .tif, .zarr, .png or .mp4.", show_default=False)
    ],
    plane: Annotated[str, typer.Option(help="Of .png and .mp4: z (slice), y (row) or x (column).")] = "z",
    index: Annotated[int | None, typer.Option(help="Number of the plane; none: the middle one.")] = None,
    limits: Annotated[
        str | None,
        typer.Option("--range", help="Values of black and white; none: from the plane.", metavar="LOW:HIGH"),
    ] = None,
    fps: Annotated[float, typer.Option(min=0.1, max=120, help="Of .mp4: snapshots per second.")] = 5.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Of .zarr: processes; none: one per core.")] = None,
    dataset: Annotated[str, typer.Option(help="Dataset [slice, row, col] in the file.")] = "/data",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a volume as TIFF stack (ImageJ), OME-Zarr 0.5, picture, or film of its snapshots.

    Example: ministream convert results/20260101T120000/recon.h5 recon.ome.zarr
    """
    from ministream.app import convert as app

    wanted = app.Conversion(
        plane=plane, index=index, limits=_limits(limits), fps=fps, workers=workers, dataset=dataset,
        overwrite=overwrite,
    )  # fmt: skip
    provenance = app.convert(volume, out, wanted)
    if provenance.flaw:
        ERRORS.print(f"{volume} is {provenance.flaw} ({out} says so too)", markup=False)
    typer.echo(out)


def _limits(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise ConfigError(f"--range {text}: expected two numbers, the smaller one first, such as 0:2.5") from None
