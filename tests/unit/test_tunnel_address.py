"""Uids and listener strings: what is taken, what is refused, and that nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream.tunnel.address import check_uid, parse_endpoint
from ministream.tunnel.refusal import Code, RefusedError


@pytest.mark.parametrize(
    "uid", ["e4b27ca2-eb24-11f1-a9ca-02fc00000001", "01aab3a1cfaf409fb7436bf1202d2214", "x", "scan_7-b", "A" * 64]
)
def test_uids_of_every_kind_are_taken(uid: str) -> None:
    assert check_uid(uid) == uid


@pytest.mark.parametrize("uid", ["", "A" * 65, "../../etc/passwd", "a b", "a\n", "a;rm", "$(id)", "é", "a/b", "a.b"])
def test_other_uids_are_refused(uid: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_uid(uid)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7000", "127.0.0.1", 7000),
        ("localhost:1", "localhost", 1),
        ("Gateway-1.example.org:65535", "gateway-1.example.org", 65535),
        ("[::1]:5000", "::1", 5000),
        ("[2001:DB8::0:1]:5000", "2001:db8::1", 5000),
    ],
)
def test_listeners_of_every_kind_are_read(text: str, host: str, port: int) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.host, endpoint.port) == (host, port)
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:+1", "host: 80", "host:8O"),
        *("::1:80", "[::1]", "[::1", "[::1%eth0]:80", "[127.0.0.1]:80", "[x]:80"),
        *("127.1:80", "0x7f.1:80", "1.2.3.4.5:80", "256.1.1.1:80", "2130706433:80", "01.2.3.4:80"),
        *("a..b:80", "-a:80", "a-:80", "a b:80", "a\nb:80", "a;b:80", "a/b:80", "é:80", "a:80\n", "host:٣"),
        "a" * 64 + ":80",
        "a." * 200 + ":80",
        "accept = 1\nconnect = 2:80",
    ],
)
def test_other_listeners_are_refused(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_endpoint(text)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_port_0_only_for_servers() -> None:
    assert parse_endpoint("127.0.0.1:0", any_port=True).port == 0


@given(st.text(max_size=400))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except RefusedError:
        return
    assert parse_endpoint(str(endpoint)) == endpoint
    assert str(endpoint).isascii()
    assert not set(str(endpoint)) & set(" \t\r\n;#{}'\"\\/$`")


@given(st.text(max_size=80))
def test_any_uid_is_taken_as_it_is_or_refused(text: str) -> None:
    try:
        taken = check_uid(text)
    except RefusedError:
        return
    assert taken == text
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
