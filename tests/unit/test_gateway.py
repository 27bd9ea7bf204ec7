"""The control server that a job hosts: where its data ports are."""

from __future__ import annotations

from pathlib import Path

import pytest

from ministream.app.gateway import control_server
from ministream.config import TunnelSection
from ministream.errors import ConfigError
from tests.integration.tunnel_ends import make_credentials


@pytest.mark.parametrize(
    ("address", "side", "interface"),
    [
        ("127.0.0.1:0", "PROD", "127.0.0.1"),
        ("localhost:0", "PROD", "127.0.0.1"),
        ("192.0.2.7:5000", "PROD", "192.0.2.7"),
        ("beamline:5000", "PROD", "beamline"),
        ("[2001:db8::7]:5000", "PROD", "2001:db8::7"),
        ("192.0.2.7:5000", "CONS", "127.0.0.1"),
        ("0.0.0.0:5000", "CONS", "127.0.0.1"),
    ],
)
def test_data_ports_are_where_the_other_side_reaches_them(address: str, side: str, interface: str) -> None:
    assert control_server._data_host(address, side) == interface


def test_a_control_port_on_every_interface_needs_a_data_host_and_the_remedy_works(tmp_path: Path) -> None:
    own = make_credentials(tmp_path / "d").directory
    with pytest.raises(ConfigError, match=r"--set tunnel.data_host=ADDRESS"):
        control_server.embedded(TunnelSection(control="0.0.0.0:0", credentials=own), "PROD")
    for remedy in ({"data_host": "127.0.0.1"}, {"advertise": "gateway.site"}):
        server = control_server.embedded(TunnelSection(control="0.0.0.0:0", credentials=own, **remedy), "PROD")
        assert server is not None
        with server:
            assert server.sessions() == []
