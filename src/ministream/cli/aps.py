"""`ministream distribute`: replaces aps-mini-apps' distributor, under its option names and ours."""

from __future__ import annotations

from typing import Annotated

import typer

from ministream import config, log
from ministream.cli import AnnounceOption, LogFormatOption, SetOption, overrides, tell
from ministream.errors import ConfigError, IncompleteError


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("distribute")(distribute)


def distribute(
    source: Annotated[
        str | None, typer.Option("--connect", "--data_source_addr", help="Address of the scan.", metavar="URL")
    ] = None,
    sync: Annotated[
        str | None,
        typer.Option(
            "--sync", "--data_source_synch_addr", help="Its REP socket for the ready handshake.", metavar="URL"
        ),
    ] = None,
    wire: Annotated[
        str, typer.Option("--source-wire", help="Wire to receive on: timage or native.", metavar="WIRE")
    ] = "timage",
    pixel_dtype: Annotated[
        str | None, typer.Option("--pixel-dtype", help="Pixels of the scan: uint8, uint16 or float32.", metavar="DTYPE")
    ] = None,
    as_float32: Annotated[bool, typer.Option("--cast_to_float32", help="The same as --pixel-dtype float32.")] = False,
    as_uint16: Annotated[bool, typer.Option("--uint16_to_float32", help="--pixel-dtype uint16.")] = False,
    as_uint8: Annotated[bool, typer.Option("--uint8_to_float32", help="--pixel-dtype uint8.")] = False,
    angle_unit: Annotated[
        str | None, typer.Option("--angle-unit", help="Angles of the scan: degrees or radians.", metavar="UNIT")
    ] = None,
    degrees: Annotated[
        bool, typer.Option("--degree_to_radian", help="--angle-unit degrees; workers always get radians.")
    ] = False,
    normalize: Annotated[bool, typer.Option("--normalize", help="Correct for flats and darks.")] = False,
    minus_log: Annotated[bool, typer.Option("--mlog", "--minus-log", help="Take the negative logarithm.")] = False,
    remove_invalids: Annotated[
        bool, typer.Option("--remove_invalids", "--remove-invalids", help="NaN, infinite, negative: 0.")
    ] = False,
    remove_stripes: Annotated[
        bool,
        typer.Option("--remove_stripes", "--remove-stripes", help="Remove stripes with the Fourier-wavelet method."),
    ] = False,
    stripes_over: Annotated[int, typer.Option(min=2, help="Projections processed together to find stripes.")] = 64,
    listen: Annotated[
        str | None,
        typer.Option("--listen", "--my_distributor_addr", help="Address of the first worker.", metavar="URL"),
    ] = None,
    first_row: Annotated[
        int, typer.Option("--first-row", "--beg_sinogram", min=0, help="First row to distribute.")
    ] = 0,
    rows: Annotated[int, typer.Option("--rows", "--num_sinograms", min=0, help="Rows to distribute; 0: all.")] = 0,
    cols: Annotated[int, typer.Option("--cols", "--num_columns", min=0, help="Columns; 0: the scan's.")] = 0,
    center: Annotated[
        float | None, typer.Option(help="Rotation axis, TomoPy's convention; none: the scan's.", metavar="COLUMN")
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option("--publish", "--my_publisher_addr", help="Publish corrected projections here.", metavar="URL"),
    ] = None,
    publish_every: Annotated[
        int, typer.Option("--publish-every", "--my_publisher_freq", min=1, help="Publish every n-th.")
    ] = 1,
    window: Annotated[int, typer.Option(min=1, help="Projections by which a worker may lag.")] = 64,
    workers_timeout: Annotated[float, typer.Option(help="Seconds to wait for a worker.")] = 600.0,
    hwm: Annotated[int, typer.Option("--data_source_hwm", hidden=True)] = 0,
    check_seq: Annotated[bool, typer.Option("--check_seq", hidden=True)] = False,
    skip_serialize: Annotated[bool, typer.Option("--skip_serialize", hidden=True)] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first rejected frame.")] = False,
    announce: AnnounceOption = None,
    log_level: Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    log_format: LogFormatOption = None,
    settings: SetOption = None,
) -> None:
    """Receive a scan, correct it, and distribute its detector rows to the workers of aps-mini-apps."""
    from ministream.app.distribute import distributor as app
    from ministream.prep.images import Steps

    if skip_serialize:
        raise ConfigError("--skip_serialize: a test option of the original without effect here: leave it out")
    named = [name for name, given in (("float32", as_float32), ("uint16", as_uint16), ("uint8", as_uint8)) if given]
    if pixel_dtype is not None:
        named.append(pixel_dtype)
    if len(set(named)) > 1:
        raise ConfigError(f"the pixels cannot be both {' and '.join(named)}: give one of the options")
    log.setup("distributor", log_level, log_format or "text")
    settled = config.load(
        None,
        overrides(
            settings,
            stream={"wire": wire, "connect": source, "strict": strict},
            aps={
                "sync": sync,
                "pixel_dtype": named[0] if named else None,
                "angle_unit": angle_unit or ("degrees" if degrees else None),
            },
            recon={"center": center},
            prep={"flat_dark": normalize},
        ),
    )
    options = app.Distribution(
        steps=Steps(
            normalize=normalize,
            remove_stripes=stripes_over if remove_stripes else 0,
            minus_log=minus_log,
            remove_invalids=remove_invalids,
        ),
        serve=listen,
        publish=publish,
        publish_every=publish_every,
        first_row=first_row,
        rows=rows,
        cols=cols,
        window=window,
        workers_timeout_s=workers_timeout,
    )
    report = app.distribute(settled, options, announce)
    ledger = report.ledger
    tell(
        f"distributed {ledger.used} projections to {report.workers} workers in {report.seconds:.1f} s; "
        f"{ledger.refused} refused"
    )
    if not report.complete:
        raise IncompleteError(f"the scan is incomplete: {report.ending}")
