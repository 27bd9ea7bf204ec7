"""The commands of stock `s2uc`, with its option names and its output; tokens are never printed."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ministream.errors import ConfigError

if TYPE_CHECKING:
    from ministream.tunnel.control_client import Access, Answer, ControlClient

_FIELDS = "s2uc-1.2.0"
FORMS = ("s2uc", _FIELDS)


def _form(text: str) -> str:
    if text not in FORMS:
        raise ConfigError(f"--format {text}: choose {' or '.join(FORMS)}")
    return text


CredentialsOption = Annotated[Path | None, typer.Option(help="Directory made by `ministream certs`.", metavar="DIR")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="No TLS; loopback only.")]
CertificateOption = Annotated[
    Path | None, typer.Option("--server_cert", "--server-cert", help="Certificate to trust, with a token.")
]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="File with the bearer token.", metavar="FILE")]
ConnectionsOption = Annotated[int, typer.Option("--num_conn", "--num-conn", help="Connections.")]
RateOption = Annotated[int, typer.Option("--rate", help="Limit in kB/s, where the server's policy obeys it; 0: none.")]
ScopeOption = Annotated[
    str, typer.Option("--scope", help="Use the token that stock `s2uc login --scope` left in .storage.db.")
]
RemoteOption = Annotated[str, typer.Option("--remote_ip", "--remote-ip", help="Host of the application.")]
PortsOption = Annotated[
    str, typer.Option("--receiver_ports", "--receiver-ports", help="Ports of the application, comma-separated.")
]
PlainOption = Annotated[
    bool, typer.Option("--plain", help="Nothing is encrypted between the gateways, as with stock SciStream.")
]
TimeoutOption = Annotated[float, typer.Option(help="Timeout in seconds.")]

FormOption = Annotated[str, typer.Option("--format", help="s2uc, or s2uc-1.2.0: `listeners:` lines.", callback=_form)]

_STOCK_PORTS = "5074,5075,5076,37000,47000"
# What stock s2uc shows, and sends, when it has no token.
_NO_TOKEN = "INVALID_TOKEN"  # noqa: S105
_MASKED = "********"


def register(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command("inbound-request")(inbound_request)
    cli.command("outbound-request")(outbound_request)
    cli.command("release")(release)


def inbound_request(
    num_conn: ConnectionsOption = 5,
    rate: RateOption = 0,
    s2cs: Annotated[str, typer.Option("--s2cs", help="Control server beside the producer.")] = "localhost:5000",
    server_cert: CertificateOption = None,
    scope: ScopeOption = "",
    remote_ip: RemoteOption = "localhost",
    receiver_ports: PortsOption = _STOCK_PORTS,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    token_file: TokenOption = None,
    plain: PlainOption = False,
    timeout: TimeoutOption = 180.0,
    form: FormOption = "s2uc",
) -> None:
    """Open the producer's side of a session; `outbound-request --inbound-s2cs` joins the consumer's to it."""
    login = access_of(credentials, insecure, server_cert, token_file, scope)
    targets = _receivers(remote_ip, receiver_ports)
    uid = str(uuid.uuid4())
    with _opened(uid, s2cs, "PROD", login, num_conn, rate, targets, timeout) as (client, opened):
        if plain or opened.offer is None:
            _warn_plain(s2cs, opened)
            client.update(uid, "PROD", opened.prod_listeners, None)
        else:
            typer.echo(f"{s2cs} waits for: ministream outbound-request --inbound-s2cs {s2cs} {uid} …", err=True)
    say_request(uid, s2cs, "PROD", opened.listeners, token=login.token, form=form)


def outbound_request(
    uid: Annotated[str, typer.Argument(help="The session, as inbound-request printed it.")],
    prod_lstn: Annotated[str, typer.Argument(help="Listeners that inbound-request printed, comma-separated.")],
    num_conn: ConnectionsOption = 5,
    rate: RateOption = 0,
    s2cs: Annotated[str, typer.Option("--s2cs", help="Control server beside the consumer.")] = "localhost:6000",
    server_cert: CertificateOption = None,
    scope: ScopeOption = "",
    remote_ip: RemoteOption = "localhost",
    receiver_ports: PortsOption = _STOCK_PORTS,
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    token_file: TokenOption = None,
    inbound_s2cs: Annotated[
        str | None,
        typer.Option("--inbound-s2cs", help="Control server that inbound-request used: TLS between the gateways."),
    ] = None,
    plain: PlainOption = False,
    timeout: TimeoutOption = 180.0,
    form: FormOption = "s2uc",
) -> None:
    """Open the consumer's side of a session, and join the producer's to it."""
    login = access_of(credentials, insecure, server_cert, token_file, scope)
    targets, receivers = prod_lstn.split(","), _receivers(remote_ip, receiver_ports)
    with _opened(uid, s2cs, "CONS", login, num_conn, rate, receivers, timeout) as (client, opened):
        offer = None
        if plain or opened.offer is None:
            _warn_plain(s2cs, opened)
        else:
            offer = _join(uid, inbound_s2cs, login, opened.offer)
        client.update(uid, "CONS", targets, offer)
    say_request(uid, s2cs, "CONS", opened.listeners, token=login.token, form=form)


def release(
    uid: Annotated[str, typer.Argument(help="The session.")],
    s2cs: Annotated[
        list[str] | None, typer.Option("--s2cs", help="Control server; repeatable.", metavar="HOST:PORT")
    ] = None,
    server_cert: CertificateOption = None,
    scope: ScopeOption = "",
    credentials: CredentialsOption = None,
    insecure: InsecureOption = False,
    token_file: TokenOption = None,
) -> None:
    """End a session on every control server named."""
    from ministream.tunnel import client

    login = access_of(credentials, insecure, server_cert, token_file, scope)
    client.release(uid, s2cs or ["localhost:5000"], login)
    typer.echo("Release completed")


def say_request(
    uid: str, s2cs: str, role: str, listeners: Sequence[str], *, token: str | None, form: str = "s2uc"
) -> None:
    """What stock s2uc prints for one side, in its order; up to 1.2.0 it printed the answer's fields, one a line."""
    shown = _MASKED if token and token != _NO_TOKEN else _NO_TOKEN
    for line in (
        "uid; s2cs; access_token; role",
        f"{uid} {s2cs} {shown} {role}",
        "sending client request message",
        "started client request",
        "waiting for hello message",
        "sending for hello message",
        "Hello message sent successfully",
        *([f'listeners: "{each}"' for each in listeners] if form == _FIELDS else [f"Listeners: {list(listeners)}"]),
    ):
        typer.echo(line)


def access_of(
    credentials: Path | None,
    insecure: bool,
    server_cert: Path | None = None,
    token_file: Path | None = None,
    scope: str = "",
) -> Access:
    """The client's access, from the options. Raises ConfigError for a contradictory combination."""
    from ministream.tunnel.control_client import Access
    from ministream.tunnel.credentials import Credentials

    token = _token(token_file, scope)
    if insecure:
        return Access(token=token)
    if credentials is not None:
        return Access.of(Credentials.load(credentials), token)
    if server_cert is not None:
        return Access(ca=_read(server_cert), token=token or _NO_TOKEN)
    raise ConfigError("give --credentials DIR, or --server_cert FILE with a token, or --insecure on loopback")


@contextmanager
def _opened(
    uid: str,
    s2cs: str,
    role: str,
    login: Access,
    num_conn: int,
    rate: int,
    receivers: Sequence[str],
    timeout_s: float,
) -> Iterator[tuple[ControlClient, Answer]]:
    """One side of a session, released if the block fails."""
    from ministream.tunnel.client import released_on_failure
    from ministream.tunnel.control_client import ControlClient

    with ControlClient(s2cs, login) as client, released_on_failure(uid, [client]):
        yield client, client.open(uid, role, num_conn=num_conn, rate=rate, targets=receivers, timeout_s=timeout_s)


def _join(uid: str, inbound_s2cs: str | None, login: Access, consumers: bytes) -> bytes:
    """Send the producer's side the consumer's offer. Returns its own offer. Raises ConfigError where it makes none."""
    from ministream.tunnel.control_client import ControlClient

    if inbound_s2cs is None:
        raise ConfigError(
            "TLS between the gateways needs both control servers: give --inbound-s2cs HOST:PORT, the one that"
            " inbound-request used, or --plain on either side to omit it"
        )
    with ControlClient(inbound_s2cs, login) as inbound:
        offer = inbound.update(uid, "PROD", [], consumers).offer
    if offer is None:
        raise ConfigError(
            f"control server {inbound_s2cs} offers no TLS between the gateways: give --plain to connect without it"
        )
    return offer


def _warn_plain(s2cs: str, opened: Answer) -> None:
    why = "as --plain asks" if opened.offer is not None else f"control server {s2cs} offers no TLS between the gateways"
    typer.echo(f"ministream: warning: {why}: its data server may carry the stream unencrypted", err=True)


def _receivers(host: str, ports: str) -> list[str]:
    return [f"{host}:{port.strip()}" for port in ports.split(",")]


def _token(token_file: Path | None, scope: str) -> str | None:
    if token_file is not None:
        return _read(token_file).decode("utf-8", "replace").strip()
    return _stock_token(Path(".storage.db"), scope) if scope else None


def _stock_token(path: Path, scope: str) -> str:
    """The access token of a scope in the file where stock s2uc (globus_sdk) stores its tokens."""
    remedy = f"log in with `s2uc login --scope {scope}` here, or give --token-file"
    if not path.exists():
        raise ConfigError(f"--scope {scope}: no {path} in this directory: {remedy}")
    query = "SELECT token_data_json FROM token_storage WHERE resource_server = ?"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            row = connection.execute(query, (scope,)).fetchone()
        finally:
            connection.close()
        return str(json.loads(row[0])["access_token"]) if row else _missing(scope, remedy)
    except (sqlite3.Error, ValueError, KeyError, TypeError):
        raise ConfigError(f"--scope {scope}: {path} cannot be parsed: {remedy}") from None


def _missing(scope: str, remedy: str) -> str:
    raise ConfigError(f"--scope {scope}: not logged in: {remedy}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
