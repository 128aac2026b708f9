"""Live sessions and their keys, both ends and both layers of each in memory, whatever dies in between."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.dataplane.protocol import (
    FrameReceived,
    KeyPhaseChanged,
    LossReason,
    Refusal,
    RekeyDue,
    SessionBegun,
    SessionDelete,
    SessionInstall,
    SessionLost,
    SessionUpdate,
    Underlay,
    refused,
    underlay_of,
)
from qre.ends import Role
from qre.errors import InternalError
from qre.wire.close_reason import CloseReason
from qre.wire.frames import NewConnectionId, encode_frame
from qre.workers.handshake.sessions.session_state import Live
from qre.workers.handshake.sessions.settling import Settling
from tests.support.two_ends import CidsChanged, Confirmed, Lost, TwoEnds


def test_a_session_is_installed_confirmed_and_carries_packets() -> None:
    with TwoEnds() as ends:
        ends.install().run(0.5)
        assert len(ends.client.said(SessionBegun)) == 1
        assert ends.client.said(Confirmed) == [], "nothing was to be carried, and nothing came"
        ends.run(3)
        assert ends.server.said(SessionBegun) == []
        for end in ends.ends.values():
            assert len(end.said(Confirmed)) == 1
            assert end.sessions.up() == 1
        ends.assert_works()


def test_keys_change_on_the_interval_and_both_ends_stay_in_step() -> None:
    with TwoEnds(interval=2.0) as ends:
        ends.install().talk(21)
        assert 8 <= ends.server.epoch <= 14
        ends.assert_in_step()
        ends.assert_works()


def test_keys_change_without_any_traffic() -> None:
    with TwoEnds(interval=2.0) as ends:
        ends.install().run(21)
        assert ends.server.epoch >= 8
        ends.assert_in_step()


def test_keys_that_are_worn_are_changed_at_once() -> None:
    with TwoEnds(interval=3600, rekey_after=8) as ends:
        ends.install().talk(30, every=0.02)
        assert ends.server.epoch > 30
        ends.assert_in_step()
        ends.assert_works()


def test_thousands_of_rekeys_in_a_row_keep_both_ends_in_step() -> None:
    with TwoEnds(interval=0.05) as ends:
        ends.delay = 0.001
        ends.install().run(250)
        assert ends.server.epoch > 1000
        ends.assert_in_step()
        ends.assert_works()


def test_without_an_interval_keys_stay() -> None:
    with TwoEnds(interval=0) as ends:
        ends.install().run(100)
        assert ends.server.epoch == 0


@pytest.mark.parametrize("role", list(Role))
def test_a_killed_handshake_worker_loses_nothing(role: Role) -> None:
    with TwoEnds(interval=1.0) as ends:
        ends.install().talk(3)
        delivered = {r: len(end.delivered) for r, end in ends.ends.items()}
        before = ends.ends[role].epoch
        for _ in range(5):
            ends.ends[role].kill_handshake()
            ends.talk(2)
        for r, end in ends.ends.items():
            assert len(end.delivered) - delivered[r] >= 5 * 40 - 2
            assert not end.said(Lost)
        assert ends.ends[role].epoch >= before + 5
        ends.assert_in_step()


@pytest.mark.parametrize("role", list(Role))
def test_a_killed_data_plane_gets_its_sessions_again(role: Role) -> None:
    with TwoEnds(interval=1.0) as ends:
        ends.install().talk(3)
        for _ in range(5):
            ends.ends[role].kill_dataplane()
            ends.talk(2)
        assert not any(end.said(Lost) for end in ends.ends.values())
        ends.assert_in_step()
        ends.assert_works()


@pytest.mark.parametrize("role", list(Role))
def test_both_layers_killed_at_once_catch_up_with_the_marks(role: Role) -> None:
    with TwoEnds(interval=1.0) as ends:
        ends.install().talk(3)
        end = ends.ends[role]
        end.sessions.handle_timer(ends.now + 100)  # a key update is on its way to the data plane
        assert any(isinstance(outgoing.request, SessionUpdate) for outgoing in end.sessions.outbox)
        end.kill_handshake(requests_done=1)
        end.kill_dataplane()
        ends.talk(3)
        assert not end.said(Lost)
        ends.assert_in_step()
        ends.assert_works()


def test_a_killer_who_lets_half_of_a_rekey_happen_gains_nothing() -> None:
    for done in (0, 1, 2):
        with TwoEnds(interval=1.0, seed=done) as ends:
            ends.install().talk(3)
            for end in ends.ends.values():
                end.sessions.handle_timer(ends.now + 100)
                end.kill_handshake(requests_done=done)
                ends.talk(2)
            assert not any(end.said(Lost) for end in ends.ends.values())
            ends.assert_in_step()
            ends.assert_works()


@settings(max_examples=25)
@given(
    st.integers(0, 1 << 30),
    st.lists(
        st.tuples(
            st.sampled_from(list(Role)),
            st.sampled_from(["handshake", "half", "dataplane", "both", "loss"]),
            st.floats(0.01, 2),
        ),
        max_size=8,
    ),
)
def test_whatever_dies_no_number_is_used_twice_and_the_tunnel_goes_on(
    seed: int, deaths: list[tuple[Role, str, float]]
) -> None:
    with TwoEnds(interval=0.7, seed=seed) as ends:
        ends.install().talk(1)
        for role, death, pause in deaths:
            end = ends.ends[role]
            match death:
                case "handshake":
                    end.kill_handshake()
                case "half":
                    end.sessions.handle_timer(ends.now + 100)
                    end.kill_handshake(requests_done=1)
                case "dataplane":
                    end.kill_dataplane()
                case "both":
                    end.sessions.handle_timer(ends.now + 100)
                    end.kill_handshake(requests_done=1)
                    end.kill_dataplane()
                case "loss":
                    ends.loss = 0.3
            ends.talk(pause)
            ends.loss = 0.0
        ends.talk(3)
        assert not any(end.said(Lost) for end in ends.ends.values())
        ends.assert_in_step()
        ends.assert_works()


def test_sessions_of_which_there_are_no_secrets_are_deleted() -> None:
    with TwoEnds() as ends:
        ends.install().run(1)
        end = ends.server
        for record in end.sessions.records():
            end.store.remove(record.session_id)
        end.kill_handshake()
        ends.run(1)
        assert not end.registry.marks()
        lost = ends.client.said(Lost)
        assert len(lost) == 1
        assert "closed" in lost[0].end.words  # type: ignore[union-attr]  # said() gave Lost


def test_a_lost_session_is_forgotten_with_its_secrets() -> None:
    with TwoEnds() as ends:
        ends.install().run(1)
        secret = ends.server.sessions.records()[0].handed_over.tx_secret
        assert secret in ends.server.store._map[:]
        ends.server.sessions.delete(ends.server.sessions.records()[0].session_id, "because", CloseReason.REMOVED)
        ends.run(1)
        assert ends.server.sessions.records() == ()
        assert not any(ends.server.store._map[1024:])
        assert ends.client.sessions.records() == ()
        assert ends.server.sessions.connection_ids() == frozenset()


def test_secrets_of_earlier_epochs_are_gone() -> None:
    with TwoEnds(interval=1.0) as ends:
        ends.install()
        seen = set()
        for _ in range(40):
            ends.run(0.25)
            for end in ends.ends.values():
                (record,) = end.sessions.records()
                seen.add(record.handed_over.tx_secret)
                image = end.store._map[:]
                present = {secret for secret in seen if secret in image}
                assert present <= {record.handed_over.tx_secret, record.handed_over.rx_secret}
        assert len(seen) > 10


@pytest.mark.parametrize("unchanged_cid", [False, True])
def test_after_the_hand_over_the_old_id_is_retired_and_a_spare_one_issued(unchanged_cid: bool) -> None:
    with TwoEnds(interval=3600, unchanged_cid=unchanged_cid) as ends:
        ends.install().run(1)
        if unchanged_cid:
            assert not ends.server.sessions.records()[0].spare_cid, "a site is silent at that time"
        ends.run(7)
        (server,), (client,) = ends.server.sessions.records(), ends.client.sessions.records()
        assert server.settled
        assert client.settled
        assert server.spare_sequence == (1 if unchanged_cid else 2)
        assert ends.server.sessions.connection_ids() == {server.handed_over.routed_cid, server.spare_cid}
        assert server.spare_cid in ends.server.registry.by_cid
        assert ends.server.said(CidsChanged)
        ends.server.kill_dataplane()
        ends.run(1)
        assert server.spare_cid in ends.server.registry.by_cid
        ends.server.kill_handshake()
        ends.run(1)
        assert ends.server.sessions.connection_ids() == {server.handed_over.routed_cid, server.spare_cid}


def test_each_id_is_given_back_once_by_whoever_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake's own by the handshake worker, those after it by the data plane, which keeps the spare one."""
    given_back: list[int] = []
    retired = Settling._retired

    def heard(settling: Settling, live: Live, sequence: int, now: float) -> None:
        given_back.append(sequence)
        retired(settling, live, sequence, now)

    monkeypatch.setattr(Settling, "_retired", heard)
    with TwoEnds(interval=3600) as ends:
        ends.install().run(3)
        (server,) = ends.server.sessions.records()
        (session,) = ends.client.registry.sessions.values()
        assert session.paths.used.cid == server.handed_over.routed_cid
        assert [one.cid for one in session.paths.cids.held] == [server.handed_over.routed_cid, server.spare_cid]
        assert given_back == [0]
        (sender,) = ends.server.registry.sessions.values()
        assert ends.server.sessions.cids is not None
        token = ends.server.sessions.cids.reset_token(server.spare_cid)
        sender.send_frames(1 << 50, encode_frame(NewConnectionId(2, 2, server.spare_cid, token)), ends.now)
        ends.run(3)
        (after,) = ends.server.sessions.records()
        assert given_back == [0, 1]
        assert after.handed_over.routed_cid == server.spare_cid == session.paths.used.cid
        kept = {server.spare_cid, after.spare_cid}
        assert set(ends.server.registry.by_cid) == {server.handed_over.routed_cid, *kept}, "packets are on their way"
        ends.run(4)
        assert set(ends.server.registry.by_cid) == kept
        assert [one.cid for one in session.paths.cids.held] == [server.spare_cid, after.spare_cid]
        assert ends.client.sessions.up() == ends.server.sessions.up() == 1


def test_a_spare_id_that_was_used_up_is_replaced_but_not_for_ever() -> None:
    with TwoEnds(interval=3600, unchanged_cid=True) as ends:
        ends.install().run(8)
        (session,) = ends.client.registry.sessions.values()
        spares = set()
        for _ in range(100):
            (record,) = ends.server.sessions.records()
            spares |= {record.spare_cid} - {b""}  # there is none any more in the end
            spent = session.paths.take_spare()
            if spent is not None:
                session.paths.give_back(spent, ends.now)
            ends.run(0.2)
        assert 10 < len(spares) <= 64


def test_a_spare_id_is_none_that_a_session_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with TwoEnds(interval=3600, unchanged_cid=True) as ends:
        ends.install().run(1)
        (record,) = ends.server.sessions.records()
        drawn = [b"the first free one..", record.handed_over.routed_cid, record.handed_over.routed_cid]
        assert ends.server.sessions.cids is not None
        monkeypatch.setattr(ends.server.sessions.cids, "like", lambda routed: drawn.pop())
        ends.run(7)
        (record,) = ends.server.sessions.records()
        assert record.spare_cid == b"the first free one.."


def test_frames_whose_fate_is_unknown_are_sent_again_as_they_were() -> None:
    with TwoEnds(interval=3600, unchanged_cid=True) as ends:
        ends.install().run(0.05)
        ends.loss = 1.0
        ends.run(1)
        (before,) = ends.server.sessions.records()
        ends.server.kill_handshake()
        ends.server.kill_dataplane()
        ends.loss = 0.0
        ends.run(8)
        (after,) = ends.server.sessions.records()
        assert after.settled
        assert (after.spare_cid, after.spare_sequence) == (before.spare_cid or after.spare_cid, 1)


def test_the_end_of_the_connect_stream_ends_the_tunnel() -> None:
    for frames in (b"\x0b\x00\x00", b"\x09\x00", b"\x04\x00\x41\x00\x00", b"\x05\x00\x00"):
        with TwoEnds(interval=3600) as ends:
            ends.install().run(1)
            (record,) = ends.server.sessions.records()
            ends.server.sessions.received(FrameReceived(session_id=record.session_id, frames=frames), ends.now)
            ends.run(1)
            assert ends.server.sessions.records() == ends.client.sessions.records() == ()


def test_data_on_the_connect_stream_is_not_the_end_and_malformed_frames_are() -> None:
    with TwoEnds(interval=3600) as ends:
        ends.install().run(1)
        (record,) = ends.server.sessions.records()
        for frames in (b"\x0a\x00\x03abc", b"\x10\x44\x00", b"\x0b\x04\x00", b"\x1e\x00\x00\x01"):
            ends.server.sessions.received(FrameReceived(session_id=record.session_id, frames=frames), ends.now)
        assert ends.server.sessions.records()
        ends.server.sessions.received(FrameReceived(session_id=record.session_id, frames=b"\x18\x00"), ends.now)
        assert not ends.server.sessions.records()


def test_a_peer_that_never_confirms_is_given_up() -> None:
    with TwoEnds() as ends:
        ends.loss = 1.0
        ends.install().run(13)
        words = []
        for end in ends.ends.values():
            assert end.sessions.records() == ()
            words += [lost.end.words for lost in end.said(Lost) if isinstance(lost, Lost)]
        assert sum("confirm" in each for each in words) == 1, "a client ends as a browser, and says so"


def test_a_held_session_survives_the_handshake_worker_and_is_confirmed() -> None:
    with TwoEnds() as ends:
        ends.loss = 1.0
        ends.install().run(0.3)
        ends.server.kill_handshake()
        ends.client.kill_handshake()
        ends.loss = 0.0
        ends.run(3)
        assert all(end.sessions.up() == 1 for end in ends.ends.values())
        ends.assert_works()


def test_an_installation_that_the_data_plane_refuses_is_a_lost_session() -> None:
    with TwoEnds() as ends:
        ends.server.pump()
        sessions = ends.server.sessions
        state = ends._states[Role.SERVER]
        underlay = ends.install().server.sessions.records()[0].underlay
        other = replace(state, session_id=bytes(32))
        sessions.install(other, underlay)  # the same connection ID
        with pytest.raises(InternalError):
            sessions.install(other, underlay)
        ends.run(0.1)
        lost = ends.server.said(Lost)
        assert len(lost) == 1
        assert "refused" in lost[0].end.words  # type: ignore[union-attr]  # said() gave Lost


def test_reports_of_unknown_sessions_and_stale_answers_are_ignored() -> None:
    with TwoEnds() as ends:
        ends.install().run(1)
        sessions = ends.server.sessions
        for report in (
            RekeyDue(session_id=bytes(32), key_epoch=0),
            KeyPhaseChanged(session_id=bytes(32), key_epoch=9),
            SessionLost(session_id=bytes(32), reason=LossReason.IDLE),
            refused(1, Refusal.NO_SUCH, "no such session"),
        ):
            sessions.received(report, ends.now)
        assert not sessions.outbox
        ends.assert_works()


def test_without_a_data_plane_nothing_is_asked_and_everything_is_made_up_for() -> None:
    with TwoEnds() as ends:
        for role, end in ends.ends.items():
            end.pump()
            end.sessions.disconnected()
            peer = {Role.CLIENT: "192.0.2.1", Role.SERVER: "192.0.2.2"}[role]
            port = {Role.CLIENT: 443, Role.SERVER: 40_000}[role]
            underlay = ends_underlay(peer, port)
            end.sessions.install(ends._states[role], underlay)
            assert not end.sessions.outbox
        for end in ends.ends.values():
            end.sessions.connected(ends.now)
            end.pump()
        ends.run(1)
        ends.assert_works()


def ends_underlay(peer: str, port: int) -> Underlay:
    return underlay_of(("192.0.2.9", 9), (peer, port))


def test_the_same_ids_are_not_used_by_two_workers_one_after_the_other() -> None:
    with TwoEnds() as ends:
        ends.install()
        first = ends.server.sessions._next_id
        ends.server.rng = random.Random(77)
        ends.server.kill_handshake()
        assert abs(ends.server.sessions._next_id - first) > 1000


def test_a_deleted_session_tells_its_peer() -> None:
    with TwoEnds() as ends:
        ends.install().run(1)
        sessions = ends.client.sessions
        sessions.delete(sessions.records()[0].session_id, "over", CloseReason.REPLACED)
        assert isinstance(sessions.outbox[-1].request, SessionDelete)
        ends.run(1)
        assert not ends.server.sessions.records()
        (lost,) = ends.server.said(Lost)
        assert isinstance(lost, Lost) and lost.end.reason is CloseReason.REPLACED
        assert lost.end.words.startswith("the peer closed the session: a newer session with the same short id")


def test_a_client_session_goes_with_its_socket() -> None:
    with TwoEnds() as ends:
        ends.client.pump()
        ends.client.sessions.install(ends._states[Role.CLIENT], ends_underlay("192.0.2.1", 443), socket_number=7)
        outgoing = ends.client.sessions.outbox[-1]
        assert isinstance(outgoing.request, SessionInstall)
        assert outgoing.socket_number == 7


def test_a_session_that_has_a_follower_ends_later_and_carries_packets_until_then() -> None:
    with TwoEnds() as ends:
        ends.install().run(1)
        sessions = ends.client.sessions
        (record,) = sessions.records()
        assert not sessions.ends(record.session_id)
        sessions.delete(record.session_id, "it has a follower", CloseReason.REPLACED, ends.now + 5)
        assert sessions.ends(record.session_id)
        assert sessions.timer() is not None and sessions.timer() <= ends.now + 5
        ends.run(4)
        assert [one.session_id for one in sessions.records()] == [record.session_id]
        assert ends.server.sessions.records()
        ends.run(2)
        assert not sessions.records() and not ends.server.sessions.records()
        assert not sessions.ends(record.session_id)
