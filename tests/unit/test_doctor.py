"""`ministream doctor`: what it finds on this machine, and that following a remedy ends the trouble."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ministream import config, registry
from ministream.app.doctor import examination
from ministream.app.doctor.checks import certificates, folder, kernels, limits, network, other_side, ranks
from ministream.app.doctor.finding import Condition, Finding, Subject, bad, doubtful, exit_code, good, left_out
from ministream.cli import cli
from ministream.config import Config
from ministream.tunnel import certificates as issuing
from ministream.tunnel import credentials, curve, service
from ministream.tunnel.control import ControlServer
from ministream.tunnel.credentials import Credentials
from tests.ports import free_ports

OK, WARNING, FAILED = Condition.OK, Condition.WARNING, Condition.FAILED


def subject(tmp_path: Path, **tables: dict) -> Subject:
    return Subject(config=config.load(None, tables), folder=tmp_path)


def by_subject(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def ministream(*words: str) -> None:
    """A command as a user gives it."""
    cli(list(words), standalone_mode=False)


def test_the_exit_code_is_that_of_the_worst_finding() -> None:
    fine, doubt, broken = good("a", "x"), doubtful("b", "x", "y"), bad("c", "x", "y")
    assert exit_code([fine, left_out("d", "x")]) == 0
    assert exit_code([fine, doubt]) == 3
    assert exit_code([fine, broken, doubt]) == 2


def test_a_check_that_breaks_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_subject: Subject) -> list[Finding]:
        raise OSError(errno.EIO, "broken")

    names = registry.names(examination.CHECKS)
    for name in names:
        monkeypatch.setattr(registry.load(examination.CHECKS, name), "examine", broken)
    monkeypatch.setattr(limits, "examine", lambda _subject: [good("limits", "fine")])
    found = list(examination.examine(subject(tmp_path)))
    assert len(found) == len(names)
    assert [finding.condition for finding in found].count(OK) == 1
    assert all("OSError" in finding.found for finding in found if finding.condition is FAILED)


# certificates


@pytest.fixture
def party(tmp_path: Path) -> Path:
    """An authority's folder with a server, a client and keys of the stream."""
    place = tmp_path / "ca"
    credentials.create_authority(place, name="ca", days=400)
    for usage in ("server", "client"):
        credentials.issue(place, name=f"the-{usage}", usage=usage, hosts=["localhost"], days=None, out=place)
    curve.create(place)
    return place


def examined(place: Path) -> dict[str, Finding]:
    return by_subject(
        list(certificates.examine(subject(place, tunnel={"credentials": str(place)}, stream={"curve": str(place)})))
    )


def test_good_credentials_need_nothing(party: Path) -> None:
    (party / "ca.key").unlink()
    found = examined(party)
    assert {finding.condition for finding in found.values()} == {OK}
    assert {"certificate ca.crt", "certificate server.crt", "key client.key", "revocation list"} <= set(found)
    assert {"stream keys, producer", "stream keys, receiver"} <= set(found)


@pytest.mark.parametrize(("days", "condition"), [(12, WARNING), (16, OK), (-1, FAILED)])
def test_a_certificate_that_ends_soon_is_renewed_as_the_remedy_says(
    party: Path, monkeypatch: pytest.MonkeyPatch, days: float, condition: Condition
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(issuing, "_CLOCK_SKEW", datetime.timedelta(days=40))
        credentials.issue(party, name="the-server", usage="server", hosts=["localhost"], days=days, out=party)
    found = examined(party)["certificate server.crt"]
    assert found.condition is condition
    if condition is not OK:
        program, *words = shlex.split(found.remedy)
        assert program == "ministream"
        ministream(*words)
        assert examined(party)["certificate server.crt"].condition is OK


def test_a_revoked_certificate_is_renewed_as_the_remedy_says(party: Path) -> None:
    credentials.revoke(party, "the-server")
    found = examined(party)["certificate server.crt"]
    assert found.condition is FAILED
    assert "revoked" in found.found
    ministream(*shlex.split(found.remedy)[1:])
    assert examined(party)["certificate server.crt"].condition is OK


def test_elsewhere_the_remedy_names_the_authoritys_machine(party: Path, tmp_path: Path) -> None:
    out = tmp_path / "gateway"
    credentials.issue(party, name="gw", usage="server", hosts=["localhost"], days=1, out=out)
    credentials.revoke(party, "gw")
    shutil.copy(party / "revoked", out / "revoked")
    found = examined(out)["certificate server.crt"]
    assert "on the authority's machine: ministream certs renew CA gw --out NEW" in found.remedy


def revealed(place: Path) -> str:
    (place / "server.key").chmod(0o644)
    return "key server.key"


def without_a_list(place: Path) -> str:
    (place / "revoked").unlink()
    return "revocation list"


def changeable(place: Path) -> str:
    (place / "client.crt").chmod(0o666)
    return "certificate client.crt"


@pytest.mark.parametrize("spoil", [revealed, without_a_list, changeable])
def test_files_are_repaired_by_the_command_in_the_remedy(party: Path, spoil: Callable[[Path], str]) -> None:
    name = spoil(party)
    found = examined(party)[name]
    assert found.condition is FAILED
    command = re.search(r"(chmod \S+|touch) ([^\s,)]+)", found.remedy)
    assert command is not None, found.remedy
    subprocess.run(shlex.split(command[0]), check=True)
    assert examined(party)[name].condition is OK


def test_the_authoritys_key_is_a_warning(party: Path) -> None:
    assert examined(party)["authority's key"].condition is WARNING


# addresses


def addresses(tmp_path: Path, address: str, **tunnel: object) -> Finding:
    found = by_subject(list(network.examine(subject(tmp_path, tunnel={"control": address, **tunnel}))))
    return found["data ports" if tunnel else "address tunnel.control"]


def test_a_port_in_use_is_free_after_another_choice(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = addresses(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}")
    assert found.condition is FAILED
    assert "choose another port with --control" in found.remedy
    assert addresses(tmp_path, f"127.0.0.1:{free_ports(1)}").condition is OK


@pytest.mark.parametrize("address", ["192.0.2.7:5000", "no-such-host.invalid:5000", "127.0.0.1"])
def test_an_address_that_is_not_this_machines_is_refused(tmp_path: Path, address: str) -> None:
    found = addresses(tmp_path, address)
    assert found.condition is FAILED
    assert "--control" in found.remedy


def test_a_range_without_a_free_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = addresses(tmp_path, "127.0.0.1:0", port_range=[port, port])
        assert found.condition is FAILED
    assert addresses(tmp_path, "127.0.0.1:0", port_range=[port, port]).condition is OK


def test_every_configured_address_is_checked() -> None:
    """A new key that holds an address must be added to the check."""
    keys = {
        f"{table}.{name}"
        for table, section in Config.model_fields.items()
        for name, field in getattr(type(section.default), "model_fields", {}).items()
        if "HOST:PORT" in (field.description or "") or name in ("listen", "control", "publish", "live", "sync")
    }
    given = {
        "producer": {"metrics": "h:1"},
        "output": {"metrics": "h:1", "live": "tcp://h:1", "publish": "tcp://h:1"},
        "tunnel": {"control": "h:1"},
        "aps": {"sync": "tcp://h:1"},
    }
    assert {key for key, _, _ in network.addresses_of(config.load(None, given))} == keys


# limits, folder, kernels


def test_open_files_are_raised_by_the_command_in_the_remedy() -> None:
    script = "from ministream.app.doctor.checks.limits import _open_files as f; print(f().condition, f().remedy)"
    python = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}"

    def told(command: str) -> str:
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()

    condition, _, remedy = told(f"ulimit -S -n 256; {python}").partition(" ")
    assert condition == WARNING
    command = remedy.partition(": ")[2]
    assert told(f"ulimit -S -n 256; {command}; {python}") == OK


def test_shared_memory_is_compared_with_what_the_ranks_need(tmp_path: Path) -> None:
    few, many = (limits._shared_memory(ranks) for ranks in (1, 10**9))
    assert (few.condition, many.condition) == (OK, WARNING)
    assert "--shm-size" in many.remedy


def test_a_folder_that_cannot_be_written_is_refused_and_another_one_works(tmp_path: Path) -> None:
    (found,) = folder.examine(subject(Path("/proc/nowhere")))
    assert found.condition is FAILED
    assert "--out" in found.remedy
    found = list(folder.examine(subject(tmp_path / "not" / "yet")))
    assert [one.condition for one in found] == [OK, OK, OK]
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_cache_that_others_can_change_is_replaced_as_the_remedy_says(tmp_path: Path) -> None:
    script = "from ministream.app.doctor.checks.kernels import _cache as f; print(f().condition, f().remedy)"

    def told(cache: Path) -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(tmp_path / "user")}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    condition, _, remedy = told(shared / "kernels").partition(" ")
    assert condition == WARNING
    assert "export NUMBA_CACHE_DIR=FOLDER" in remedy
    assert told(tmp_path / "own") == OK


def test_the_processor_and_the_kernels_are_named(tmp_path: Path) -> None:
    found = by_subject(list(kernels.examine(subject(tmp_path))))
    assert set(found) == {"processor", "kernels", "kernel cache"}
    assert found["kernels"].condition is OK


# ranks


@pytest.mark.slow
def test_ranks_write_together_and_separate_jobs_are_noticed(tmp_path: Path) -> None:
    found = by_subject(list(ranks.examine(subject(tmp_path))))
    assert found["MPI"].condition is OK, found
    assert "2 ranks" in found["MPI"].found
    assert "read back equal" in found["parallel HDF5"].found
    twice = ("bash", "-c", '"$@" & "$@"; wait', "bash")
    (alone,) = ranks.examine(Subject(config=Config(), folder=tmp_path, launcher=twice))
    assert alone.condition is FAILED
    assert "2 ranks were started as 2 jobs of one rank" in alone.found
    assert "--launcher" in alone.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    (found,) = ranks.examine(Subject(config=Config(), folder=tmp_path, launcher=("no-such-launcher",)))
    assert found.condition is FAILED
    assert "no-such-launcher" in found.found


# the other side


@pytest.fixture
def gateway(party: Path) -> Path:
    credentials.issue(party, name="the-server", usage="server", hosts=["127.0.0.1"], days=None, out=party)
    return party


def against(place: Path, address: str, tmp_path: Path) -> dict[str, Finding]:
    settled = config.load(None, {"tunnel": {"credentials": str(place)}})
    return by_subject(list(other_side.examine(Subject(config=settled, folder=tmp_path, against=address))))


def test_the_other_side_is_reached_and_its_clock_compared(
    gateway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ControlServer(side="PROD", credentials=Credentials.load(gateway)) as server:
        found = against(gateway, server.address, tmp_path)
        names = ["other side", "its certificate", "admission", "clocks", "large packets"]
        assert list(found) == names
        assert {finding.condition for finding in found.values()} == {OK}, found
        assert "MTU" in found["other side"].found
        real = service.time.time

        class Ahead:
            @staticmethod
            def time() -> float:
                return real() + 90

        monkeypatch.setattr(service, "time", Ahead)
        clocks = against(gateway, server.address, tmp_path)["clocks"]
    assert clocks.condition is WARNING
    assert re.search(r"\+(89\.9|90\.0)\d* s ahead", clocks.found)
    assert "timedatectl set-ntp true" in clocks.remedy


def test_the_other_side_is_not_there(tmp_path: Path) -> None:
    (found,) = other_side.examine(Subject(config=Config(), folder=tmp_path, against=f"127.0.0.1:{free_ports(1)}"))
    assert found.condition is FAILED
    assert "Connection refused" in found.found


def test_a_stranger_is_told_what_is_missing(gateway: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    credentials.create_authority(foreign, name="ca", days=400)
    credentials.issue(foreign, name="me", usage="client", hosts=[], days=1, out=foreign)
    with ControlServer(side="PROD", credentials=Credentials.load(gateway)) as server:
        found = against(foreign, server.address, tmp_path)
        assert found["its certificate"].condition is FAILED
        assert found["admission"].condition is FAILED
        credentials.issue(gateway, name="me", usage="client", hosts=[], days=1, out=tmp_path / "me")
        assert against(tmp_path / "me", server.address, tmp_path)["admission"].condition is OK


# the command


@pytest.fixture
def own_log() -> Iterator[None]:
    """A command takes over the log."""
    logger = logging.getLogger("ministream")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.mark.usefixtures("own_log")
def test_the_command_prints_json_and_ends_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in (ranks, kernels):
        monkeypatch.setattr(slow, "examine", lambda _subject: [])
    words = ["doctor", "--json", "--out", str(tmp_path), "--credentials", str(tmp_path / "none")]
    code = cli(words, standalone_mode=False)
    found = {one["subject"]: one for one in json.loads(capsys.readouterr().out)}
    assert code == 2
    assert found["credentials"]["condition"] == "failed"
    assert "ministream certs" in found["credentials"]["remedy"]
    assert cli(["doctor", "--out", str(tmp_path)], standalone_mode=False) == 0
    assert "writing speed" in capsys.readouterr().out
