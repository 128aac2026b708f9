"""TLS 1.3 for the server of an authenticated client (RFC 8446), on aioquic's ``tls.Context`` by subclassing.

An observer without keys sees ServerHello, in an Initial packet: its extension order, cipher suite and group are those
of Dest (``ServerFlight``), and so is the length of the encrypted flight behind it. TLS answers exactly the message
that was authenticated, byte for byte; any other hello is refused.

Hooks, each because stock aioquic has no option: ``_server_handle_hello`` (extension order, X25519MLKEM768, an
Ed25519 leaf although the client does not offer Ed25519), ``_server_handle_finished`` (tickets without resumption).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from aioquic import tls
from aioquic.buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from qre.quic.resumption.psk import early_traffic_secret, resumption_secret, schedule_of
from qre.quic.resumption.ticket_keys import SHORTEST_TICKET
from qre.quic.shadow.server_hello import X25519, X25519MLKEM768
from qre.quic.tls.certificate import ThrowAwayCertificate, certificate_entries, make_certificate

#: Data planes protect packets with AES-128-GCM, so this is the one suite that is ever chosen.
CIPHER_SUITE: Final = tls.CipherSuite.AES_128_GCM_SHA256
ED25519: Final = int(tls.SignatureAlgorithm.ED25519)
_ENCAPSULATION_KEY_LENGTH: Final = 1184
_X25519_LENGTH: Final = 32

#: Go's order (Caddy): supported_versions, key_share.
GO_SERVER_HELLO: Final = (int(tls.ExtensionType.SUPPORTED_VERSIONS), int(tls.ExtensionType.KEY_SHARE))
#: One ticket of 181 bytes: Caddy's.
GO_TICKETS: Final = (181,)
_TICKET_LIFETIME: Final = 604_800
#: NewSessionTicket without its ticket: header 4, lifetime 4, age_add 4, nonce 1, ticket's length 2, extensions 10.
TICKET_OVERHEAD: Final = 25
#: Of its extension early_data (bytes).
_EARLY_DATA_LENGTH: Final = 8


@dataclass(frozen=True)
class ServerFlight:
    """The properties of the server's handshake that are copied from Dest."""

    hybrid: bool = True  # X25519MLKEM768 if the client has a share of it
    server_hello_extensions: tuple[int, ...] = GO_SERVER_HELLO
    handshake_length: int = 0  # CRYPTO bytes from EncryptedExtensions to Finished; 0: any
    ticket_lengths: tuple[int, ...] = GO_TICKETS


@dataclass(frozen=True)
class Resumption:
    """A ticket of ours that is taken: the pre-shared key, and whether early data is. ``reads_with``: that of early
    data, where the handshake has another."""

    secret: bytes
    early_data: bool
    reads_with: bytes | None = None

    def __repr__(self) -> str:
        return "Resumption(hidden)"


@dataclass(frozen=True)
class TicketMaker:
    """Makes the tickets of one client: ``seal`` puts a secret into one of so many bytes. ``nonce_length`` and
    ``early_data`` are as Dest has them. ``take_token``: one of Dest's, of at most so many bytes; empty: there is
    none."""

    seal: Callable[[bytes, int], bytes]
    nonce_length: int
    early_data: bool
    take_token: Callable[[int], bytes]


class ServerTlsContext(tls.Context):
    """One handshake's TLS. ``random_bytes(n)`` is the source of everything random but private keys."""

    def __init__(
        self,
        *,
        client_hello: bytes,
        proof_key: bytes,
        flight: ServerFlight,
        random_bytes: Callable[[int], bytes],
        resumption: Resumption | None = None,
        tickets: TicketMaker | None = None,
    ) -> None:
        super().__init__(is_client=False, alpn_protocols=["h3"], cipher_suites=[CIPHER_SUITE])
        self._client_hello = client_hello
        self._proof_key = proof_key
        self._flight = flight
        self._random_bytes = random_bytes
        self._certificate: ThrowAwayCertificate | None = None  # where it is made ahead
        self._resumption = resumption
        self._tickets = tickets

    # --- ClientHello: answer with the whole flight ---

    def _server_handle_hello(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        shares = self._read_hello(input_buf)
        key_share, secret = self._exchange_keys(shares)
        self._push_server_hello(initial_buf, key_share)
        self._protect_handshake(secret)
        self._push_rest(handshake_buf)

    def _read_hello(self, input_buf: Buffer) -> dict[int, bytes]:
        """Check the authenticated hello and begin the transcript; the client's key shares by group."""
        message = input_buf.data_slice(0, input_buf.capacity)
        if not hmac.compare_digest(message, self._client_hello):
            raise tls.AlertUnexpectedMessage("")
        hello = tls.pull_client_hello(input_buf)
        self._negotiate(hello)
        self._begin_schedule()
        return dict(reversed(hello.key_share or ()))

    def _begin_schedule(self) -> tls.KeySchedule:
        """The key schedule with the client's hello in its transcript (RFC 8446 §7.1)."""
        resumed = self._resumption
        self.key_schedule = schedule = tls.KeySchedule(CIPHER_SUITE)
        schedule.extract(None if resumed is None else resumed.secret)
        schedule.update_hash(self._client_hello)
        if resumed is not None and not self._session_resumed:
            self._session_resumed, self.early_data_accepted = True, resumed.early_data
            if resumed.early_data:
                reads_with = schedule_of(self._client_hello, resumed.reads_with or resumed.secret)
                secret = early_traffic_secret(reads_with)
                self.update_traffic_key_cb(tls.Direction.DECRYPT, tls.Epoch.ZERO_RTT, CIPHER_SUITE, secret)
        return schedule

    def _protect_handshake(self, secret: bytes) -> None:
        """The keys of Handshake packets, with ServerHello in the transcript; ``secret`` is the shared one."""
        assert self.key_schedule is not None
        self.key_schedule.extract(secret)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")

    def _push_rest(self, handshake_buf: Buffer) -> None:
        """All that follows ServerHello."""
        schedule = self.key_schedule
        assert schedule is not None
        self._push_handshake_flight(handshake_buf)
        schedule.extract(None)
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.ONE_RTT, b"s ap traffic")
        self._next_dec_key = schedule.derive_secret(b"c ap traffic")
        self._server_expect_finished()

    def _negotiate(self, hello: tls.ClientHello) -> None:
        if CIPHER_SUITE not in hello.cipher_suites:
            raise tls.AlertHandshakeFailure("")
        if tls.TLS_VERSION_1_3 not in (hello.supported_versions or ()):
            raise tls.AlertProtocolVersion("")
        if "h3" not in (hello.alpn_protocols or ()):
            raise tls.AlertNoApplicationProtocol("")
        self.alpn_negotiated = "h3"
        self.client_random = hello.random
        self.server_random = self._random_bytes(32)
        self.legacy_session_id = hello.legacy_session_id
        self.received_extensions = hello.other_extensions
        if self.alpn_cb is not None:
            self.alpn_cb(self.alpn_negotiated)

    def _exchange_keys(self, shares: dict[int, bytes]) -> tuple[tls.KeyShareEntry, bytes]:
        """Our key share and the shared secret."""
        for group in (X25519MLKEM768, X25519) if self._flight.hybrid else (X25519,):
            if group in shares:
                return self._exchange(group, shares[group])
        raise tls.AlertHandshakeFailure("")

    def _exchange(self, group: int, share: bytes) -> tuple[tls.KeyShareEntry, bytes]:
        try:
            if group == X25519MLKEM768:
                return _hybrid_exchange(share, self._random_bytes)
            public, secret = _x25519_exchange(share, self._random_bytes)
        except ValueError as error:
            raise tls.AlertIllegalParameter("") from error
        return (X25519, public), secret

    def _push_server_hello(self, buf: Buffer, key_share: tls.KeyShareEntry) -> None:
        """ServerHello (RFC 8446 §4.1.3) with the extensions in Dest's order: anyone can read it."""
        supported_versions = int(tls.ExtensionType.SUPPORTED_VERSIONS)
        writers: dict[int, Callable[[], None]] = {
            supported_versions: partial(buf.push_uint16, tls.TLS_VERSION_1_3),
            int(tls.ExtensionType.KEY_SHARE): partial(tls.push_key_share, buf, key_share),
        }
        order = [kind for kind in self._flight.server_hello_extensions if kind in writers]
        if sorted(order) != sorted(writers):
            order = list(GO_SERVER_HELLO)
        assert self.key_schedule is not None
        with tls.push_message(self.key_schedule, buf):
            buf.push_uint8(tls.HandshakeType.SERVER_HELLO)
            with tls.push_block(buf, 3):
                buf.push_uint16(tls.TLS_VERSION_1_2)
                buf.push_bytes(self.server_random)
                tls.push_opaque(buf, 1, self.legacy_session_id or b"")
                buf.push_uint16(CIPHER_SUITE)
                buf.push_uint8(tls.CompressionMethod.NULL)
                with tls.push_block(buf, 2):
                    for kind in order:
                        with tls.push_extension(buf, kind):
                            writers[kind]()

    def _push_handshake_flight(self, buf: Buffer) -> None:
        """EncryptedExtensions, Certificate, CertificateVerify, Finished: as long as Dest's. Resumed, without the two
        in the middle."""
        schedule = self.key_schedule
        assert schedule is not None and self._enc_key is not None
        start = buf.tell()
        named = [] if self._session_resumed else [(int(tls.ExtensionType.SERVER_NAME), b"")]
        with tls.push_message(schedule, buf):
            tls.push_encrypted_extensions(
                buf,
                tls.EncryptedExtensions(
                    alpn_protocol=self.alpn_negotiated,
                    early_data=self.early_data_accepted,
                    other_extensions=[*self.handshake_extensions, *named],
                ),
            )
        if not self._session_resumed:
            self._push_certificate(buf, start)
        with tls.push_message(schedule, buf):
            tls.push_finished(buf, tls.Finished(verify_data=schedule.finished_verify_data(self._enc_key)))

    def _push_certificate(self, buf: Buffer, start: int) -> None:
        """Certificate and CertificateVerify, with which the flight that began at ``start`` has Dest's length."""
        schedule = self.key_schedule
        assert schedule is not None
        certificate = self._certificate or make_certificate(self._proof_key, self._random_bytes)
        hash_length = schedule.algorithm.digest_size
        behind = (4 + 2 + 2 + 64) + (4 + hash_length)  # CertificateVerify, Finished
        target = self._flight.handshake_length - (buf.tell() - start) - behind
        entries = certificate_entries(certificate.leaf, target, self._random_bytes)
        with tls.push_message(schedule, buf):
            tls.push_certificate(buf, tls.Certificate(request_context=b"", certificates=entries))
        signature = certificate.private_key.sign(schedule.certificate_verify_data(tls.SERVER_CONTEXT_STRING))
        with tls.push_message(schedule, buf):
            tls.push_certificate_verify(buf, tls.CertificateVerify(algorithm=ED25519, signature=signature))

    # --- the client's Finished: tickets, as Dest sends them ---

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        super()._server_handle_finished(input_buf, output_buf)
        maker, schedule = self._tickets, self.key_schedule
        assert schedule is not None
        for length in self._flight.ticket_lengths:
            nonce = self._random_bytes(maker.nonce_length) if maker is not None else b""
            early_data = maker is None or maker.early_data
            size = length - TICKET_OVERHEAD - len(nonce) + (0 if early_data else _EARLY_DATA_LENGTH)
            if maker is not None:
                ticket = maker.seal(resumption_secret(schedule, nonce), max(size, SHORTEST_TICKET))
            else:
                ticket = self._random_bytes(max(size, 1))
            tls.push_new_session_ticket(
                output_buf,
                tls.NewSessionTicket(
                    ticket_lifetime=_TICKET_LIFETIME,
                    ticket_age_add=int.from_bytes(self._random_bytes(4), "big"),
                    ticket_nonce=nonce,
                    ticket=ticket,
                    max_early_data_size=0xFFFFFFFF if early_data else None,
                ),
            )


def _x25519_exchange(share: bytes, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """(our public key, shared secret); ValueError for a share of the wrong length or a small-order point."""
    private_key = X25519PrivateKey.from_private_bytes(random(32))
    secret = private_key.exchange(X25519PublicKey.from_public_bytes(share))
    return private_key.public_key().public_bytes_raw(), secret


def _hybrid_exchange(share: bytes, random: Callable[[int], bytes]) -> tuple[tls.KeyShareEntry, bytes]:
    """X25519MLKEM768: ML-KEM's part first, in shares and in the secret."""
    if len(share) != _ENCAPSULATION_KEY_LENGTH + _X25519_LENGTH:
        raise ValueError("hybrid share of the wrong length")
    encapsulation_key = MLKEM768PublicKey.from_public_bytes(share[:_ENCAPSULATION_KEY_LENGTH])
    kem_secret, ciphertext = encapsulation_key.encapsulate()
    public, x25519_secret = _x25519_exchange(share[_ENCAPSULATION_KEY_LENGTH:], random)
    return (X25519MLKEM768, ciphertext + public), kem_secret + x25519_secret
