"""The tables of states that drive, and the paragraphs above them: each is compared row by row with the other."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("state", FlowState)
def test_a_relay_is_opened_by_whoever_becomes_a_visitor_and_closed_by_who_is_none_any_more(state: FlowState) -> None:
    """Read off the table: PENDING and OURS never have a connection to Dest, WATCHED and RELAY always."""
    related = {FlowState.WATCHED, FlowState.RELAY}
    for (before, event), rule in RULES.items():
        if before is state and event is not FlowEvent.NO_WAY:
            names = {kind.__name__ for kind in rule.effects}
            assert ("OpenRelay" in names) == (before not in related and rule.becomes in related)
            assert ("CloseRelay" in names) == (before in related and rule.becomes not in related)
            assert ("Begin" in names) == (event in {FlowEvent.ACCEPTED, FlowEvent.HANDED_OVER})


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
