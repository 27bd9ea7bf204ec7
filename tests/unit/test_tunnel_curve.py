"""Keys for end-to-end encryption: what is made, who can read it, what is refused."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from ministream import config
from ministream.errors import ConfigError
from ministream.tunnel import curve


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    curve.create(tmp_path / "keys")
    return tmp_path / "keys"


def public_of(secret: bytes) -> bytes:
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def test_each_side_trusts_the_other(keys: Path) -> None:
    producer, receiver = curve.load(keys, "producer"), curve.load(keys, "receiver")
    assert producer.peers == {public_of(receiver.secret)}
    assert receiver.peers == {public_of(producer.secret)}


def test_secrets_are_private_and_apart(keys: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()}
    assert modes == {
        "producer.secret": 0o600,
        "receiver.secret": 0o600,
        "producer.public": 0o644,
        "receiver.public": 0o644,
    }
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert curve.load(keys, "producer").secret.hex() not in (keys / "receiver.secret").read_text()


@pytest.mark.parametrize("side", curve.SIDES)
def test_a_side_needs_two_files_and_no_more(keys: Path, tmp_path: Path, side: curve.StreamEnd) -> None:
    other = "receiver" if side == "producer" else "producer"
    own = tmp_path / "own"
    own.mkdir()
    for name in (f"{side}.secret", f"{other}.public"):
        shutil.copy2(keys / name, own / name)
    assert curve.load(own, side) == curve.load(keys, side)


def test_keys_that_are_in_use_are_not_replaced(keys: Path) -> None:
    before = curve.load(keys, "producer")
    with pytest.raises(ConfigError, match=r"producer\.secret already exists: choose another directory"):
        curve.create(keys)
    (keys / "producer.secret").unlink()
    with pytest.raises(ConfigError, match=r"producer\.public already exists"):
        curve.create(keys, ["producer"])
    assert curve.load(keys, "receiver").peers == {public_of(before.secret)}


def test_each_side_can_make_its_own_and_receivers_are_listed(tmp_path: Path) -> None:
    beamline, *users = (tmp_path / name for name in ("beamline", "jane", "joe"))
    curve.create(beamline, ["producer"])
    for user in users:
        curve.create(user, ["receiver"])
        shutil.copy2(beamline / "producer.public", user)
    lines = [f"# {user.name}\n{(user / 'receiver.public').read_text().strip()}  # until May\n" for user in users]
    (beamline / "receiver.public").write_text("\n".join(lines))
    (beamline / "receiver.public").chmod(0o644)
    assert curve.load(beamline, "producer").peers == {public_of(curve.load(u, "receiver").secret) for u in users}


@pytest.mark.parametrize("name", ["producer.secret", "receiver.public"])
def test_what_is_missing_is_named_with_the_remedy(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: no such file; make .* `ministream certs curve`"):
        curve.load(keys, "producer")


def test_a_secret_that_others_can_read_is_refused(keys: Path) -> None:
    (keys / "receiver.secret").chmod(0o640)
    with pytest.raises(ConfigError, match=r"receiver\.secret can be read by others: chmod 600"):
        curve.load(keys, "receiver")


def test_a_list_that_others_can_change_is_refused(keys: Path) -> None:
    (keys / "producer.public").chmod(0o666)
    with pytest.raises(ConfigError, match=r"producer\.public can be changed by others: .* chmod go-w"):
        curve.load(keys, "receiver")


def test_a_receiver_trusts_one_producer_and_a_producer_admits_somebody(keys: Path) -> None:
    with (keys / "producer.public").open("a") as file:
        file.write("ab" * 32 + "\n")
    with pytest.raises(ConfigError, match=r"producer\.public: 2 keys; the producer's key, and no other"):
        curve.load(keys, "receiver")
    (keys / "receiver.public").write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match=r"receiver\.public: 0 keys; every admitted receiver's key"):
        curve.load(keys, "producer")


def test_an_error_never_repeats_what_may_be_a_secret(keys: Path) -> None:
    secret = (keys / "producer.secret").read_text().strip()
    for text in (secret[:-1], secret + secret, f"key {secret}"):
        (keys / "producer.secret").write_text(text)
        with pytest.raises(ConfigError, match=r"producer\.secret:1: not a key") as raised:
            curve.load(keys, "producer")
        assert secret[:16] not in str(raised.value)
    assert curve.load(keys, "receiver").secret.hex() not in repr(curve.load(keys, "receiver"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_keys_or_refused(keys: Path, data: bytes) -> None:
    (keys / "receiver.public").write_bytes(data)
    try:
        found = curve.load(keys, "producer").peers
    except ConfigError as error:
        assert "receiver.public" in str(error)
    else:
        assert all(len(key) == 32 for key in found)


def test_wires_that_know_no_encryption_are_refused() -> None:
    for table, wire in (("producer", "timage"), ("stream", "tracemq")):
        tables = {"stream": {"curve": "keys"}}
        tables[table] = tables.get(table, {}) | {"wire": wire}
        with pytest.raises(ConfigError, match=r"stream\.curve: the wire .* cannot be encrypted"):
            config.parse(config.Config, tables, "run.toml")
