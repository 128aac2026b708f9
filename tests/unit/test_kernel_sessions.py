"""What the netlink worker remembers of sessions in qre.ko, and what it tells of them when it looks."""

from __future__ import annotations

import msgspec

from qre.dataplane.protocol import (
    KeyPhaseChanged,
    LossReason,
    PeerMoved,
    RekeyDue,
    SessionBegun,
    SessionConfirmed,
    SessionLost,
    SessionSilent,
    underlay_of,
)
from qre.dataplane.status import SessionStatus
from qre.ends import Role
from qre.kernel.answers import KernelEvent, KernelSession
from qre.workers.netlink.kernel_sessions import KernelSessions, mark_of

ID = b"\x07" * 32
CID = b"\x09" * 20
UNDERLAY = underlay_of(("10.9.0.1", 443), ("10.9.0.2", 5555))


def seen(
    number: int = 65_536, epoch: int = 3, *, confirmed: bool = True, peer_port: int = 5555, silent: bool = False
) -> KernelSession:
    """A session as the kernel shows it; ``number`` is the next one that it sends."""
    status = SessionStatus(
        session_id=ID,
        connection_id=CID,
        client_connection_id=b"",
        short_id=bytes(8),
        state="established",
        key_epoch=epoch,
        tx_packet_number=number,
        rx_packet_number=65_536,
        endpoint=f"10.9.0.2:{peer_port}",
        allowed_ips=(),
        age_ms=1,
        last_receive_ms=1,
        rx_packets=0,
        rx_bytes=0,
        tx_packets=0,
        tx_bytes=0,
        cids=(CID,),
    )
    underlay = msgspec.structs.replace(UNDERLAY, peer_port=peer_port)
    return KernelSession(status=status, confirmed=confirmed, underlay=underlay, aead_driver="", silent=silent)


def test_packets_of_sessions_that_others_installed_are_counted_by_the_limit_given() -> None:
    sessions = KernelSessions(Role.SERVER, 1000)
    assert sessions.look([seen(70_000)]) == []
    assert sessions.connection_ids() == {CID}
    assert sessions.look([seen(70_999)]) == []
    assert sessions.look([seen(71_000)]) == [RekeyDue(session_id=ID, key_epoch=3)]
    assert sessions.look([seen(71_500)]) == []
    assert sessions.look([seen(72_000)]) == [RekeyDue(session_id=ID, key_epoch=3)]
    assert sessions.look([seen(72_100, epoch=4)]) == [KeyPhaseChanged(session_id=ID, key_epoch=4)]
    assert sessions.look([seen(73_000, epoch=4)]) == []


def test_what_events_did_not_tell_is_found_when_it_looks() -> None:
    sessions = KernelSessions(Role.CLIENT, 1000)
    assert sessions.look([seen(confirmed=False)]) == []
    begun = msgspec.structs.replace(seen(confirmed=False), begun=True)
    assert sessions.look([begun]) == [SessionBegun(session_id=ID)]
    assert sessions.look([begun]) == []
    assert mark_of(begun).begun and not mark_of(begun).confirmed
    assert sessions.look([seen()]) == [SessionConfirmed(session_id=ID)]
    (moved,) = sessions.look([seen(peer_port=6666)])
    assert isinstance(moved, PeerMoved)
    assert moved.underlay.peer_port == 6666
    assert sessions.look([]) == [SessionLost(session_id=ID, reason=LossReason.DELETED)]
    assert sessions.connection_ids() == frozenset()


def test_a_silence_is_told_once_by_its_event_or_when_it_looks_and_to_every_new_worker() -> None:
    begins, ends = (SessionSilent(session_id=ID, silent=silent) for silent in (True, False))
    sessions = KernelSessions(Role.CLIENT, 1000)
    sessions.look([seen()])
    assert sessions.happened(KernelEvent(what=begins)) == begins
    assert sessions.look([seen(silent=True)]) == [], "it is known"
    sessions.forget_silence()
    assert sessions.look([seen(silent=True)]) == [begins]
    assert sessions.look([seen()]) == [ends], "whose event was lost"
    assert sessions.look([seen()]) == []


def test_that_a_client_has_moved_to_another_port_of_its_own_is_no_news_of_its_peer() -> None:
    before = seen()
    assert before.underlay is not None
    moved = msgspec.structs.replace(before, underlay=msgspec.structs.replace(before.underlay, local_port=5600))
    client, server = KernelSessions(Role.CLIENT), KernelSessions(Role.SERVER)
    for sessions in (client, server):
        assert sessions.look([before]) == []
    assert client.look([moved]) == []
    assert [type(report) for report in server.look([moved])] == [PeerMoved]
    assert [type(report) for report in client.look([seen(peer_port=6666)])] == [PeerMoved]
