"""Inner packets that a session cannot carry as they are: in pieces, or answered with ICMP, counted and dropped.

A sender keeps a reported size for ten minutes, so no size is reported that is only the beginning of a search: the
first flows that exceed it are remembered, and answered when the search has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from qre.errors import UntrustedInputError
from qre.wire import overhead
from qre.wire.datagram import DATAGRAM_HEAD
from qre.workers.dataplane.inner import inner_errors
from qre.workers.dataplane.inner.fragments import fragments_untrusted, may_be_fragmented_untrusted
from qre.workers.dataplane.inner.offload import (
    HOPS_OVER,
    TOO_BIG,
    VNET_HEADER_SIZE,
    as_super_packet_untrusted,
    split_untrusted,
)
from qre.workers.dataplane.session.session import Session

#: Flows of one session that are remembered during a search.
_MAX_UNANSWERED: Final = 16
_MAX_PACKET: Final = 65_535

#: ``(kind, text)``: a log line for the user; the receiver limits its rate.
Say = Callable[[str, str], None]


class Refusals:
    """``drops`` counts; ``write`` takes an IP packet for the TUN device."""

    def __init__(self, drops: Counter[str], write: Callable[[bytes], None], say: Say) -> None:
        self._drops = drops
        self._write = write
        self._say = say
        self._budget = inner_errors.Budget()

    def instead_untrusted(self, why: str, session: Session, read: bytes, now: float) -> list[bytes]:
        """What to send in place of a TUN read that ``split_untrusted`` refused for the reason ``why``."""
        if why == TOO_BIG:
            try:
                return self._pieces_untrusted(session, read)
            except UntrustedInputError as error:
                why = error.why
        if why == TOO_BIG:
            self._too_big_untrusted(session, read[VNET_HEADER_SIZE:], now)
        else:
            self._drops["hops-over" if why == HOPS_OVER else "malformed"] += 1
        return []

    @staticmethod
    def _pieces_untrusted(session: Session, read: bytes) -> list[bytes]:
        """TCP segments in smaller ones, other packets in two datagrams where the server joins them, and else IPv4
        packets that may be fragmented in fragments. Raises UntrustedInputError."""
        packet = read[VNET_HEADER_SIZE:]
        limit = session.max_inner if packet[0] >> 4 == 4 else session.max_inner_ipv6
        segments = as_super_packet_untrusted(read)
        if segments is not None:
            return split_untrusted(segments, limit)
        if session.max_in_two:
            return _in_two_untrusted(session, read)
        if not may_be_fragmented_untrusted(packet):
            raise UntrustedInputError("packet", TOO_BIG)
        whole = split_untrusted(read, _MAX_PACKET)
        return [part for plaintext in whole for part in fragments_untrusted(plaintext, limit)]

    def _too_big_untrusted(self, session: Session, packet: bytes, now: float) -> None:
        version, length = packet[0] >> 4, len(packet)
        self._drops["ipv6-refused" if version == 6 and session.max_inner_ipv6 < 0 else "too-big"] += 1
        quote = inner_errors.quote(packet)
        if not inner_errors.may_be_answered_untrusted(quote):
            return
        if session.path_mtu.settled:
            self._answer(session, quote, now)
            return
        flow = inner_errors.flow_of(quote)
        if flow in session.unanswered or len(session.unanswered) < _MAX_UNANSWERED:
            session.unanswered[flow] = quote, length

    def answer_late(self, session: Session, now: float) -> None:
        """The session's search has ended: tell the senders whose packets still do not fit."""
        for quote, length in session.unanswered.values():
            if length > session.carries(quote[0] >> 4):
                self._answer(session, quote, now)
        session.unanswered.clear()

    def _answer(self, session: Session, quote: bytes, now: float) -> None:
        if not self._budget.take(now):
            return
        if quote[0] >> 4 == 6 and session.max_inner_ipv6 < 0:
            size = overhead.path_mtu(session.path_mtu.size, session.peer[0])
            takes = f"the path to {session.peer[0]} takes packets of {size} bytes"
            leaves = f"leaves {session.max_inner} for inner packets"
            self._say("ipv6-refused", f"{takes}, which {leaves}: IPv6 needs {overhead.MIN_MTU_IPV6}, and is refused")
            self._write(inner_errors.ipv6_refused(quote))
        else:
            self._write(inner_errors.too_big(quote, session.carries(quote[0] >> 4)))


def _in_two_untrusted(session: Session, read: bytes) -> list[bytes]:
    """The packets of this read, each that does not fit one datagram in two."""
    plaintexts = []
    for plaintext in split_untrusted(read, session.max_in_two):
        packet = plaintext[len(DATAGRAM_HEAD) :]
        plaintexts += session.in_two(packet) if len(packet) > session.max_inner else [plaintext]
    return plaintexts
