"""The test vectors of docs/specification.md: one whole handshake between the real ends in memory, and what follows.

``make vectors`` writes docs/vectors.json anew. The server's part of the key agreement is random, so they differ each
time. They are made anew when the protocol changes, which other implementations have to be told.
"""

from __future__ import annotations

import io
import json
import struct
from ipaddress import IPv4Address, ip_interface, ip_network
from random import Random
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.config.model import ClientSettings, HostPort, Listen, ServerSettings
from qre.quic.client.hello import make_hello
from qre.quic.in_memory import lone_server
from qre.quic.in_memory.plan import InMemoryHandshake, Plan
from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.resumption.ticket_keys import TicketKeys
from qre.quic.server.server_handshake import ServerHandshake
from qre.reality.authenticator import share_secrets_untrusted
from qre.visit.visitor_files import load_fingerprint
from qre.wire.capsule import CapsuleType, RequestedAddress, encode_addresses, encode_routes
from qre.wire.close_reason import CloseReason
from qre.wire.datagram import in_two
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import Protection, derive, next_secret

NAME = "www.example.org"
SHORT_ID = bytes.fromhex("5f0c7de1a94b3286")
UNIX_TIME = 1_790_000_000
ADDRESS = ip_interface("10.77.0.2/24")
ROUTES = (ip_network("10.77.0.0/24"),)
SEED = 9000
REALITY_KEY = bytes(range(1, 33))
#: ICMP echo request, 10.77.0.2 to 10.77.0.1, of 8 bytes.
ECHO = bytes.fromhex("4500001c00000000400126480a4d00020a4d00010800f7fd00010001")
PING = b"\x01"
DATAGRAM = b"\x30\x00\x00"
#: As much as fits into a datagram of 1,250 bytes beside a connection ID of 20.
ROOM = 1202


class JoiningServer(ServerHandshake):
    """Whose data plane joins packets in two datagrams."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments | {"joins": True})


def large_echo() -> bytes:
    """ICMP echo request, 10.77.0.2 to 10.77.0.1, of 1,280 bytes, that must not be fragmented."""

    def with_sum(head: bytes, at: int, rest: bytes = b"") -> bytes:
        total = sum(struct.unpack(f">{len(head + rest) // 2}H", head + rest))
        total = (total & 0xFFFF) + (total >> 16)
        return head[:at] + (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2, "big") + head[at + 2 :]

    data = bytes(range(256)) * 4 + bytes(228)
    ends = ADDRESS.ip.packed + IPv4Address("10.77.0.1").packed
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(data), 0, 0x4000, 64, 1, 0) + ends
    return with_sum(ip, 10) + with_sum(bytes.fromhex("0800000000010001"), 2, data) + data


def run() -> tuple[Plan, dict[str, str]]:
    """The handshake, and its secrets by their names in a key log."""
    key = X25519PrivateKey.from_private_bytes(REALITY_KEY)
    log = io.StringIO()
    handshake = InMemoryHandshake(
        server=ServerSettings(
            listen=Listen((IPv4Address("192.0.2.1"),), 443),
            dest=HostPort(NAME, 443),
            server_name=NAME,
            private_key=REALITY_KEY,
            short_ids=(SHORT_ID,),
        ),
        client=ClientSettings(
            endpoint=HostPort("192.0.2.1", 443),
            server_name=NAME,
            public_key=key.public_key().public_bytes_raw(),
            short_id=SHORT_ID,
        ),
        addresses=(ADDRESS,),
        grant=lambda short_id, wanted: wanted,
        routes=ROUTES,
        routed_cid_len=20,
        server_address=("192.0.2.1", 443),
        client_address=("192.0.2.2", 50_000),
        unix_time=UNIX_TIME,
        fingerprint=load_fingerprint(),
        random=Random(SEED),
        key_log=log,
    )
    with patch.object(lone_server, "ServerHandshake", JoiningServer):
        plan = handshake.run()
    lines = (line.split() for line in log.getvalue().splitlines())
    return plan, {name.lower(): secret for name, _, secret in lines}


def hello() -> dict[str, str]:
    """The client's, which its random numbers make the same each time."""
    public = X25519PrivateKey.from_private_bytes(REALITY_KEY).public_key().public_bytes_raw()
    offered = make_hello(
        load_fingerprint(),
        NAME,
        public_key=public,
        short_id=SHORT_ID,
        unix_time=UNIX_TIME,
        random=Random(SEED),
    )
    lone = offered.keys.lone
    secrets = share_secrets_untrusted(lone, public)
    return {
        "x25519_private_key": lone.private_bytes_raw().hex(),
        "x25519_share": lone.public_key().public_bytes_raw().hex(),
        "hello_key": secrets.hello_key.hex(),
        "hello_iv": secrets.hello_iv.hex(),
        "proof": secrets.proof.hex(),
        "random": offered.random.hex(),
        "client_hello": offered.message.hex(),
    }


def resumption() -> dict[str, str]:
    """A hello with a ticket, and how its keys follow."""
    public = X25519PrivateKey.from_private_bytes(REALITY_KEY).public_key().public_bytes_raw()
    keys = TicketKeys(b"", private_key=REALITY_KEY, random=Random(SEED).randbytes, unix_time=UNIX_TIME)
    secret = bytes(range(32, 64))
    ticket = HeldTicket(
        identity=keys.seal(secret, SHORT_ID, UNIX_TIME - 60, 156),
        secret=secret,
        age_add=7,
        lifetime=604_800,
        received_ms=(UNIX_TIME - 60) * 1000,
        early_data=True,
        parameters=b"",
    )
    offered = make_hello(
        load_fingerprint(),
        NAME,
        public_key=public,
        short_id=SHORT_ID,
        unix_time=UNIX_TIME,
        random=Random(SEED),
        ticket=ticket,
    )
    assert offered.secrets is not None and offered.comes_back is not None
    return {
        "ticket": ticket.identity.hex(),
        "ticket_secret": secret.hex(),
        "resumption_x25519_share": offered.keys.lone.public_key().public_bytes_raw().hex(),
        "resumption_proof": offered.secrets.proof.hex(),
        "pre_shared_key": offered.comes_back.secret.hex(),
        "resumed_client_hello": offered.message.hex(),
    }


def data_packets(plan: Plan) -> list[dict[str, Any]]:
    """The first packets of the data planes, one of each after a key update, and a packet in two datagrams."""
    found = []
    first, second = in_two(large_echo(), 0, ROOM)
    for sender, secret, cid, epoch, payload in (
        ("client", plan.client.tx_secret, plan.client.routed_cid, 0, PING + bytes(3)),
        ("client", plan.client.tx_secret, plan.client.routed_cid, 0, DATAGRAM + ECHO),
        ("server", plan.client.rx_secret, b"", 0, DATAGRAM + ECHO),
        ("client", plan.client.tx_secret, plan.client.routed_cid, 1, DATAGRAM + ECHO),
        ("server", plan.client.rx_secret, b"", 1, DATAGRAM + ECHO),
        ("client", plan.client.tx_secret, plan.client.routed_cid, 1, first),
        ("client", plan.client.tx_secret, plan.client.routed_cid, 1, second),
    ):
        number = PACKET_NUMBER_BASE + sum(each["by"] == sender for each in found)
        protection = Protection(next_secret(secret) if epoch else secret, secret)
        header = 0x43 | epoch << 2  # fixed bit, key phase, a number of 4 bytes
        packet = protection.protect(bytes([header]) + cid + number.to_bytes(4, "big"), number, payload)
        found.append(
            {"by": sender, "key_epoch": epoch, "number": number, "payload": payload.hex(), "packet": packet.hex()}
        )
    return found


def keys(secret: bytes) -> list[dict[str, str]]:
    """Of key epochs 0 and 1; the header key stays."""
    first, second = derive(secret), derive(next_secret(secret))
    return [{"key": each.key.hex(), "iv": each.iv.hex(), "hp": first.hp.hex()} for each in (first, second)]


def vectors() -> dict[str, Any]:
    """All of them, with the names that the specification uses."""
    plan, secrets = run()
    requested = RequestedAddress(1, ip_interface(ADDRESS.ip))
    return {
        "version": 1,
        "profile": {
            "server_name": NAME,
            "reality_private_key": REALITY_KEY.hex(),
            "reality_public_key": X25519PrivateKey.from_private_bytes(REALITY_KEY)
            .public_key()
            .public_bytes_raw()
            .hex(),
            "short_id": SHORT_ID.hex(),
            "unix_time": UNIX_TIME,
        },
        "hello": hello(),
        "resumption": resumption(),
        "secrets": {name: secrets[name] for name in sorted(secrets)},
        "datagrams": [
            {"by": "client" if each.by_client else "server", "data": each.data.hex()} for each in plan.datagrams
        ],
        "capsules": {
            "address_request": encode_addresses(CapsuleType.ADDRESS_REQUEST, [requested]).hex(),
            "address_assign": encode_addresses(CapsuleType.ADDRESS_ASSIGN, [requested]).hex(),
            "route_advertisement": encode_routes(ROUTES).hex(),
        },
        "hand_over": {
            "session_id": plan.client.session_id.hex(),
            "routed_cid": plan.client.routed_cid.hex(),
            "client_cid": plan.client.client_cid.hex(),
            "client_keys": keys(plan.client.tx_secret),
            "server_keys": keys(plan.client.rx_secret),
        },
        "data_packets": data_packets(plan),
        "close_reasons": {reason.name.lower(): reason.error_code for reason in CloseReason},
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
