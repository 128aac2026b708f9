"""The profile of Dest: measured by a probe, imitated by the server, kept over restarts in a file, shown."""

from __future__ import annotations

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
#: Bytes of a file; one with every visit has a quarter of it.
MAX_FILE: Final = 65_536


class Spoken(Struct, frozen=True, kw_only=True, array_like=True):
    """One datagram of Dest after the visitor's Finished."""

    asked: bool  # it follows the request; else it follows Finished alone
    at_us: U32  # since the visitor sent what it follows (microseconds)
    length: U16  # UDP payload, bytes
    eliciting: bool  # the visitor has to acknowledge it (RFC 9000 §13.2)
    #: how many eliciting datagrams of this list Dest knew to have arrived when it sent this one
    acknowledged: U16
    probe: bool = False  # of the path's MTU: counted nowhere, and nothing waits for it
    ack_length: U16 = 0  # of its ACK frame (bytes), which is not in it when it is repeated


class RecordedVisit(Struct, frozen=True, kw_only=True):
    """What Dest sent after the handshake of a visit of "/". ``longer``: the page went on behind it."""

    round_trip_us: U32
    spoken: Annotated[tuple[Spoken, ...], msgspec.Meta(max_length=MAX_SPOKEN)]
    longer: bool = False


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
    warnings: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)] = ()

    def address_of(self, dest: str) -> str:
        """The address that was visited, if this is the profile of ``dest``, host:port; empty otherwise."""
        return self.address.rpartition(":")[0].strip("[]") if dest == self.dest else ""

    def after(self, before: DestProfile | None) -> DestProfile:
        """This one, with the visits of ``before`` ahead of its own, as many as are kept."""
        earlier = before.visits if before is not None else ()
        return msgspec.structs.replace(self, visits=(*earlier, *self.visits)[-MAX_VISITS:])

    def without_visits(self) -> DestProfile:
        """For whoever does not play them."""
        return msgspec.structs.replace(self, visits=())


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
