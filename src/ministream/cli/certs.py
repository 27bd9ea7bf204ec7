"""`ministream certs`: the private authority of a deployment, tokens for stock clients, keys for the stream itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ministream.errors import ConfigError

_WIDE = 200
AuthorityArgument = Annotated[Path, typer.Argument(help="Directory of the certificate authority.", metavar="DIR")]
OutOption = Annotated[Path | None, typer.Option(help="Directory to write to; none: DIR itself.", metavar="OUT")]
HostsOption = Annotated[
    list[str] | None, typer.Option("--host", help="Name or address that clients connect to; repeatable.")
]
DaysOption = Annotated[
    float | None, typer.Option(help="Days of validity; none: 30 for a server, 365 for a client.", show_default=False)
]


def register(cli: typer.Typer) -> None:
    """Add the commands."""
    certs = typer.Typer(help="Private certificate authority of a deployment.", no_args_is_help=True)
    for command in (init, server, client, renew, revoke, show, status, token, curve):
        certs.command(command.__name__)(command)
    cli.add_typer(certs, name="certs")


def init(
    directory: AuthorityArgument,
    host: HostsOption = None,
    name: Annotated[str, typer.Option(help="Name of the client certificate.")] = "operator",
    days: DaysOption = None,
) -> None:
    """Create an authority, a server certificate for `--host` (none: loopback) and a client certificate."""
    from ministream.tunnel import credentials

    credentials.create_authority(directory, name="ministream-ca", days=10 * 365.0)
    hosts = host or ["localhost", "127.0.0.1", "::1"]
    credentials.issue(directory, name="gateway", usage="server", hosts=hosts, days=days, out=directory)
    credentials.issue(directory, name=name, usage="client", hosts=[], days=days, out=directory)
    typer.echo(f"{directory}: authority, server certificate for {', '.join(hosts)}, client certificate of {name!r}")


def server(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Option(help="Name of the server, for the records.")],
    host: HostsOption = None,
    out: OutOption = None,
    days: DaysOption = None,
) -> None:
    """Issue a server certificate with a new key."""
    from ministream.tunnel import credentials

    if not host:
        raise ConfigError("certs server: give at least one --host that clients will connect to")
    credentials.issue(directory, name=name, usage="server", hosts=host, days=days, out=out or directory)
    typer.echo(f"{out or directory}: server certificate of {name!r} for {', '.join(host)}")


def client(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Option(help="Identity of this client in policies and sessions.")],
    out: OutOption = None,
    days: DaysOption = None,
) -> None:
    """Issue a client certificate with a new key."""
    from ministream.tunnel import credentials

    credentials.issue(directory, name=name, usage="client", hosts=[], days=days, out=out or directory)
    typer.echo(f"{out or directory}: client certificate of {name!r}")


def renew(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Argument(help="Name on the certificates, as `show` lists it.")],
    out: OutOption = None,
    days: DaysOption = None,
    revoke_old: Annotated[bool, typer.Option("--revoke-old", help="Revoke all earlier certificates of NAME.")] = False,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Renew only what has less than a third of its life left; for cron.")
    ] = False,
) -> None:
    """Reissue the certificates of a name, with the same hosts and new keys; a running server takes them up."""
    from ministream.tunnel import credentials

    target = out or directory
    renewed = credentials.renew(directory, name, days=days, out=target, revoke_old=revoke_old, if_due=if_due)
    for usage in renewed:
        typer.echo(f"{target}: {usage} certificate of {name!r} renewed")
    if not renewed:
        typer.echo(f"{target}: nothing of {name!r} is due")
    if revoke_old and renewed:
        typer.echo(f"{directory / 'revoked'}: copy it to every server and client; it takes effect immediately")


def revoke(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Argument(help="Name on the certificates, or one serial number.")],
) -> None:
    """Revoke every certificate ever issued to a name; copy DIR/revoked to every server and client; it takes effect
    immediately.
    """
    from ministream.tunnel import credentials

    for serial in credentials.revoke(directory, name):
        typer.echo(f"{directory / 'revoked'}: {serial:x} of {name!r}")


def show(directory: AuthorityArgument) -> None:
    """List the certificates that the authority has issued."""
    from ministream.tunnel import certificates, credentials, expiry
    from ministream.tunnel.revocations import read_revoked

    revoked = read_revoked(directory / "revoked")
    table = _table("name", "for", "hosts", "expires", "serial", "state")
    for one in credentials.issued(directory):
        _, hosts = certificates.names_of(one.certificate)
        state = "revoked" if one.serial in revoked else expiry.state_of(one.certificate)
        ends = f"{one.certificate.not_valid_after_utc:%Y-%m-%d}"
        table.add_row(one.name, one.usage, ", ".join(hosts), ends, f"{one.serial:x}", state)
    Console(width=_WIDE).print(table)


def status(
    directory: Annotated[Path, typer.Argument(help="A party's directory of credentials.", metavar="DIR")],
) -> None:
    """Show one party's certificates: name, expiry, revocation. Exit code 2 when one is not usable."""
    from ministream.tunnel import expiry

    table = _table("file", "name", "expires", "days left", "serial", "state")
    states = []
    for one in expiry.status(directory):
        ends = f"{one.certificate.not_valid_after_utc:%Y-%m-%d}"
        states.append(one.state)
        table.add_row(one.file, one.name, ends, f"{one.days_left:.0f}", f"{one.certificate.serial_number:x}", one.state)
    Console(width=_WIDE).print(table)
    if (directory / "ca.key").exists():
        typer.echo(f"{directory / 'ca.key'}: the authority's key is here; only the issuing machine needs it", err=True)
    if any(state != "valid" for state in states):
        raise ConfigError(f"{directory}: not everything is valid: `ministream certs renew`, then copy the new files")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def token(
    directory: AuthorityArgument,
    name: Annotated[str, typer.Option(help="Identity of the bearer in policies and sessions, as token:NAME.")],
    days: Annotated[float, typer.Option(help="Days of validity.")] = 30.0,
) -> None:
    """Print a new bearer token for a stock client, once; the server keeps only its hash, in DIR/tokens."""
    from ministream.tunnel import credentials

    typer.echo(credentials.add_token(directory, name, days))


def curve(
    directory: Annotated[Path, typer.Argument(help="Directory to write to.", metavar="DIR")],
    side: Annotated[
        str | None, typer.Option(help="producer or receiver: only this side's key pair; none: both.")
    ] = None,
) -> None:
    """Make the key pairs that encrypt the stream end to end: `produce --curve DIR` and `recon --curve DIR`."""
    from ministream.tunnel import curve as keys

    chosen = [one for one in keys.SIDES if side in (None, one)]
    if not chosen:
        raise ConfigError(f"certs curve: --side {side}: choose producer or receiver")
    keys.create(directory, chosen)
    for one in chosen:
        other = next(name for name in keys.SIDES if name != one)
        typer.echo(f"{directory}: {one}.secret for the {one} alone, {one}.public for the {other}")
