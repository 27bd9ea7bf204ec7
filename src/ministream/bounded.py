"""Calls of libraries that must not be waited for without end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ministream import log

_LOG = log.get(__name__)

# Beyond the time that pending messages are given.
_CLOSE_S = 3.0


def close(what: str, action: Callable[[], object], *, linger_s: float = 0.0) -> bool:
    """Call `action`, which frees `what` within about `linger_s`; False, with a warning, when it does not return.

    zmq_ctx_term of libzmq 4.3.5 now and then never returns when peers disconnect at the same moment, whatever the
    options of the sockets: their connections are closed by then and messages sent, only memory and threads stay.
    """
    thread = threading.Thread(target=action, name=f"close {what}", daemon=True)
    thread.start()
    thread.join(linger_s + _CLOSE_S)
    if thread.is_alive():
        _LOG.warning(
            "%s: ZeroMQ did not release it within %g s; left to the end of the process", what, linger_s + _CLOSE_S
        )
    return not thread.is_alive()
