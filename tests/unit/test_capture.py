"""The judge of captures is itself judged: it reads what was sent, and sees a packet number that was used twice."""

from __future__ import annotations

from qre.quic.handed_over import session_id
from qre.wire.packet import build_short_header
from qre.wire.protection import Protection, next_secret
from tests.support.capture import Decrypted, SessionSecrets, decrypt
from tests.support.tcpdump import Datagram

CLIENT, SERVER = ("192.0.2.1", 50_000), ("192.0.2.2", 443)
SECRETS = {"client": b"\x01" * 32, "server": b"\x02" * 32}
CID = bytes(range(20))


def packet(sender: str, epoch: int, number: int, payload: bytes = b"\x01\x00\x00\x00") -> bytes:
    secret = SECRETS[sender]
    for _ in range(epoch):
        secret = next_secret(secret)
    header = build_short_header(CID if sender == "client" else b"", number.to_bytes(4, "big"), key_phase=epoch & 1)
    return Protection(secret, SECRETS[sender]).protect(header, number, payload)


def read(*packets: tuple[str, bytes]) -> Decrypted:
    session = SessionSecrets(
        session_id=session_id(SECRETS["client"]),
        client=CLIENT,
        server=SERVER,
        client_secret=SECRETS["client"],
        server_secret=SECRETS["server"],
        server_cids={CID},
    )
    ends = {"client": (CLIENT, SERVER), "server": (SERVER, CLIENT)}
    datagrams = [Datagram(float(at), *ends[sender], 0, True, data) for at, (sender, data) in enumerate(packets)]
    return decrypt([session], datagrams, 443)


def test_every_generation_is_read_and_the_same_packet_seen_twice_is_one() -> None:
    sent = [(sender, packet(sender, n // 4, 65_536 + n)) for n in range(40) for sender in ("client", "server")]
    found = read(*sent, *sent[-6:])
    assert found.packets == 80
    assert found.undecrypted == []
    for direction in found.directions.values():
        assert direction.generations == set(range(10))
        assert direction.largest == 65_575
        assert direction.reused() == []
        assert direction.wrong_phase == 0


def test_a_packet_number_used_twice_under_one_key_is_seen() -> None:
    again = packet("client", 1, 65_537, b"\x06\x00\x00\x00")
    found = read(("client", packet("client", 1, 65_537)), ("client", again), ("server", packet("server", 0, 65_537)))
    client, server = found.sent_by(session_id(SECRETS["client"]))
    assert client.reused() == [(1, 65_537)]
    assert server.reused() == []


def test_numbers_that_repeat_under_other_keys_are_told_apart() -> None:
    found = read(("server", packet("server", 0, 65_537)), ("server", packet("server", 1, 65_537)))
    _, server = found.sent_by(session_id(SECRETS["client"]))
    assert server.reused() == []
    assert sorted(server.ciphertexts) == [(0, 65_537), (1, 65_537)]


def test_what_no_key_opens_is_counted() -> None:
    forged = bytearray(packet("client", 0, 3))
    forged[-1] ^= 1
    found = read(("client", bytes(forged)), ("client", packet("client", 0, 4)))
    assert (found.packets, len(found.undecrypted)) == (2, 1)
