"""Fixtures for every test, and what a run does as a whole: how it is dealt to workers, how it ends, what it reports."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# Longer than any test may take (`timeout` in setup.cfg and in the modules): only a run that hangs is silent so long.
SILENCE_S = 900

# What is written to a captured stderr is lost when the process ends at once.
REAL_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REAL_STDERR] = os.dup(2)
    # A run in the background ignores SIGINT, and so would the jobs that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whoever ends the run lets the fixtures end what they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(_SilenceWatch(config.stash[REAL_STDERR]))


class _SilenceWatch:
    """Ends a run in which no test ends any more; says which tests were running, with every thread's traceback."""

    def __init__(self, stderr: int) -> None:
        self._stderr = stderr
        self._running: list[str] = []
        self._timer = threading.Timer(0, lambda: None)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.append(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.remove(nodeid)
        self._timer.cancel()
        self._timer = threading.Timer(SILENCE_S, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def pytest_sessionfinish(self) -> None:
        self._timer.cancel()

    def _give_up(self) -> None:
        running = "\n".join(self._running) or "none"
        os.write(self._stderr, f"\nno test has ended for {SILENCE_S} s. Running:\n{running}\n".encode())
        faulthandler.dump_traceback(file=self._stderr)
        os._exit(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests that share what is slow to make, or must not meet, run on one worker one after the other."""
    from tests.scheduling import Scheduling

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """For launch/test.sh: what did not run and why, and how long each test took, one line each."""
    report = os.environ.get("MINISTREAM_TEST_REPORT")
    if report is None or "PYTEST_XDIST_WORKER" in os.environ or os.environ.get("OMPI_COMM_WORLD_RANK", "0") != "0":
        return
    reasons = Counter(skip.longrepr[2].removeprefix("Skipped: ") for skip in terminalreporter.getreports("skipped"))
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for phase in reports:
            if isinstance(phase, pytest.TestReport):
                seconds[phase.nodeid] += phase.duration
    with Path(report).open("a") as lines:
        lines.writelines(f"skipped\t{count}\t{reason}\n" for reason, count in reasons.items())
        lines.writelines(f"took\t{took:.1f}\t{test}\n" for test, took in seconds.most_common(20))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded traffic, real scans and references that lies beside the project in CI."""
    folder = Path(os.environ.get("MINISTREAM_SHARED", PROJECT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tooth(shared: Path) -> Path:
    """A real scan: 181 projections of 2 rows × 640 columns, in DXchange form."""
    return shared / "data" / "tooth.h5"
