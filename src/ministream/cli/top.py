"""`ministream top`: a running job, full screen in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from ministream import log
from ministream.cli import KeyOption
from ministream.errors import ConfigError


def register(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("top")(top)


def top(
    target: Annotated[str, typer.Argument(help="tcp://HOST:PORT of a job, or its output folder.")],
    key: KeyOption = None,
) -> None:
    """Show a running reconstruction in the terminal: counts, rates, stages, warnings, log. Quit with q.

    The job serves it with --live. Example: ministream top results/20260101T120000
    """
    from ministream.app.view.targets import open_feed

    try:
        from ministream.view.terminal import Terminal
    except ModuleNotFoundError as error:
        raise ConfigError(f"top needs the package {error.name}: pip install 'ministream[top]'") from error
    log.setup("top", "CRITICAL")  # the screen is the application's
    with open_feed(target, key) as feed:
        Terminal(feed).run()
