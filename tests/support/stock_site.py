"""StockSite: a web site in memory, on stock aioquic, that knows nothing of QRE: what a client may meet.

Its certificate is of a test authority; knobs make it odd or hostile. It proves nothing about QRE's own server.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from email.utils import formatdate
from functools import cache
from ipaddress import ip_interface
from random import Random
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.handshake_events import ClientEvent, Closed
from qre.visit.visitor_files import load_fingerprint

NAME = "site.example"
ADDRESS = ("192.0.2.1", 443)
CLIENT = ("192.0.2.2", 50_000)
UNIX_TIME = 1_790_000_000
_NOW = datetime.datetime.fromtimestamp(UNIX_TIME, datetime.UTC)
_DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


@cache
def authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOW - 900 * _DAY)
        .not_valid_after(_NOW + 900 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


@cache
def trust() -> TrustStore:
    """A store with the test authority alone."""
    return TrustStore([authority()[0]], "the test authority")


def issue(
    name: str = NAME,
    *,
    days: tuple[int, int] = (-10, 10),
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    key: Key | None = None,
    signed_by_itself: bool = False,
    names: int = 1,
) -> tuple[x509.Certificate, Key]:
    """A leaf for ``name``, valid from and until these days from now. ``names``: so many of them, to make it long."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer, signer = authority()
    all_names = [name, *(f"{number}.{name}" for number in range(1, names))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(_NOW + days[0] * _DAY)
        .not_valid_after(_NOW + days[1] * _DAY)
        .add_extension(x509.SubjectAlternativeName(map(x509.DNSName, all_names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()) if signed_by_itself else signer, hashes.SHA256())
    )
    return certificate, key


#: Nobody holds its private half: a client that has it finds that no site proves itself.
STRANGE_KEY = X25519PrivateKey.generate().public_key().public_bytes_raw()


def client(public_key: bytes = STRANGE_KEY, unix_time: int = UNIX_TIME, seed: int = 1) -> ClientHandshake:
    """The real client's handshake; without a public key, a plain visit."""
    return ClientHandshake(
        server_name=NAME,
        public_key=public_key,
        short_id=bytes(8),
        addresses=(ip_interface("10.0.0.2/24"),),
        fingerprint=load_fingerprint(),
        trust=trust(),
        unix_time=unix_time,
        now=100.0,
        random=Random(seed),
    )


class StockSite:
    """``alter`` is called with every flight of TLS messages before it is sent, by epoch. ``retried``: the original
    destination CID and that of a Retry, which the test has sent in its name."""

    def __init__(
        self,
        certificate: tuple[x509.Certificate, Key] | None = None,
        *,
        alter: Callable[[tls.Epoch, bytes], bytes] | None = None,
        answer: bool = True,
        alpn: str = "h3",
        date: int | None = None,
        suites: list[tls.CipherSuite] | None = None,
        retried: tuple[bytes, bytes] | None = None,
        cid_length: int = 8,
    ) -> None:
        leaf, key = certificate or issue()
        self._configuration = QuicConfiguration(
            alpn_protocols=[alpn],
            is_client=False,
            certificate=leaf,
            private_key=key,
            max_datagram_frame_size=65_536,
            cipher_suites=suites,
            connection_id_length=cid_length,
        )
        self._alter = alter
        self._retried = retried
        self._answer = answer
        self._date = [] if date is None else [(b"date", formatdate(date, usegmt=True).encode())]
        self.connection: QuicConnection | None = None
        self.requests: list[list[tuple[bytes, bytes]]] = []
        self.closed_with: int | None = None
        self._http: H3Connection | None = None

    def datagram_received(self, data: bytes, now: float) -> None:
        if self.connection is None:
            header = pull_quic_header(Buffer(data=data), host_cid_length=self._configuration.connection_id_length)
            assert header.packet_type is QuicPacketType.INITIAL
            self.connection = self._connect(header.destination_cid)
        self.connection.receive_datagram(data, CLIENT, now)
        while (event := self.connection.next_event()) is not None:
            self._handle(event)

    def _connect(self, cid: bytes) -> QuicConnection:
        alter = self._alter

        class Connection(QuicConnection):
            def _push_crypto_data(self) -> None:
                if alter is not None:
                    for epoch, buf in self._crypto_buffers.items():
                        if buf.tell():
                            altered = alter(epoch, buf.data)
                            buf.seek(0)
                            buf.push_bytes(altered)
                super()._push_crypto_data()

        original, retry = self._retried or (cid, None)
        return Connection(
            configuration=self._configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retry,
        )

    def _handle(self, event: Any) -> None:
        assert self.connection is not None
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self.connection)
        if isinstance(event, ConnectionTerminated):
            self.closed_with = event.error_code
        if self._http is None:
            return
        for answer in self._http.handle_event(event):
            if isinstance(answer, HeadersReceived):
                self.requests.append(answer.headers)
                if self._answer:
                    self.respond(self._http, answer.stream_id)

    def respond(self, http: H3Connection, stream_id: int) -> None:
        """Answer a request."""
        http.send_headers(stream_id, [(b":status", b"200"), (b"server", b"test"), *self._date])
        http.send_data(stream_id, b"tulips" * 100, end_stream=True)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        if self.connection is None or not self.connection._network_paths:
            return []
        return [data for data, _ in self.connection.datagrams_to_send(now)]


def meet(
    client: ClientHandshake, site: StockSite, *, tamper: Callable[[bytes], bytes] = bytes, limit: float = 30.0
) -> list[ClientEvent]:
    """Let both talk on a good path until the client says Closed; its events. ``tamper``: what the path does."""
    now = 100.0
    events: list[ClientEvent] = []
    client.connect(ADDRESS, now)
    while now < 100.0 + limit:
        to_site = client.datagrams_to_send(now)
        while (event := client.next_event()) is not None:
            events.append(event)
        now += 0.005
        for datagram in to_site:
            site.datagram_received(datagram, now)
        to_client = site.datagrams_to_send(now)
        for datagram in to_client:
            client.datagram_received(tamper(datagram), ADDRESS, now)
        if any(isinstance(event, Closed) for event in events):
            return events
        timers = [client.timer()]
        if site.connection is not None and site.connection._close_at is not None:
            timers.append(site.connection.get_timer())
        if not to_site and not to_client:
            now = max(now, min(timer for timer in timers if timer is not None)) + 1e-6
        client.handle_timer(now)
        if site.connection is not None and site.connection._close_at is not None:
            site.connection.handle_timer(now)
    raise AssertionError(f"no end in sight: {events}")
