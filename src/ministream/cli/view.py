"""`ministream view`: the web page of a running job, of a folder of results, or of a volume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ministream import log, private
from ministream.cli import KeyOption
from ministream.errors import ConfigError


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("view")(view)


def view(
    target: Annotated[str, typer.Argument(help="tcp://HOST:PORT of a job, its output folder, or a volume.")],
    key: KeyOption = None,
    host: Annotated[str, typer.Option(help="Interface of the web server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the web server; 0: any free one.")] = 0,
    prefix: Annotated[
        str, typer.Option(help="Path in front of the page's, behind a proxy, such as /user/me/view.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of the page (0600); default: a new token.", metavar="FILE")
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Show a running reconstruction, or a finished one, in the browser.

    Prints the address of the page, with the token that opens it. Example: ministream view results/20260101T120000
    """
    try:
        from ministream.app.view.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"view needs the Python package {error.name!r}: pip install 'ministream[view]'") from error
    from ministream.app.view.operator import can_steer, steer
    from ministream.app.view.targets import open_feed

    log.setup("view", log_level)
    steers = can_steer(target, key)
    token = _token(token_file) if token_file is not None else None
    serve(
        open_feed(target, key), host=host, port=port, prefix=prefix, token=token,
        ready=partial(_ready, steers), steer=partial(steer, target, key) if steers else None,
    )  # fmt: skip


def _ready(steers: bool, viewers: str, operators: str) -> None:
    typer.echo(f"live view: {viewers}")
    if steers:
        typer.echo(f"with steering: {operators}")


def _token(path: Path) -> str:
    """Raises ConfigError for a file that cannot be read, that others can read, or without a long token."""
    try:
        token = private.read_file(path, secret=True).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(token) < 16:
        raise ConfigError(f"{path}: the token has {len(token)} characters, expected at least 16. Write a longer one.")
    return token
