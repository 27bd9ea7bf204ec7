"""The kernel's counters of open connections."""

from __future__ import annotations

import socket
import time

import pytest

from ministream.tunnel.proxy import _sockdiag


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_open_connections_are_counted_and_ended_ones_are_not(family: socket.AddressFamily, host: str) -> None:
    try:
        listeners = [socket.create_server((host, 0), family=family) for _ in range(2)]
    except OSError:
        pytest.skip(f"no {host} here")
    stranger = socket.create_server((host, 0), family=family)
    dialled = [socket.create_connection(end.getsockname()[:2]) for end in (*listeners, stranger)]
    accepted = [end.accept()[0] for end in (*listeners, stranger)]
    for caller, answerer in zip(dialled, accepted, strict=True):
        caller.sendall(bytes(1000))
        answerer.sendall(bytes(300))
        assert len(answerer.recv(1000, socket.MSG_WAITALL)) == 1000
        assert len(caller.recv(300, socket.MSG_WAITALL)) == 300
    # The other end's acknowledgement may come a moment after its program has the bytes.
    give_up = time.monotonic() + 5
    while (counted := _sockdiag.count(listeners)).acknowledged < 600 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert counted == _sockdiag.Counted(connections=2, received=2000, acknowledged=600)
    # An end of one direction leaves the connection open; TCP counts the word that says so as one byte.
    dialled[0].shutdown(socket.SHUT_WR)
    assert accepted[0].recv(1) == b""
    assert _sockdiag.count(listeners[:1]).connections == 1
    accepted[0].close()
    assert _sockdiag.count(listeners).connections == 1
    for sock in (*listeners, stranger, *dialled, *accepted):
        sock.close()
    assert _sockdiag.count([]) == _sockdiag.Counted()
