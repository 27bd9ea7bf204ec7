"""HAProxy as a data server: plain TCP, or TLS 1.3 with the same per-session certificates as the built-in relay."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ministream.tunnel.proxy import Addresses
from ministream.tunnel.proxy._configured import CertifiedProxy, address_text
from ministream.tunnel.proxy._launch import FIRST_LISTENER
from ministream.tunnel.proxy._program import path
from ministream.tunnel.role import Role

# HAProxy requires an idle timeout; 24 days is its maximum.
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
    timeout client 24d
    timeout server 24d
"""
_LISTEN = """\
listen connection-{index}
    bind fd@{fd}{accepted}
    {servers}
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
        return _GLOBAL + "".join(blocks)
