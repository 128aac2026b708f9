"""The tables of states that drive, and the paragraphs above them: each is compared row by row with the other."""

from __future__ import annotations

import re

from qre.quic import attempt_rules
from qre.quic.attempt_rules import ATTEMPT_RULES, GROUPS, AttemptEffect, AttemptEvent, AttemptState
from qre.workers.dataplane.session import session_life
from qre.workers.dataplane.session.session_life import LIFE_RULES, LifeEffect, LifeEvent, LifeState
from qre.workers.handshake.port import flow_rules
from qre.workers.handshake.port.flow_parts import FlowState
from qre.workers.handshake.port.flow_rules import RULES, FlowEvent
from qre.workers.handshake.sessions import session_rules
from qre.workers.handshake.sessions.session_rules import SESSION_RULES, SessionEffect, SessionEvent, SessionStage
from tests.support.drawn_tables import drawn_rows


def test_the_table_of_flows_is_the_one_that_is_drawn() -> None:
    table = [
        (state.value, event.value, rule.becomes.value, ", ".join(kind.__name__ for kind in rule.effects))
        for (state, event), rule in RULES.items()
    ]
    assert table == drawn_rows(flow_rules)


def test_every_state_and_every_event_of_a_flow_stands_in_the_table() -> None:
    assert {state for state, _ in RULES} == {rule.becomes for rule in RULES.values()} == set(FlowState)
    assert {event for _, event in RULES} == set(FlowEvent)


def test_a_relay_is_opened_for_every_new_flow_and_closed_with_it() -> None:
    """Read off the table: no state but (none) is without a connection to Dest, unless none could be opened."""
    for (before, event), rule in RULES.items():
        names = {kind.__name__ for kind in rule.effects}
        none = FlowState.NONE
        new = before is none and rule.becomes is not none and event is not FlowEvent.HANDED_OVER
        assert ("OpenRelay" in names) == new
        gone = before is not none and rule.becomes is none and event is not FlowEvent.NO_WAY
        assert ("CloseRelay" in names) == gone
        assert ("Begin" in names) == (event in {FlowEvent.ACCEPTED, FlowEvent.HANDED_OVER})


def test_nothing_of_ours_leaves_before_the_hello_is_recorded() -> None:
    """Only a recorded hello leads to a client's state, and only from there a handshake is spoken to."""
    clients = {FlowState.SHADOW, FlowState.LEFT, FlowState.OVER}
    for (before, event), rule in RULES.items():
        if before not in clients and rule.becomes in clients:
            assert event in {FlowEvent.ACCEPTED, FlowEvent.HANDED_OVER}
        if {"Feed", "Mirror"} & {kind.__name__ for kind in rule.effects}:
            assert before in clients


def test_the_table_of_a_sessions_life_is_the_one_that_is_drawn() -> None:
    table = [
        (stage.value, event.value, rule.becomes.value, ", ".join(effect.value for effect in rule.effects))
        for (stage, event), rule in SESSION_RULES.items()
    ]
    assert table == drawn_rows(session_rules)


def test_whatever_may_happen_to_a_session_may_happen_in_every_stage_of_its_life() -> None:
    """Reports and answers of the data plane come in any order, so no stage may be without one of the rows."""
    living = set(SessionStage) - {SessionStage.NONE, SessionStage.GONE}
    born = {SessionEvent.NEW, SessionEvent.FOUND, SessionEvent.FOUND_CONFIRMED}
    assert set(SESSION_RULES) == {(SessionStage.NONE, event) for event in born} | {
        (stage, event) for stage in living for event in set(SessionEvent) - born
    }
    assert {effect for rule in SESSION_RULES.values() for effect in rule.effects} == set(SessionEffect)
    assert {rule.becomes for rule in SESSION_RULES.values()} == set(SessionStage) - {SessionStage.NONE}


def test_the_table_of_a_clients_attempt_is_the_one_that_is_drawn() -> None:
    groups = {name: tuple(state.name for state in states) for name, states in GROUPS.items()}
    named = dict(re.findall(r"^    ([a-z ]+): ([A-Z, ]+)$", attempt_rules.__doc__ or "", re.MULTILINE))
    assert named == {name: ", ".join(states) for name, states in groups.items()}
    drawn = [(state, *rest) for first, *rest in drawn_rows(attempt_rules) for state in groups.get(first, (first,))]
    table = {
        (state.name, event.value, rule.becomes.name, ", ".join(effect.value for effect in rule.effects))
        for (state, event), rule in ATTEMPT_RULES.items()
    }
    assert len(drawn) == len(table)
    assert set(drawn) == table


def test_an_attempt_can_fail_be_closed_and_be_given_up_wherever_it_is() -> None:
    silent = {AttemptState.CLOSING, AttemptState.OVER}
    for state in set(AttemptState) - silent:
        for event in (
            AttemptEvent.FAILURE,
            AttemptEvent.CLOSE,
            AttemptEvent.ENDED_BY_PEER,
            AttemptEvent.ENDED_BY_STACK,
        ):
            assert ATTEMPT_RULES[state, event].becomes in silent
    assert {state for state, event in ATTEMPT_RULES if event is AttemptEvent.ABANDON} == set(AttemptState) - {
        AttemptState.OVER
    }
    assert AttemptState.OVER not in {state for state, _ in ATTEMPT_RULES}
    assert {event for _, event in ATTEMPT_RULES} == set(AttemptEvent)
    assert {effect for rule in ATTEMPT_RULES.values() for effect in rule.effects} == set(AttemptEffect)
    for (state, event), rule in ATTEMPT_RULES.items():
        told = AttemptEffect.TELL_CLOSED in rule.effects
        assert told == (rule.becomes is AttemptState.OVER and event is not AttemptEvent.HAND_OVER), state


def test_the_table_of_a_session_in_the_data_plane_is_the_one_that_is_drawn() -> None:
    table = [
        (state.value, event.value, rule.becomes.value, ", ".join(effect.value for effect in rule.effects))
        for (state, event), rule in LIFE_RULES.items()
    ]
    assert table == drawn_rows(session_life)
    assert {event for _, event in LIFE_RULES} == set(LifeEvent)
    assert {effect for rule in LIFE_RULES.values() for effect in rule.effects} == set(LifeEffect)
    assert {state for state, _ in LIFE_RULES} == set(LifeState) - {LifeState.ENDED}
    for rule in LIFE_RULES.values():
        assert (LifeEffect.RELEASE in rule.effects) == (rule.becomes is LifeState.ENDED)
