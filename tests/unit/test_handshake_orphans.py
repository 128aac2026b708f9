"""Sessions that outlive a daemon in the kernel, with and without their secrets. The user data plane's registry stands
where qre.ko would: it tells of its sessions as the kernel does, and nothing kills it."""

from __future__ import annotations

import pytest

from qre.dataplane.protocol import LossReason, SessionDelete, SessionLost
from qre.ends import Role
from qre.wire.close_reason import CloseReason
from tests.support.two_ends import Confirmed, Lost, Orphaned, OrphanEnded, TwoEnds


@pytest.mark.parametrize("role", list(Role))
def test_with_their_secrets_sessions_go_on_as_if_nothing_had_happened(role: Role) -> None:
    with TwoEnds(interval=1.0, in_kernel=True) as ends:
        ends.install().talk(3)
        for _ in range(5):
            ends.ends[role].kill_handshake()
            ends.talk(2)
        assert not any(end.said(Lost) or end.said(Orphaned) for end in ends.ends.values())
        ends.assert_in_step()
        ends.assert_works()


@pytest.mark.parametrize("role", list(Role))
def test_without_their_secrets_they_flow_on(role: Role) -> None:
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(3)
        end = ends.ends[role]
        end.lose_secrets()
        ends.talk(20)
        (orphaned,) = end.said(Orphaned)
        assert isinstance(orphaned, Orphaned)
        (mark,) = orphaned.marks
        assert (end.sessions.records(), end.sessions.up()) == ((), 1)
        assert end.sessions.has_connection_id(mark.connection_id)
        assert not any(each.said(Lost) or each.said(OrphanEnded) for each in ends.ends.values())
        ends.assert_works()


@pytest.mark.parametrize("role", list(Role))
def test_a_new_session_takes_the_place_of_an_orphan_once_it_is_confirmed(role: Role) -> None:
    with TwoEnds(interval=3.0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        end = ends.ends[role]
        end.lose_secrets()
        ends.run(0.2)
        (orphan,) = end.sessions.orphans
        ends.shake_hands_again(7).run(0.5)
        if role is Role.CLIENT:
            assert orphan in end.sessions.orphans, "on an idle tunnel the server was not heard yet with the new one"
        ends.run(3)
        assert len(end.said(Confirmed)) == 2
        assert [event.session_id for event in end.said(OrphanEnded) if isinstance(event, OrphanEnded)] == [orphan]
        assert orphan not in end.registry.sessions or end.registry.sessions[orphan].state.name in ("CLOSING", "ENDED")
        ends.talk(3)
        ends.assert_works()


def test_an_orphan_of_another_short_id_stays() -> None:
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        ends.server.lose_secrets()
        ends.run(0.2)
        (orphan,) = ends.server.sessions.orphans
        ends.shake_hands_again(9, short_id=b"somebody").run(0.5)
        assert list(ends.server.sessions.orphans) == [orphan]
        assert ends.server.sessions.up() == 2


def test_a_server_ends_an_orphan_whose_keys_its_client_has_changed() -> None:
    """With the change after this one nothing would be read any more: better that the client is told now."""
    with TwoEnds(interval=2.0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        ends.server.lose_secrets()
        ends.talk(4)
        assert len(ends.server.said(OrphanEnded)) == 1
        (lost,) = ends.client.said(Lost)
        assert isinstance(lost, Lost)
        assert lost.end.reason is CloseReason.FORGOTTEN


def test_an_orphan_that_ends_by_itself_is_forgotten() -> None:
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        ends.server.lose_secrets()
        ends.run(0.2)
        (orphan,) = ends.server.sessions.orphans
        ends.server.sessions.received(SessionLost(session_id=orphan, reason=LossReason.IDLE), ends.now)
        ends.run(0.1)
        assert not ends.server.sessions.orphans
        assert len(ends.server.said(OrphanEnded)) == 1


@pytest.mark.parametrize("role", list(Role))
def test_a_session_that_the_kernel_has_no_more_is_never_installed_again(role: Role) -> None:
    """Its packet numbers are forgotten with it."""
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        end = ends.ends[role]
        (session,) = end.registry.sessions.values()
        end.registry.remove(session)
        end.kill_handshake()
        ends.run(0.2)
        (lost,) = end.said(Lost)
        assert isinstance(lost, Lost)
        assert "no longer has the session" in lost.end.words
        assert not end.registry.sessions


def test_what_was_deleted_while_there_was_no_data_plane_is_no_orphan() -> None:
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        server = ends.server.sessions
        (record,) = server.records()
        server.disconnected()
        server.delete(record.session_id, "its short id was removed", CloseReason.REMOVED)
        server.connected(ends.now)
        ends.run(0.2)
        assert not ends.server.said(Orphaned)
        assert [event.end.reason for event in ends.client.said(Lost) if isinstance(event, Lost)] == [
            CloseReason.REMOVED
        ]


def test_an_orphan_that_is_not_wanted_is_closed() -> None:
    with TwoEnds(interval=0, in_kernel=True) as ends:
        ends.install().talk(0.5)
        ends.server.lose_secrets()
        ends.run(0.2)
        server = ends.server.sessions
        (orphan,) = server.orphans
        server.delete_orphan(orphan, CloseReason.REMOVED)
        assert isinstance(server.outbox[-1].request, SessionDelete)
        ends.run(0.2)
        assert ends.client.said(Lost)
        server.delete_orphan(orphan, CloseReason.REMOVED)
        assert not server.outbox


def test_on_the_user_data_plane_sessions_without_secrets_are_deleted() -> None:
    with TwoEnds(interval=0) as ends:
        ends.install().talk(0.5)
        ends.server.lose_secrets()
        ends.run(0.5)
        assert not ends.server.said(Orphaned)
        assert ends.client.said(Lost)
