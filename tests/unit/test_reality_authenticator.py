"""The authenticator in ClientHello.random, and the proof in the server's certificate."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.reality.authenticator import (
    RANDOM_END,
    RANDOM_LENGTH,
    RANDOM_OFFSET,
    VERSION,
    Authenticator,
    SharedSecrets,
    open_untrusted,
    seal,
    share_secrets_untrusted,
)
from qre.reality.proof import PROOF_LENGTH, proves_server, server_proof


def secrets() -> SharedSecrets:
    server = X25519PrivateKey.generate()
    return share_secrets_untrusted(X25519PrivateKey.generate(), server.public_key().public_bytes_raw())


def sealed(shared: SharedSecrets, authenticator: Authenticator, hello: bytes) -> bytes:
    return hello[:RANDOM_OFFSET] + seal(shared, authenticator, hello) + hello[RANDOM_END:]


HELLO = b"\x01\x00\x00\x80\x03\x03" + os.urandom(200)
SOMEBODY = Authenticator(VERSION, 1_700_000_000, b"somebody")


def test_both_ends_derive_the_same_secrets() -> None:
    server, client = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    one = share_secrets_untrusted(client, server.public_key().public_bytes_raw())
    other = share_secrets_untrusted(server.private_bytes_raw(), client.public_key().public_bytes_raw())
    assert one == other
    assert (len(one.hello_key), len(one.hello_iv), len(one.proof)) == (16, 12, 32)


def test_secrets_are_those_of_the_specification() -> None:
    """HKDF of the cryptography package, as an independent derivation."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    server, client = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    shared = client.exchange(server.public_key())

    def derived(info: bytes, length: int) -> bytes:
        return HKDF(hashes.SHA256(), length, b"qre reality v1", info).derive(shared)

    ours = share_secrets_untrusted(client, server.public_key().public_bytes_raw())
    assert ours.hello_key == derived(b"hello key", 16)
    assert ours.hello_iv == derived(b"hello iv", 12)
    assert ours.proof == derived(b"proof", 32)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"short", b""])
def test_a_public_key_that_gives_an_all_zero_secret_is_refused(point: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        share_secrets_untrusted(X25519PrivateKey.generate(), point)


@given(
    time=st.integers(0, 0xFFFFFFFF),
    short_id=st.binary(min_size=8, max_size=8),
    hello=st.binary(min_size=RANDOM_END, max_size=300),
)
@settings(max_examples=50)
def test_what_is_sealed_is_what_is_opened(time: int, short_id: bytes, hello: bytes) -> None:
    shared = secrets()
    authenticator = Authenticator(VERSION, time, short_id)
    assert open_untrusted(shared, sealed(shared, authenticator, hello)) == authenticator


def test_the_seal_fills_random_exactly_and_does_not_depend_on_what_was_in_it() -> None:
    shared = secrets()
    other = HELLO[:RANDOM_OFFSET] + os.urandom(RANDOM_LENGTH) + HELLO[RANDOM_END:]
    assert seal(shared, SOMEBODY, HELLO) == seal(shared, SOMEBODY, other)
    assert len(seal(shared, SOMEBODY, HELLO)) == RANDOM_LENGTH


def test_one_changed_bit_anywhere_in_the_hello_is_noticed() -> None:
    shared = secrets()
    hello = sealed(shared, SOMEBODY, HELLO)
    for position in range(len(hello)):
        changed = bytearray(hello)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises(UntrustedInputError):
            open_untrusted(shared, bytes(changed))


def test_other_secrets_open_nothing() -> None:
    with pytest.raises(UntrustedInputError):
        open_untrusted(secrets(), sealed(secrets(), SOMEBODY, HELLO))


@given(st.binary(max_size=100))
@settings(max_examples=50)
def test_any_bytes_open_or_raise_the_one_exception(data: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        open_untrusted(secrets(), data)


def test_an_authenticator_of_an_unknown_form_is_refused() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from qre.reality.authenticator import zero_random

    shared = secrets()
    for plaintext in (b"\x00\x01\x00\x01" + bytes(12),):
        random = AESGCM(shared.hello_key).encrypt(shared.hello_iv, plaintext, zero_random(HELLO))
        with pytest.raises(UntrustedInputError):
            open_untrusted(shared, HELLO[:RANDOM_OFFSET] + random + HELLO[RANDOM_END:])


def test_no_secret_shows_in_a_repr() -> None:
    shared = secrets()
    assert repr(shared) == "SharedSecrets(hidden)"
    assert "somebody" not in repr(SOMEBODY)


def test_a_proof_holds_for_its_key_and_certificate_key_alone() -> None:
    key, public = os.urandom(32), os.urandom(32)
    proof = server_proof(key, public)
    assert len(proof) == PROOF_LENGTH
    assert proves_server(key, public, proof)
    assert not proves_server(os.urandom(32), public, proof)
    assert not proves_server(key, os.urandom(32), proof)
    assert not proves_server(key, public, proof[:-1] + bytes([proof[-1] ^ 1]))
    assert not proves_server(key, public, proof[:-1])
    assert not proves_server(key, public, b"")


def test_a_short_id_in_an_authenticator_is_padded() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        Authenticator(VERSION, 0, b"x").to_bytes()
