"""The policy file: rules for targets, identities, quotas; and that nonsense is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ministream import config
from ministream.errors import ConfigError
from ministream.tunnel.address import Endpoint
from ministream.tunnel.policy import Policy, PolicySection, Target
from ministream.tunnel.refusal import Code, RefusedError


def policy(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return Policy.load(path)


@pytest.mark.parametrize(
    ("rule", "host", "port", "address", "allowed"),
    [
        ("10.0.0.5:7000", "10.0.0.5", 7000, "10.0.0.5", True),
        ("10.0.0.5:7000", "10.0.0.5", 7001, "10.0.0.5", False),
        ("10.0.0.5:7000", "10.0.0.6", 7000, "10.0.0.6", False),
        ("10.0.0.0/8:7000-7010", "producer.org", 7010, "10.9.9.9", True),
        ("10.0.0.0/8:7000-7010", "producer.org", 7010, "192.168.0.1", False),
        ("10.0.0.0/8:7000-7010", "10.1.1.1", 7011, "10.1.1.1", False),
        ("producer.org:*", "producer.org", 1, "192.168.0.1", True),
        ("producer.org:*", "evil.org", 1, "192.168.0.1", False),
        ("*:443", "anything", 443, "1.2.3.4", True),
        ("*:443", "anything", 80, "1.2.3.4", False),
        ("[2001:db8::/32]:*", "2001:db8::7", 1, "2001:db8::7", True),
        ("[2001:db8::/32]:*", "2001:db9::7", 1, "2001:db9::7", False),
        ("10.0.0.0/8:*", "::ffff:10.0.0.1", 1, "::ffff:10.0.0.1", True),
        ("127.0.0.1:*", "localhost", 1, "127.0.0.1", True),
    ],
)
def test_targets(rule: str, host: str, port: int, address: str, allowed: bool) -> None:
    assert Target.parse(rule).allows(Endpoint(host, port), address) is allowed


@pytest.mark.parametrize(
    "rule", ["", "host", "host:", ":1", "host:0", "host:2-1", "host:70000", "10.0.0.1/8:1", "a b:1"]
)
def test_rules_that_are_none(rule: str) -> None:
    with pytest.raises(ConfigError, match="target"):
        Target.parse(rule)


@given(st.text(max_size=60))
def test_any_rule_is_read_or_refused(text: str) -> None:
    try:
        rule = Target.parse(text)
    except ConfigError:
        return
    assert 1 <= rule.first <= rule.last <= 65535


def test_identities_have_their_own_rules(tmp_path: Path) -> None:
    rules = policy(
        tmp_path,
        """
        targets = ["10.0.0.0/8:7000"]
        [identities.alice]
        roles = ["PROD"]
        targets = ["127.0.0.1:9000"]
        [identities."oauth:bob@anl.gov"]
        admin = true
        """,
    )
    rules.admit("alice")
    rules.check_role("alice", "PROD")
    rules.check_target("alice", Endpoint("127.0.0.1", 9000), "127.0.0.1", ())
    rules.check_target("oauth:bob@anl.gov", Endpoint("10.0.0.1", 7000), "10.0.0.1", ())
    assert rules.is_admin("oauth:bob@anl.gov")
    assert not rules.is_admin("alice")
    for refused in (
        lambda: rules.admit("mallory"),
        lambda: rules.check_role("alice", "CONS"),
        lambda: rules.check_target("alice", Endpoint("10.0.0.1", 7000), "10.0.0.1", ()),
    ):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert caught.value.code is Code.PERMISSION_DENIED


def test_without_rules_only_what_the_server_says(tmp_path: Path) -> None:
    rules = policy(tmp_path, "")
    own = (Target("127.0.0.1", 7000, 7000),)
    rules.admit("anyone")
    rules.check_target("anyone", Endpoint("127.0.0.1", 7000), "127.0.0.1", own)
    with pytest.raises(RefusedError):
        rules.check_target("anyone", Endpoint("127.0.0.1", 22), "127.0.0.1", own)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("target = []", "did you mean targets"),
        ('targets = ["host"]', "write host:port"),
        ("plain_data = 1", "plain_data"),
        ("[quota]\nsessions = 0", "quota.sessions"),
        ("[identities.a]\nroles = 3", "identities"),
        ("[introspection]\nurl = 'http://auth.example.org/i'\nclient_id='a'\nclient_secret_file='b'", "https only"),
        ("not toml", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        policy(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Policy.load(tmp_path / "none.toml")


def test_quotas_reach_the_session_store(tmp_path: Path) -> None:
    assert policy(tmp_path, "[quota]\nsessions_per_identity = 3\nlifetime_s = 10.0").quota.sessions_per_identity == 3


def test_the_documented_file_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    section = config.parse(PolicySection, tomllib.loads(text), "docs/security.md")
    assert section.quota == PolicySection().quota
    assert section.introspection is not None


def test_every_test_that_the_threat_model_names_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    sources = "".join(path.read_text() for path in (root / "tests").glob("*/test_*.py"))
    named = set(re.findall(r"::(test_\w+)", (root / "docs" / "security.md").read_text()))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in sources} == set()


@pytest.mark.parametrize(
    ("own", "obeys", "asked", "limit"),
    [
        (0, False, 10000, 0),
        (0, True, 10000, 10000),
        (500, False, 10000, 500),
        (500, True, 10000, 500),
        (500, True, 9, 9),
    ],
)
def test_a_limit_is_the_operators_and_a_clients_only_where_it_may_ask(
    own: int, obeys: bool, asked: int, limit: int
) -> None:
    assert Policy(PolicySection(rate_kbytes_s=own, client_rate=obeys)).rate_for(asked) == limit
