"""Events of a client's handshake (``ClientHandshake.next_event``)."""

from __future__ import annotations

from dataclasses import dataclass

from qre.addresses import Interface, Network
from qre.causes import Cause
from qre.dest_profile import DestProfile
from qre.quic.bounds import Bound


@dataclass(frozen=True)
class Proven:
    """The server holds the REALITY private key, and its CertificateVerify and Finished are right."""


@dataclass(frozen=True)
class Granted:
    """The tunnel is accepted: 200, with these addresses and routes. ``splits``: the server joins packets that come in
    two datagrams."""

    addresses: tuple[Interface, ...]
    routes: tuple[Network, ...] = ()
    splits: bool = False


@dataclass(frozen=True)
class HandOverReady:
    """The routed CID has arrived and everything was acknowledged: ``hand_over`` may be called, now or later."""


@dataclass(frozen=True)
class NotRecognised:
    """The real site answered with a valid certificate: the server did not recognise us (wrong key or short id,
    clock, a repeated hello). The handshake goes on by itself, fetches "/" and closes, as a browser would."""


@dataclass(frozen=True)
class ClockOff:
    """The site that did not recognise us has another time: our clock is ahead of it by so many seconds."""

    ahead: int


@dataclass(frozen=True)
class ManInTheMiddle:
    """The peer has neither the proof nor a certificate that is valid for ServerName: somebody is in between, or our
    clock is wrong."""

    detail: str
    cause: Cause


@dataclass(frozen=True)
class SiteAnswered:
    """A probe is complete: the site has answered "/"; with its profile."""

    profile: DestProfile


@dataclass(frozen=True)
class HandshakeFailed:
    """The handshake failed; ``reason`` is one line in plain words. ``bound``: what the peer went beyond; ``cause``:
    the reason as a type, where it has one, and ``detail`` what is said about this case of it."""

    reason: str
    bound: Bound | None = None
    cause: Cause | None = None
    detail: str = ""


@dataclass(frozen=True)
class Closed:
    """Nothing more will be sent or received. Always the last event."""


ClientEvent = (
    Proven
    | Granted
    | HandOverReady
    | NotRecognised
    | ClockOff
    | ManInTheMiddle
    | SiteAnswered
    | HandshakeFailed
    | Closed
)


@dataclass(frozen=True)
class Negotiated:
    """The negotiated parameters; ``round_trip`` is the shortest so far, in seconds."""

    cipher: str
    group: str
    round_trip: float
