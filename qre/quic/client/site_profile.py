"""The Dest profile of a visited site, gathered during its handshake.

It has only what QRE's server has to imitate or to warn of. It observes a connection without changing it.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec
from aioquic import tls

from qre.dest_profile import DestProfile
from qre.quic.client.client_connection import ClientConnection
from qre.quic.client.drawbacks import GROUPS, drawbacks_of
from qre.quic.client.http3 import HttpClient
from qre.quic.client.returning_client import ReturningClient
from qre.quic.client.visit_recorder import VisitRecorder
from qre.wire.packet import is_long, is_short
from qre.wire.varint import read_varint_untrusted, read_vector_untrusted

_QUIC_TRANSPORT_PARAMETERS: Final = 57
#: Whose packets are marked as congested had marked them as capable of that.
_ECT0, _CE = 2, 3
_MAX_LENGTHS: Final = 32
_MAX_LENGTH: Final = 0xFFFF
_MAX_TICKETS: Final = 8
_MAX_PARAMETERS: Final = 64
#: A site may write any number; no connection is kept idle for longer than this.
_LONGEST_IDLE_MS: Final = 3_600_000


def group_name(number: int) -> str:
    """The name of a TLS group, or its number if no hello offers it."""
    return GROUPS.get(number, f"{number:#06x}")


class SiteObserver:
    """Gets every datagram, in order.

    The site's flight is what it sends before it has confirmed our Finished. Bare acknowledgements and repeated data
    are left out: they depend on how fast we were.
    """

    def __init__(self, now: float, visit: VisitRecorder | None = None) -> None:
        self._started = now
        self._first_byte: float | None = None
        self._lengths: list[int] = []
        self._progress = 0
        self._visit = visit or VisitRecorder()
        self._ecn: int | None = None  # of its first 1-RTT packet: it may stop marking when nobody reports marks

    def received(self, datagram: bytes, connection: ClientConnection, now: float, ecn: int) -> None:
        """``connection`` has read this datagram, which had the mark ``ecn``."""
        self._visit.received(datagram, connection, now)
        if self._ecn is None and is_short(datagram):
            self._ecn = _ECT0 if ecn == _CE else ecn
        if self._first_byte is None:
            self._first_byte = now
        if connection.handshake_confirmed or len(self._lengths) == _MAX_LENGTHS:
            return
        progress, self._progress = self._progress, connection.flight_progress
        if not is_long(datagram) or self._progress > progress:
            self._lengths.append(min(len(datagram), _MAX_LENGTH))

    def sent(self, connection: ClientConnection, now: float, http: HttpClient | None) -> None:
        """All that ``connection`` had to send is about to leave, ``http``'s requests included."""
        asked, icon = (http.asked, http.asked_icon) if http is not None else (False, "")
        self._visit.sent(connection, now, asked=asked, icon=icon)

    def left(self, now: float) -> None:
        """It is on its way."""
        self._visit.left(now)

    def profile(self, connection: ReturningClient, *, address: str, http_status: int, unix_time: int) -> DestProfile:
        """Of a complete handshake."""
        context = connection.context
        assert context is not None and context.key_schedule is not None
        suite = context.key_schedule.cipher_suite
        scid_length = len(connection.peer_cid)
        visit, returned = self._visit.visit(connection), self._visit.returned(connection)
        profile = DestProfile(
            reachable=True,
            checked_at=unix_time,
            address=address,
            scid_length=scid_length,
            rtt_ms=round(connection.round_trip * 1000),
            cipher=suite.name,
            group=group_name(context.group),
            alpn=context.alpn_negotiated or "",
            certificate_chain_length=context.chain_length,
            server_hello_extensions=context.server_hello_extensions[:16],
            handshake_flight_length=connection.handshake_flight_length,
            flight_datagram_lengths=tuple(self._lengths),
            session_ticket_lengths=tuple(
                min(length, _MAX_LENGTH) for length in context.ticket_lengths[:_MAX_TICKETS]
            ),
            first_byte_ms=round(((self._first_byte or self._started) - self._started) * 1000),
            transport_parameters=_parameter_order(context),
            certificate_since=_seconds(context.chain[0].not_valid_before_utc) if context.chain else 0,
            certificate_expires_at=_seconds(context.chain[0].not_valid_after_utc) if context.chain else 0,
            certificate_problem=(context.problem.detail if context.problem is not None else "")[:512],
            retry=connection.retried,
            http_status=http_status,
            ecn=self._ecn or 0,
            idle_timeout_ms=min(_idle_timeout_ms(connection), _LONGEST_IDLE_MS),
            visits=(visit,) if visit is not None else (),
            returns=(returned,) if returned is not None else (),
        )
        return msgspec.structs.replace(profile, warnings=tuple(str(each)[:512] for each in drawbacks_of(profile)))


def _idle_timeout_ms(connection: ClientConnection) -> int:
    peer = connection.peer_parameters
    return (peer and peer.max_idle_timeout) or 0


def _seconds(moment: datetime.datetime) -> int:
    """Unix seconds; what a certificate says may lie before them."""
    return max(0, int(moment.timestamp()))


def _parameter_order(context: tls.Context) -> tuple[int, ...]:
    """The ids of the site's transport parameters, which were parsed before and are well-formed."""
    order: list[int] = []
    for kind, value in context.received_extensions or ():
        if kind == _QUIC_TRANSPORT_PARAMETERS:
            at = 0
            while at < len(value) and len(order) < _MAX_PARAMETERS:
                identifier, at = read_varint_untrusted(value, at)
                order.append(identifier)
                _, at = read_vector_untrusted(value, at)
    return tuple(order)
