"""The command line: the only place that prints. One module per topic adds its commands to `cli`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from ministream import __version__, config, log
from ministream.cli.originals import translated
from ministream.errors import ConfigError, MinistreamError

cli = typer.Typer(
    name="ministream",
    help=str(sys.modules["ministream"].__doc__),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ERRORS = Console(stderr=True, soft_wrap=True, highlight=False)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any configuration key, value as in TOML.")
]
RunArgument = Annotated[
    Path | None, typer.Argument(metavar="[RUN.toml]", help="Configuration file.", show_default=False)
]
StrictOption = Annotated[
    bool | None, typer.Option("--strict", help="Stop at the first rejected frame or warning about the scan.")
]
AcceptOption = Annotated[
    list[str] | None, typer.Option(help="Acknowledge a warning about the scan by its code; repeatable.", metavar="CODE")
]
OpenNetworkOption = Annotated[
    bool | None,
    typer.Option("--open-network", help="Allow sockets off loopback that anyone can connect to, without encryption."),
]
LogFormatOption = Annotated[
    str | None, typer.Option("--log-format", help="text, or json: one object per line on standard error.")
]
MetricsOption = Annotated[
    str | None, typer.Option(help="Serve Prometheus metrics here; port 0: any free one.", metavar="HOST:PORT")
]
AnnounceOption = Annotated[
    Path | None, typer.Option(help="Write this job's addresses here (JSON, 0600) once it listens.", metavar="FILE")
]
STRIPE_METHODS = ("none", "sf", "fw", "vo-all")
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Key file of the job: a copy of .live.json from its output folder.")
]
StripesOption = Annotated[
    str | None,
    typer.Option(help=f"Remove stripes (rings in the image): {', '.join(STRIPE_METHODS)}.", metavar="METHOD"),
]


@cli.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"ministream {__version__}")
        raise typer.Exit


def overrides(settings: list[str] | None, **tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Named options and `--set` assignments as one mapping of tables; `--set` wins.

    Raises ConfigError for an assignment that is not TABLE.KEY=VALUE.
    """
    merged = {table: dict(values) for table, values in tables.items()}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        table, dot, key = name.strip().partition(".")
        if not (equals and dot and config.is_key(key)):
            raise ConfigError(f"--set {setting}: expected TABLE.KEY=VALUE, for example --set window.length=90")
        merged.setdefault(table, {})[key] = _toml_value(text.strip())
    return merged


def stripes(method: str | None) -> dict[str, Any]:
    """The keys of `[prep]` for `--remove-stripe-method`. Raises ConfigError for an unknown one."""
    if method is None or method == "none":
        return {}
    if method not in STRIPE_METHODS:
        raise ConfigError(f"--remove-stripe-method {method}: unknown, choose one of {', '.join(STRIPE_METHODS)}")
    return {method.replace("-", "_"): {}}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def main() -> NoReturn:
    """Run the command line; every deliberate error becomes one line and its exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli(translated(sys.argv[1:]), standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(130)
    except MinistreamError as error:
        fail(str(error), int(error.exit_code))
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - the edge: users get one line, not a traceback
        if hasattr(error, "format_message"):  # a usage error of the option parser
            fail(f"{error.format_message()} (see --help)", 2)
        log.get(__name__).debug("traceback", exc_info=True)
        fail(f"internal error, please report it: {type(error).__name__}: {error}", 70)


def output() -> Console:
    """Standard output for people: coloured and redrawn on a terminal, plain lines of a fixed width elsewhere.

    mpirun gives its ranks a pseudo-terminal; the destination of mpirun's own output decides.
    """
    on_terminal = sys.stdout.isatty()
    if on_terminal and "OMPI_COMM_WORLD_RANK" in os.environ:
        on_terminal = os.path.realpath(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    return Console(force_terminal=on_terminal, width=None if on_terminal else 120, highlight=False)


def tell(message: str, level: int = logging.INFO) -> None:
    """One line on standard error, an event where the log is JSON."""
    if log.is_structured():
        log.get(log.COMMAND).log(level, message)
    else:
        ERRORS.print(message, markup=False)


def fail(message: str, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    tell(message if log.is_structured() else f"ministream: {message}", logging.ERROR)
    sys.exit(code)


def _terminate(_signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


from ministream.cli import (  # noqa: E402 - the commands need the shared options above
    aps,
    check,
    convert,
    ctl,
    doctor,
    jobs,
    launch,
    performance,
    quality,
    serve,
    settings,
    top,
    trying,
    tunnel,
    view,
)

for topic in (
    jobs,
    serve,
    launch,
    check,
    doctor,
    trying,
    performance,
    quality,
    convert,
    settings,
    tunnel,
    aps,
    view,
    top,
    ctl,
):
    topic.register(cli)
