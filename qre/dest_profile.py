"""The profile of Dest: measured by a probe, imitated by the server, kept over restarts in a file, shown."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from qre.errors import UntrustedInputError
from qre.structs import U16, U32, U64, Struct, Text

#: Visits that are kept, the last ones: each is played to some clients.
MAX_VISITS = 8
#: Datagrams of one visit, after its handshake.
MAX_SPOKEN = 64
#: What comes later than this belongs to no page that anybody waits for (seconds).
LONGEST: Final = 1.0
#: Visits of somebody who comes back that are kept, the last ones.
MAX_RETURNS: Final = 4
#: Bytes of a token (RFC 9000 §8.1.3); a longer one is of no use, the hello has to have room beside it.
MOST_TOKEN: Final = 128
#: Characters of the path of a page's icon.
LONGEST_PATH: Final = 128
#: Datagrams of one flight, packets of one datagram, frames of one Initial.
MAX_FLIGHT, MAX_PACKETS, MAX_FRAMES = 8, 4, 32
#: Bytes of a file; one with every visit has a quarter of it.
MAX_FILE: Final = 65_536


class Follows(enum.IntEnum):
    """What of a visitor's a datagram of Dest follows."""

    FINISHED = 0
    PAGE = 1  # the request of "/"
    ICON = 2  # the request of the page's icon


class Spoken(Struct, frozen=True, kw_only=True, array_like=True):
    """One datagram of Dest after the visitor's Finished."""

    asked: bool  # it follows a request; else it follows Finished alone
    at_us: U32  # since the visitor sent what it follows (microseconds)
    length: U16  # UDP payload, bytes
    eliciting: bool  # the visitor has to acknowledge it (RFC 9000 §13.2)
    #: how many eliciting datagrams of this list Dest knew to have arrived when it sent this one
    acknowledged: U16
    probe: bool = False  # of the path's MTU: counted nowhere, and nothing waits for it
    ack_length: U16 = 0  # of its ACK frame (bytes), which is not in it when it is repeated
    icon: bool = False  # the request that it follows is that of the icon

    @property
    def follows(self) -> Follows:
        """``at_us`` counts from it."""
        return Follows.ICON if self.icon else Follows.PAGE if self.asked else Follows.FINISHED


class RecordedVisit(Struct, frozen=True, kw_only=True):
    """What Dest sent after the handshake of a visit of "/". ``longer``: the page went on behind it. ``token``: for a
    later connection, if a browser would have kept it (see ``ReturningClient``); it is given to one client. ``icon``:
    the path of the page's icon, if it was requested and Dest has answered."""

    round_trip_us: U32
    spoken: Annotated[tuple[Spoken, ...], msgspec.Meta(max_length=MAX_SPOKEN)]
    longer: bool = False
    token: Annotated[bytes, msgspec.Meta(max_length=MOST_TOKEN)] = b""
    icon: Annotated[str, msgspec.Meta(max_length=LONGEST_PATH)] = ""


class ReturnedFrame(Struct, frozen=True, array_like=True):
    """A frame of an Initial, or several. ``crypto``: how many bytes of CRYPTO data, from ``offset`` on, follow
    ``raw``, their encoded beginning."""

    raw: Annotated[bytes, msgspec.Meta(max_length=1500)]
    offset: U16 = 0
    crypto: U16 = 0


class ReturnedPacket(Struct, frozen=True, array_like=True):
    """``kind``: type of a long header (RFC 9000 §17.2), 3: 1-RTT. ``length``: packet number, payload and tag, in
    bytes; ``length_size``: bytes of the Length field."""

    kind: Annotated[int, msgspec.Meta(ge=0, le=3)]
    length: Annotated[int, msgspec.Meta(ge=20, le=1500)]
    length_size: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    number_length: Annotated[int, msgspec.Meta(ge=1, le=4)] = 2
    frames: Annotated[tuple[ReturnedFrame, ...], msgspec.Meta(max_length=MAX_FRAMES)] = ()


class ReturnedDatagram(Struct, frozen=True, array_like=True):
    """``at_us``: after the first one of its flight (microseconds)."""

    at_us: U32
    packets: Annotated[tuple[ReturnedPacket, ...], msgspec.Meta(min_length=1, max_length=MAX_PACKETS)]


class RecordedReturn(Struct, frozen=True, kw_only=True):
    """How Dest answered a visitor that came back with its ticket: the flight of the resumed handshake, and in
    ``visit`` what it sent after Finished. ``early_data``: whether it took the request from the first flight;
    ``identity_length`` and ``nonce_length``: of the ticket, in bytes."""

    early_data: bool
    identity_length: U16
    nonce_length: Annotated[int, msgspec.Meta(ge=0, le=255)]
    group: U16
    server_hello_extensions: Annotated[tuple[U16, ...], msgspec.Meta(max_length=16)]
    flight: Annotated[tuple[ReturnedDatagram, ...], msgspec.Meta(min_length=1, max_length=MAX_FLIGHT)]
    visit: RecordedVisit


class DestProfile(Struct, frozen=True, kw_only=True):
    """The result of a probe of Dest: the properties that the server imitates."""

    reachable: bool
    checked_at: U64  # unix seconds
    dest: Text = ""  # whose it is, host:port as configured; empty: not told
    address: Text = ""  # that was visited, with its port
    scid_length: Annotated[int, msgspec.Meta(ge=0, le=20)] = 0
    rtt_ms: U64 = 0
    cipher: Text = ""
    group: Text = ""
    alpn: Text = ""
    certificate_chain_length: U64 = 0
    #: extension types of Dest's ServerHello in order; empty: unknown
    server_hello_extensions: Annotated[tuple[U16, ...], msgspec.Meta(max_length=16)] = ()
    #: CRYPTO bytes of Dest's Handshake flight, EncryptedExtensions to Finished as they were on the wire; 0: unknown
    handshake_flight_length: U64 = 0
    #: UDP payload lengths of what Dest sent before it had the client's Finished, in order; empty: unknown
    flight_datagram_lengths: Annotated[tuple[U16, ...], msgspec.Meta(max_length=32)] = ()
    #: lengths of Dest's NewSessionTicket messages, headers included; None: unknown
    session_ticket_lengths: Annotated[tuple[U16, ...], msgspec.Meta(max_length=8)] | None = None
    first_byte_ms: U64 = 0  # from our hello to Dest's first datagram
    transport_parameters: Annotated[tuple[U64, ...], msgspec.Meta(max_length=64)] = ()  # ids, in Dest's order
    certificate_expires_at: U64 = 0  # unix seconds; 0: unknown
    http_status: U16 = 0  # of "/"; 0: no answer
    ecn: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0  # of Dest's 1-RTT packets; our data plane sends the same
    certificate_since: U64 = 0  # unix seconds; 0: unknown
    certificate_problem: Text = ""  # why a browser would not accept it; empty: it would
    idle_timeout_ms: U64 = 0  # of its transport parameters; 0: none, or unknown
    retry: bool = False  # it asked for another hello, with a token
    visits: Annotated[tuple[RecordedVisit, ...], msgspec.Meta(max_length=MAX_VISITS)] = ()  # the newest last
    #: of somebody who comes back, the newest last; without them clients get no tickets
    returns: Annotated[tuple[RecordedReturn, ...], msgspec.Meta(max_length=MAX_RETURNS)] = ()
    warnings: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)] = ()

    def address_of(self, dest: str) -> str:
        """The address that was visited, if this is the profile of ``dest``, host:port; empty otherwise."""
        return self.address.rpartition(":")[0].strip("[]") if dest == self.dest else ""

    def after(self, before: DestProfile | None) -> DestProfile:
        """This one, with the visits and returns of ``before`` ahead of its own, as many as are kept."""
        if before is None:
            return self
        return msgspec.structs.replace(
            self,
            visits=(*before.visits, *self.visits)[-MAX_VISITS:],
            returns=(*before.returns, *self.returns)[-MAX_RETURNS:],
        )

    @property
    def tokens(self) -> tuple[bytes, ...]:
        """Dest's tokens, of all visits, the oldest ones first."""
        found = (*self.visits, *(each.visit for each in self.returns))
        return tuple(visit.token for visit in found if visit.token)

    def without_visits(self) -> DestProfile:
        """For whoever does not play them."""
        return msgspec.structs.replace(self, visits=(), returns=())


def dest_profile_file(state_dir: Path, profile: str) -> Path:
    """Where the last profile of this server's Dest is kept."""
    return state_dir / f"{profile}.dest"


def read_dest_profile(path: Path) -> DestProfile:
    """A kept profile. Raises OSError, UntrustedInputError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer ends at once
    with open(descriptor, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UntrustedInputError(f"it is larger than {MAX_FILE} bytes")
    try:
        return msgspec.json.decode(data, type=DestProfile)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UntrustedInputError(f"it does not parse: {error}") from error
