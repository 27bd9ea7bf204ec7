"""The compose files without an engine: addresses and ports fit together, and every command is one of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from ministream.cli import cli

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    """The services of compose.yaml under compose.aps.yaml, which replaces whole commands."""
    base, over = (yaml.safe_load((LAUNCH / name).read_text()) for name in ("compose.yaml", "compose.aps.yaml"))
    return {name: service | over["services"].get(name, {}) for name, service in base["services"].items()}


def words(service: dict) -> list[str]:
    """The command's words after `ministream`."""
    command = service["command"]
    return command[1:] if command[0] == "ministream" else command


def test_only_services_that_exist_are_changed() -> None:
    base, over = (yaml.safe_load((LAUNCH / name).read_text()) for name in ("compose.yaml", "compose.aps.yaml"))
    assert set(over) == {"services"}
    assert set(over["services"]) <= set(base["services"])
    assert all(set(service) == {"command"} for service in over["services"].values())


@pytest.mark.parametrize("name", ["producer", "p2cs", "c2cs", "s2uc", "consumer"])
def test_every_command_is_one_of_ours(services, name) -> None:
    command, *arguments = words(services[name])
    group = typer.main.get_command(cli)
    context = group.make_context("ministream", [command, "--help"], resilient_parsing=True)
    group.commands[command].make_context(command, arguments, parent=context)


def test_each_dials_what_the_next_one_listens_at(services) -> None:
    said = {name: " ".join(words(service)) for name, service in services.items() if name != "certs"}
    address = {
        network: settings["ipv4_address"]
        for name in ("producer",)
        for network, settings in services[name]["networks"].items()
    }["producer_network"]
    listened = re.findall(r"tcp://\*:(\d+)", said["producer"])
    assert re.findall(r"--target=(\S+)", said["p2cs"]) == [f"{address}:{port}" for port in listened]
    controls = [re.search(r"--listen=(\S+)", said[gateway])[1] for gateway in ("p2cs", "c2cs")]
    assert [re.search(rf"--{side}=(\S+)", said["s2uc"])[1] for side in ("prod", "cons")] == controls
    host = re.search(r"--data-host=(\S+)", said["c2cs"])[1]
    first = int(re.search(r"--port-range=(\d+)", said["c2cs"])[1])
    dialled = re.findall(r"--(?:connect|sync)=tcp://(\S+)", said["consumer"])
    assert dialled == [f"{host}:{first}", f"{host}:{first + 1}"]
    assert len(listened) == len(dialled) == int(re.search(r"--num-conn=(\d+)", said["s2uc"])[1])
