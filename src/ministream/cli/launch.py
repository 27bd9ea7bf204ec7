"""`ministream launch`: both jobs of a pair on this machine, or one of them inside a batch job."""

from __future__ import annotations

import datetime
import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ministream import config, log
from ministream.cli import AcceptOption, LogFormatOption, RunArgument, SetOption, StrictOption, fail, overrides
from ministream.errors import ConfigError


class SideChoice(StrEnum):
    """The jobs of a pair."""

    PRODUCER = "producer"
    RECON = "recon"


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("launch")(launch)


def launch(
    run: RunArgument = None,
    side: Annotated[
        SideChoice | None, typer.Option("--as", help="Only this job; the other runs in another batch job.")
    ] = None,
    rendezvous: Annotated[
        Path | None, typer.Option(help="Shared folder in which the jobs find each other.", metavar="DIR")
    ] = None,
    producer: Annotated[
        str | None, typer.Option(help="The producer's S2CS, instead of a rendezvous.", metavar="HOST:PORT")
    ] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="Folder of credentials from `ministream certs`.", metavar="DIR")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Encrypt the stream end to end, with keys created for this pair.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(help="Host name of this side's servers; default 127.0.0.1, under Slurm the node's name."),
    ] = None,
    producer_host: Annotated[
        str | None, typer.Option(help="Host name of the producer's servers, if different.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            help="Host under which the reconstruction reaches the producer's servers, behind NAT.", metavar="HOST"
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of this side's S2CS; 0: any free one.")] = 0,
    ranks: Annotated[int, typer.Option(min=0, help="Ranks; 0: one per NUMA domain.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads per rank; 0: granted cores divided by ranks.")] = 0,
    ingress: Annotated[int | None, typer.Option(min=1, help="Receiving ranks, each with a band of the rows.")] = None,
    streams: Annotated[
        int | None, typer.Option(min=1, help="Connections over which each receiving rank receives.")
    ] = None,
    launcher: Annotated[
        str, typer.Option(help='Command that starts the ranks, such as "srun --mpi=pmix"; default: mpirun here.')
    ] = "",
    producer_launcher: Annotated[str, typer.Option(help="Command that starts the producer on another host.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", metavar="DIR")] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Fast local folder; finished results are staged out to --out.", metavar="DIR")
    ] = None,
    partner_timeout: Annotated[float, typer.Option(help="Seconds to wait for the other job.")] = 900.0,
    finish_timeout: Annotated[
        float, typer.Option(help="Seconds to complete the window and write after a signal.")
    ] = 90.0,
    strict: StrictOption = None,
    accept: AcceptOption = None,
    settings: SetOption = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="Restarts of a reconstruction that crashed, from its last checkpoint.")
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check run file, ranks and rows, and start nothing.")
    ] = False,
    view: Annotated[bool, typer.Option("--view", help="Show the reconstruction in the browser while it runs.")] = False,
    producer_options: Annotated[str, typer.Option(help="More options for `ministream produce`.")] = "",
    recon_options: Annotated[str, typer.Option(help="More options for `ministream recon`.")] = "",
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    log_format: LogFormatOption = None,
) -> None:
    """Run the producer job and the reconstruction job as a pair with one outcome.

    Without --as both run on this machine. The exit code is the pair's: the reconstruction's where it wrote a
    volume, else that of the job that failed first.
    """
    from ministream.app.launch import launcher as app
    from ministream.app.launch.plan import Plan
    from ministream.app.launch.supervisor import Timeouts
    from ministream.app.own_host import own_host
    from ministream.app.placement import nodes_of_job

    read = _read(run, settings, strictly=side is None or dry_run or out is None)
    known = read or config.Config()
    log_format = log_format or known.log_format
    log.setup("launch" if side is None else f"launch {side}", log_level, log_format)
    if scratch is not None and (nodes := nodes_of_job(os.environ)) > 1:
        raise ConfigError(
            f"--scratch is the disk of one node, and this job has {nodes} nodes whose ranks write one file together. "
            "Leave it out, or name a disk that all nodes see as --out"
        )
    plan = Plan(
        run=run,
        settings=tuple(settings or ()),
        out=out or _fresh(known.output.directory),
        side=side.value if side else None,
        rendezvous=rendezvous,
        producer=producer,
        credentials=credentials,
        curve=curve,
        host=host or own_host(os.environ),
        producer_host=producer_host,
        advertise=advertise,
        port=port,
        ranks=ranks,
        threads=threads,
        ingress=ingress or known.stream.ingress,
        streams=streams or known.stream.streams,
        launcher=tuple(shlex.split(launcher)),
        producer_launcher=tuple(shlex.split(producer_launcher)),
        scratch=scratch,
        restarts=restarts,
        checkpoints=known.checkpoint.directory,
        timeouts=Timeouts(partner_s=partner_timeout, finish_s=finish_timeout),
        view=view,
        log_format=log_format,
        producer_options=tuple(shlex.split(producer_options)),
        recon_options=(*_plausibility(strict, accept), *shlex.split(recon_options)),
    )
    if dry_run:
        app.check_ranks(plan, known)
        return
    outcome = app.launch(plan, read)
    if outcome.failed:
        fail(outcome.reason, outcome.code)


def _plausibility(strict: bool | None, accept: list[str] | None) -> list[str]:
    """The reconstruction job's options about warnings of the scan."""
    return (["--strict"] if strict else []) + [word for code in accept or [] for word in ("--accept", code)]


def _read(run: Path | None, settings: list[str] | None, *, strictly: bool) -> config.Config | None:
    """The configuration; None for an invalid one, unless `strictly`: the jobs report it to both sides."""
    try:
        return config.load(run, overrides(settings))
    except ConfigError:
        if strictly:
            raise
        return None


def _fresh(folder: Path) -> Path:
    """A folder inside `folder`, named after the time of the launch."""
    return folder / datetime.datetime.now().astimezone().strftime("%Y%m%dT%H%M%S")
