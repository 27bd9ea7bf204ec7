"""A control server that answers as stock s2cs 1.2 does on the wire, oddities included, with data ports that forward.

What it does differently from ours: it demands no client certificate, knows no metadata, raises (status UNKNOWN) for
an uid it does not know, in hello as in release, and keeps one answer for all sessions' waiting requests.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from ministream.tunnel import messages

_HELLO_S = 20.0


@dataclass
class _Entry:
    role: str
    listeners: list[socket.socket]
    said_hello: threading.Event = field(default_factory=threading.Event)
    targets: list[str] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{listener.getsockname()[1]}" for listener in self.listeners]


class StockServer:
    """`with StockServer(certificate, key) as server`: listens on `address`; `heard` are all messages in order.

    `claim` makes of its listeners' addresses what it says they are: the truth, if nothing else is given.
    """

    def __init__(
        self, certificate: bytes, key: bytes, claim: Callable[[list[str]], list[str]] = lambda truth: truth
    ) -> None:
        self._claim = claim
        self.heard: list[tuple[str, Any, dict[str, Any]]] = []
        self._entries: dict[str, _Entry] = {}
        self._answer: Any = None
        self._server = grpc.server(ThreadPoolExecutor(10))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._noted(name),
                request_deserializer=messages.message_class(sent).FromString,
                response_serializer=messages.message_class(back).SerializeToString,
            )
            for name, (sent, back) in messages.METHODS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(messages.SERVICE, handlers),))
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        for uid in tuple(self._entries):
            self._forget(uid)

    def _noted(self, name: str) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self.heard.append((name, request, dict(context.invocation_metadata())))
            if (name == "req") is (request.uid in self._entries):
                raise ValueError(f"{name} request invalid for uid '{request.uid}'")
            return getattr(self, f"_{name}")(request)

        return call

    def _req(self, request: Any) -> Any:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(request.num_conn)]
        entry = self._entries[request.uid] = _Entry(request.role, listeners)
        if not entry.said_hello.wait(_HELLO_S):
            raise TimeoutError("Hello not received within the timeout period")
        return self._answer

    def _hello(self, request: Any) -> Any:
        entry = self._entries[request.uid]
        if request.role == "PROD":
            entry.targets = list(request.prod_listeners)
            self._answer = messages.Response(listeners=self._claim(entry.addresses), prod_listeners=entry.targets)
            told = messages.AppResponse(message="Sending Prod listeners...")
        else:
            self._answer = messages.Response(listeners=entry.addresses)
            told = messages.AppResponse(message="Sending listeners...", listeners=entry.addresses)
        entry.said_hello.set()
        return told

    def _update(self, request: Any) -> Any:
        entry, named = self._entries[request.uid], request.remote_listeners
        mapped = [named[i % len(named)] for i in range(len(entry.listeners))]
        for listener, target in zip(entry.listeners, mapped, strict=True):
            threading.Thread(target=_forward, args=(listener, target), daemon=True).start()
        return messages.Response(listeners=entry.addresses, prod_listeners=mapped)

    def _release(self, request: Any) -> Any:
        self._forget(request.uid)
        return messages.Response()

    def _forget(self, uid: str) -> None:
        for listener in self._entries.pop(uid).listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _forward(listener: socket.socket, target: str) -> None:
    """Carry the connections of a listener, one after the other, until it is closed."""
    host, _, port = target.rpartition(":")
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        with accepted, socket.create_connection((host, int(port))) as dialled:
            ways: Sequence[tuple[socket.socket, socket.socket]] = ((accepted, dialled), (dialled, accepted))
            pumps = [threading.Thread(target=_pump, args=way) for way in ways]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
