"""The session state machine: transitions, ownership, quotas, expiry. Time is a number here."""

from __future__ import annotations

import pytest

from ministream.tunnel.address import Endpoint
from ministream.tunnel.refusal import Code, RefusedError
from ministream.tunnel.role import Role
from ministream.tunnel.sessions import Quota, Session, Sessions, State

TARGETS = (Endpoint("127.0.0.1", 7000), Endpoint("127.0.0.1", 7001))


def opened(sessions: Sessions, uid: str = "a", caller: str = "alice", num_conn: int = 1, now_s: float = 0.0) -> Session:
    return sessions.open(uid=uid, caller=caller, role=Role.PROD, num_conn=num_conn, rate_kbytes_s=0, now_s=now_s)


def refused(code: Code) -> pytest.RaisesContext[RefusedError]:
    return pytest.raises(RefusedError, check=lambda error: error.code is code)


def test_a_session_goes_from_pending_to_active() -> None:
    sessions = Sessions(Quota())
    session = opened(sessions)
    assert session.state is State.PENDING
    sessions.hello(session, TARGETS, 1.0)
    assert session.state is State.READY
    sessions.activate(session, sessions.update(session, (), 2.0), 2.0)
    assert session.state is State.ACTIVE
    assert sessions.end(session, State.RELEASED)
    assert session.state is State.RELEASED
    assert sessions.find("a") is None


def test_targets_are_dealt_round_robin_and_may_change() -> None:
    sessions = Sessions(Quota())
    session = opened(sessions, num_conn=3)
    sessions.hello(session, TARGETS, 0.0)
    assert sessions.update(session, (), 0.0) == (TARGETS[0], TARGETS[1], TARGETS[0])
    other = (Endpoint("10.0.0.1", 1),)
    assert sessions.update(session, other, 0.0) == other * 3


def test_update_before_hello_is_refused() -> None:
    sessions = Sessions(Quota())
    with refused(Code.FAILED_PRECONDITION):
        sessions.update(opened(sessions), TARGETS, 0.0)


def test_update_without_any_target_is_refused() -> None:
    sessions = Sessions(Quota())
    session = opened(sessions)
    sessions.hello(session, (), 0.0)
    with refused(Code.INVALID_ARGUMENT):
        sessions.update(session, (), 0.0)


def test_ending_twice_is_harmless_and_frees_the_uid() -> None:
    sessions = Sessions(Quota())
    session = opened(sessions)
    assert sessions.end(session, State.RELEASED)
    again = opened(sessions)
    assert not sessions.end(session, State.EXPIRED)
    assert session.state is State.RELEASED
    assert sessions.find("a") is again


@pytest.mark.parametrize("num_conn", [0, -1])
def test_nonsense_is_refused(num_conn: int) -> None:
    sessions = Sessions(Quota())
    with refused(Code.INVALID_ARGUMENT):
        sessions.open(uid="a", caller="alice", role=Role.PROD, num_conn=num_conn, rate_kbytes_s=0, now_s=0)
    assert len(sessions) == 0


def test_one_uid_one_session() -> None:
    sessions = Sessions(Quota())
    opened(sessions)
    with refused(Code.ALREADY_EXISTS):
        opened(sessions, caller="bob")


def test_sessions_belong_to_who_opened_them() -> None:
    sessions = Sessions(Quota())
    session = opened(sessions)
    assert sessions.owned("a", "alice") is session
    with refused(Code.PERMISSION_DENIED):
        sessions.owned("a", "bob")
    with refused(Code.NOT_FOUND):
        sessions.owned("b", "alice")


@pytest.mark.parametrize(
    "quota",
    [
        Quota(sessions_per_identity=2),
        Quota(connections_per_identity=5),
        Quota(sessions=2),
    ],
)
def test_quotas_hold_and_are_given_back(quota: Quota) -> None:
    sessions = Sessions(quota)
    first = opened(sessions, "1", num_conn=2)
    opened(sessions, "2", num_conn=2)
    with refused(Code.RESOURCE_EXHAUSTED):
        opened(sessions, "3", num_conn=2)
    sessions.end(first, State.RELEASED)
    opened(sessions, "3", num_conn=2)


def test_one_identity_cannot_use_up_anothers_share() -> None:
    sessions = Sessions(Quota(sessions_per_identity=1))
    opened(sessions, "1", "alice")
    opened(sessions, "2", "bob")


def test_too_many_connections_for_one_session() -> None:
    with refused(Code.RESOURCE_EXHAUSTED):
        opened(Sessions(Quota(connections_per_session=4)), num_conn=5)


def test_waiting_sessions_become_overdue_and_active_ones_do_not() -> None:
    sessions = Sessions(Quota(pending_s=180))
    pending, ready, active = (opened(sessions, uid) for uid in "pra")
    for session in (ready, active):
        sessions.hello(session, TARGETS, 100.0)
    sessions.activate(active, TARGETS[:1], 100.0)
    assert sessions.overdue(179.9) == []
    assert sessions.overdue(180.0) == [pending]
    assert sessions.overdue(1e5) == [pending, ready]


def test_a_lifetime_ends_active_sessions_too() -> None:
    sessions = Sessions(Quota(lifetime_s=10.0))
    session = opened(sessions)
    sessions.hello(session, TARGETS, 0.0)
    sessions.activate(session, TARGETS[:1], 0.0)
    assert sessions.overdue(9.0) == []
    assert sessions.overdue(10.0) == [session]
