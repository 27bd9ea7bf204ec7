"""The two sides of a pair meet through files, whoever comes first."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ministream.app.launch.rendezvous import JobSide, KnownAddresses, Outcome, SharedFolder, fingerprint_of
from ministream.errors import AccessError, ConfigError, ProtocolError
from ministream.tunnel import curve
from ministream.tunnel.credentials import Credentials


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pair-1"


@pytest.mark.parametrize("first", ["producer", "recon"])
def test_either_side_may_come_first(folder: Path, first: JobSide) -> None:
    early = SharedFolder(folder, first)
    early.credentials("127.0.0.1")
    early.publish("the early job", "127.0.0.1:4000")
    assert early.partner() is None
    late = SharedFolder(folder, "recon" if first == "producer" else "producer")
    contact = late.partner()
    assert contact is not None
    assert (contact.job, contact.control) == ("the early job", "127.0.0.1:4000")


def test_many_that_come_at_once_share_one_authority(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        sides = list(pool.map(lambda k: SharedFolder(folder, "recon" if k % 2 else "producer"), range(16)))
    own = [side.credentials("localhost") for side in sides[:2]]
    assert len({Credentials.load(path).ca for path in own}) == 1
    sides[0].publish("the producer job", "localhost:1")
    assert sides[1].partner() is not None
    assert {path.name for path in folder.iterdir()} == {"pair", "producer.json"}


def test_everything_is_closed_to_others(folder: Path) -> None:
    side = SharedFolder(folder, "producer")
    side.credentials("localhost")
    side.publish("the producer job", "localhost:1")
    side.finish(Outcome(code=0, reason="complete"))
    for path in [folder, *folder.iterdir(), folder / "pair" / "token"]:
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_a_pair_has_keys_of_its_own_while_it_lasts(folder: Path) -> None:
    sides = [SharedFolder(folder, "producer"), SharedFolder(folder, "recon")]
    assert sides[0].curve() == sides[1].curve()
    producer, receiver = (curve.load(sides[0].curve(), side) for side in curve.SIDES)
    assert producer.secret != receiver.secret
    assert len(producer.peers) == len(receiver.peers) == 1
    other = SharedFolder(folder.with_name("pair-2"), "producer")
    assert curve.load(other.curve(), "producer").peers.isdisjoint(producer.peers)
    for side in sides:
        side.finish(Outcome(code=0, reason="complete"))
    assert not sides[0].curve().exists()


def test_sides_that_share_no_folder_are_told_how_to_get_keys(folder: Path) -> None:
    apart = KnownAddresses(folder, "recon", folder, "localhost:1")
    with pytest.raises(ConfigError, match="ministream certs curve"):
        apart.curve()


def test_the_card_carries_the_fingerprint_of_the_servers_certificate(folder: Path) -> None:
    side = SharedFolder(folder, "producer")
    own = side.credentials("localhost")
    side.publish("the producer job", "localhost:1")
    contact = SharedFolder(folder, "recon").partner()
    assert contact is not None
    assert contact.fingerprint == fingerprint_of((own / "server.crt").read_text())
    assert "token" not in repr(contact)


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(AccessError, match="chmod 700"):
        SharedFolder(folder, "recon")


def test_a_contact_of_another_pair_is_refused(folder: Path, tmp_path: Path) -> None:
    stranger = SharedFolder(tmp_path / "pair-2", "producer")
    stranger.credentials("localhost")
    stranger.publish("a stranger", "localhost:1")
    side = SharedFolder(folder, "recon")
    (tmp_path / "pair-2" / "producer.json").rename(folder / "producer.json")
    with pytest.raises(AccessError, match="a stranger belongs to another pair"):
        side.partner()


def test_a_local_address_of_another_node_is_refused(folder: Path) -> None:
    there = SharedFolder(folder, "producer")
    there.credentials("localhost")
    there.publish("the producer job", "127.0.0.1:4000")
    here = SharedFolder(folder, "recon")
    assert here.partner() is not None
    card = folder / "producer.json"
    card.write_text(card.read_text().replace(f'"node":"{os.uname().nodename}"', '"node":"n7"'))
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:4000, which only n7 .*--host NAME"):
        here.partner()
    there.publish("the producer job", "10.0.0.7:4000")
    card.write_text(card.read_text().replace(f'"node":"{os.uname().nodename}"', '"node":"n7"'))
    assert here.partner() is not None


@pytest.mark.parametrize("text", ["", "{", '{"job": 1}', "[]", "\x00"])
def test_a_damaged_contact_is_named(folder: Path, text: str) -> None:
    side = SharedFolder(folder, "recon")
    (folder / "producer.json").write_text(text)
    with pytest.raises(ProtocolError, match=r"producer\.json"):
        side.partner()


def test_the_last_one_to_end_removes_the_secrets(folder: Path) -> None:
    producer, recon = SharedFolder(folder, "producer"), SharedFolder(folder, "recon")
    for side in (producer, recon):
        side.credentials("localhost")
        side.publish("a job", "localhost:1")
    producer.finish(Outcome(code=4, reason="no beam"))
    assert not (folder / "pair").exists(), "who fails leaves no secret behind"
    assert recon.partner_outcome() == Outcome(code=4, reason="no beam")
    recon.finish(Outcome(code=3, reason="short"))
    assert {path.name for path in folder.iterdir()} == {"producer.end", "recon.end"}


def test_each_side_removes_its_own_secrets(folder: Path) -> None:
    producer, recon = SharedFolder(folder, "producer"), SharedFolder(folder, "recon")
    for side in (producer, recon):
        side.credentials("localhost")
        side.publish("a job", "localhost:1")
    producer.finish(Outcome(code=0, reason="complete"))
    assert not (folder / "producer.json").exists()
    assert not (folder / "pair" / "producer").exists()
    assert not (folder / "pair" / "curve" / "producer.secret").exists()
    assert (folder / "pair" / "recon" / "client.key").exists()
    assert (folder / "pair" / "curve" / "receiver.secret").exists()
    recon.finish(Outcome(code=0, reason="complete"))
    assert {path.name for path in folder.iterdir()} == {"producer.end", "recon.end"}


def test_the_authoritys_key_goes_once_both_sides_have_issued(folder: Path) -> None:
    producer, recon = SharedFolder(folder, "producer"), SharedFolder(folder, "recon")
    producer.credentials("localhost")
    assert (folder / "pair" / "ca.key").exists()
    own = recon.credentials("localhost")
    assert not (folder / "pair" / "ca.key").exists()
    before = Credentials.load(own).server
    # a side that starts again has what it needs
    assert Credentials.load(SharedFolder(folder, "recon").credentials("localhost")).server == before


def test_a_secret_that_cannot_be_removed_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = SharedFolder(folder, "producer")
    side.credentials("localhost")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.rmdir", refuse)
    side.finish(Outcome(code=4, reason="no beam"))
    assert "remove it by hand" in caplog.text


def test_a_rendezvous_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AccessError, match="symbolic link"):
        SharedFolder(folder, "recon")


def test_a_rendezvous_that_anybody_can_replace_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(AccessError, match="can be replaced by others"):
        SharedFolder(shared / "pair", "recon")


def test_a_side_that_starts_after_its_partner_failed_learns_why(folder: Path) -> None:
    SharedFolder(folder, "producer").finish(Outcome(code=2, reason="no such file"))
    assert SharedFolder(folder, "recon").partner_outcome() == Outcome(code=2, reason="no such file")


def test_a_used_folder_is_refused(folder: Path) -> None:
    sides = [SharedFolder(folder, "producer"), SharedFolder(folder, "recon")]
    for side in sides:
        side.finish(Outcome(code=0, reason="complete"))
    with pytest.raises(ConfigError, match="new folder"):
        SharedFolder(folder, "producer")
