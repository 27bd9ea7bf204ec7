"""Coverage-guided fuzzing of the control server's methods, behind gRPC: any messages, in any order, from two callers.

    pip install atheris
    python tests/fuzz/fuzz_tunnel_control.py -max_total_time=300 -max_len=2048 [CORPUS]

Any error but a refusal is a finding, and so is a port that stays bound after the sessions have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import atheris
from google.protobuf.message import DecodeError
from harness import fuzz

with atheris.instrument_imports(include=["ministream.tunnel"]):
    from ministream.tunnel import messages, session_manager
    from ministream.tunnel.address import parse_endpoint
    from ministream.tunnel.auth import Authenticator
    from ministream.tunnel.policy import Policy, PolicySection
    from ministream.tunnel.ports import PortPool
    from ministream.tunnel.refusal import RefusedError
    from ministream.tunnel.service import Service
    from ministream.tunnel.sessions import Quota

METHODS = list(messages.METHODS)
# Nothing may be waited for here, and nobody listens on the only target.
session_manager._HELLO_GRACE_S = 0.0
QUOTA = Quota(sessions=4, sessions_per_identity=3, connections_per_session=3, connections_per_identity=4)


class Call:
    """gRPC's context of one call."""

    def __init__(self, peer: bytes | None) -> None:
        self._peer = peer

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return () if self._peer is None else ((messages.PEER_KEY, self._peer),)

    def set_trailing_metadata(self, metadata: Any) -> None:
        assert all(isinstance(value, bytes) for _, value in metadata)


def message(method: str, chosen: Any) -> Any:
    """Any bytes as the message, or one whose fields are mostly what a client would send."""
    kind = messages.message_class(messages.METHODS[method][0])
    if chosen.ConsumeBool():
        with contextlib.suppress(DecodeError):
            return kind.FromString(chosen.ConsumeBytes(200))
    any_text = chosen.ConsumeUnicodeNoSurrogates(70)
    listeners = [
        chosen.PickValueInList(["127.0.0.1:1", "127.0.0.1:2", "[::1]:1", any_text])
        for _ in range(chosen.ConsumeIntInRange(0, 3))
    ]
    fields = {
        "uid": chosen.PickValueInList(["a", "b", "c", "d", any_text]),
        "role": chosen.PickValueInList(["PROD", "CONS", any_text]),
        "num_conn": chosen.ConsumeIntInRange(-1, 5),
        "rate": chosen.ConsumeInt(4),
        "prod_listeners": listeners,
        "remote_listeners": listeners,
    }
    known = [field.name for field in kind.DESCRIPTOR.fields]
    return kind(**{name: value for name, value in fields.items() if name in known})


async def talk(chosen: Any) -> None:
    """A conversation of calls."""
    policy = Policy(PolicySection(targets=("127.0.0.1:1",), quota=QUOTA))
    serving = session_manager.SessionManager(
        side=None,
        kind="relay",
        ports=PortPool("127.0.0.1", None),
        policy=policy,
        targets=[parse_endpoint("127.0.0.1:1")],
        plain_data=False,
        options={},
    )
    anyone = Authenticator(revocations=None, verifiers=(), anonymous_allowed=True)
    service = Service(serving, anyone, policy, None)
    waiting: list[asyncio.Task[None]] = []
    while chosen.remaining_bytes():
        method = chosen.PickValueInList(METHODS)
        peer = chosen.ConsumeBytes(200) if chosen.ConsumeBool() else None
        waiting.append(asyncio.create_task(answered(service, method, message(method, chosen), Call(peer))))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await serving.close()
    await asyncio.gather(*waiting)
    assert await serving.list(None) == []


async def answered(service: Service, method: str, request: Any, call: Call) -> None:
    with contextlib.suppress(RefusedError):
        await getattr(service, method)(await service.admitted(request, call), request, call)


def one(data: bytes) -> None:
    """One server's life."""
    before = open_files()
    asyncio.run(talk(atheris.FuzzedDataProvider(data)))
    assert open_files() <= before


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    fuzz(one)
