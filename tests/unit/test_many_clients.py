"""As many clients as a server may have: their profile is read, and what is told of them fits the messages."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from qre.dataplane.status import DeviceCounters, SessionStatus
from qre.ends import MAX_CLIENTS
from qre.ipc.messages import MAX_MESSAGE, DataplaneStatus, HandshakeStatus
from qre.profile_secrets import ListedClient
from qre.structs import encoder
from qre.workers.handshake.sessions.secrets import SLOTS
from tests.support.config_parsers import parse_profile
from tests.support.profiles import SERVER

LARGEST = (1 << 62) - 1


def test_a_profile_of_all_of_them_is_read() -> None:
    sections = "".join(
        f"[Client laptop-of-person-{number}]\n# since today\n"
        f"ShortId = {number + 1:016x}\nAddress = 10.77.{number // 250}.{number % 250 + 2}\n"
        for number in range(MAX_CLIENTS)
    )
    named = "".join(line for line in SERVER.splitlines(True) if "ShortIds" not in line)
    profile = parse_profile((named.replace("/24", "/16") + sections).encode(), "qre0", "qre0.conf")
    assert profile.server is not None
    assert len(profile.server.clients) == MAX_CLIENTS


def test_what_a_data_plane_tells_of_all_of_them_is_one_message() -> None:
    one = SessionStatus(
        session_id=bytes(32),
        connection_id=bytes(20),
        client_connection_id=bytes(20),
        short_id=bytes(8),
        state="established",
        key_epoch=LARGEST,
        tx_packet_number=LARGEST,
        rx_packet_number=LARGEST,
        endpoint="255.255.255.255:65535",
        allowed_ips=(ip_network("255.255.255.255/32"), ip_network("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")),
        age_ms=LARGEST,
        last_receive_ms=LARGEST,
        rx_packets=LARGEST,
        rx_bytes=LARGEST,
        tx_packets=LARGEST,
        tx_bytes=LARGEST,
        cids=(bytes(20),) * 2,
        path_mtu=1500,
        inner_mtu=1500,
        inner_mtu_ipv6=1500,
        inner_mtu_in_two=1500,
        tx_acknowledged=LARGEST,
        tx_lost=LARGEST,
        unanswered_ms=LARGEST,
    )
    status = DataplaneStatus(counters=DeviceCounters(), sessions=(one,) * MAX_CLIENTS)
    assert len(encoder().encode(status)) < MAX_MESSAGE


def test_what_a_handshake_worker_tells_of_all_of_them_is_one_message() -> None:
    addresses = (ip_address("255.255.255.255"), ip_address("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    one = ListedClient(name="x" * 64, short_id=bytes(8), address=addresses)
    assert len(encoder().encode(HandshakeStatus(up=True, text="", clients=(one,) * MAX_CLIENTS))) < MAX_MESSAGE


def test_every_session_has_a_place_for_its_secrets() -> None:
    assert SLOTS >= MAX_CLIENTS
