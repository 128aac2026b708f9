"""What a datagram of a client's address, or of Dest for one, is about, as far as its clear bytes say.

Anybody can send in a client's name, and others may share its address: connections that are not the client's belong
to Dest, in both directions. Of a short header only the connection ID can be compared, and a client's may be empty.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from qre.quic.server.inspector import UNDECIDED, Authenticated, Verdict
from qre.wire.initial import MAX_DATAGRAM, MIN_DATAGRAM
from qre.wire.packet import (
    is_early_data,
    is_initial,
    is_long,
    is_short,
    is_version_1,
    long_header_destination_cid,
    long_header_source_cid,
    retry_source_cid,
)
from qre.workers.handshake.port.flow_parts import Flow, FlowState
from qre.workers.handshake.port.flow_rules import FlowEvent

#: How long Dest's short headers may still belong to a visit of which it was told that it is over (seconds).
ECHO: Final = 2.0


def may_begin_hello(data: bytes) -> bool:
    """Whether this could be the first datagram of a ClientHello: an Initial of version 1, of a length that counts, or
    early data that has overtaken it."""
    return (MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM and is_initial(data)) or is_early_data(data)


def is_of_client(flow: Flow, data: bytes) -> bool:
    """Whether a datagram of a client's address is for its handshake, or for one that is over."""
    if flow.state is FlowState.SHADOW and not is_initial(data):
        return True  # Dest has it, too
    cids: Collection[bytes] = flow.cids if flow.handshake is None else flow.handshake.cids
    if is_long(data):
        return is_version_1(data) and long_header_destination_cid(data) in cids
    return _begins_with(data, cids)


def of_dest(flow: Flow, data: bytes, now: float) -> FlowEvent:
    """What a datagram of Dest for a client's address is: a reply to its visit, to one that is over, or to others."""
    if is_short(data) and _begins_with(data, flow.others):
        return FlowEvent.OTHER_REPLY
    if flow.state is FlowState.SHADOW:
        return FlowEvent.REPLY if retry_source_cid(data) is None else FlowEvent.RETRY
    if is_short(data):
        late = flow.copied or now - flow.over_at < ECHO  # a copy's visit is not ended at Dest
    else:
        late = long_header_source_cid(data) in (flow.cids if flow.handshake is None else flow.handshake.cids)
    return FlowEvent.LATE_REPLY if late else FlowEvent.OTHER_REPLY


def event_of(verdict: Verdict) -> FlowEvent:
    """As the table calls it."""
    if isinstance(verdict, Authenticated):
        return FlowEvent.OUR_HELLO
    return FlowEvent.UNDECIDED if verdict is UNDECIDED else FlowEvent.NOT_OURS


def _begins_with(data: bytes, cids: Collection[bytes]) -> bool:
    return any(data.startswith(cid, 1) for cid in cids if cid)
