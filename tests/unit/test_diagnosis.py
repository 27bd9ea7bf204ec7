"""The cause of a job's end is found in what MPI launchers print, and their frames are not shown."""

from __future__ import annotations

import logging

import pytest

from ministream.app.launch.diagnosis import Certainty, Diagnosis, killed_by
from ministream.log import COMMAND, JsonLines

RULER = "-" * 74

# Open MPI 4.1: kill -9 of rank 1
KILLED = f"""\
12:00:00 I rank 0 ministream.app.recon.job: ranks: 2 on 1 nodes
{RULER}
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
{RULER}
{RULER}
mpirun noticed that process rank 1 with PID 0 on node node7 exited on signal 9 (Killed).
{RULER}
"""

# Open MPI 4.1: rank 1 aborts
ABORTED = f"""\
12:00:01 E rank 1 ministream.parallel.mpi: rank 1 of 2 on node7 failed: no flats
{RULER}
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
with errorcode 2.

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
You may or may not see output from other processes, depending on
exactly when Open MPI kills them.
{RULER}
"""

# MPICH 4.0 (Hydra): kill -9 of a rank
HYDRA = """\
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4711 RUNNING AT node7
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""

# Open MPI 4.1: more ranks than slots
SLOTS = f"""\
{RULER}
There are not enough slots available in the system to satisfy the 40
slots that were requested by the application:

  hostname

Either request fewer slots for your application, or make more slots
available for use.
{RULER}
"""

SLURM = """\
srun: error: node7: task 1: Killed
srun: Terminating StepId=12.0
"""


def read(text: str) -> tuple[Diagnosis, list[str]]:
    diagnosis = Diagnosis()
    return diagnosis, [shown for line in text.splitlines() if (shown := diagnosis.read(line)) is not None]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (KILLED, "rank 1 on node7: killed by SIGKILL"),
        (ABORTED, "rank 1 of 2 on node7 failed: no flats"),
        (HYDRA, "a rank on node7: killed by SIGKILL"),
        (SLURM, "rank 1 on node7: Killed"),
        (
            SLOTS,
            "There are not enough slots available in the system to satisfy the 40 slots that were requested by the "
            "application (in a batch job ask for as many tasks: --ntasks)",
        ),
    ],
)
def test_rank_host_and_cause_in_one_line(text: str, cause: str) -> None:
    diagnosis, shown = read(text)
    assert diagnosis.cause == cause
    assert not [line for line in shown if "---" in line or "===" in line or "MPI_ABORT" in line or "PID" in line]


def test_the_jobs_own_lines_are_shown() -> None:
    assert read(KILLED)[1] == KILLED.splitlines()[:1]
    assert read(ABORTED)[1] == ABORTED.splitlines()[:1]


def test_the_commands_last_word_is_the_surest() -> None:
    diagnosis, _ = read(ABORTED + "ministream: scan.h5: no flats\nnoise\n")
    assert (diagnosis.cause, diagnosis.certainty) == ("scan.h5: no flats", Certainty.COMMAND)


def test_the_first_rank_that_failed_is_the_cause() -> None:
    assert read(KILLED + KILLED.replace("rank 1", "rank 0"))[0].cause == "rank 1 on node7: killed by SIGKILL"


def test_a_line_of_another_program_is_the_last_resort() -> None:
    diagnosis, shown = read("srun: error: no nodes\n")
    assert (diagnosis.cause, diagnosis.certainty) == ("srun: error: no nodes", Certainty.LAST_LINE)
    assert shown == ["srun: error: no nodes"]


def test_signals_in_words() -> None:
    assert killed_by(11) == "killed by SIGSEGV"
    assert killed_by(250) == "killed by 250"


def event(logger: str, message: str) -> str:
    record = logging.LogRecord(logger, logging.ERROR, "", 0, "%s", (message,), None)
    return JsonLines("rank 1", 1).format(record) + "\n"


@pytest.mark.parametrize(
    ("line", "cause", "certainty"),
    [
        (event(COMMAND, "scan.h5: no such file"), "scan.h5: no such file", Certainty.COMMAND),
        (event("ministream.parallel.mpi", "rank 1 of 2 on node7 failed: no flats"),
         "rank 1 of 2 on node7 failed: no flats", Certainty.RANK),
        (event("ministream.x", "a remark"), "a remark", Certainty.LAST_LINE),
        (event("ministream.x", "cut")[:40] + "\n", event("ministream.x", "cut")[:40], Certainty.LAST_LINE),
        ('{"other": 1}\n', '{"other": 1}', Certainty.LAST_LINE),
    ],
    ids=["command", "rank", "remark", "cut", "other"],  # the lines hold the time
)  # fmt: skip
def test_events_of_a_json_log_are_read_like_lines(line: str, cause: str, certainty: Certainty) -> None:
    diagnosis = Diagnosis()
    assert diagnosis.read(line) == line
    assert (diagnosis.cause, diagnosis.certainty) == (cause, certainty)
