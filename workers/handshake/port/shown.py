"""What Dest has revealed to a visitor that is authenticated later: its connection ID and its packet numbers.

A site acknowledges the first half of a hello within a millisecond (RFC 9000 §13.2.1). As long as it has sent nothing
else, our handshake can continue in its place: same source CID, next packet number. Anything else that Dest sends (a
ServerHello, a close) cannot be taken back.
"""

from __future__ import annotations

from typing import Final

from qre.errors import UntrustedInputError
from qre.quic.server.server_handshake import ShownByDest
from qre.wire.frames import Ack, Padding, Ping, frames_untrusted
from qre.wire.packet import PacketType, long_header_destination_cid, packets_untrusted
from qre.wire.protection import Protection, initial_secrets

#: The highest packet number to continue from; no site acknowledges half a hello more often.
_HIGHEST: Final = 1000
_HARMLESS: Final = (Ack, Padding, Ping)


def shown_untrusted(reply: bytes, first_datagram: bytes, before: ShownByDest | None) -> ShownByDest:
    """Parse a reply of Dest to the visitor's ``first_datagram``. Raises UntrustedInputError unless it holds only
    acknowledgements, in Initials from one source CID."""
    protection = Protection(initial_secrets(long_header_destination_cid(first_datagram))[1])
    source = before.source_cid if before else None
    highest = before.highest_packet_number if before else -1
    for header in packets_untrusted(reply, short_cid_length=0):
        if header.type is not PacketType.INITIAL or source not in (None, header.source_cid):
            raise UntrustedInputError("Dest", "a reply other than an acknowledgement")
        packet = reply[header.start : header.end]
        _, number, payload = protection.unprotect_untrusted(packet, header.number_offset - header.start, highest + 1)
        if not all(isinstance(frame, _HARMLESS) for frame in frames_untrusted(payload)):
            raise UntrustedInputError("Dest", "a reply other than an acknowledgement")
        source, highest = header.source_cid, max(highest, number)
    if not source or highest > _HIGHEST:
        raise UntrustedInputError("Dest", "no connection ID, or a packet number too high to continue")
    return ShownByDest(source, highest)
