"""TLS 1.3 as a QRE client speaks it (RFC 8446), on aioquic's ``tls.Context`` by subclassing.

The hello is a browser's; the server is either ours, proven by the signature field of its throw-away certificate, or
the real site with a chain that is checked like in a browser, or a man in the middle. Ed25519, which the browser's
hello does not offer, is accepted for a proven certificate alone. HelloRetryRequest is not supported: sites that
support none of the offered groups cannot be visited.

Hooks, each because stock aioquic has no option: ``_client_send_hello`` (a ticket's key is bound to the hello),
``_client_handle_hello`` (key exchange is inline), ``_client_handle_certificate``,
``_client_handle_certificate_verify``, ``_handle_reassembled_message`` (compressed certificates),
``_client_handle_new_session_ticket`` (their lengths, and which are of a server that takes them).
"""

from __future__ import annotations

import enum
from typing import Final

import brotli
from aioquic import tls
from aioquic.buffer import Buffer
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from qre.errors import UntrustedInputError
from qre.quic.bounds import MAX_TICKETS, Bound, OverBoundError
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.hello import OfferedHello
from qre.quic.client.trust import ChainProblem, TrustStore
from qre.quic.resumption.held_ticket import MOST_IDENTITY, MOST_PARAMETERS, HeldTicket
from qre.quic.resumption.psk import SUITE, early_traffic_secret, resumption_secret, schedule_of
from qre.quic.resumption.ticket_keys import is_marked
from qre.reality.proof import proves_server

#: ServerHello.random of a HelloRetryRequest (RFC 8446 §4.1.3).
HELLO_RETRY_REQUEST: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
#: A Certificate message is never longer than this, compressed or not.
MAX_CERTIFICATE: Final = 1 << 17
_BROTLI: Final = 2
_PARAMETERS: Final = int(tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS)
#: max_early_data_size in QUIC (RFC 9001 §4.6.1).
_ANY_LENGTH: Final = 0xFFFFFFFF
#: ServerHello up to its session id: header 4, legacy_version 2, random 32.
_SESSION_ID_OFFSET: Final = 38


class Peer(enum.Enum):
    """The kind of peer. Certain only once TLS is complete."""

    UNKNOWN = "unknown"
    PROVEN = "proven"  # holds RealityPrivateKey
    SITE = "site"  # its chain is valid for ServerName
    IMPOSTOR = "impostor"


class ClientTlsContext(tls.Context):
    """One handshake. ``proof`` is empty in a plain visit; then a bad chain is noted in ``problem`` and no alert."""

    def __init__(
        self,
        *,
        hello: OfferedHello,
        fingerprint: Fingerprint,
        server_name: str,
        trust: TrustStore,
        unix_time: int,
    ) -> None:
        shape = fingerprint.hello
        super().__init__(
            is_client=True,
            alpn_protocols=list(shape.alpn),
            cipher_suites=[tls.CipherSuite(suite) for suite in shape.cipher_suites],
            server_name=server_name,
        )
        self._hello = hello
        self._groups = shape.key_shares
        self._name = server_name
        self._trust = trust
        self._unix_time = unix_time
        self._signature_algorithms = list(shape.signature_algorithms)
        self._supported_versions = list(shape.supported_versions)
        self.client_random = hello.random
        self._proof_matches = False
        #: Properties of the site, to be imitated.
        self.peer = Peer.UNKNOWN
        self.problem: ChainProblem | None = None
        self.group = 0
        self.server_hello_extensions: tuple[int, ...] = ()
        self.chain: list[x509.Certificate] = []
        self.chain_length = 0  # DER bytes of the whole chain
        self.ticket_lengths: list[int] = []
        #: Of them, those that can be used.
        self.tickets: list[HeldTicket] = []

    # --- hellos ---

    def _client_send_hello(self, output_buf: Buffer) -> None:
        self._key_schedule_proxy = tls.KeyScheduleProxy(self._cipher_suites)
        self._key_schedule_proxy.extract(None)
        back = self._hello.comes_back
        if back is not None:
            self._key_schedule_psk = schedule = schedule_of(self._hello.message, back.secret)
            if back.ticket.early_data:
                secret = early_traffic_secret(schedule)
                self.update_traffic_key_cb(tls.Direction.ENCRYPT, tls.Epoch.ZERO_RTT, SUITE, secret)
        with tls.push_message(self._key_schedule_proxy, output_buf):
            output_buf.push_bytes(self._hello.message)
        self._set_state(tls.State.CLIENT_EXPECT_SERVER_HELLO)

    def _client_handle_hello(self, input_buf: Buffer, output_buf: Buffer) -> None:
        message = input_buf.data_slice(0, input_buf.capacity)
        hello = tls.pull_server_hello(input_buf)
        if hello.random == HELLO_RETRY_REQUEST:
            raise tls.AlertHandshakeFailure("HelloRetryRequest")
        cipher_suite = tls.negotiate(
            self._cipher_suites, [hello.cipher_suite], tls.AlertIllegalParameter("cipher suite")
        )
        if (
            hello.compression_method != tls.CompressionMethod.NULL
            or hello.supported_version not in self._supported_versions
            or hello.legacy_session_id != self.legacy_session_id
            or hello.pre_shared_key not in (None, 0)
        ):
            raise tls.AlertIllegalParameter("ServerHello")
        if hello.key_share is None:
            raise tls.AlertMissingExtension("ServerHello without key share")
        self.group, share = hello.key_share
        if self.group not in self._groups:
            raise tls.AlertIllegalParameter("group")
        try:
            secret = self._hello.keys.agree_untrusted(self.group, share)
        except UntrustedInputError as error:
            raise tls.AlertIllegalParameter("key share") from error
        self.server_hello_extensions = _extension_order(message)

        self.key_schedule = self._choose_schedule(hello, cipher_suite)
        self.key_schedule.update_hash(message)
        self.key_schedule.extract(secret)
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")
        self._set_state(tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)

    def _choose_schedule(self, hello: tls.ServerHello, cipher_suite: tls.CipherSuite) -> tls.KeySchedule:
        """Whether the ticket is taken. Then the key of its binder says who the server is."""
        assert self._key_schedule_proxy is not None
        offered, self._key_schedule_psk = self._key_schedule_psk, None
        schedule, self._key_schedule_proxy = self._key_schedule_proxy.select(cipher_suite), None
        if hello.pre_shared_key is None:
            return schedule
        if offered is None or cipher_suite != offered.cipher_suite:
            raise tls.AlertIllegalParameter("pre_shared_key")
        self._session_resumed = True
        self.peer = Peer.SITE if self._hello.secrets is None else Peer.PROVEN
        return offered

    # --- who is it? ---

    def _handle_reassembled_message(
        self, message_type: int, input_buf: Buffer, output_buf: dict[tls.Epoch, Buffer]
    ) -> None:
        if message_type == tls.HandshakeType.COMPRESSED_CERTIFICATE and self.state in (
            tls.State.CLIENT_EXPECT_CERTIFICATE_REQUEST_OR_CERTIFICATE,
            tls.State.CLIENT_EXPECT_CERTIFICATE,
        ):
            message = input_buf.data_slice(0, input_buf.capacity)
            certificate = tls.pull_certificate(Buffer(data=_decompress(message)))
            self._accept_certificate(certificate, message)
            return
        super()._handle_reassembled_message(message_type, input_buf, output_buf)

    def _client_handle_certificate(self, input_buf: Buffer) -> None:
        certificate = tls.pull_certificate(input_buf)
        self._accept_certificate(certificate, input_buf.data)

    def _accept_certificate(self, certificate: tls.Certificate, message: bytes) -> None:
        """``message`` is what the transcript covers: the compressed one, if it was (RFC 8879 §4)."""
        assert self.key_schedule is not None
        if not certificate.certificates:
            raise tls.AlertDecodeError("Certificate message is empty")
        self.key_schedule.update_hash(message)
        self._proof_matches = self._is_proof(certificate.certificates[0][0])
        if self._proof_matches:
            # What follows the leaf is padding.
            certificate.certificates = certificate.certificates[:1]
            self._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
        self._set_peer_certificate(certificate)
        self.chain_length = sum(len(data) for data, _ in certificate.certificates)
        self._set_state(tls.State.CLIENT_EXPECT_CERTIFICATE_VERIFY)

    def _is_proof(self, leaf: bytes) -> bool:
        if self._hello.secrets is None:
            return False
        try:
            certificate = x509.load_der_x509_certificate(leaf)
            public_key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm):
            return False
        return isinstance(public_key, Ed25519PublicKey) and proves_server(
            self._hello.secrets.proof, public_key.public_bytes_raw(), certificate.signature
        )

    def _client_handle_certificate_verify(self, input_buf: Buffer) -> None:
        verify = tls.pull_certificate_verify(input_buf)
        self._check_certificate_verify_signature(verify)
        if self._proof_matches:
            self.peer = Peer.PROVEN
        else:
            self._check_chain()
        assert self.key_schedule is not None
        self.key_schedule.update_hash(input_buf.data)
        self._set_state(tls.State.CLIENT_EXPECT_FINISHED)

    def _check_chain(self) -> None:
        assert self._peer_certificate is not None
        self.chain = [self._peer_certificate, *self._peer_certificate_chain]
        self.problem = self._trust.problem_untrusted(self.chain, self._name, self._unix_time)
        self.peer = Peer.SITE if self.problem is None else Peer.IMPOSTOR
        if self.peer is Peer.IMPOSTOR and self._hello.secrets is not None:
            raise tls.AlertBadCertificate

    # --- afterwards ---

    def _client_handle_new_session_ticket(self, input_buf: Buffer) -> None:
        """Stock reads any number, and copies what is left for each. Their lengths are part of the site's profile."""
        if len(self.ticket_lengths) == MAX_TICKETS:
            raise OverBoundError(Bound.TICKETS)
        new = tls.pull_new_session_ticket(input_buf)
        self.ticket_lengths.append(input_buf.capacity)
        held = self._held(new)
        if held is not None:
            self.tickets.append(held)

    def _held(self, new: tls.NewSessionTicket) -> HeldTicket | None:
        """None for a ticket that is of no use: it cannot be taken, or it only looks like one."""
        schedule = self.key_schedule
        assert schedule is not None
        if schedule.cipher_suite != SUITE or not new.ticket or not new.ticket_lifetime:
            return None
        secret = resumption_secret(schedule, new.ticket_nonce)
        if self.peer is Peer.PROVEN and not is_marked(new.ticket, secret):
            return None
        parameters = next((data for kind, data in self.received_extensions or () if kind == _PARAMETERS), b"")
        if len(new.ticket) > MOST_IDENTITY or len(parameters) > MOST_PARAMETERS:
            return None
        return HeldTicket(
            identity=new.ticket,
            secret=secret,
            age_add=new.ticket_age_add,
            lifetime=new.ticket_lifetime,
            received_ms=self._unix_time * 1000,
            early_data=new.max_early_data_size == _ANY_LENGTH,
            parameters=parameters,
            nonce_length=len(new.ticket_nonce),
        )


def _extension_order(server_hello: bytes) -> tuple[int, ...]:
    """The extension types of a ServerHello that has been parsed before and is well-formed."""
    buf = Buffer(data=server_hello)
    buf.seek(_SESSION_ID_OFFSET)
    tls.pull_opaque(buf, 1)
    buf.pull_bytes(3)  # cipher suite, compression method
    order: list[int] = []

    def pull_extension() -> None:
        order.append(buf.pull_uint16())
        tls.pull_opaque(buf, 2)

    tls.pull_list(buf, 2, pull_extension)
    return tuple(order)


def _decompress(message: bytes) -> bytes:
    """The Certificate message inside a CompressedCertificate (RFC 8879 §4), never longer than it says it is."""
    buf = Buffer(data=message)
    buf.pull_uint8()
    with tls.pull_block(buf, 3):
        algorithm = buf.pull_uint16()
        length = int.from_bytes(buf.pull_bytes(3), "big")
        compressed = tls.pull_opaque(buf, 3)
    if algorithm != _BROTLI or length > MAX_CERTIFICATE:
        raise tls.AlertIllegalParameter("compressed certificate")
    try:
        body = _decompress_brotli(compressed, length)
    except brotli.error as error:
        raise tls.AlertBadCertificate("compressed certificate") from error
    if len(body) != length:
        raise tls.AlertBadCertificate("compressed certificate")
    return bytes([tls.HandshakeType.CERTIFICATE]) + length.to_bytes(3, "big") + body


def _decompress_brotli(compressed: bytes, length: int) -> bytes:
    """At most a little more than ``length`` bytes, whatever the input would expand to."""
    decompressor = brotli.Decompressor()
    body = bytearray(decompressor.process(compressed, output_buffer_limit=length + 1))
    while len(body) <= length and not decompressor.is_finished():
        more = decompressor.process(b"", output_buffer_limit=length + 1)
        if not more:
            break
        body += more
    return bytes(body)
