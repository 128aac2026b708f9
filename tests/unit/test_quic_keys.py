"""Keys of the data plane: RFC 9001's vectors, and both ends' view of one session."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from aioquic.quic.crypto import derive_key_iv_hp
from aioquic.tls import CipherSuite

from qre.dataplane.install import handed_over_install
from qre.dataplane.protocol import underlay_of
from qre.ends import Role
from qre.quic.handed_over import HandedOver, Secrets, advance, session_id
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import derive, next_secret

UNDERLAY = underlay_of(("192.0.2.1", 1), ("192.0.2.2", 2))


def handed_over(tx: bytes, rx: bytes) -> HandedOver:
    return HandedOver(
        session_id=session_id(b"c" * 32),
        routed_cid=b"r" * 20,
        client_cid=b"",
        tx_secret=tx,
        rx_secret=rx,
        tx_hp_key=derive(tx).hp,
        rx_hp_key=derive(rx).hp,
        key_epoch=0,
        peer_idle_ms=20_000,
        peer_ack_delay_exponent=4,
        peer_max_ack_delay_ms=26,
        peer_max_udp_payload=65_527,
        reset_token=b"t" * 16,
        addresses=(ip_interface("10.0.0.2/32"),),
        short_id=bytes(8),
    )


def test_keys_of_an_initial_secret_are_those_of_rfc_9001_a_1() -> None:
    secret = bytes.fromhex("c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea")
    keys = derive(secret)
    assert keys.key.hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert keys.iv.hex() == "fa044b2f42a3fd3b46fb255c"
    assert keys.hp.hex() == "9f50449e04a0e810283a1e9933adedd2"


def test_the_next_secret_is_that_of_rfc_9001_a_5() -> None:
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    assert next_secret(secret).hex() == "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"


def test_keys_are_those_that_aioquic_derives() -> None:
    secret = bytes(range(32))
    expected = derive_key_iv_hp(cipher_suite=CipherSuite.AES_128_GCM_SHA256, secret=secret, version=1)
    assert tuple(derive(secret)) == expected


def test_what_one_end_sends_with_the_other_receives_with() -> None:
    client = handed_over_install(handed_over(b"c" * 32, b"s" * 32), Role.CLIENT, UNDERLAY)
    server = handed_over_install(handed_over(b"s" * 32, b"c" * 32), Role.SERVER, UNDERLAY, held=True)
    assert client.session_id == server.session_id
    for one, other in ((client.keys, server.keys), (client.next_keys, server.next_keys)):
        assert one is not None
        assert other is not None
        assert (one.tx_key, one.tx_iv) == (other.rx_key, other.rx_iv)
        assert (one.rx_key, one.rx_iv) == (other.tx_key, other.tx_iv)
    assert (client.tx_hp_key, client.rx_hp_key) == (server.rx_hp_key, server.tx_hp_key)
    assert client.packet_number == PACKET_NUMBER_BASE
    assert client.reset_token is not None
    assert server.reset_token is None
    assert client.max_datagram_payload == 1472
    assert client.idle_timeout_ms == 20_000


def test_a_session_that_is_advanced_keeps_its_header_keys() -> None:
    start = handed_over(b"c" * 32, b"s" * 32)
    later = advance(start, 3)
    assert later.key_epoch == 3
    assert later.tx_secret == next_secret(next_secret(next_secret(b"c" * 32)))
    assert later.tx_hp_key == start.tx_hp_key
    assert advance(later, 3) == later
    with pytest.raises(ValueError, match="gone"):
        advance(later, 2)


def test_secrets_do_not_show() -> None:
    secrets = Secrets(b"c" * 32, b"s" * 32)
    assert "cc" not in repr(secrets)
    assert "cc" not in repr(handed_over(b"c" * 32, b"s" * 32)).replace("session_id", "")
    assert secrets.next().client == next_secret(b"c" * 32)
