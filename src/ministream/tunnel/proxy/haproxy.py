"""HAProxy as a data server: plain TCP, or TLS 1.3 with the same per-session certificates as the built-in relay."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ministream.tunnel.proxy import CALLERS_PER_ADDRESS, Addresses
from ministream.tunnel.proxy._configured import CertifiedProxy, address_text
from ministream.tunnel.proxy._launch import FIRST_LISTENER
from ministream.tunnel.proxy._program import path
from ministream.tunnel.role import Role

# HAProxy requires an idle timeout; 24 days is its maximum. `timeout tunnel` replaces `client` and `server` once both
# sides are connected, so that those two limit the handshake. Without the `-fin` ones a half-closed connection whose
# peer has vanished would stay for 24 days.
_GLOBAL = """\
global
    maxconn 1024
    tune.bufsize 65536
    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
    ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
    log stdout format raw local0
defaults
    log global
    log-format "connection ended: %U inward, %B outward"
    mode tcp
    option splice-auto
    option clitcpka
    option srvtcpka
    retries 10
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    timeout tunnel 24d
    timeout client-fin 1h
    timeout server-fin 1h
"""
_LISTEN = """\
listen connection-{index}
    bind fd@{fd}{accepted}
    {servers}
"""
_LIMIT_STRANGERS = f"""\
    stick-table type ipv6 size 4k expire 1m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {CALLERS_PER_ADDRESS} }}
"""


class Proxy(CertifiedProxy):
    """One HAProxy per session."""

    program = "haproxy"
    ready = "Loading success"
    ended = re.compile(r"connection ended: (?P<inward>\d+) inward, (?P<outward>\d+) outward")

    def arguments(self) -> Sequence[str]:
        return ["-W", "-f", path(0)]

    def configuration(self, targets: Sequence[Addresses], *, secure: bool) -> str:
        tls = f" ssl crt {path(1)} ca-file {path(2)} verify required" if secure else ""
        accepts = self.setup.side is Role.PROD
        blocks = [
            _LISTEN.format(
                index=index,
                fd=FIRST_LISTENER + index,
                accepted=tls if accepts else "",
                servers="\n    ".join(
                    f"server s{number} {address_text(address)}{'' if accepts else tls}{' backup' if number else ''}"
                    for number, address in enumerate(addresses)
                ),
            )
            for index, addresses in enumerate(targets)
        ]
        limit = _LIMIT_STRANGERS if accepts and secure else ""
        return _GLOBAL + "".join(block + limit for block in blocks)
