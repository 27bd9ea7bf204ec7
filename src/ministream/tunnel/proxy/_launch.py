"""`python -P -m ministream.tunnel.proxy._launch PARENT LISTENERS FILES PROGRAM ARG...`: a program as a data server.

PARENT is the control server's process number. LISTENERS and FILES are comma-separated inherited descriptors. The
program dies with the control server, has no privileges of root, and finds its listening sockets where systemd would
put them: descriptors 3, 4, … with LISTEN_FDS and LISTEN_PID set (NGINX names the same ones for nginx); its files are
FIRST_FILE and up.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

from ministream.tunnel.proxy._confine import confine

FIRST_LISTENER = 3
FIRST_FILE = 500
_PARK = 800


def main() -> None:
    """Does not return."""
    listeners, files = (_numbers(text) for text in sys.argv[2:4])
    wanted = {FIRST_LISTENER + i: fd for i, fd in enumerate(listeners)}
    wanted |= {FIRST_FILE + i: fd for i, fd in enumerate(files)}
    # Out of the way first, so that none is overwritten before it has been moved.
    parked = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PARK) for number, fd in wanted.items()}
    for fd in (*listeners, *files):
        os.close(fd)
    for number, fd in parked.items():
        os.dup2(fd, number, inheritable=True)
    if (kept := confine(int(sys.argv[1]), signal.SIGTERM)) is not None:
        sys.stderr.write(kept + "\n")
    environment = {
        "PATH": os.defpath,
        "LISTEN_FDS": str(len(listeners)),
        "LISTEN_PID": str(os.getpid()),
        "NGINX": "".join(f"{FIRST_LISTENER + i};" for i in range(len(listeners))),
    }
    os.chdir("/")
    os.execve(sys.argv[4], sys.argv[4:], environment)  # noqa: S606 - no shell is wanted


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
