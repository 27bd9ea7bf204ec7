"""Where a session's bytes may go."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ministream.tunnel.address import parse_endpoint
from ministream.tunnel.policy import Policy, PolicySection, Target
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role
from ministream.tunnel.targets import default_rules, parse_all, resolve

OWN = (parse_endpoint("127.0.0.1:7000"),)


def test_listeners_are_read_or_refused() -> None:
    assert list(map(str, parse_all([" 127.0.0.1:5 ", "[::1]:6"]))) == ["127.0.0.1:5", "[::1]:6"]
    assert parse_all([]) == ()
    for wrong in (["127.0.0.1:5", "no port"], ["127.0.0.1:5"] * 257):
        with pytest.raises(RefusedError) as caught:
            parse_all(wrong)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_beside_the_consumer_anywhere_but_only_to_a_known_peer() -> None:
    own = (Target("127.0.0.1", 7000, 7000),)
    assert default_rules(Role.PROD, b"certificate", OWN) == own
    assert default_rules(Role.CONS, None, OWN) == own
    assert default_rules(Role.CONS, b"certificate", OWN) == (Target("*", 1, 65535),)


def test_every_address_of_a_target_is_judged() -> None:
    def find(text: str) -> object:
        policy = Policy(PolicySection())
        return asyncio.run(resolve(parse_endpoint(text), "someone", policy, default_rules(Role.PROD, None, OWN)))

    assert find("127.0.0.1:7000") == ((socket.AF_INET, ("127.0.0.1", 7000)),)
    with pytest.raises(RefusedError) as caught:
        find("127.0.0.1:7001")
    assert caught.value.code is Code.PERMISSION_DENIED
    with pytest.raises(RefusedError) as caught:
        find("no-such-host.invalid:7000")
    assert caught.value.code is Code.PERMISSION_DENIED, "whether a name exists is not told to whoever may not reach it"


def test_a_name_that_is_allowed_and_does_not_resolve_is_said() -> None:
    policy = Policy(PolicySection(targets=("no-such-host.invalid:7000",)))
    with pytest.raises(RefusedError) as caught:
        asyncio.run(resolve(parse_endpoint("no-such-host.invalid:7000"), "someone", policy, ()))
    assert caught.value.code is Code.INVALID_ARGUMENT
