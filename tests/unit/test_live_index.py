"""The look-ups of live sessions say what a search through all of them would, whatever happened before."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qre.dataplane.protocol import underlay_of
from qre.ends import Role
from qre.workers.handshake.sessions.live_index import LiveIndex
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_rules import SessionStage
from qre.workers.handshake.sessions.session_state import Live, SessionEnd
from tests.support.two_ends import handed_over_pair

UNDERLAY = underlay_of(("192.0.2.1", 443), ("192.0.2.2", 40_000))
MANY = 8
STATES = [handed_over_pair(seed)[Role.SERVER] for seed in range(MANY)]
CLIENTS = [bytes(7) + bytes([number]) for number in range(3)]
ONES = st.integers(0, MANY - 1)
TIMES = st.integers(0, 50).map(float)


class Index(RuleBasedStateMachine):
    """``all`` is what a search goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.index = LiveIndex()
        self.all: dict[bytes, Live] = {}
        self.now = 0.0

    def _one(self, number: int) -> Live | None:
        return self.all.get(STATES[number].session_id)

    @rule(number=ONES, client=st.sampled_from(CLIENTS), routed=st.booleans())
    def begins(self, number: int, client: bytes, routed: bool) -> None:
        if self._one(number) is None:
            record = SessionRecord(Role.SERVER, replace(STATES[number], short_id=client), UNDERLAY)
            self.all[record.session_id] = self.index.add(Live(record, routed=routed))

    @rule(number=ONES)
    def ends(self, number: int) -> None:
        if (live := self._one(number)) is not None:
            self.index.remove(live)
            del self.all[live.record.session_id]

    @rule(number=ONES, confirmed=st.booleans(), spare=st.booleans())
    def has_another_record(self, number: int, confirmed: bool, spare: bool) -> None:
        if (live := self._one(number)) is not None:
            spare_cid = bytes([0x80 + number] * 8) if spare else b""
            live.record = replace(live.record, confirmed=confirmed, spare_cid=spare_cid)

    @rule(number=ONES, cid=st.integers(0, 200))
    def moves_on(self, number: int, cid: int) -> None:
        if (live := self._one(number)) is not None:
            handed_over = replace(live.record.handed_over, routed_cid=bytes([number, cid] * 4))
            live.record = replace(live.record, handed_over=handed_over)

    @rule(number=ONES, at=TIMES, what=st.sampled_from(["rekey_at", "settle_at", "ends", "never"]), busy=st.booleans())
    def is_due(self, number: int, at: float, what: str, busy: bool) -> None:
        if (live := self._one(number)) is None:
            return
        live.stage, live.updating, live.routed = SessionStage.UP, busy, True
        match what:
            case "rekey_at":
                live.rekey_at = at
            case "settle_at":
                live.settle_at = at
            case "ends":
                live.ends = at, SessionEnd("")
            case _:
                live.rekey_at, live.settle_at, live.ends = float("inf"), None, None

    @rule(later=st.integers(0, 20))
    def time_passes(self, later: int) -> None:
        self.now += later
        due = self.index.due_by(self.now)
        expected = {live.record.session_id for live in self.all.values() if live.due <= self.now}
        assert {live.record.session_id for live in due} == expected
        assert len(due) == len(expected)
        for live in due:
            live.rekey_at, live.settle_at, live.ends = self.now + 7, None, None

    @invariant()
    def agrees_with_a_search(self) -> None:
        index, lives = self.index, list(self.all.values())
        assert list(index) == lives
        assert len(index) == len(lives)
        assert index.confirmed == sum(live.record.confirmed for live in lives)
        assert index.soonest() == min((live.due for live in lives if live.due < float("inf")), default=None)
        assert index.routed == {cid for live in lives if live.routed for cid in live.record.connection_ids()}
        for live in lives:
            assert index.get(live.record.session_id) is live
            for cid in live.record.connection_ids():
                assert index.of_cid(cid) is live
        for client in CLIENTS:
            assert set(map(id, index.of_short_id(client))) == {
                id(live) for live in lives if live.record.short_id == client
            }
        assert index.of_cid(b"nobody's") is None
        assert len(index._dues) <= 64 + 2 * MANY


def test_a_connection_id_that_another_session_brings_stays_the_first_ones() -> None:
    index = LiveIndex()
    first = index.add(Live(SessionRecord(Role.SERVER, STATES[0], UNDERLAY), routed=True))
    same = replace(STATES[1], routed_cid=STATES[0].routed_cid)
    index.remove(index.add(Live(SessionRecord(Role.SERVER, same, UNDERLAY), routed=True)))
    assert index.of_cid(STATES[0].routed_cid) is first
    assert STATES[0].routed_cid in index.routed


def test_sessions_that_have_ended_leave_no_dues_behind_an_earlier_one() -> None:
    index = LiveIndex()
    index.add(Live(SessionRecord(Role.SERVER, STATES[0], UNDERLAY))).rekey_at = 1.0
    for number in range(1000):
        live = index.add(Live(SessionRecord(Role.SERVER, STATES[1], UNDERLAY)))
        live.stage, live.rekey_at = SessionStage.UP, 86_400.0 + number
        index.remove(live)
    assert len(index._dues) < 100


TestLiveIndex = Index.TestCase
TestLiveIndex.settings = settings(max_examples=60, stateful_step_count=40)
