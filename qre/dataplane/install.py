"""From a completed handshake to the request that installs its session in a data plane.

No secret of this module may be logged or put into an exception.
"""

from __future__ import annotations

from qre.addresses import Network
from qre.dataplane.protocol import REKEY_AFTER_PACKETS, SessionInstall, SessionKeys, Underlay
from qre.ends import Role
from qre.quic.handed_over import HandedOver
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.overhead import MAX_UDP_PAYLOAD
from qre.wire.protection import derive, next_secret


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
    allowed_ips: tuple[Network, ...] = (),
    held: bool = False,
    idle_timeout_ms: int = 30_000,
    keepalive_ms: int = 0,
    rekey_after_packets: int = REKEY_AFTER_PACKETS,
    splits: bool = False,
    largest_payload: int = MAX_UDP_PAYLOAD,
    usual_payload: int = MAX_UDP_PAYLOAD,
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
        max_datagram_payload=min(h.peer_max_udp_payload, largest_payload),
        usual_payload=usual_payload,
        splits=splits,
        reset_token=h.reset_token if role is Role.CLIENT else None,
        cid_sequence=_cid_sequence(h, role),
        rekey_after_packets=rekey_after_packets,
    )


def _cid_sequence(handed_over: HandedOver, role: Role) -> int:
    """Of the routed connection ID: the handshake's own, or the one that replaces it."""
    if role is Role.SERVER:
        return handed_over.next_cid_sequence - 1
    return 0 if handed_over.retire_sequence is None else handed_over.retire_sequence + 1
