"""The certificate that a control server presents; gRPC's own client does not expose it."""

from __future__ import annotations

import socket
import ssl

from cryptography import x509

from ministream.tunnel.address import Endpoint


def certificate_at(endpoint: Endpoint, context: ssl.SSLContext, timeout_s: float) -> x509.Certificate:
    """The certificate of the server at this address, verified by `context`. Raises ssl.SSLError or another OSError."""
    with (
        socket.create_connection((endpoint.host, endpoint.port), timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=endpoint.host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def context_for(ca: bytes) -> ssl.SSLContext:
    """TLS as a control server's client speaks it, trusting this authority alone."""
    context = ssl.create_default_context(cadata=ca.decode())
    context.set_alpn_protocols(["h2"])
    return context
