"""A browser's shape and behaviour, as data: one JSON file per browser version.

A newer browser is a new file, not new code. The file has the constant values and the ranges of those that vary, and
nothing that identifies a user.
"""

from __future__ import annotations

import math
from random import Random
from typing import Annotated

import msgspec

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Range = tuple[int, int]  # both ends included


class _Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; every field is required."""


class HelloShape(_Data, frozen=True, kw_only=True):
    """ClientHello (RFC 8446 §4.1.2). ``extensions`` are sent in random order, ``opaque`` ones (hex) unchanged."""

    cipher_suites: tuple[U16, ...]
    extensions: tuple[U16, ...]
    groups: tuple[U16, ...]
    key_shares: tuple[U16, ...]
    signature_algorithms: tuple[U16, ...]
    alpn: tuple[str, ...]
    certificate_compression: tuple[U16, ...]
    supported_versions: tuple[U16, ...]
    ech_payload_lengths: tuple[int, ...]
    opaque: dict[U16, str]


class ParametersShape(_Data, frozen=True, kw_only=True):
    """Transport parameters (RFC 9000 §18.2), sent in random order with a GREASE one."""

    max_idle_timeout: int  # ms
    max_udp_payload_size: int
    initial_max_data: int
    initial_max_stream_data_bidi_local: int
    initial_max_stream_data_bidi_remote: int
    initial_max_stream_data_uni: int
    initial_max_streams_bidi: int
    initial_max_streams_uni: int
    max_datagram_frame_size: int
    opaque: dict[int, str]
    grease_lengths: Range


class ChaosShape(_Data, frozen=True, kw_only=True):
    """How the hello is spread over packets (see ``first_flight``)."""

    split_offset: Range  # where the second packet's part begins
    split_excess: int  # that part is half of (hello + this) long
    splits: Range  # CRYPTO frames added by splitting, a packet
    pings: Range  # a packet


class PatienceShape(_Data, frozen=True, kw_only=True):
    """When nothing answers. ``silent`` and ``left`` are reason phrases: after silence, and when the user leaves."""

    first_timeout_ms: int  # until the hello is repeated, doubled each time, while no round trip is known
    silence_ms: int  # nothing at all came for so long, before the handshake is complete
    silent: str  # a format with ``microseconds`` of silence
    left: str


class AckShape(_Data, frozen=True, kw_only=True):
    """When packets are acknowledged: the ``every``-th that asks for it at once, else after the delay."""

    handshake_delay_ms: int  # of Initial and Handshake packets
    delay_ms: int  # of 1-RTT packets
    every: int
    later_from: int  # 1-RTT packets, from which on ...
    later_every: int
    later_round_trips: float  # ... the delay is so much of a round trip, if that is less


class IconShape(_Data, frozen=True, kw_only=True):
    """The request of a page's icon. A header's value is a format with ``authority``."""

    delay_ms: Range  # after the page
    path: str
    priority: str
    headers: tuple[tuple[str, str], ...]


class Http3Shape(_Data, frozen=True, kw_only=True):
    """SETTINGS and the headers of a navigation, pseudo-headers excepted."""

    settings: dict[int, int]
    request_delay_us: Range  # from Finished to the first request: the logarithm is uniform, making it takes longer
    priority: str
    headers: tuple[tuple[str, str], ...]
    icon: IconShape

    def request_delay(self, random: Random) -> float:
        """One of them (seconds)."""
        least, most = (max(1, each) for each in self.request_delay_us)
        return least / 1e6 * math.pow(most / least, random.random())


class Fingerprint(_Data, frozen=True, kw_only=True):
    """One browser."""

    name: str
    browser: str
    ja4: str
    datagram_length: int
    datagram_gap_us: Range  # between two that are sent together
    destination_cid_length: int
    first_packet_number: int
    hello: HelloShape
    transport_parameters: ParametersShape
    chaos: ChaosShape
    patience: PatienceShape
    acknowledgements: AckShape
    http3: Http3Shape
