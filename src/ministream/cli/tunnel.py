"""The tunnel's commands: the control server, and the client that joins two of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ministream import log
from ministream.cli import AnnounceOption, LogFormatOption, MetricsOption, OpenNetworkOption, certs, s2uc
from ministream.cli.s2uc import CertificateOption, CredentialsOption, InsecureOption, TokenOption, access_of
from ministream.errors import ConfigError

if TYPE_CHECKING:
    from ministream.tunnel.client import Connection

LogOption = Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")]
_WIDE = 240
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command("s2cs")(s2cs)
    cli.command("connect")(connect)
    cli.command("sessions")(sessions)
    s2uc.register(cli)
    certs.register(cli)


def s2cs(
    listen: Annotated[
        str, typer.Option(help="Control address; port 0: any free one.", metavar="HOST:PORT")
    ] = "127.0.0.1:5000",
    side: Annotated[str | None, typer.Option(help="PROD or CONS: the only role served; none: both.")] = None,
    kind: Annotated[
        str, typer.Option("--kind", "--type", help="Data server: relay, stunnel, haproxy, nginx.")
    ] = "relay",
    data_host: Annotated[str, typer.Option(help="Interface of the data ports.", metavar="HOST")] = "127.0.0.1",
    advertise: Annotated[
        str | None,
        typer.Option(help="Host that callers are given for the data ports, behind NAT or in a container."),
    ] = None,
    port_range: Annotated[
        str | None, typer.Option(help="Data ports; none: the policy's, else any free.", metavar="FIRST-LAST")
    ] = None,
    credentials: CredentialsOption = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Callers need no certificate or token; loopback only.")
    ] = False,
    allow_token: Annotated[
        bool, typer.Option("--allow-token", help="Bearer tokens too, as stock s2uc sends them; see `certs token`.")
    ] = False,
    legacy_psk: Annotated[
        bool, typer.Option("--legacy-psk", help="stunnel: key from the uid, for stock peers. Not confidential.")
    ] = False,
    policy: Annotated[Path | None, typer.Option(help="Policy file (TOML): who, where to, how much.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="A producer's data address HOST:PORT; repeatable.")] = None,
    announce: AnnounceOption = None,
    metrics: MetricsOption = None,
    open_network: OpenNetworkOption = None,
    log_level: LogOption = "INFO",
    log_format: LogFormatOption = None,
) -> None:
    """Run a SciStream control server (S2CS) until SIGTERM or Ctrl-C."""
    from ministream.app.gateway.control_server import serve
    from ministream.tunnel.control import ControlServer
    from ministream.tunnel.credentials import Credentials

    log.setup("s2cs", log_level, log_format or "text")
    if legacy_psk and kind != "stunnel":
        raise ConfigError("--legacy-psk is for --kind stunnel only")
    server = ControlServer(
        side=side,
        address=listen,
        kind=kind,
        data_host=data_host,
        advertise=advertise,
        port_range=_ports(port_range),
        credentials=Credentials.load(credentials) if credentials else None,
        insecure=insecure,
        allow_token=allow_token,
        policy=policy,
        targets=target or (),
        options={"legacy_psk": True} if legacy_psk else {},
    )
    serve(server, announce, metrics=metrics, open_network=bool(open_network))


def connect(
    prod: Annotated[str, typer.Option(help="Control server beside the producer.", metavar="HOST:PORT")],
    cons: Annotated[str, typer.Option(help="Control server beside the consumer.", metavar="HOST:PORT")],
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    server_cert: CertificateOption = None,
    token_file: TokenOption = None,
    num_conn: Annotated[int, typer.Option("--num-conn", "--num_conn", help="Connections.")] = 1,
    rate: s2uc.RateOption = 0,
    target: Annotated[
        list[str] | None, typer.Option(help="Producer's data address; none: the one its own server knows.")
    ] = None,
    uid: Annotated[str | None, typer.Option(help="Session uid; none: a new UUID.")] = None,
    timeout: Annotated[float, typer.Option(help="Timeout in seconds.")] = 60.0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for control servers that have not started yet.")] = 0.0,
    probe: Annotated[bool, typer.Option(help="Connect to the data ports to see whether they accept.")] = True,
    log_format: LogFormatOption = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Run until Ctrl-C or SIGTERM; reopen the session when a control server was restarted."
        ),
    ] = False,
    as_json: JsonOption = False,
    form: Annotated[
        str, typer.Option("--format", help="table, json, or s2uc, s2uc-1.2.0: what stock s2uc prints.")
    ] = "table",
) -> None:
    """Open a tunnel session through both control servers; it lasts until `release` or the end of either server."""
    from ministream.app.gateway.control_server import stop_event
    from ministream.tunnel import client

    if keep or log_format == "json":
        log.setup("connect", form=log_format or "text")
    form = "json" if as_json else form
    if form not in ("table", "json", *s2uc.FORMS):
        raise ConfigError(f"--format {form}: choose table, json, {' or '.join(s2uc.FORMS)}")
    login = access_of(credentials, insecure, server_cert, token_file)
    ask: dict[str, Any] = {"access": login, "rate": rate, "targets": target or (), "uid": uid}
    ask |= {"timeout_s": timeout, "wait_s": wait}
    if not keep:
        _show(client.connect(prod, cons, None, num_conn, **ask, probe=probe), form, login.token)
        return
    stop = stop_event()
    with client.session(prod, cons, None, num_conn, **ask) as opened:
        _show(opened, form, login.token)
        stop.wait()


def _show(opened: Connection, form: str, token: str | None) -> None:
    if form == "json":
        typer.echo(json.dumps(dataclasses.asdict(opened)))
    elif form in s2uc.FORMS:
        s2uc.say_request(opened.uid, opened.prod, "PROD", opened.prod_listeners, token=token, form=form)
        s2uc.say_request(opened.uid, opened.cons, "CONS", opened.cons_listeners, token=token, form=form)
    else:
        table = Table("side", "control server", "listeners", title=f"session {opened.uid}")
        table.add_row("PROD", opened.prod, "\n".join(opened.prod_listeners))
        table.add_row("CONS", opened.cons, "\n".join(opened.cons_listeners))
        caption = "TLS between the gateways" if opened.secure else "plain bytes between the gateways"
        table.caption = f"{caption}, {opened.limit}" if opened.limit else caption
        Console().print(table)


def sessions(
    s2cs: Annotated[str, typer.Option("--s2cs", help="Control server.", metavar="HOST:PORT")],
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    server_cert: CertificateOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List your sessions on a control server; all of them for an administrator of its policy."""
    from ministream.tunnel.control_client import ControlClient

    with ControlClient(s2cs, access_of(credentials, insecure, server_cert, token_file)) as client:
        found = client.sessions()
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for heading in (
        "uid",
        "role",
        "state",
        "age/s",
        "owner",
        "MB in",
        "MB out",
        "limit kB/s",
        "between gateways",
        "listeners",
    ):
        table.add_column(heading, no_wrap=heading == "uid")
    for one in found:
        table.add_row(*_row(one))
    # A pipe or a file has no width limit.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def _row(one: dict[str, Any]) -> list[str]:
    traffic = one["traffic"]
    carried = ["-" if traffic[way] is None else f"{traffic[way] / 1e6:.1f}" for way in ("inward", "outward")]
    return [
        *(one["uid"], one["role"], one["state"], f"{one['age_s']:.0f}", one["owner"]),
        *carried,
        str(one.get("rate_kbytes_s") or "-"),
        traffic["cipher"] or ("TLS" if one["secure"] else "plain"),
        " ".join(one["listeners"]),
    ]


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ConfigError(f"--port-range {text}: write FIRST-LAST, for example 5100-5200")
    return int(first), int(last)
