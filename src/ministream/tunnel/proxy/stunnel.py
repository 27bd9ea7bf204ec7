"""stunnel as a data server: TLS 1.3 with a pre-shared key that is made for the session and discarded with it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from ministream import config, log
from ministream.tunnel.certificates import make_session_pair
from ministream.tunnel.ports import endpoint_of
from ministream.tunnel.proxy import HANDSHAKE_S, SESSION_DAYS, Addresses, Setup
from ministream.tunnel.proxy._configured import ConfiguredProxy, address_text
from ministream.tunnel.proxy._launch import FIRST_FILE
from ministream.tunnel.proxy._program import path
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role

_OFFER = re.compile(rb"psk:([0-9a-f]{64})")
_IDENTITY = "session"
_LEGACY_IDENTITY = "client1"
# "Connection closed" or "reset"; the dialled side is the one without TLS beside the producer, the one with it else.
_ENDED = {
    Role.PROD: re.compile(r"(?P<outward>\d+) byte\(s\) sent to TLS, (?P<inward>\d+) byte\(s\) sent to socket"),
    Role.CONS: re.compile(r"(?P<inward>\d+) byte\(s\) sent to TLS, (?P<outward>\d+) byte\(s\) sent to socket"),
}
# stunnel requires an idle timeout.
_YEAR_S = 31_536_000
_GLOBAL = f"""\
foreground = yes
pid =
syslog = no
debug = notice
TIMEOUTidle = {_YEAR_S}
TIMEOUTconnect = 15
TIMEOUTbusy = {HANDSHAKE_S:g}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
socket = l:SO_KEEPALIVE=1
socket = r:SO_KEEPALIVE=1
"""
# Debian's stunnel 5.68 accepts no SHA-384 suite with a pre-shared key.
_TLS_1_3 = """\
sslVersionMin = TLSv1.3
ciphersuites = TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256
"""
# Stock SciStream offers only suites without encryption; those without authentication are excluded.
_LEGACY = """\
sslVersionMin = TLSv1.2
sslVersionMax = TLSv1.2
securityLevel = 0
ciphers = ECDHE-PSK-AES128-GCM-SHA256:PSK-AES128-GCM-SHA256:ECDHE-PSK-NULL-SHA256:PSK-NULL-SHA256:PSK-NULL-SHA:!aNULL
"""

_LOG = log.get(__name__)


class Options(config.Section):
    """`--legacy-psk`: interoperate with a stock SciStream stunnel."""

    legacy_psk: bool = False


class Proxy(ConfiguredProxy):
    """One stunnel per session. The producer's side makes the key; the consumer's side gets it as the offer."""

    program = "stunnel"
    ready = "Configuration successful"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._key = secrets.token_hex(32)
        self.ended = _ENDED[setup.side]
        self._legacy = config.parse(Options, setup.options, "[tunnel]").legacy_psk
        if self._legacy:
            _LOG.warning(
                "session %s: legacy pre-shared key: anyone who knows the uid can join, and stock peers do not encrypt",
                setup.uid,
            )

    @property
    def offer(self) -> bytes | None:
        """The session's key, from the producer's side; the other side only signals support."""
        if self._legacy:
            return None
        return f"psk:{self._key if self.setup.side == 'PROD' else '0' * 64}".encode()

    @property
    def secures_itself(self) -> bool:
        return self._legacy

    def arguments(self) -> Sequence[str]:
        return ["-fd", str(FIRST_FILE)]

    def files(self, targets: Sequence[Addresses], peer: bytes | None) -> Sequence[bytes]:
        identity, key = self._secret(peer)
        text = _GLOBAL + f"PSKsecrets = {path(1)}\n" + (_LEGACY if self._legacy else _TLS_1_3)
        dials = self.setup.side is Role.CONS
        for index, (listener, addresses) in enumerate(zip(self.setup.listeners, targets, strict=True)):
            text += f"[connection-{index}]\nclient = {'yes' if dials else 'no'}\n"
            # The address is for the log: the socket itself is inherited.
            text += f"accept = {endpoint_of(listener)}\n"
            text += "".join(f"connect = {address_text(address)}\n" for address in addresses)
            text += f"PSKidentity = {identity}\nverifyChain = yes\nCAfile = {path(2)}\n" if dials else ""
        # With the key no certificate is shown. A server that presents one is not our peer: the only
        # authority that stunnel trusts has never signed anything.
        nobody = make_session_pair(SESSION_DAYS).certificate
        return [text.encode(), f"{identity}:{key}\n".encode(), nobody]

    def _secret(self, peer: bytes | None) -> tuple[str, str]:
        if self._legacy:
            return _LEGACY_IDENTITY, self.setup.uid.replace("-", "")
        match = _OFFER.fullmatch(peer or b"")
        if match is None:
            text = (
                "stunnel needs the other side's key: use stunnel on both sides, and `ministream connect` to join them"
            )
            raise RefusedError(Code.INVALID_ARGUMENT, text)
        return _IDENTITY, self._key if self.setup.side is Role.PROD else match[1].decode()
