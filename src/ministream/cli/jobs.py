"""`ministream produce` and `ministream recon`: the two jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ministream import config, log, registry
from ministream.cli import (
    AcceptOption,
    AnnounceOption,
    LogFormatOption,
    MetricsOption,
    OpenNetworkOption,
    RunArgument,
    SetOption,
    StrictOption,
    StripesOption,
    output,
    overrides,
    stripes,
    tell,
)
from ministream.errors import ExitCode, IncompleteError

_WIRES = ", ".join(registry.names(config.WIRES))

ControlOption = Annotated[
    str | None, typer.Option(help="Address of this job's S2CS; port 0: any free one.", metavar="HOST:PORT")
]
CredentialsOption = Annotated[
    Path | None, typer.Option(help="Folder of credentials from `ministream certs`.", metavar="DIR")
]
CurveOption = Annotated[
    Path | None, typer.Option(help="Encrypt end to end with the keys in DIR (`ministream certs curve`).", metavar="DIR")
]
InsecureOption = Annotated[bool | None, typer.Option("--insecure", help="No TLS, no authentication; loopback only.")]
LogOption = Annotated[str | None, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")]

ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Threads per rank; 0: the node's cores divided by its ranks.")
]
RanksOption = Annotated[
    int | None, typer.Option("--ranks", help="Expected number of ranks; any other number is an error.")
]
PublishOption = Annotated[
    str | None,
    typer.Option("--pub-addr", help="Publish reconstructions as TImage here, tcp://HOST:PORT.", metavar="URL"),
]
LiveOption = Annotated[
    str | None,
    typer.Option("--live", help="Serve the live view here, tcp://HOST:PORT; port 0: any free one.", metavar="URL"),
]
SyncOption = Annotated[
    str | None, typer.Option(help="REP socket of the TImage wire, for the ready handshake.", metavar="URL")
]
PixelDtypeOption = Annotated[
    str | None, typer.Option(help="Pixels on the TImage wire: uint8, uint16 or float32.", metavar="DTYPE")
]
AngleUnitOption = Annotated[
    str | None, typer.Option(help="Angles on the wires of aps-mini-apps: degrees or radians.", metavar="UNIT")
]


def register(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command("produce")(produce)
    cli.command("recon")(recon)


def produce(
    run: RunArgument = None,
    source: Annotated[str | None, typer.Option(help="Kind of source: phantom, dxchange, …")] = None,
    file: Annotated[Path | None, typer.Option(help="File or folder to send; implies --source by its name.")] = None,
    rate: Annotated[float | None, typer.Option(help="Projections per second; none: as fast as credit allows.")] = None,
    order: Annotated[str | None, typer.Option(help="sequential, interlaced or golden-angle.")] = None,
    repeat: Annotated[int | None, typer.Option(help="Passes over the projections.")] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Write every frame to this DXchange file before it is sent.", metavar="FILE")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record what is sent in this file, for --source replay.", metavar="FILE"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Send a file that --archive wrote, under the id of its scan, in place of a source."),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Data socket, tcp://HOST:PORT.", metavar="URL")] = None,
    open_network: OpenNetworkOption = None,
    wire: Annotated[str | None, typer.Option(help=f"Wire to send on: one of {_WIRES}.", metavar="WIRE")] = None,
    sync: SyncOption = None,
    pixel_dtype: PixelDtypeOption = None,
    angle_unit: AngleUnitOption = None,
    control: ControlOption = None,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = None,
    curve: CurveOption = None,
    announce: AnnounceOption = None,
    metrics: MetricsOption = None,
    log_level: LogOption = None,
    log_format: LogFormatOption = None,
    settings: SetOption = None,
) -> None:
    """Acquire projections and stream them to a receiver."""
    from ministream.app.producer import job as app  # heavy imports only for the command that runs

    log.setup("producer", log_level or "INFO", log_format or "text")
    if file is not None and source is None:
        source = kind_of(file)
    settled = config.load(
        run,
        overrides(
            settings,
            source={"kind": source, "file": str(file) if file else None},
            producer={
                "rate": rate,
                "order": order,
                "repeat": repeat,
                "archive": str(archive) if archive else None,
                "record": str(record) if record else None,
                "resume": str(resume) if resume else None,
                "listen": listen,
                "open_network": open_network,
                "metrics": metrics,
                "wire": wire,
            },
            aps={"sync": sync, "pixel_dtype": pixel_dtype, "angle_unit": angle_unit},
            stream={"curve": str(curve) if curve else None},
            tunnel=tunnel_table(control, credentials, insecure),
        ),
    )
    log.setup("producer", log_level or settled.log_level, log_format or settled.log_format)
    report = app.produce(settled, announce)
    dropped = f" ({report.dropped} more were dropped)" if report.dropped else ""
    tell(f"sent {report.projections} projections{dropped}, {report.bytes / 2**20:.1f} MiB in {report.seconds:.1f} s")
    if report.written is not None and not (report.written.volume and report.written.complete):
        what = "is incomplete" if report.written.volume else "was not written"
        raise IncompleteError(f"the volume {what}: {report.written.text}")
    if report.dropped:
        raise typer.Exit(ExitCode.INCOMPLETE)


def kind_of(file: Path) -> str:
    """The kind of source that plays a file of that name."""
    try:
        folder = file.is_dir()
    except OSError:
        folder = False  # the source says why
    if file.suffix.lower() in {".tif", ".tiff"} or folder:
        return "tiff"
    return "nxtomo" if file.suffix.lower() in {".nxs", ".nx"} else "dxchange"


def recon(
    run: RunArgument = None,
    connect: Annotated[
        str | None,
        typer.Option(help="Producer's data address tcp://HOST:PORT; none: through the tunnel.", metavar="URL"),
    ] = None,
    ingress: Annotated[
        int | None, typer.Option(help="Receiving ranks, each with a band of the rows and a connection.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(help="Connections over which each receiving rank receives, one scan over all.")
    ] = None,
    source_wire: Annotated[
        str | None, typer.Option(help=f"Wire to receive on: one of {_WIRES}.", metavar="WIRE")
    ] = None,
    sync: SyncOption = None,
    pixel_dtype: PixelDtypeOption = None,
    angle_unit: AngleUnitOption = None,
    window_length: Annotated[int | None, typer.Option(help="Projections in the window; 0: the whole scan.")] = None,
    window_step: Annotated[int | None, typer.Option(help="New projections per update; 0: the window's length.")] = None,
    window_iter: Annotated[int | None, typer.Option(help="Iterations per update.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="adapt: as many iterations as keep up with the beam, at most --window-iter.")
    ] = None,
    write_freq: Annotated[int | None, typer.Option(help="Updates per snapshot; 0: none.")] = None,
    pub_freq: Annotated[int | None, typer.Option(help="Updates per published preview; 0: none.")] = None,
    axis: Annotated[
        str | None,
        typer.Option(
            help="Rotation axis: detector column, pixel centres at integers; auto: found in the projections.",
            metavar="COLUMN|auto",
        ),
    ] = None,
    center: Annotated[float | None, typer.Option(help="The same in TomoPy's convention: axis + 0.5.")] = None,
    remove_stripe_method: StripesOption = None,
    algorithm: Annotated[str | None, typer.Option(help="sirt, …")] = None,
    threads: ThreadsOption = None,
    ranks: RanksOption = None,
    pub_addr: PublishOption = None,
    open_network: OpenNetworkOption = None,
    live: LiveOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", metavar="DIR")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue from the newest checkpoint in DIR.", metavar="DIR")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Volume to compare every update with.")] = None,
    strict: StrictOption = None,
    accept: AcceptOption = None,
    outage_timeout: Annotated[
        float | None, typer.Option(help="Seconds without a connection after which the scan ends.", metavar="SECONDS")
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds without a frame: a warning; with --source-wire timage or tracemq: the end."),
    ] = None,
    producer: Annotated[
        str | None, typer.Option(help="Producer's S2CS: open and close the tunnel's session here.", metavar="HOST:PORT")
    ] = None,
    control: ControlOption = None,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = None,
    curve: CurveOption = None,
    announce: AnnounceOption = None,
    metrics: MetricsOption = None,
    log_level: LogOption = None,
    log_format: LogFormatOption = None,
    settings: SetOption = None,
) -> None:
    """Receive a scan and reconstruct it; started with mpirun or srun."""
    from ministream.app.recon import job as app

    tables = overrides(
        settings,
        stream={
            "connect": connect,
            "ingress": ingress,
            "streams": streams,
            "wire": source_wire,
            "strict": strict,
            "outage_timeout_s": outage_timeout,
            "stall_timeout_s": stall_timeout,
            "curve": str(curve) if curve else None,
        },
        aps={"sync": sync, "pixel_dtype": pixel_dtype, "angle_unit": angle_unit},
        window={
            "length": window_length,
            "step": window_step,
            "iterations": window_iter,
            "budget": budget,
            "write_freq": write_freq,
            "pub_freq": pub_freq,
        },
        prep=stripes(remove_stripe_method),
        recon={"kind": algorithm, "axis": _axis(axis), "center": center, "threads": threads},
        output={
            "directory": str(out) if out else None,
            "publish": pub_addr,
            "open_network": open_network,
            "live": live,
            "metrics": metrics,
            "reference": str(reference) if reference else None,
        },
        plausibility={"strict": strict, "accept": accept or None},
        checkpoint={"resume": str(resume) if resume else None},
        tunnel=tunnel_table(control, credentials, insecure) | {"producer": producer},
    )
    console = output()
    summary = app.recon(
        lambda: config.load(run, tables),
        ranks=ranks,
        announce_to=announce,
        log_level=log_level,
        log_format=log_format,
        console=console,
    )
    if summary is not None:
        from ministream.monitor import render

        console.print(render(summary))
        if not summary.complete:
            used = summary.ledger.used
            raise IncompleteError(f"the volume is incomplete: {summary.cause} ({used} projections are in the volume)")


def _axis(text: str | None) -> float | str | None:
    """A number where it is one; the configuration checks the rest."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def tunnel_table(control: str | None, credentials: Path | None, insecure: bool | None) -> dict[str, Any]:
    """The options of every job's end of the tunnel."""
    return {"control": control, "credentials": str(credentials) if credentials else None, "insecure": insecure}
