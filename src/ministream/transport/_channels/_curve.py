"""CURVE, ZeroMQ's own encryption: the listening end admits known keys, the connecting end trusts one key.

https://rfc.zeromq.org/spec/26 (CurveZMQ) and 27 (ZAP). Every connection has fresh keys besides the
long-term ones, so recorded traffic stays unreadable when a long-term key leaks later (forward secrecy).
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils import z85

from ministream.model import CurveKeys

# What encryption adds to a part: its name, nonce, authenticator and flags.
OVERHEAD_BYTES = 8 + 8 + 16 + 1

_DOMAIN = b"ministream"


def be_server(socket: zmq.Socket[Any], keys: CurveKeys) -> None:
    """Make a socket that is about to be bound accept encrypted connections only; needs a `CurveAuthenticator`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)


def be_client(socket: zmq.Socket[Any], keys: CurveKeys) -> None:
    """Make a socket that is about to be connected talk to the one peer of `keys` only."""
    (server,) = keys.peers
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(z85.encode(keys.secret)))
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)


class CurveAuthenticator:
    """Tells ZeroMQ which keys are admitted; it asks through `socket`, for every connection of one context."""

    def __init__(self, context: zmq.Context[Any], admitted: frozenset[bytes]) -> None:
        self._admitted = admitted
        self.socket: zmq.Socket[Any] = context.socket(zmq.REP)
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """Answer the pending request."""
        version, request, _domain, _address, _identity, mechanism, *credentials = self.socket.recv_multipart()
        known = mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in self._admitted
        verdict = (b"200", b"OK") if known else (b"400", b"key not admitted")
        self.socket.send_multipart([version, request, *verdict, b"", b""])
