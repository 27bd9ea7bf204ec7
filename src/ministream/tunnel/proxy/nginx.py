"""nginx's stream module as a data server: plain TCP, or TLS 1.3 with the relay's per-session certificates.

Over TLS it ends both directions of a connection together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ministream.tunnel.certificates import SESSION_NAME
from ministream.tunnel.ports import endpoint_of
from ministream.tunnel.proxy import CALLERS_PER_ADDRESS, HANDSHAKE_S, Addresses
from ministream.tunnel.proxy._configured import CertifiedProxy, address_text
from ministream.tunnel.proxy._program import path
from ministream.tunnel.role import Role

# Debian ships the module as a separate file; elsewhere it is compiled in.
_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_HEAD = """\
daemon off;
worker_processes auto;
pid {pid};
error_log stderr info;
events {{ worker_connections 2048; }}
stream {{
    proxy_connect_timeout 15s;
    proxy_timeout 365d;
    proxy_buffer_size 256k;
    proxy_half_close {half_close};
    proxy_socket_keepalive on;
    tcp_nodelay on;
"""
_ACCEPTED_TLS = f"""\
    ssl_handshake_timeout {HANDSHAKE_S:g}s;
    limit_conn_zone $binary_remote_addr zone=callers:1m;
    limit_conn callers {CALLERS_PER_ADDRESS};
    ssl_certificate {{pair}};
    ssl_certificate_key {{pair}};
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    ssl_verify_client on;
    ssl_client_certificate {{peer}};
"""
_DIALLED_TLS = """\
    proxy_ssl on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_certificate {pair};
    proxy_ssl_certificate_key {pair};
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {peer};
    proxy_ssl_name {name};
"""


class Proxy(CertifiedProxy):
    """One nginx per session."""

    program = "nginx"
    ready = "start worker process "
    ended = re.compile(r"bytes from/to client:(?P<inward>\d+)/(?P<outward>\d+)")

    def arguments(self) -> Sequence[str]:
        return ["-e", "stderr", "-c", path(0)]

    def files(self, targets: Sequence[Addresses], peer: bytes | None) -> Sequence[bytes]:
        # nginx requires a pid file: give it one in memory.
        return [*super().files(targets, peer), b""]

    def configuration(self, targets: Sequence[Addresses], *, secure: bool) -> str:
        accepts = self.setup.side is Role.PROD
        load = f"load_module {_MODULE};\n" if _MODULE.exists() else ""
        # Over TLS nginx would end one direction without close_notify, which the other side must treat as truncation.
        text = load + _HEAD.format(pid=path(3 if secure else 1), half_close="off" if secure else "on")
        if secure:
            tls = _ACCEPTED_TLS if accepts else _DIALLED_TLS
            text += tls.format(pair=path(1), peer=path(2), name=SESSION_NAME)
        for index, (listener, addresses) in enumerate(zip(self.setup.listeners, targets, strict=True)):
            flag = " ssl" if secure and accepts else ""
            keepalive = " so_keepalive=on"
            first, *others = map(address_text, addresses)
            if others:
                backups = "".join(f" server {other} backup;" for other in others)
                text += f"    upstream connection-{index} {{ server {first};{backups} }}\n"
            text += f"    server {{ listen {endpoint_of(listener)}{flag}{keepalive}; "
            text += f"proxy_pass {f'connection-{index}' if others else first}; }}\n"
        return text + "}\n"
