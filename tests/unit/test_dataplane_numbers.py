"""The property to test hardest: no (key, packet number) pair is used twice, whatever crashes and
whatever is requested."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qre.dataplane.protocol import FrameSend, NewPort, SessionDelete
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.frames import encode_ack
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.loss.client_session import ClientSession
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session.keyphase import SendKeys
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.session import Session
from tests.support.dataplane import install_of, keys_of, marks_memfd, update_of
from tests.support.issued_cids import issued

SEEDS = ("one", "two")
#: A seed of keys for each session id; the third one mixes: the id of "one" with the keys of "two".
KEYS_OF = {"one": "one", "two": "two", "mixed": "two"}


class Numbers(RuleBasedStateMachine):
    """Requests in any order, deaths of the process at any time; the marks survive, nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.used: Counter[tuple[bytes, int]] = Counter()
        self.fd = marks_memfd()
        self.peers: dict[bytes, int] = {}
        self.start()
        self.original = SendKeys.__init__

        def observed(keys: SendKeys, key: bytes, iv: bytes, epoch: int) -> None:
            self.original(keys, key, iv, epoch)
            encrypt, number_of = keys.encrypt, int.from_bytes(iv, "big")
            kept = bytes(bytearray(key))  # the session wipes its own where it lies

            def seal(nonce: bytes, plaintext: bytes, aad: bytes | None) -> bytes:
                self.used[(kept, int.from_bytes(nonce, "big") ^ number_of)] += 1
                return encrypt(nonce, plaintext, aad)

            keys.encrypt = seal

        SendKeys.__init__ = observed  # type: ignore[method-assign, assignment]  # every seal of every session is seen

    def start(self) -> None:
        self.registry = Registry(NumberMarks(self.fd), Counter(), os.urandom)

    def teardown(self) -> None:
        SendKeys.__init__ = self.original  # type: ignore[method-assign]
        os.close(self.fd)

    def sessions(self) -> list[Session]:
        return list(self.registry.sessions.values())

    @rule(
        name=st.sampled_from(["one", "two", "mixed"]),
        epoch=st.integers(0, 4),
        number=st.sampled_from([PACKET_NUMBER_BASE, PACKET_NUMBER_BASE + 7, 300_000]),
        with_next=st.booleans(),
    )
    def install(self, name: str, epoch: int, number: int, with_next: bool) -> None:
        seed = KEYS_OF[name]
        session_id = install_of(Role.CLIENT, "one" if name == "mixed" else name).session_id
        changes = {} if with_next else {"next_keys": None}
        request = install_of(
            Role.CLIENT,
            seed,
            session_id=session_id,
            key_epoch=epoch,
            packet_number=number,
            idle_timeout_ms=10**9,
            **changes,
        )
        self.registry.answer(request, self.now)
        self.clean()

    @rule(index=st.integers(0, 2), ahead=st.integers(0, 2), seed=st.sampled_from(SEEDS), with_next=st.booleans())
    def update(self, index: int, ahead: int, seed: str, with_next: bool) -> None:
        for session in self.sessions()[index : index + 1]:
            epoch = session.phases.epoch + ahead
            next_keys = keys_of(Role.CLIENT, epoch + 1, seed) if with_next else None
            request = update_of(session.install, epoch, seed, next_keys=next_keys)
            self.registry.answer(request, self.now)
            self.clean()

    @rule(index=st.integers(0, 2), count=st.sampled_from([1, 3, 70_000]))
    def transmit(self, index: int, count: int) -> None:
        for session in self.sessions()[index : index + 1]:
            if count > 100:  # as if so many had been sent
                session.packets.next_number += count
            session.seal_datagrams([DATAGRAM_HEAD + b"\x45"] * min(count, 3), self.now)
            self.clean()

    @rule(index=st.integers(0, 2), flip=st.booleans())
    def hear(self, index: int, flip: bool) -> None:
        """The peer acknowledges everything, perhaps in the next key phase."""
        for session in self.sessions()[index : index + 1]:
            keys, phases = session.phases.keys, session.phases
            if keys.rx_key == bytes(len(keys.rx_key)):
                continue  # it has ended, and its keys are wiped: nobody seals with these
            epoch = phases.rx.epoch
            if phases.rx.epoch < phases.epoch or (flip and phases.next_keys is not None):
                epoch += 1
                keys = phases.keys if epoch == phases.epoch else phases.next_keys or keys
            number = session.packets.received.highest + 1
            latest = session.packets.next_number - 1
            sealer = SendKeys(keys.rx_key, keys.rx_iv, epoch)
            cid = session.install.client_connection_id
            header = bytes([sealer.first_byte]) + cid + (number & 0xFFFFFFFF).to_bytes(4, "big")
            text = sealer.encrypt(
                (sealer.iv ^ number).to_bytes(12, "big"), encode_ack([(latest, latest)], 0) + b"\1", header
            )
            mask = session.packets._rx_mask(text[:16])
            packet = bytearray(header + text)
            packet[0] ^= mask[0] & 0x1F
            for at in range(4):
                packet[1 + len(cid) + at] ^= mask[1 + at]
            session.open_datagrams([bytes(packet)], session.peer, 0, self.now)
            self.clean()

    @rule(index=st.integers(0, 2), close=st.booleans())
    def delete(self, index: int, close: bool) -> None:
        for session in self.sessions()[index : index + 1]:
            self.registry.answer(SessionDelete(id=3, session_id=session.session_id, close=close), self.now)
            self.clean()

    @rule(index=st.integers(0, 2))
    def send_frames(self, index: int) -> None:
        for session in self.sessions()[index : index + 1]:
            self.registry.answer(FrameSend(id=4, session_id=session.session_id, frames=b"\x19\0"), self.now)

    @rule(index=st.integers(0, 2), sequence=st.integers(1, 5))
    def try_a_port(self, index: int, sequence: int) -> None:
        """The peer gives a connection ID, and a socket is lent when one is wanted."""
        for session in self.sessions()[index : index + 1]:
            assert isinstance(session, ClientSession)
            session.paths.cids.issued(issued(sequence))
            self.registry.answer(NewPort(id=5, session_id=session.session_id, number=9), self.now)
            self.clean()

    @rule()
    def kill(self) -> None:
        self.start()

    @rule(seconds=st.sampled_from([0.05, 0.4, 1.0, 6.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for session in self.sessions():
            session.handle_timer(self.now)
        self.clean()

    def clean(self) -> None:
        for session in self.sessions():
            if session.state == "ended":
                self.registry.remove(session)

    @invariant()
    def no_number_twice(self) -> None:
        twice = [pair for pair, times in self.used.items() if times > 1 and pair[0] not in self.peer_keys()]
        assert not twice

    @staticmethod
    def peer_keys() -> set[bytes]:
        return {keys_of(Role.CLIENT, epoch, seed).rx_key for epoch in range(12) for seed in SEEDS}


Numbers.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestNumbers = Numbers.TestCase


def test_a_key_that_was_wiped_is_counted_as_it_was() -> None:
    """Found by the above: keys are wiped where they lie, in a count that held them, too."""
    machine = Numbers()
    try:
        machine.install("one", 0, PACKET_NUMBER_BASE, False)
        machine.delete(0, True)
        machine.hear(0, False)
        machine.hear(0, False)
        machine.install("one", 0, PACKET_NUMBER_BASE, False)
        machine.wait(1.0)
        assert not any(key == bytes(len(key)) for key, _ in machine.used)
        machine.no_number_twice()
    finally:
        machine.teardown()
