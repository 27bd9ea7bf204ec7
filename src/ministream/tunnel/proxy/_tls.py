"""TLS 1.3 over a TCP socket, as one end of a relayed connection. Never blocking.

OpenSSL works on memory: one call encrypts a whole chunk and one `send` ships it, where TLS on a socket makes a system
call per record of 16 KiB.
"""

from __future__ import annotations

import contextlib
import socket

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from ministream.tunnel.proxy._ends import CHUNK, Wait

# A record's plaintext at most (RFC 8446 §5.1); a chunk's records are larger than the chunk by less than 1 in 64.
_RECORD = 16 * 1024
_WIRE_CHUNK = CHUNK + CHUNK // 64
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# SSL_MODE_ENABLE_PARTIAL_WRITE of <openssl/ssl.h>: a call would end after one record.
_PARTIAL_WRITE = 1

# Receive buffer in front of OpenSSL; one for all ends of the process, so that it stays in cache.
_arrived = memoryview(bytearray(CHUNK))


class TlsError(OSError):
    """The peer violated the protocol, or is not the expected one."""


class TruncatedError(OSError):
    """A TLS stream ended without close_notify: it may be incomplete."""


def make_context(*, certificate: str, key: str, peer: str, accepts: bool) -> SSL.Context:
    """TLS 1.3 that presents one certificate and trusts one other (PEM)."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD if accepts else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_SUITES)
    context.clear_mode(_PARTIAL_WRITE)
    # No session resumption, on either side.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.use_certificate(x509.load_pem_x509_certificate(certificate.encode()))
    private = serialization.load_pem_private_key(key.encode(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    context.use_privatekey(private)
    trusted = x509.load_pem_x509_certificate(peer.encode())
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(trusted))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


class TlsEnd:
    """TLS over a TCP socket."""

    def __init__(self, sock: socket.socket, context: SSL.Context, *, accepts: bool) -> None:
        self.sock = sock
        self._tls = SSL.Connection(context)
        if accepts:
            self._tls.set_accept_state()
        else:
            self._tls.set_connect_state()
        self._unsent = memoryview(b"")
        # OpenSSL has bytes to send; has none to read; the socket had no more when it was last asked.
        self._pending = True
        self._starved = False
        self._drained = False
        self._failure: OSError | None = None
        self._ended = False
        self._finished = False
        # Whether the peer has sent anything.
        self.heard = False

    @property
    def cipher(self) -> str:
        """Protocol and cipher suite, after the handshake."""
        return f"{self._tls.get_protocol_version_name()} {self._tls.get_cipher_name()}"

    def certificate(self) -> bytes | None:
        """The peer's certificate, DER."""
        found = self._tls.get_peer_certificate(as_cryptography=True)
        return None if found is None else found.public_bytes(serialization.Encoding.DER)

    def handshake(self) -> Wait:
        """Continue the handshake; DONE when it is complete. Raises TlsError when it fails."""
        while True:
            self._pending = True
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                if not self.flush():
                    return Wait.WRITE
                if not self._receive():
                    if self._failure is not None:
                        raise self._failure from None
                    return Wait.READ
            except SSL.Error as error:
                # The alert tells the peer the reason; a failure to send it is ignored.
                with contextlib.suppress(OSError):
                    self.flush()
                raise _translated(error) from error
            else:
                return Wait.DONE if self.flush() else Wait.WRITE

    def read_into(self, buffer: memoryview) -> int | None:
        """As much as fits, over all records that have arrived. Raises TlsError or TruncatedError."""
        filled = 0
        while filled < len(buffer) and not self._ended:
            # Data before a failure counts; the next call reports the failure.
            if self._starved and ((filled and self._drained) or not self._receive()):
                if self._failure is not None and not filled:
                    raise self._failure
                break
            try:
                filled += self._tls.recv_into(buffer[filled:], _RECORD)
            except SSL.WantReadError:
                self._starved = True
            except SSL.ZeroReturnError:
                self._ended = True
            except SSL.Error as error:
                raise _translated(error) from error
        return filled if filled or self._ended else None

    def write(self, data: memoryview) -> int:
        if not self.flush():
            return 0
        try:
            taken = self._tls.send(data)
        except SSL.Error as error:
            raise _translated(error) from error
        self._pending = True
        self.flush()
        return taken

    def flush(self) -> bool:
        while self._unsent or self._pending:
            if not self._unsent:
                try:
                    self._unsent = memoryview(self._tls.bio_read(_WIRE_CHUNK))
                except SSL.WantReadError:
                    self._pending = False
                    break
                self._pending = len(self._unsent) == _WIRE_CHUNK
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[sent:]
        return True

    def finish(self) -> None:
        """Send close_notify."""
        if self._finished:
            return
        self._finished = True
        try:
            self._tls.shutdown()
        except SSL.Error as error:
            raise _translated(error) from error
        self._pending = True
        self.flush()

    def _receive(self) -> bool:
        """Pass the socket's data to OpenSSL; returns whether there was any."""
        try:
            count = self.sock.recv_into(_arrived)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failure = error
            return False
        if not count:
            self._failure = TruncatedError("the TLS peer closed its socket without close_notify")
            return False
        self._tls.bio_write(_arrived[:count])
        self.heard = True
        self._starved = False
        self._drained = count < len(_arrived)
        return True


def _translated(error: SSL.Error) -> TlsError:
    """OpenSSL's own reason, for instance `certificate verify failed`."""
    reasons = [entry[-1] for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return TlsError(f"TLS: {', '.join(filter(None, reasons)) or 'failed'}")
