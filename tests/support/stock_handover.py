"""A stock aioquic connection one end of which has handed its keys over: the handshake, in memory, and what of it is
known then.
"""

from __future__ import annotations

import datetime
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import derive_key_iv_hp, hkdf_expand_label
from aioquic.quic.logger import QuicLogger
from aioquic.tls import CipherSuite, Epoch, cipher_suite_hash
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qre.dataplane.protocol import SessionKeys
from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE

_SUITE = CipherSuite.AES_128_GCM_SHA256
_VERSION = 1
Address = tuple[str, int]


def self_signed() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    return builder.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()), key


def _next_secret(secret: bytes) -> bytes:
    return hkdf_expand_label(cipher_suite_hash(_SUITE), secret, b"quic ku", b"", 32)


class StockHandover:
    """The end of ``role`` is replaced by a session of ours; ``connection`` is the other one, with its log."""

    def __init__(self, role: Role, server_address: Address, client_address: Address, now: float) -> None:
        self.logger = QuicLogger()
        certificate, key = self_signed()
        common: dict[str, Any] = {
            "alpn_protocols": ["h3"],
            "max_datagram_frame_size": 65536,
            "cipher_suites": [_SUITE],
        }
        server_side = QuicConfiguration(is_client=False, certificate=certificate, private_key=key, **common)
        client_side = QuicConfiguration(is_client=True, server_name="test", verify_mode=0, **common)
        (client_side if role is Role.SERVER else server_side).quic_logger = self.logger
        client = QuicConnection(configuration=client_side)
        server = QuicConnection(
            configuration=server_side, original_destination_connection_id=client.original_destination_connection_id
        )
        client.connect(server_address, now=now)
        for _ in range(8):
            for one, other, source in ((client, server, client_address), (server, client, server_address)):
                for data, _ in one.datagrams_to_send(now):
                    other.receive_datagram(data, source, now=now)
        self.connection, replaced = (client, server) if role is Role.SERVER else (server, client)
        crypto = replaced._cryptos[Epoch.ONE_RTT]
        assert crypto.send.secret is not None
        assert crypto.recv.secret is not None
        #: Of the session's sending and receiving.
        self.secrets = crypto.send.secret, crypto.recv.secret
        self.connection._packet_number = PACKET_NUMBER_BASE
        ours, theirs = replaced.host_cid, replaced._peer_cid.cid
        self.routed_cid, self.client_cid = (ours, theirs) if role is Role.SERVER else (theirs, ours)

    def header_keys(self) -> tuple[bytes, bytes]:
        """For sending and receiving, of the session."""
        tx, rx = (derive_key_iv_hp(cipher_suite=_SUITE, secret=secret, version=_VERSION) for secret in self.secrets)
        return tx[2], rx[2]

    def keys(self, epoch: int) -> SessionKeys:
        """The session's."""
        tx, rx = self.secrets
        for _ in range(epoch):
            tx, rx = _next_secret(tx), _next_secret(rx)
        tx_key, tx_iv, _ = derive_key_iv_hp(cipher_suite=_SUITE, secret=tx, version=_VERSION)
        rx_key, rx_iv, _ = derive_key_iv_hp(cipher_suite=_SUITE, secret=rx, version=_VERSION)
        return SessionKeys(tx_key=tx_key, rx_key=rx_key, tx_iv=tx_iv, rx_iv=rx_iv)
