"""A handshake and a certificate check in memory, before the sandbox, so that everything imported on first use is
loaded.

Libraries load parts of themselves on first use, and in the sandbox no file can be opened. Nothing of it leaves this
process or is kept.
"""

from __future__ import annotations

import datetime
import time
from ipaddress import IPv4Address, ip_interface
from random import SystemRandom

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID

from qre.config.model import ClientSettings, HostPort, Listen, ServerSettings
from qre.dataplane.install import session_keys
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.quic.handed_over import advance
from qre.quic.in_memory.plan import InMemoryHandshake

_NAME = "rehearsal.example"
_SHORT_ID = bytes(8)


def rehearse(fingerprint: Fingerprint, trust: TrustStore) -> None:
    """Raises QreError when a handshake of this installation with itself fails."""
    _shake_hands(fingerprint)
    _judge_certificate(trust)


def _shake_hands(fingerprint: Fingerprint) -> None:
    key = X25519PrivateKey.generate()
    listen = Listen((IPv4Address("127.0.0.1"),), 443)
    plan = InMemoryHandshake(
        server=ServerSettings(listen, HostPort(_NAME, 443), _NAME, key.private_bytes_raw(), (_SHORT_ID,)),
        client=ClientSettings(HostPort(_NAME, 443), _NAME, key.public_key().public_bytes_raw(), _SHORT_ID),
        addresses=(ip_interface("10.0.0.2/24"),),
        grant=lambda short_id, wanted: wanted,
        routes=(),
        routed_cid_len=20,
        server_address=(str(listen.ip), listen.port),
        client_address=(str(listen.ip), 1024),
        unix_time=int(time.time()),
        fingerprint=fingerprint,
        random=SystemRandom(),
    ).run()
    later = advance(plan.client, 1)
    session_keys(later.tx_secret, later.rx_secret)


def _judge_certificate(trust: TrustStore) -> None:
    """Check certificates as a client does at the real site, with both kinds of keys that sites use."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    keys = (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048))
    for key in keys:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        parsed = x509.load_der_x509_certificate(certificate.public_bytes(serialization.Encoding.DER))
        trust.problem_untrusted([parsed], _NAME, int(now.timestamp()))
    elliptic, numeric = keys
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    assert isinstance(elliptic, ec.EllipticCurvePrivateKey) and isinstance(numeric, rsa.RSAPrivateKey)
    elliptic.public_key().verify(elliptic.sign(b"", ec.ECDSA(hashes.SHA256())), b"", ec.ECDSA(hashes.SHA256()))
    numeric.public_key().verify(numeric.sign(b"", pss, hashes.SHA256()), b"", pss, hashes.SHA256())
