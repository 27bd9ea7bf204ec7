"""What every process of a data server does first: give up what it does not need, and die with its control server."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal

_PR_SET_PDEATHSIG = 1


def confine(parent: int, death_signal: signal.Signals) -> str | None:
    """No core dump, no privileges of root, an end with the process `parent`, which has started this one.

    Returns why root's privileges stay, as in a container that has no right to change the user; else None. Does not
    return if the parent has ended already.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the session's key
    kept = _drop_root() if os.geteuid() == 0 else None
    # After the change of user, which would clear it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    # The kernel sends no signal for a parent that ended before the line above.
    if os.getppid() != parent:
        os._exit(1)
    return kept


def _drop_root() -> str | None:
    try:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    except (OSError, KeyError) as error:
        return f"cannot become the user nobody ({error}): it runs as root"
    return None
