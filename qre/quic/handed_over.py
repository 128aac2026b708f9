"""The result of a handshake: application traffic secrets (RFC 9001 §5.1, §6.1), and what a data plane needs.

AES-128-GCM and SHA-256 alone: the one suite that a QRE server chooses. Header keys never change with a key update.
No secret of this module may be logged or put into an exception.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from qre.addresses import Interface
from qre.wire.protection import expand_label, next_secret

if TYPE_CHECKING:  # a data plane reads this module, and needs no QUIC stack
    from aioquic.quic.packet import QuicTransportParameters


@dataclass(frozen=True)
class Secrets:
    """The application traffic secrets of one key epoch."""

    client: bytes
    server: bytes

    def __repr__(self) -> str:
        return "Secrets(hidden)"

    def next(self) -> Secrets:
        """The secrets of the following key epoch (RFC 9001 §6.1)."""
        return Secrets(next_secret(self.client), next_secret(self.server))


@dataclass(frozen=True)
class HandedOver:
    """The result of a handshake. Secrets are those of ``key_epoch``; tx and rx are as this end sees them."""

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
    splits: bool = False  # the client may send an inner packet in two datagrams, which the server joins
    #: Packet numbers that user space sent on the 1-RTT space: all below this.
    next_packet_number: int = 0

    @property
    def needs_large(self) -> bool:
        """Whether a client's IPv6 packets need datagrams larger than a browser's."""
        return not self.splits and any(address.version == 6 for address in self.addresses)

    def __repr__(self) -> str:
        return f"HandedOver(session_id={self.session_id.hex()[:8]}…)"


class PeerLimits(TypedDict):
    """The fields of ``HandedOver`` that the peer's transport parameters give."""

    peer_idle_ms: int
    peer_ack_delay_exponent: int
    peer_max_ack_delay_ms: int
    peer_max_udp_payload: int


def limits_of(peer: QuicTransportParameters) -> PeerLimits:
    """With the defaults of RFC 9000 §18.2 for what the peer does not name."""
    return PeerLimits(
        peer_idle_ms=peer.max_idle_timeout or 0,
        peer_ack_delay_exponent=3 if peer.ack_delay_exponent is None else peer.ack_delay_exponent,
        peer_max_ack_delay_ms=25 if peer.max_ack_delay is None else peer.max_ack_delay,
        peer_max_udp_payload=peer.max_udp_payload_size or 65_527,
    )


def session_id(client_secret0: bytes) -> bytes:
    """SessionId: known to both ends alone. ``client_secret0`` is client_application_traffic_secret_0."""
    return expand_label(client_secret0, b"qre session id", 32)


def advance(handed_over: HandedOver, key_epoch: int) -> HandedOver:
    """The same session with secrets derived up to ``key_epoch``. Raises InternalError for an earlier one."""
    steps = key_epoch - handed_over.key_epoch
    if steps < 0:
        raise ValueError("secrets of an earlier key epoch are gone")
    tx, rx = handed_over.tx_secret, handed_over.rx_secret
    for _ in range(steps):
        tx, rx = next_secret(tx), next_secret(rx)
    return replace(handed_over, tx_secret=tx, rx_secret=rx, key_epoch=key_epoch)
