"""The container recipes, where no container engine runs: the deployment of three networks with its own command
lines, in network namespaces instead of containers, and what a linter of recipes would look at.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import networks
from tests.integration.jobs import Lab, lab

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
COMPOSE: dict[str, Any] = yaml.safe_load((LAUNCH / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
BIN = Path(sys.executable).parent


def host_of(service: str) -> str:
    """The namespace that stands for a service's network."""
    mode = SERVICES[service].get("network_mode", "")
    return mode.removeprefix("service:") if mode.startswith("service:") else service


def words_of(service: str, folder: Path) -> list[str]:
    """A service's command line, with the folders of its volumes in `folder` and the image's PATH."""
    found = SERVICES[service]
    words = [*found.get("entrypoint", ["ministream"]), *found["command"]]
    text = shlex.join(words)
    for volume in found.get("volumes", []):
        name, inside = volume.split(":")[:2]
        outside = folder / ("run.toml" if name.startswith("./") else name)
        text = re.sub(rf"(?<![\w.]){inside}\b", str(outside), text)
    return ["env", f"PATH={BIN}:/usr/bin:/bin:/usr/sbin", *shlex.split(text)]


@pytest.mark.slow
def test_the_three_networks_carry_a_scan(tmp_path: Path) -> None:
    if not networks.available():
        pytest.skip("network namespaces need root")
    (tmp_path / "run.toml").write_text('[source]\nkind = "phantom"\nrows = 4\ncols = 32\nprojections = 30\n')
    (tmp_path / "results").mkdir()
    subprocess.run(words_of("certs", tmp_path), check=True, timeout=60, capture_output=True)
    made = networks.Networks()
    try:
        made.make()
        with lab(tmp_path) as jobs:
            _play(jobs, made, tmp_path)
    finally:
        made.remove()
    assert (tmp_path / "results" / "recon.h5").exists()


def _play(jobs: Lab, made: networks.Networks, folder: Path) -> None:
    started = {
        service: jobs.start(service, made.on(host_of(service), words_of(service, folder)))
        for service in ("producer", "p2cs", "c2cs")
    }
    for gateway in ("p2cs", "c2cs"):
        started[gateway].until(lambda job=started[gateway]: "control server on" in job.text)
    client = jobs.start("s2uc", made.on(host_of("s2uc"), words_of("s2uc", folder)))
    assert client.wait() == 0, client.text
    consumer = jobs.start("consumer", made.on("consumer", words_of("consumer", folder)))
    assert consumer.wait() == 0, consumer.text + started["producer"].text
    assert started["producer"].wait() == 0, started["producer"].text
    for gateway in ("p2cs", "c2cs"):
        started[gateway].process.terminate()


def test_the_addresses_are_those_of_the_original() -> None:
    assigned = {
        service: tuple(network["ipv4_address"] for network in found["networks"].values())
        for service, found in SERVICES.items()
        if "networks" in found
    }
    assert assigned == networks.HOSTS


def test_every_party_has_its_own_credentials_and_none_the_authority() -> None:
    seen = {
        service: {volume.split(":")[0] for volume in found.get("volumes", [])} & {"authority", "p2cs", "c2cs", "user"}
        for service, found in SERVICES.items()
    }
    assert seen.pop("certs") == {"authority", "p2cs", "c2cs", "user"}
    assert {service: held for service, held in seen.items() if held} == {
        "p2cs": {"p2cs"},
        "c2cs": {"c2cs"},
        "s2uc": {"user"},
    }


def test_no_service_is_privileged() -> None:
    for name, service in SERVICES.items():
        assert "privileged" not in service, name
        assert service["cap_drop"] == ["ALL"], name
        assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume], name


@pytest.mark.parametrize("recipe", ["Dockerfile", "ministream.def"])
def test_recipes_name_only_what_is_there(recipe: str) -> None:
    text = (LAUNCH / recipe).read_text()
    used = re.findall(r"/opt/ministream/([\w./-]+\.\w+)", text)
    assert used
    for path in used:
        assert (LAUNCH.parent / path).exists() or path.startswith(".venv"), path
    assert "debian:12" in text
