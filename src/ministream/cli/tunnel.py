"""The tunnel's commands: control server, client, certificates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ministream import log
from ministream.cli import AnnounceOption
from ministream.errors import ConfigError

if TYPE_CHECKING:
    from ministream.tunnel.credentials import Credentials

CredentialsOption = Annotated[Path | None, typer.Option(help="Directory made by `ministream certs`.", metavar="DIR")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication; loopback only.")]
LogOption = Annotated[str, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AuthorityArgument = Annotated[Path, typer.Argument(help="Directory of the certificate authority.", metavar="DIR")]
OutOption = Annotated[Path | None, typer.Option(help="Directory to write to; none: DIR itself.", metavar="OUT")]
HostsOption = Annotated[
    list[str] | None, typer.Option("--host", help="Name or address that clients dial; may be given again.")
]
DaysOption = Annotated[float, typer.Option(help="Days of validity.")]


def register(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command("s2cs")(s2cs)
    cli.command("connect")(connect)
    cli.command("release")(release)
    certs = typer.Typer(help="Private certificate authority of a deployment.", no_args_is_help=True)
    certs.command("init")(init)
    certs.command("server")(server_certificate)
    certs.command("client")(client_certificate)
    cli.add_typer(certs, name="certs")


def s2cs(
    listen: Annotated[str, typer.Option(help="Control address; port 0: any free one.", metavar="HOST:PORT")],
    side: Annotated[str | None, typer.Option(help="PROD or CONS: the only role served; none: both.")] = None,
    kind: Annotated[str, typer.Option(help="Data server: relay, stunnel, haproxy or nginx.")] = "relay",
    data_host: Annotated[str, typer.Option(help="Interface of the data ports.", metavar="HOST")] = "127.0.0.1",
    port_range: Annotated[str | None, typer.Option(help="Data ports; none: any free.", metavar="FIRST-LAST")] = None,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    policy: Annotated[Path | None, typer.Option(help="Policy file (TOML): who, where to, how much.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="A producer's data address HOST:PORT; may be given again.")
    ] = None,
    announce: AnnounceOption = None,
    log_level: LogOption = "INFO",
) -> None:
    """Run a SciStream control server (S2CS) until SIGTERM or Ctrl-C."""
    from ministream.app.gateway import serve
    from ministream.tunnel.control import ControlServer
    from ministream.tunnel.credentials import Credentials

    log.setup("s2cs", log_level)
    server = ControlServer(
        side=side,
        address=listen,
        kind=kind,
        data_host=data_host,
        port_range=_ports(port_range),
        credentials=Credentials.load(credentials) if credentials else None,
        insecure=insecure,
        policy=policy,
        targets=target or (),
    )
    serve(server, announce)


def connect(
    prod: Annotated[str, typer.Option(help="Control server beside the producer.", metavar="HOST:PORT")],
    cons: Annotated[str, typer.Option(help="Control server beside the consumer.", metavar="HOST:PORT")],
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    num_conn: Annotated[int, typer.Option(help="Connections.")] = 1,
    rate: Annotated[int, typer.Option(help="Limit in kB/s over all connections; 0: none.")] = 0,
    target: Annotated[
        list[str] | None, typer.Option(help="Producer's data address; none: the one its own server knows.")
    ] = None,
    uid: Annotated[str | None, typer.Option(help="Session uid; none: a new UUID.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until giving up.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Open a tunnel session through both control servers."""
    from ministream.tunnel import client

    opened = client.connect(
        prod,
        cons,
        _credentials(credentials, insecure),
        num_conn,
        rate=rate,
        targets=target or (),
        uid=uid,
        timeout_s=timeout,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(opened)))
        return
    table = Table("side", "control server", "listeners", title=f"session {opened.uid}")
    table.add_row("PROD", opened.prod, "\n".join(opened.prod_listeners))
    table.add_row("CONS", opened.cons, "\n".join(opened.cons_listeners))
    table.caption = "TLS 1.3 between the gateways" if opened.secure else "plain bytes between the gateways"
    Console().print(table)


def release(
    uid: Annotated[str, typer.Argument(help="The session.")],
    s2cs: Annotated[list[str], typer.Option("--s2cs", help="Control server; may be given again.", metavar="HOST:PORT")],
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
) -> None:
    """End a session on every control server named."""
    from ministream.tunnel import client

    client.release(uid, s2cs, _credentials(credentials, insecure))
    typer.echo("Release completed")


def init(
    directory: AuthorityArgument,
    host: HostsOption = None,
    name: Annotated[str, typer.Option(help="Name of the client certificate.")] = "operator",
    days: DaysOption = 365.0,
) -> None:
    """A new authority, with a server certificate for `--host` (this machine's loopback) and a client one."""
    from ministream.tunnel import credentials

    credentials.create_authority(directory, name="ministream-ca", days=10 * 365.0)
    hosts = host or ["localhost", "127.0.0.1"]
    credentials.issue(directory, name="gateway", usage="server", hosts=hosts, days=days, out=directory)
    credentials.issue(directory, name=name, usage="client", hosts=[], days=days, out=directory)
    typer.echo(f"{directory}: authority, server certificate for {', '.join(hosts)}, client certificate of {name!r}")


def server_certificate(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Option(help="Name of the server, for the records.")],
    host: HostsOption = None,
    out: OutOption = None,
    days: DaysOption = 365.0,
) -> None:
    """Issue a server certificate."""
    from ministream.tunnel import credentials

    if not host:
        raise ConfigError("certs server: name at least one --host that clients will dial")
    credentials.issue(directory, name=name, usage="server", hosts=host, days=days, out=out or directory)
    typer.echo(f"{out or directory}: server certificate of {name!r} for {', '.join(host)}")


def client_certificate(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Option(help="Identity: what policies and sessions know this client by.")],
    out: OutOption = None,
    days: DaysOption = 365.0,
) -> None:
    """Issue a client certificate."""
    from ministream.tunnel import credentials

    credentials.issue(directory, name=name, usage="client", hosts=[], days=days, out=out or directory)
    typer.echo(f"{out or directory}: client certificate of {name!r}")


def _credentials(directory: Path | None, insecure: bool) -> Credentials | None:
    from ministream.tunnel.credentials import Credentials

    if insecure:
        return None
    if directory is None:
        raise ConfigError("give --credentials DIR, or --insecure on loopback")
    return Credentials.load(directory)


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit()):
        raise ConfigError(f"--port-range {text}: write FIRST-LAST, for example 5100-5200")
    return int(first), int(last)
