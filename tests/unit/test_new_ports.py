"""Connection IDs and sockets while a client tries other ports: what both ends record, whoever dies meanwhile."""

from __future__ import annotations

import pytest

from qre.dataplane.protocol import FrameReceived
from qre.wire.frames import RetireConnectionId, encode_frame
from qre.workers.dataplane.loss.client_session import ClientSession
from qre.workers.handshake.sessions.secrets import SessionRecord, encode_record, parse_record_untrusted
from tests.support.two_ends import TwoEnds

NUMBER = 5


def settled(ends: TwoEnds) -> tuple[SessionRecord, ClientSession]:
    """The server's record and the client's session, which has a spare connection ID."""
    ends.install().run(1)
    ends.client.transmit(bytes(100))  # the round trip is known
    ends.run(7)
    (record,) = ends.server.sessions.records()
    (session,) = ends.client.registry.sessions.values()
    assert isinstance(session, ClientSession)
    assert session.paths.has_spare and record.spare_cid
    return record, session


def silent(ends: TwoEnds, session: ClientSession, seconds: float = 0.6) -> None:
    """Nothing arrives for so long, and a port is lent."""
    ends.loss = 1.0
    ends.client.transmit(bytes(100))
    ends.run(seconds)
    session.new_port(NUMBER, ends.now)
    ends.run(0.01)
    ends.loss = 0.0


def server_cids(ends: TwoEnds) -> set[bytes]:
    return set(ends.server.registry.by_cid)


@pytest.mark.parametrize("unchanged_cid", [False, True])
def test_a_trial_in_vain_gives_the_spare_id_back_and_another_is_issued_while_the_one_in_use_stays(
    unchanged_cid: bool,
) -> None:
    with TwoEnds(interval=3600, unchanged_cid=unchanged_cid) as ends:
        before, session = settled(ends)
        silent(ends, session)
        ends.client.transmit(bytes(100))
        ends.run(3)
        (after,) = ends.server.sessions.records()
        assert after.handed_over.routed_cid == before.handed_over.routed_cid == session.paths.used.cid
        assert after.used_sequence == before.used_sequence
        assert after.spare_cid not in {before.spare_cid, b""}
        assert after.spare_sequence == before.spare_sequence + 1
        assert server_cids(ends) == {after.handed_over.routed_cid, before.spare_cid, after.spare_cid}
        assert ends.server.sessions.connection_ids() == server_cids(ends), "for 5 s nobody else answers to it"
        ends.run(5)
        assert server_cids(ends) == {after.handed_over.routed_cid, after.spare_cid}
        assert ends.server.sessions.connection_ids() == server_cids(ends)
        ends.assert_works()


def test_a_retirement_that_comes_again_or_is_of_no_id_that_there_is_changes_nothing() -> None:
    with TwoEnds(interval=3600) as ends:
        before, session = settled(ends)
        silent(ends, session)
        ends.client.transmit(bytes(100))
        ends.run(3)
        (after,) = ends.server.sessions.records()
        for sequence in (0, before.spare_sequence, 99):
            for _ in range(3):
                frames = encode_frame(RetireConnectionId(sequence))
                ends.server.sessions.received(FrameReceived(session_id=after.session_id, frames=frames), ends.now)
            ends.run(1)
        ends.run(6)
        assert ends.server.sessions.records()[0].connection_ids() == after.connection_ids()
        assert server_cids(ends) == set(after.connection_ids())
        ends.assert_works()


@pytest.mark.parametrize("unchanged_cid", [False, True])
def test_after_trials_in_vain_a_move_is_still_recorded_as_one(unchanged_cid: bool) -> None:
    with TwoEnds(interval=3600, unchanged_cid=unchanged_cid) as ends:
        _, session = settled(ends)
        for _ in range(2):
            silent(ends, session)
            ends.client.transmit(bytes(100))
            ends.run(4)
        (before,) = ends.server.sessions.records()
        ends.loss = 1.0
        ends.client.transmit(bytes(100))
        ends.run(0.6)
        ends.loss = 0.0
        session.new_port(NUMBER, ends.now)
        ends.run(1)
        (after,) = ends.server.sessions.records()
        assert session.port_use is not None
        assert after.handed_over.routed_cid == before.spare_cid == session.paths.used.cid
        assert after.used_sequence == before.spare_sequence
        ends.run(6)
        assert server_cids(ends) == set(after.connection_ids())
        ends.server.kill_handshake()
        ends.run(1)
        ends.server.kill_dataplane()
        ends.run(1)
        assert ends.server.sessions.records()[0].used_sequence == after.used_sequence
        ends.assert_works()


def test_a_restarted_data_plane_of_a_server_lets_the_spare_id_be_retired() -> None:
    with TwoEnds(interval=3600) as ends:
        _, session = settled(ends)
        ends.server.kill_dataplane()
        ends.run(1)
        silent(ends, session)
        ends.client.transmit(bytes(100))
        ends.run(3)
        assert ends.server.sessions.up() == ends.client.sessions.up() == 1
        ends.assert_works()


def test_a_record_of_an_earlier_version_says_the_sequence_of_its_id_by_the_next_one() -> None:
    with TwoEnds(interval=3600) as ends:
        record, _ = settled(ends)
        assert record.routed_sequence is None
        assert record.used_sequence == record.handed_over.next_cid_sequence - 1
        assert parse_record_untrusted(encode_record(record)) == record
