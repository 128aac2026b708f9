"""What a client's handshake tells its owner (``ClientHandshake.next_event``)."""

from __future__ import annotations

from dataclasses import dataclass

from qre.addresses import Interface, Network
from qre.dest_profile import DestProfile
from qre.quic.bounds import Bound


@dataclass(frozen=True)
class Proven:
    """The server holds the REALITY private key, and its CertificateVerify and Finished are right."""


@dataclass(frozen=True)
class Granted:
    """The tunnel is accepted: 200, with these addresses and routes."""

    addresses: tuple[Interface, ...]
    routes: tuple[Network, ...] = ()


@dataclass(frozen=True)
class HandOverReady:
    """The routed CID is there and nothing of ours is outstanding: ``hand_over`` may be called, now or later."""


@dataclass(frozen=True)
class NotRecognised:
    """The real site answered with a certificate that is good: the server did not recognise us (wrong key or short
    id, clock, a repeated hello). The handshake goes on by itself, fetches "/" and closes, as a browser would."""

    detail: str


@dataclass(frozen=True)
class ManInTheMiddle:
    """Neither the proof nor a certificate that is good for ServerName."""

    detail: str


@dataclass(frozen=True)
class SiteAnswered:
    """The handshake of a probe is complete, and the site has answered "/": what was seen of it."""

    profile: DestProfile


@dataclass(frozen=True)
class HandshakeFailed:
    """The handshake failed; ``reason`` is one line in plain words. ``bound``: what the peer went beyond."""

    reason: str
    bound: Bound | None = None


@dataclass(frozen=True)
class Closed:
    """Nothing will be sent or received any more. Always the last event."""


ClientEvent = (
    Proven | Granted | HandOverReady | NotRecognised | ManInTheMiddle | SiteAnswered | HandshakeFailed | Closed
)
