"""launch/requirements.lock holds what the installation needs, in versions that setup.cfg allows, each with hashes."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "launch" / "requirements.lock").read_text()
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def needed() -> list[Requirement]:
    """What `pip install ministream[all]` asks for."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = settings["options.extras_require"]
    found: list[Requirement] = []

    def add(text: str) -> None:
        for line in filter(None, map(str.strip, text.splitlines())):
            asked = Requirement(line)
            if canonicalize_name(asked.name) != "ministream":
                found.append(asked)
            for extra in sorted(asked.extras) if asked.name == "ministream" else ():
                add(extras[extra])

    add(settings["options"]["install_requires"])
    add(extras["all"])
    return found


def test_everything_that_the_installation_needs_is_pinned() -> None:
    pinned: dict[str, list[Version]] = {}
    for name, version in PINNED.findall(LOCK):
        pinned.setdefault(canonicalize_name(name), []).append(Version(version))
    assert len(needed()) > 20
    for asked in needed():
        versions = pinned.get(canonicalize_name(asked.name))
        assert versions, f"{asked.name} is missing: bash launch/lock.sh"
        assert all(version in asked.specifier for version in versions), f"{asked}: bash launch/lock.sh"


def test_every_pin_has_hashes() -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PINNED.findall(LOCK))
    assert all("--hash=sha256:" in block for block in blocks)
