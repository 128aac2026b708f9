"""From TLS's application traffic secrets to what a data plane protects packets with (RFC 9001 §5.1, §6.1).

AES-128-GCM and SHA-256 alone: the one suite that a QRE server chooses. Header keys never change with a key update.
No secret of this module may be logged or put into an exception.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qre.config.model import Interface
from qre.dataplane.protocol import (
    PACKET_NUMBER_BASE,
    REKEY_AFTER_PACKETS,
    Role,
    SessionInstall,
    SessionKeys,
    Underlay,
)
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.protection import derive, expand_label, next_secret


@dataclass(frozen=True)
class Secrets:
    """The application traffic secrets of one key epoch."""

    client: bytes
    server: bytes

    def __repr__(self) -> str:
        return "Secrets(hidden)"

    def next(self) -> Secrets:
        return Secrets(next_secret(self.client), next_secret(self.server))


@dataclass(frozen=True)
class HandedOver:
    """All that lives on of a handshake. Secrets are those of ``key_epoch``; tx and rx are as this end sees them."""

    session_id: bytes
    routed_cid: bytes  # on packets from client to server
    client_cid: bytes  # on packets from server to client
    tx_secret: bytes
    rx_secret: bytes
    tx_hp_key: bytes
    rx_hp_key: bytes
    key_epoch: int
    peer_idle_ms: int  # 0: the peer has none
    peer_ack_delay_exponent: int
    peer_max_ack_delay_ms: int
    peer_max_udp_payload: int
    reset_token: bytes | None  # of routed_cid, held by the client
    addresses: tuple[Interface, ...]
    short_id: bytes
    retire_sequence: int | None = None  # client: the sequence number to RETIRE after the hand-over
    next_cid_sequence: int = 1  # server: the sequence number of the spare CID
    #: Packet numbers that user space sent on the 1-RTT space: all below this.
    next_packet_number: int = 0

    def __repr__(self) -> str:
        return f"HandedOver(session_id={self.session_id.hex()[:8]}…)"


def session_id(client_secret0: bytes) -> bytes:
    """SessionId: both ends know it, nobody else. ``client_secret0`` is client_application_traffic_secret_0."""
    return expand_label(client_secret0, b"qre session id", 32)


def session_keys(tx_secret: bytes, rx_secret: bytes) -> SessionKeys:
    """Both directions of one key epoch."""
    tx, rx = derive(tx_secret), derive(rx_secret)
    return SessionKeys(tx_key=tx.key, tx_iv=tx.iv, rx_key=rx.key, rx_iv=rx.iv)


def handed_over_install(
    handed_over: HandedOver,
    role: Role,
    underlay: Underlay,
    *,
    id: int = 0,
    allowed_ips: tuple[str, ...] = (),
    held: bool = False,
    idle_timeout_ms: int = 30_000,
    keepalive_ms: int = 0,
    rekey_after_packets: int = REKEY_AFTER_PACKETS,
) -> SessionInstall:
    """The request that installs this session at its ``key_epoch``, next keys of both directions included.

    ``idle_timeout_ms`` is the smaller of IdleTimeout and our own max_idle_timeout; the peer's is applied here.
    """
    h = handed_over
    idle = min(idle_timeout_ms, h.peer_idle_ms) if h.peer_idle_ms else idle_timeout_ms
    return SessionInstall(
        id=id,
        session_id=h.session_id,
        role=role,
        connection_id=h.routed_cid,
        client_connection_id=h.client_cid,
        keys=session_keys(h.tx_secret, h.rx_secret),
        next_keys=session_keys(next_secret(h.tx_secret), next_secret(h.rx_secret)),
        tx_hp_key=h.tx_hp_key,
        rx_hp_key=h.rx_hp_key,
        key_epoch=h.key_epoch,
        packet_number=PACKET_NUMBER_BASE,
        underlay=underlay,
        allowed_ips=allowed_ips,
        short_id=h.short_id,
        held=held,
        idle_timeout_ms=idle,
        keepalive_ms=keepalive_ms,
        ack_delay_exponent=h.peer_ack_delay_exponent,
        max_ack_delay_ms=h.peer_max_ack_delay_ms,
        max_datagram_payload=min(h.peer_max_udp_payload, MAX_UDP_PAYLOAD),
        reset_token=h.reset_token if role is Role.CLIENT else None,
        cid_sequence=_cid_sequence(h, role),
        rekey_after_packets=rekey_after_packets,
    )


def _cid_sequence(handed_over: HandedOver, role: Role) -> int:
    """Of the routed connection ID: the handshake's own, or the one that replaces it."""
    if role is Role.SERVER:
        return handed_over.next_cid_sequence - 1
    return 0 if handed_over.retire_sequence is None else handed_over.retire_sequence + 1


def advance(handed_over: HandedOver, key_epoch: int) -> HandedOver:
    """The same session, its secrets derived up to ``key_epoch``, which is never behind."""
    steps = key_epoch - handed_over.key_epoch
    if steps < 0:
        raise ValueError("secrets of an earlier key epoch are gone")
    tx, rx = handed_over.tx_secret, handed_over.rx_secret
    for _ in range(steps):
        tx, rx = next_secret(tx), next_secret(rx)
    return replace(handed_over, tx_secret=tx, rx_secret=rx, key_epoch=key_epoch)
