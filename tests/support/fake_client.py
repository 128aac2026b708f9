"""FakeClient: a stock aioquic client that knows REALITY, for tests of the server alone.

It is a fake: its hello and its datagrams are aioquic's, not a browser's, and it proves nothing about the real client.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.h3.connection import H3Connection, Setting
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from qre.reality.authenticator import (
    RANDOM_END,
    RANDOM_OFFSET,
    Authenticator,
    SharedSecrets,
    seal,
    share_secrets_untrusted,
)
from qre.reality.proof import proves_server

X25519MLKEM768 = 0x11EC
SERVER = ("192.0.2.1", 443)
CLIENT = ("192.0.2.2", 50_000)


class FakeTls(tls.Context):
    """Seals ``random``; with ``hybrid`` it offers X25519MLKEM768 besides its lone x25519 share."""

    public_key: bytes
    authenticator: Authenticator
    hybrid: bool
    session_id: bytes
    secrets: SharedSecrets
    proven: bool | None = None
    certificate_lengths: tuple[int, ...] = ()

    def _client_send_hello(self, output_buf: Buffer) -> None:
        self._supported_groups = [tls.Group.X25519]
        self.client_random = bytes(32)
        self.legacy_session_id = self.session_id
        start = output_buf.tell()
        super()._client_send_hello(output_buf)
        message = output_buf.data_slice(start, output_buf.tell())
        if self.hybrid:
            message = self._with_hybrid_share(message)
        self.secrets = share_secrets_untrusted(self._x25519_private_key.private_bytes_raw(), self.public_key)
        self.client_random = seal(self.secrets, self.authenticator, message)
        message = message[:RANDOM_OFFSET] + self.client_random + message[RANDOM_END:]
        output_buf.seek(start)
        output_buf.push_bytes(message)
        self._key_schedule_proxy = tls.KeyScheduleProxy(self._cipher_suites)
        self._key_schedule_proxy.extract(None)
        self._key_schedule_proxy.update_hash(message)

    def _with_hybrid_share(self, message: bytes) -> bytes:
        self._kem = MLKEM768PrivateKey.generate()
        self._hybrid_x25519 = X25519PrivateKey.generate()
        share = self._kem.public_key().public_bytes_raw() + self._hybrid_x25519.public_key().public_bytes_raw()
        hello = tls.pull_client_hello(Buffer(data=message))
        hello.key_share = [(X25519MLKEM768, share), *hello.key_share]
        hello.supported_groups = [X25519MLKEM768, *hello.supported_groups]
        buf = Buffer(capacity=4096)
        tls.push_client_hello(buf, hello)
        return buf.data

    def _client_handle_hello(self, input_buf: Buffer, output_buf: Buffer) -> None:
        message = input_buf.data_slice(0, input_buf.capacity)
        hello = tls.pull_server_hello(Buffer(data=message))
        if hello.key_share[0] != X25519MLKEM768:
            super()._client_handle_hello(input_buf, output_buf)
            return
        share = hello.key_share[1]
        secret = self._kem.decapsulate(share[:1088]) + self._hybrid_x25519.exchange(
            X25519PublicKey.from_public_bytes(share[1088:])
        )
        input_buf.seek(input_buf.capacity)
        self.key_schedule = self._key_schedule_proxy.select(hello.cipher_suite)
        self._key_schedule_psk = self._key_schedule_proxy = None
        self.key_schedule.update_hash(message)
        self.key_schedule.extract(secret)
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(tls.Direction.ENCRYPT, tls.Epoch.HANDSHAKE, b"c hs traffic")
        self._set_state(tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        self.certificate_lengths = tuple(len(data) for data, _ in certificate.certificates)
        self._peer_certificate = x509.load_der_x509_certificate(certificate.certificates[0][0])
        public = self._peer_certificate.public_key().public_bytes_raw()
        self.proven = proves_server(self.secrets.proof, public, self._peer_certificate.signature)


class _H3(H3Connection):
    def _get_local_settings(self) -> dict[int, int]:
        return super()._get_local_settings() | {int(Setting.H3_DATAGRAM): 1}


class FakeClient(QuicConnection):
    def __init__(
        self,
        *,
        public_key: bytes,
        short_id: bytes,
        unix_time: int,
        server_name: str = "site.test",
        hybrid: bool = True,
        session_id: bytes = b"",
    ) -> None:
        super().__init__(
            configuration=QuicConfiguration(
                alpn_protocols=["h3"],
                server_name=server_name,
                verify_mode=0,
                max_datagram_frame_size=65_535,
                supported_versions=[1],
                cipher_suites=[tls.CipherSuite.AES_128_GCM_SHA256],
                idle_timeout=30.0,
            )
        )
        self.public_key = public_key
        self.authenticator = Authenticator((0, 1, 0), unix_time, short_id)
        self.hybrid = hybrid
        self.session_id = session_id
        self.h3: H3Connection | None = None
        self.h3_events: list[H3Event] = []
        self.seen: list[QuicEvent] = []

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        stock = self.tls
        context = FakeTls(
            is_client=True,
            alpn_protocols=["h3"],
            server_name=self._configuration.server_name,
            cipher_suites=self._configuration.cipher_suites,
            verify_mode=0,
        )
        context.public_key = self.public_key
        context.authenticator = self.authenticator
        context.hybrid = self.hybrid
        context.session_id = self.session_id
        context.handshake_extensions = stock.handshake_extensions
        context.alpn_cb = stock.alpn_cb
        context.update_traffic_key_cb = stock.update_traffic_key_cb
        self.tls = context

    def first_flight(self, now: float) -> list[bytes]:
        self.connect(SERVER, now)
        return [data for data, _ in self.datagrams_to_send(now)]

    def handle(self) -> None:
        """Feed HTTP/3 with what QUIC has seen."""
        while (event := self.next_event()) is not None:
            self.seen.append(event)
            if self.h3 is None:
                self.h3 = _H3(self)
            self.h3_events += self.h3.handle_event(event)

    def request(
        self, *, capsules: bytes = b"", headers: dict[bytes, bytes] | None = None, end_stream: bool = False
    ) -> int:
        """Extended CONNECT for CONNECT-IP, unless ``headers`` says otherwise."""
        assert self.h3 is not None
        wanted = {
            b":method": b"CONNECT",
            b":protocol": b"connect-ip",
            b":scheme": b"https",
            b":authority": self._configuration.server_name.encode(),
            b":path": b"/.well-known/masque/ip/*/*/",
        }
        fields = wanted | {b"capsule-protocol": b"?1"} if headers is None else headers
        stream_id: int = self.get_next_available_stream_id()
        self.h3.send_headers(stream_id, list(fields.items()), end_stream=end_stream)
        if capsules:
            self.h3.send_data(stream_id, capsules, end_stream=False)
        return stream_id

    @property
    def status(self) -> bytes | None:
        for event in self.h3_events:
            if isinstance(event, HeadersReceived):
                return dict(event.headers)[b":status"]
        return None

    @property
    def body(self) -> bytes:
        return b"".join(event.data for event in self.h3_events if isinstance(event, DataReceived))

    @property
    def terminated(self) -> ConnectionTerminated | None:
        return next((event for event in self.seen if isinstance(event, ConnectionTerminated)), None)
