"""The life of a worker as a table, and the table of who may say what."""

from __future__ import annotations

import pytest

from qre.errors import InternalError
from qre.ipc import messages
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from qre.structs import Message
from qre.supervisor.members.life import MAX_DEATHS, Life, WorkerStage
from qre.supervisor.members.routes import ROUTES, route


def live(*happenings: str) -> Life:
    life = Life()
    for happening in happenings:
        life(happening)
    return life


def test_a_worker_lives_from_spawned_to_ready_and_to_its_end() -> None:
    life = live("spawned", "greeted", "supplied", "started")
    assert life.stage is WorkerStage.READY
    life("stopping")
    life("died")
    assert life.stage is WorkerStage.DEAD


@pytest.mark.parametrize(
    ("before", "happening"),
    [((), "greeted"), (("spawned",), "started"), (("spawned", "greeted"), "greeted"), ((), "died"), ((), "stopping")],
)
def test_what_cannot_happen_is_refused_and_changes_nothing(before: tuple[str, ...], happening: str) -> None:
    life = live(*before)
    stage = life.stage
    with pytest.raises(InternalError):
        life(happening)
    assert life.stage is stage


def test_pauses_grow_and_too_many_deaths_in_a_minute_are_the_end() -> None:
    life, pauses = Life(), []
    for number in range(MAX_DEATHS):
        life("spawned")
        pauses.append(life.died(100.0 + number))
    assert None not in pauses
    assert pauses == sorted(pauses, key=float)
    life("spawned")
    assert life.died(110.0) is None
    assert life.restarts == MAX_DEATHS + 1


def test_deaths_far_apart_are_no_reason_to_end() -> None:
    life = Life()
    pauses = []
    for number in range(3 * MAX_DEATHS):
        life("spawned")
        pauses.append(life.died(number * 61.0))
    assert set(pauses) == {pauses[0]}


def test_a_worker_may_send_what_its_row_says_and_nothing_else() -> None:
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
    kinds.remove(Message)
    for sender, row in ROUTES.items():
        for to in Party:
            for kind in kinds:
                for request in (False, True):
                    allowed = kind in row and row[kind].to is to and row[kind].request is request
                    assert (route(sender, to, kind, request=request) is not None) is allowed


def test_no_worker_may_start_stop_or_reconfigure_another() -> None:
    forbidden = {messages.Start, messages.Stop, messages.Reload, messages.SyncDevice, messages.StatusRequest}
    for row in ROUTES.values():
        assert not forbidden & set(row)


def test_every_role_has_a_row_and_a_uid_of_its_own() -> None:
    assert set(ROUTES) == set(ROLES) == set(Party) - {Party.SUPERVISOR}
    assert len({role.uid for role in ROLES.values()}) == len(ROLES)
    assert all(role.uid > 0 for role in ROLES.values())
