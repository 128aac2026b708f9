"""Makes a browser's ClientHello from a fingerprint, with the authenticator in its ``random`` (RFC 8446 §4.1.2).

What varies from run to run in the browser varies here, too: order of extensions and of transport parameters, GREASE,
keys. A connection has one hello: after a Retry the same bytes are sent again, because the authenticator is sealed
once for each key share.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from qre.errors import InternalError, UntrustedInputError, UserError
from qre.quic.client.fingerprint import Fingerprint, ParametersShape
from qre.quic.resumption.held_ticket import HeldTicket
from qre.quic.resumption.psk import (
    EARLY_DATA,
    PRE_SHARED_KEY,
    bound_secret,
    covered_part,
    extension_body,
    with_binder,
)
from qre.reality.authenticator import (
    RANDOM_END,
    RANDOM_LENGTH,
    RANDOM_OFFSET,
    VERSION,
    Authenticator,
    SharedSecrets,
    seal,
    share_secrets_untrusted,
)
from qre.wire.varint import encode_varint, encode_vector

X25519: Final = 0x001D
X25519MLKEM768: Final = 0x11EC  # draft-ietf-tls-ecdhe-mlkem
MLKEM768_CIPHERTEXT_LENGTH: Final = 1088
_X25519_LENGTH: Final = 32

_CLIENT_HELLO: Final = 1
_LEGACY_VERSION: Final = b"\x03\x03"
_QUIC_V1: Final = (1).to_bytes(4, "big")

# Extensions (IANA)
_SERVER_NAME: Final = 0
_SUPPORTED_GROUPS: Final = 10
_SIGNATURE_ALGORITHMS: Final = 13
_ALPN: Final = 16
_COMPRESS_CERTIFICATE: Final = 27
_SUPPORTED_VERSIONS: Final = 43
_PSK_KEY_EXCHANGE_MODES: Final = 45
_KEY_SHARE: Final = 51
_QUIC_TRANSPORT_PARAMETERS: Final = 57
_ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D

_PSK_DHE_KE: Final = 1
#: Chromium's initial_rtt_us, a varint of 2 or 4 bytes: no round trip is below 64 microseconds.
_INITIAL_RTT: Final = 0x3127
_TWO_BYTES: Final = 64
_HKDF_SHA256: Final = 1
_AES_128_GCM: Final = 1


class ClientKeyShares:
    """The private halves of the hello's key shares. Never shown, never stored."""

    def __init__(self, random: Random) -> None:
        self.lone = X25519PrivateKey.from_private_bytes(random.randbytes(32))
        self._hybrid_x25519 = X25519PrivateKey.from_private_bytes(random.randbytes(32))
        self._hybrid_mlkem = MLKEM768PrivateKey.from_seed_bytes(random.randbytes(64))

    def public(self, group: int) -> bytes:
        """The key_exchange field of our share of ``group``."""
        if group == X25519:
            return self.lone.public_key().public_bytes_raw()
        if group == X25519MLKEM768:
            # ML-KEM's encapsulation key first
            mlkem = self._hybrid_mlkem.public_key().public_bytes_raw()
            return mlkem + self._hybrid_x25519.public_key().public_bytes_raw()
        raise InternalError("fingerprint", f"there is no key share of group {group:#06x}")

    def agree_untrusted(self, group: int, share: bytes) -> bytes:
        """The secret shared with the server's key share. ML-KEM's part comes first here too."""
        try:
            if group == X25519:
                return self.lone.exchange(X25519PublicKey.from_public_bytes(share))
            if group == X25519MLKEM768 and len(share) == MLKEM768_CIPHERTEXT_LENGTH + _X25519_LENGTH:
                mlkem = self._hybrid_mlkem.decapsulate(share[:MLKEM768_CIPHERTEXT_LENGTH])
                point = X25519PublicKey.from_public_bytes(share[MLKEM768_CIPHERTEXT_LENGTH:])
                return mlkem + self._hybrid_x25519.exchange(point)
        except ValueError as error:
            raise UntrustedInputError("ServerHello", "its key share is not valid") from error
        raise UntrustedInputError("ServerHello", "a key share that was not offered")


@dataclass(frozen=True)
class Return:
    """What a hello offers that comes back: the ticket, and the pre-shared key of its binder."""

    ticket: HeldTicket
    secret: bytes

    def __repr__(self) -> str:
        return "Return(hidden)"


@dataclass(frozen=True)
class OfferedHello:
    """A ClientHello with the keys to continue from it. ``secrets`` is None in a hello without authenticator,
    ``comes_back`` in one without ticket."""

    message: bytes
    keys: ClientKeyShares
    transport_parameters: bytes
    secrets: SharedSecrets | None
    comes_back: Return | None = None

    @property
    def random(self) -> bytes:
        """The 32 bytes of ClientHello.random."""
        return self.message[RANDOM_OFFSET:RANDOM_END]

    def __repr__(self) -> str:
        return f"OfferedHello({len(self.message)} bytes)"


def make_hello(
    fingerprint: Fingerprint,
    server_name: str,
    *,
    public_key: bytes,
    short_id: bytes,
    unix_time: int,
    random: Random,
    ticket: HeldTicket | None = None,
    round_trip_us: int = 0,
) -> OfferedHello:
    """``public_key`` is the server's REALITY key, empty for a plain browser's hello with a random ``random``.
    ``ticket``: one of that server, to come back with; ``round_trip_us``: as it was known before, 0: not known."""
    keys = ClientKeyShares(random)
    parameters = transport_parameters(fingerprint.transport_parameters, random, round_trip_us)
    offered = _Offered(ticket, unix_time)
    message = _client_hello(fingerprint, server_name, keys, parameters, random, offered)
    secrets = None
    if public_key:
        try:
            secrets = share_secrets_untrusted(keys.lone, public_key)
        except UntrustedInputError as error:
            raise UserError(
                "RealityPublicKey", "it is not a usable X25519 key", "write the output of `qre-tool pubkey`"
            ) from error
        sealed = message if ticket is None else covered_part(message)
        value = seal(secrets, Authenticator(VERSION, unix_time, short_id), sealed)
    else:
        value = random.randbytes(RANDOM_LENGTH)
    message = message[:RANDOM_OFFSET] + value + message[RANDOM_END:]
    if ticket is None:
        return OfferedHello(message, keys, parameters, secrets)
    secret = ticket.secret if secrets is None else bound_secret(ticket.secret, secrets.proof)
    message = with_binder(covered_part(message), secret)
    return OfferedHello(message, keys, parameters, secrets, Return(ticket, secret))


def transport_parameters(shape: ParametersShape, random: Random, round_trip_us: int = 0) -> bytes:
    """The encoded parameters of a client whose connection ID is empty (RFC 9000 §18). ``round_trip_us``: of an
    earlier connection, 0: not known."""
    versions = [_QUIC_V1, _grease_version(random)]
    random.shuffle(versions)
    parameters = [
        (0x01, encode_varint(shape.max_idle_timeout)),
        (0x03, encode_varint(shape.max_udp_payload_size)),
        (0x04, encode_varint(shape.initial_max_data)),
        (0x05, encode_varint(shape.initial_max_stream_data_bidi_local)),
        (0x06, encode_varint(shape.initial_max_stream_data_bidi_remote)),
        (0x07, encode_varint(shape.initial_max_stream_data_uni)),
        (0x08, encode_varint(shape.initial_max_streams_bidi)),
        (0x09, encode_varint(shape.initial_max_streams_uni)),
        (0x0F, b""),  # initial_source_connection_id
        (0x11, _QUIC_V1 + b"".join(versions)),  # version_information (RFC 9368)
        (0x20, encode_varint(shape.max_datagram_frame_size)),  # RFC 9221
        *((identifier, bytes.fromhex(value)) for identifier, value in shape.opaque.items()),
        (_grease_parameter(random), random.randbytes(random.randint(*shape.grease_lengths))),
    ]
    if round_trip_us:
        parameters.append((_INITIAL_RTT, encode_varint(max(round_trip_us, _TWO_BYTES))))
    random.shuffle(parameters)
    return b"".join(encode_varint(identifier) + encode_vector(value) for identifier, value in parameters)


def _grease_version(random: Random) -> bytes:
    """0x?a?a?a?a (RFC 9000 §15)."""
    return bytes((byte & 0xF0) | 0x0A for byte in random.randbytes(4))


def _grease_parameter(random: Random) -> int:
    """27 mod 31 (RFC 9000 §18.1), of the size that takes 8 bytes."""
    return 31 * random.randrange((1 << 30) // 31 + 1, (1 << 62) // 31 - 1) + 27


@dataclass(frozen=True)
class _Offered:
    """A ticket, if there is one, and when it is used (Unix seconds)."""

    ticket: HeldTicket | None
    unix_time: int


def _client_hello(
    fingerprint: Fingerprint,
    server_name: str,
    keys: ClientKeyShares,
    parameters: bytes,
    random: Random,
    offered: _Offered,
) -> bytes:
    """The handshake message with a zeroed ``random``, and a zeroed binder."""
    shape = fingerprint.hello
    bodies: dict[int, bytes] = {
        _SERVER_NAME: _block(2, b"\x00" + _block(2, server_name.encode("ascii"))),
        _SUPPORTED_GROUPS: _block(2, _u16s(shape.groups)),
        _SIGNATURE_ALGORITHMS: _block(2, _u16s(shape.signature_algorithms)),
        _ALPN: _block(2, b"".join(_block(1, name.encode("ascii")) for name in shape.alpn)),
        _COMPRESS_CERTIFICATE: _block(1, _u16s(shape.certificate_compression)),
        _SUPPORTED_VERSIONS: _block(1, _u16s(shape.supported_versions)),
        _PSK_KEY_EXCHANGE_MODES: _block(1, bytes([_PSK_DHE_KE])),
        _KEY_SHARE: _block(
            2, b"".join(group.to_bytes(2, "big") + _block(2, keys.public(group)) for group in shape.key_shares)
        ),
        _QUIC_TRANSPORT_PARAMETERS: parameters,
        _ENCRYPTED_CLIENT_HELLO: _ech_grease(random.choice(shape.ech_payload_lengths), random),
    }
    bodies |= {kind: bytes.fromhex(value) for kind, value in shape.opaque.items()}
    order = list(shape.extensions)
    ticket = offered.ticket
    if ticket is not None and ticket.early_data:
        bodies[EARLY_DATA] = b""
        order.append(EARLY_DATA)
    random.shuffle(order)
    if ticket is not None:  # last (RFC 8446 §4.2.11)
        bodies[PRE_SHARED_KEY] = extension_body(ticket, offered.unix_time * 1000)
        order.append(PRE_SHARED_KEY)
    extensions = b"".join(kind.to_bytes(2, "big") + _block(2, bodies[kind]) for kind in order)
    return bytes([_CLIENT_HELLO]) + _block(
        3,
        b"".join(
            (
                _LEGACY_VERSION,
                bytes(RANDOM_LENGTH),
                _block(1, b""),  # legacy_session_id: RFC 9001 §8.4
                _block(2, _u16s(shape.cipher_suites)),
                _block(1, b"\x00"),  # legacy_compression_methods
                _block(2, extensions),
            )
        ),
    )


def _ech_grease(payload_length: int, random: Random) -> bytes:
    """An encrypted_client_hello of the outer type, indistinguishable from a real one (RFC 9849 §6.2)."""
    enc = X25519PrivateKey.from_private_bytes(random.randbytes(32)).public_key().public_bytes_raw()
    return b"".join(
        (
            b"\x00",  # outer
            _HKDF_SHA256.to_bytes(2, "big"),
            _AES_128_GCM.to_bytes(2, "big"),
            random.randbytes(1),  # config_id
            _block(2, enc),
            _block(2, random.randbytes(payload_length)),
        )
    )


def _block(size: int, content: bytes) -> bytes:
    """A vector: its length in ``size`` bytes, then its content (RFC 8446 §3.4)."""
    return len(content).to_bytes(size, "big") + content


def _u16s(values: tuple[int, ...]) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)
