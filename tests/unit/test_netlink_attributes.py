"""Netlink attributes and qre.ko's answers: what is packed, what is read, and what hostile bytes do."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.dataplane.giving_up import RoundTrip
from qre.dataplane.protocol import (
    FrameFate,
    FrameReceived,
    KeyPhaseChanged,
    KeyPhaseConfirmed,
    LossReason,
    PeerMoved,
    RekeyDue,
    SessionBegun,
    SessionConfirmed,
    SessionLost,
    SessionSilent,
    Underlay,
    underlay_of,
)
from qre.ends import Role
from qre.errors import InternalError, UntrustedInputError
from qre.kernel import abi
from qre.kernel.abi import Attribute
from qre.kernel.answers import (
    KernelDevice,
    KernelEvent,
    KernelSession,
    MapSyncFailed,
    PathDegraded,
    PortAnswered,
    PortDropped,
    SessionInstalled,
    device_untrusted,
    event_untrusted,
    session_untrusted,
)
from qre.kernel.attributes import (
    Request,
    encode_attribute,
    put_underlay,
    read_attributes_untrusted,
    split_attributes_untrusted,
)
from tests.support.untrusted import read_or_refused

SESSION = bytes(range(32))
CID = bytes(range(20))
UNDERLAY = underlay_of(("192.0.2.1", 443), ("198.51.100.2", 50443))


def cids(*found: bytes) -> bytes:
    return b"".join(abi.CID.pack(len(cid), cid) for cid in found)


def session_answer() -> Request:
    answer = Request()
    answer.put(Attribute.SESSION_ID, SESSION)
    answer.put(Attribute.CID, CID)
    answer.put(Attribute.CLIENT_CID, b"")
    answer.put(Attribute.SHORT_ID, b"\x05" * 8)
    answer.u8(Attribute.STATE, abi.SessionState.ESTABLISHED)
    answer.u8(Attribute.CONFIRMED, 1)
    answer.u8(Attribute.BEGUN, 1)
    answer.u64(Attribute.KEY_EPOCH, 3)
    answer.u64(Attribute.PACKET_NUMBER, 70_000)
    answer.u64(Attribute.RX_NUMBER, 69_999)
    put_underlay(answer, UNDERLAY)
    answer.allowed_ips([ip_network("10.77.0.2/32"), ip_network("fd00:77::/64")])
    answer.u64(Attribute.AGE_MS, 1234)
    answer.put(Attribute.CIDS, cids(CID, b"\x01\x02"))
    answer.text(Attribute.AEAD_DRIVER, "generic-gcm-aesni")
    answer.u16(Attribute.PATH_MTU, 1464)
    answer.u16(Attribute.INNER_MTU, 1392)
    return answer


def read(answer: Request) -> Any:
    return read_attributes_untrusted(answer.encode())


def event(kind: abi.Event, *, session: bytes | None = SESSION) -> Request:
    answer = Request()
    answer.u8(Attribute.EVENT, kind)
    answer.text(Attribute.IFNAME, "qre0")
    answer.u32(Attribute.IFINDEX, 7)
    if session is not None:
        answer.put(Attribute.SESSION_ID, session)
    return answer


# --- the layout ---


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_what_is_packed_is_read(attributes: list[tuple[int, bytes]]) -> None:
    data = b"".join(encode_attribute(kind, value) for kind, value in attributes)
    assert list(split_attributes_untrusted(data)) == attributes


def check_read_or_refused(data: bytes) -> None:
    """Whatever the kernel said: what each reader makes of it, if anything, is of its kind."""
    readers = ((device_untrusted, KernelDevice), (session_untrusted, KernelSession), (event_untrusted, KernelEvent))
    for reader, kind in readers:
        found = read_or_refused(lambda said, reader=reader: reader(read_attributes_untrusted(said)), data)  # type: ignore[misc]
        assert found is None or isinstance(found, kind)


def over_ipv6() -> Underlay:
    return underlay_of(("2001:db8::1", 443), ("2001:db8::2", 50_443))


def test_a_session_over_ipv6_is_told_with_its_addresses() -> None:
    answer = Request()
    put_underlay(answer, over_ipv6())
    for kind, value in split_attributes_untrusted(session_answer().encode()):
        if kind not in (Attribute.LOCAL_IP, Attribute.LOCAL_PORT, Attribute.PEER_IP, Attribute.PEER_PORT):
            answer.put(Attribute(kind), value)
    session = session_untrusted(read(answer))
    assert session.underlay == over_ipv6()
    assert session.status.endpoint == "[2001:db8::2]:50443"


def test_a_peer_that_moves_to_ipv6_is_told() -> None:
    answer = event(abi.Event.PEER_MOVED)
    put_underlay(answer, over_ipv6())
    assert event_untrusted(read(answer)).what == PeerMoved(session_id=SESSION, underlay=over_ipv6())


def test_an_address_of_both_versions_at_once_is_refused() -> None:
    answer = session_answer()
    answer.put(Attribute.PEER_IPV6, bytes(16))
    with pytest.raises(UntrustedInputError, match="PEER_IP and PEER_IPV6"):
        session_untrusted(read(answer))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_read_or_refused(data)


@given(st.dictionaries(st.sampled_from(list(Attribute)), st.binary(max_size=48), max_size=len(Attribute)))
def test_attributes_with_any_values_are_read_or_refused(values: dict[Attribute, bytes]) -> None:
    answer = Request()
    for attribute, value in values.items():
        answer.put(attribute, value)
    check_read_or_refused(answer.encode())


def test_an_attribute_that_comes_twice_is_refused() -> None:
    answer = session_answer()
    answer.u64(Attribute.KEY_EPOCH, 4)
    with pytest.raises(UntrustedInputError, match="twice"):
        read(answer)


def test_a_request_shows_which_attributes_it_has_and_none_of_their_values() -> None:
    request = Request()
    request.put(Attribute.TX_KEY, b"secret, secret!!")
    assert repr(request) == "Request(TX_KEY)"


def test_the_attribute_at_an_offset_is_found() -> None:
    request = Request()
    request.text(Attribute.IFNAME, "qre0")  # 12 bytes with padding
    request.put(Attribute.SESSION_ID, SESSION)
    assert request.at(0) is Attribute.IFNAME
    assert request.at(11) is Attribute.IFNAME
    assert request.at(12) is Attribute.SESSION_ID
    assert request.at(48) is None
    assert request.at(-1) is None


def test_a_number_that_does_not_fit_is_a_defect_of_ours() -> None:
    with pytest.raises(InternalError, match="MTU"):
        Request().u32(Attribute.MTU, 1 << 32)


# --- answers ---


def test_a_session_is_read_whole() -> None:
    found = session_untrusted(read(session_answer()))
    status = found.status
    assert found.confirmed and found.begun
    assert found.underlay == UNDERLAY
    assert found.aead_driver == "generic-gcm-aesni"
    assert (status.path_mtu, status.inner_mtu) == (1464, 1392)
    assert (status.session_id, status.connection_id, status.client_connection_id) == (SESSION, CID, b"")
    assert (status.state, status.key_epoch) == ("established", 3)
    assert (status.tx_packet_number, status.rx_packet_number) == (70_000, 69_999)
    assert status.endpoint == "198.51.100.2:50443"
    assert status.allowed_ips == (ip_network("10.77.0.2/32"), ip_network("fd00:77::/64"))
    assert status.last_receive_ms is None
    assert status.cids == (CID, b"\x01\x02")
    assert (status.unanswered_ms, found.silent) == (None, False), "of a server's session"


def test_of_a_clients_session_it_is_read_whether_its_server_answers() -> None:
    answer = session_answer()
    answer.u64(Attribute.UNANSWERED_MS, 2300)
    answer.u8(Attribute.SILENT, 1)
    found = session_untrusted(read(answer))
    assert (found.status.unanswered_ms, found.silent) == (2300, True)
    answer = session_answer()
    answer.u8(Attribute.SILENT, 2)
    with pytest.raises(UntrustedInputError):
        session_untrusted(read(answer))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (Attribute.CIDS, abi.CID.pack(21, bytes(20))),
        (Attribute.CIDS, cids(*[CID] * (abi.SESSION_CIDS_MAX + 1))),
        (Attribute.CIDS, bytes(5)),
        (Attribute.ALLOWED_IPS, abi.ALLOWED_IP.pack(4, 33, bytes(16))),
        (Attribute.ALLOWED_IPS, abi.ALLOWED_IP.pack(5, 0, bytes(16))),
        (Attribute.ALLOWED_IPS, abi.ALLOWED_IP.pack(4, 8, b"\x0a\x01" + bytes(14))),
        (Attribute.RX_PACKETS, struct.pack("=Q", 1 << 63)),
    ],
)
def test_a_session_that_cannot_be_is_refused(attribute: Attribute, value: bytes) -> None:
    answer = Request()
    answer.put(Attribute.SESSION_ID, SESSION)
    answer.put(Attribute.CID, CID)
    answer.u8(Attribute.STATE, 0)
    answer.u64(Attribute.KEY_EPOCH, 0)
    session_untrusted(read(answer))
    answer.put(attribute, value)
    with pytest.raises(UntrustedInputError):
        session_untrusted(read(answer))


def test_a_device_is_read_with_what_its_namespace_has() -> None:
    answer = Request()
    answer.u32(Attribute.IFINDEX, 7)
    answer.text(Attribute.IFNAME, "qre0")
    answer.u8(Attribute.ROLE, abi.KernelRole.SERVER)
    answer.u32(Attribute.MTU, 1380)
    answer.text(Attribute.DEST, "site.example:443")
    answer.ipv4(Attribute.LISTEN_IP, IPv4Address("192.0.2.1"))
    answer.port(Attribute.LISTEN_PORT, 443)
    answer.put(
        Attribute.DROPS,
        encode_attribute(abi.Drop.SOURCE_NOT_ALLOWED, struct.pack("=Q", 4))
        + encode_attribute(abi.Drop.UNSPEC, b"")
        + encode_attribute(99, struct.pack("=Q", 1)),
    )
    answer.put(Attribute.CIDS, cids(CID))
    answer.u32(Attribute.MAP_ID, 12)
    answer.u32(Attribute.MAP_MISSING, 1)
    answer.ipv4(Attribute.SHARED_IP, IPv4Address("192.0.2.1"))
    answer.port(Attribute.SHARED_PORT, 443)
    answer.text(Attribute.LOADER_PROGRAM, "qre_reuseport_demux")
    answer.u8(Attribute.LOADER_CID_LENGTH, 20)
    device = device_untrusted(read(answer))
    assert (device.name, device.index, device.role, device.mtu) == ("qre0", 7, Role.SERVER, 1380)
    assert device.dest == "site.example:443"
    assert device.listen == ("192.0.2.1", 443)
    assert device.counters.drops == {"source-not-allowed": 4, "reason-99": 1}
    assert device.cids == (CID,)
    assert device.cid_map is not None
    assert (device.cid_map.map_id, device.cid_map.missing) == (12, 1)
    assert device.shared_socket is not None
    assert device.shared_socket.port == 443
    assert device.loader is not None
    assert device.loader.program == "qre_reuseport_demux"


def test_a_device_without_anything_has_nothing() -> None:
    answer = Request()
    answer.text(Attribute.IFNAME, "qre0")
    device = device_untrusted(read(answer))
    assert device.role is device.listen is device.cid_map is device.shared_socket is device.loader is None


def test_every_event_becomes_the_message_that_a_data_plane_sends() -> None:
    def happened(kind: abi.Event, **attributes: Any) -> Any:
        answer = event(kind)
        for name, (pack, value) in attributes.items():
            getattr(answer, pack)(Attribute[name], value)
        found = event_untrusted(read(answer))
        assert (found.device, found.index) == ("qre0", 7)
        return found.what

    assert happened(abi.Event.SESSION_BEGUN) == SessionBegun(session_id=SESSION)
    assert happened(abi.Event.SESSION_CONFIRMED) == SessionConfirmed(session_id=SESSION)
    assert happened(abi.Event.SESSION_INSTALLED) == SessionInstalled(session_id=SESSION)
    assert happened(abi.Event.SESSION_SILENT) == SessionSilent(session_id=SESSION, silent=True)
    assert happened(abi.Event.SESSION_ANSWERS) == SessionSilent(session_id=SESSION, silent=False)
    figures = {"SMOOTHED_RTT_US": ("u32", 2500), "RTT_VARIATION_US": ("u32", 500), "PTO_US": ("u32", 29_500)}
    degraded = happened(abi.Event.PATH_DEGRADED, SEVERAL=("u8", 1), **figures)
    assert isinstance(degraded, PathDegraded)
    assert degraded == PathDegraded(session_id=SESSION, round_trip=RoundTrip(0.0025, 0.0005, 0.0295), several=True)
    offered = happened(abi.Event.PATH_DEGRADED, SEVERAL=("u8", 0), SPARE=("u8", 1), **figures)
    assert isinstance(offered, PathDegraded) and offered.spare and not degraded.spare
    answered = happened(abi.Event.PORT_ANSWERED, CID=("put", CID), SEQUENCE=("u64", 1))
    assert answered == PortAnswered(session_id=SESSION, connection_id=CID, sequence=1)
    assert happened(abi.Event.PORT_DROPPED) == PortDropped(session_id=SESSION)
    lost = happened(abi.Event.SESSION_LOST, LOSS=("u8", abi.Loss.RESET), ERROR_CODE=("u64", 0x100))
    assert lost == SessionLost(session_id=SESSION, reason=LossReason.RESET, error_code=0x100)
    epoch = ("u64", 5)
    assert happened(abi.Event.REKEY_DUE, KEY_EPOCH=epoch) == RekeyDue(session_id=SESSION, key_epoch=5)
    changed = happened(abi.Event.KEY_PHASE_CHANGED, KEY_EPOCH=epoch)
    assert changed == KeyPhaseChanged(session_id=SESSION, key_epoch=5)
    confirmed = happened(abi.Event.KEY_PHASE_CONFIRMED, KEY_EPOCH=epoch)
    assert confirmed == KeyPhaseConfirmed(session_id=SESSION, key_epoch=5)
    frames = happened(abi.Event.FRAME_RECEIVED, FRAMES=("put", b"\x1e"))
    assert frames == FrameReceived(session_id=SESSION, frames=b"\x1e")
    fate = happened(abi.Event.FRAME_FATE, FRAME_ID=("u64", 9), FRAME_ACKED=("u8", 0))
    assert fate == FrameFate(session_id=SESSION, id=9, acknowledged=False)
    moved = event(abi.Event.PEER_MOVED)
    put_underlay(moved, UNDERLAY)
    assert event_untrusted(read(moved)).what == PeerMoved(session_id=SESSION, underlay=UNDERLAY)
    failed = event(abi.Event.MAP_SYNC_FAILED, session=None)
    failed.put(Attribute.CID, CID)
    failed.u32(Attribute.ERRNO, 7)
    assert event_untrusted(read(failed)).what == MapSyncFailed(connection_id=CID, code=7)


def test_every_reason_of_a_loss_has_its_name() -> None:
    assert [reason.name for reason in LossReason] == [loss.name for loss in abi.Loss]
    for loss in abi.Loss:
        answer = event(abi.Event.SESSION_LOST)
        answer.u8(Attribute.LOSS, loss)
        what = event_untrusted(read(answer)).what
        assert isinstance(what, SessionLost)
        assert what.reason.name == loss.name


@pytest.mark.parametrize("kind", [0, max(abi.Event) + 1, 255])
def test_an_event_that_is_not_known_is_refused(kind: int) -> None:
    answer = Request()
    answer.u8(Attribute.EVENT, kind)
    answer.text(Attribute.IFNAME, "qre0")
    answer.put(Attribute.SESSION_ID, SESSION)
    with pytest.raises(UntrustedInputError, match="not known"):
        event_untrusted(read(answer))
