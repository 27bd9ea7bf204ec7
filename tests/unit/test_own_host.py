"""The name under which the servers of a batch job are found."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket

import pytest

from ministream.app.own_host import LOOPBACK, own_host


def test_outside_of_slurm_it_is_loopback() -> None:
    assert own_host({}) == own_host({"SLURM_JOB_ID": "7"}) == LOOPBACK


# no name at all, loopback, and an address of another machine (TEST-NET-2)
@pytest.mark.parametrize("name", ["n1..lab", "localhost", "198.51.100.7"])
def test_a_name_that_others_cannot_use_is_replaced(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        host = own_host({"SLURMD_NODENAME": name})
    assert host != name
    assert name in caplog.text
    assert "--host" in caplog.text
    if host == LOOPBACK:  # a machine without a network
        assert "loopback alone" in caplog.text
        return
    for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        assert not ipaddress.ip_address(address[0]).is_loopback
        with socket.socket(family, kind) as probe:
            probe.bind(address)


@pytest.mark.parametrize("name", ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE"])
def test_other_schedulers_say_no_name(name: str) -> None:
    assert own_host({name: "/spool/hosts"}) == own_host({"SLURMD_NODENAME": "n1..lab"})


def test_a_name_that_others_can_use_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    host = own_host({"SLURMD_NODENAME": "n1..lab"})
    if host == LOOPBACK:
        pytest.skip("this machine has no network")
    caplog.clear()
    assert own_host({"SLURMD_NODENAME": host}) == host
    assert not caplog.text


def test_the_environment_of_this_process_is_one() -> None:
    assert own_host(os.environ)
