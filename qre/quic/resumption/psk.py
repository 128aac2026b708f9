"""The pre-shared key of a ClientHello: its extension, its binder and the early secrets (RFC 8446 §4.2.11, §7.1).

A resumed hello of ours carries the authenticator in its ``random`` like every other. The binder covers the hello with
that ``random``, so the authenticator is made first, over what the binder covers: the hello up to the list of binders
(§4.2.11.2). What it leaves out is the binder alone, which its own key protects.

The key that is used is not the ticket's alone: it is bound to this hello's ``proof`` secret, so that neither a stolen
ticket without RealityPrivateKey nor the key without the ticket answers a client.
"""

from __future__ import annotations

import hmac
from typing import Final

from aioquic import tls

from qre.quic.resumption.held_ticket import HeldTicket

PRE_SHARED_KEY: Final = 41
EARLY_DATA: Final = 42
SUITE: Final = tls.CipherSuite.AES_128_GCM_SHA256
BINDER_LENGTH: Final = 32
#: The list of one binder: its length (2), the binder's (1), the binder.
BINDERS_LENGTH: Final = 2 + 1 + BINDER_LENGTH
_LABEL: Final = b"qre resumption v1"


def bound_secret(secret: bytes, proof: bytes) -> bytes:
    """The pre-shared key of a server of ours: the ticket's secret, bound to the hello's proof secret."""
    return hmac.digest(proof, _LABEL + secret, "sha256")


def extension_body(ticket: HeldTicket, unix_ms: int) -> bytes:
    """pre_shared_key with one identity and a binder of zeros."""
    identity = len(ticket.identity).to_bytes(2, "big") + ticket.identity
    identity += ticket.obfuscated_age(unix_ms).to_bytes(4, "big")
    return len(identity).to_bytes(2, "big") + identity + _binders(bytes(BINDER_LENGTH))


def covered_part(message: bytes) -> bytes:
    """The part of a hello with pre_shared_key that its binder covers, and the authenticator."""
    return message[:-BINDERS_LENGTH]


def with_binder(covered: bytes, secret: bytes) -> bytes:
    """The whole hello."""
    return covered + _binders(binder_of(covered, secret))


def binder_of(covered: bytes, secret: bytes) -> bytes:
    """The binder of a hello under this pre-shared key."""
    schedule = tls.KeySchedule(SUITE)
    schedule.extract(secret)
    key = schedule.derive_secret(b"res binder")
    schedule.update_hash(covered)
    return schedule.finished_verify_data(key)


def schedule_of(message: bytes, secret: bytes) -> tls.KeySchedule:
    """The key schedule with the whole hello in its transcript."""
    schedule = tls.KeySchedule(SUITE)
    schedule.extract(secret)
    schedule.update_hash(message)
    return schedule


def early_traffic_secret(schedule: tls.KeySchedule) -> bytes:
    """client_early_traffic_secret, of a schedule that has seen the hello alone."""
    return schedule.derive_secret(b"c e traffic")


def resumption_secret(schedule: tls.KeySchedule, nonce: bytes) -> bytes:
    """The pre-shared key of a ticket with this nonce, of a handshake that is complete (RFC 8446 §4.6.1)."""
    return tls.hkdf_expand_label(
        algorithm=schedule.algorithm,
        secret=schedule.derive_secret(b"res master"),
        label=b"resumption",
        hash_value=nonce,
        length=schedule.algorithm.digest_size,
    )


def _binders(binder: bytes) -> bytes:
    entry = bytes([len(binder)]) + binder
    return len(entry).to_bytes(2, "big") + entry
