"""A stock QUIC stack at the other end, with the same keys: it must be content with what the data plane does."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived

from qre.dataplane.protocol import (
    KeyPhaseChanged,
    LossReason,
    SessionInstall,
    SessionLost,
    SessionUpdate,
    underlay_of,
)
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.loss.client_session import new_session
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import CLIENT_ADDRESS, SERVER_ADDRESS, fresh_marks
from tests.support.stock_handover import StockHandover


class Mixed:
    """One end of an aioquic connection is replaced by our session after the handshake; the clock is ours."""

    def __init__(self, role: Role) -> None:
        self.now = 1000.0
        self.role = role
        self.handover = StockHandover(role, SERVER_ADDRESS, CLIENT_ADDRESS, self.now)
        self.peer = self.handover.connection
        tx_hp_key, rx_hp_key = self.handover.header_keys()
        self.own_address = CLIENT_ADDRESS if role is Role.CLIENT else SERVER_ADDRESS
        self.peer_address = SERVER_ADDRESS if role is Role.CLIENT else CLIENT_ADDRESS
        self.install = SessionInstall(
            id=1,
            session_id=bytes(32),
            role=role,
            connection_id=self.handover.routed_cid,
            client_connection_id=self.handover.client_cid,
            keys=self.handover.keys(0),
            next_keys=self.handover.keys(1),
            tx_hp_key=tx_hp_key,
            rx_hp_key=rx_hp_key,
            underlay=underlay_of(self.own_address, self.peer_address),
            held=role is Role.SERVER,
        )
        mark = fresh_marks().claim(bytes(32), 0, self.install.keys.tx_key, PACKET_NUMBER_BASE)
        self.drops: Counter[str] = Counter()
        self.session = new_session(self.install, mark, self.now, self.drops, os.urandom)
        self.received: list[bytes] = []
        self.peer_received: list[bytes] = []
        self.terminated: list[ConnectionTerminated] = []

    def update(self, epoch: int) -> None:
        self.session.update(
            SessionUpdate(
                id=2,
                session_id=bytes(32),
                keys=self.handover.keys(epoch),
                next_keys=self.handover.keys(epoch + 1),
                key_epoch=epoch,
            ),
            self.now,
        )

    def to_peer(self, packets: list[bytes]) -> None:
        for packet in packets:
            self.peer.receive_datagram(packet, self.own_address, now=self.now)

    def step(self, seconds: float = 0.005) -> None:
        """A moment passes; everything that is sent arrives."""
        self.now += seconds
        if self.session.deadline() <= self.now:
            self.session.handle_timer(self.now)
        timer = self.peer.get_timer()
        if timer is not None and timer <= self.now:
            self.peer.handle_timer(now=self.now)
        self.to_peer([packet for packet, *_ in self.session.outbox])
        self.session.outbox.clear()
        for data, _ in self.peer.datagrams_to_send(self.now):
            inner = self.session.open_datagrams([data], self.peer_address, 0, self.now)
            self.received += [plaintext[3:] for plaintext in inner]
        while event := self.peer.next_event():
            if isinstance(event, DatagramFrameReceived):
                self.peer_received.append(event.data[2:])
            elif isinstance(event, ConnectionTerminated):
                self.terminated.append(event)

    def run(self, steps: int = 20) -> None:
        for _ in range(steps):
            self.step()

    def transmit(self, *inner: bytes) -> None:
        self.to_peer(self.session.seal_datagrams([DATAGRAM_HEAD + packet for packet in inner], self.now))

    def lost_packets(self) -> list[object]:
        """What aioquic declared lost of the era that is ours."""
        events = [event for trace in self.handover.logger.to_dict()["traces"] for event in trace["events"]]
        lost = [event for event in events if event["name"] == "recovery:packet_lost"]
        return [event for event in lost if event["data"]["packet_number"] >= PACKET_NUMBER_BASE]


@pytest.fixture(params=[Role.CLIENT, Role.SERVER])
def mixed(request: pytest.FixtureRequest) -> Mixed:
    made = Mixed(request.param)
    if made.role is Role.SERVER:
        made.peer.send_datagram_frame(b"\0\0confirm")
    made.run()
    made.received.clear()
    assert made.session.confirmed
    return made


def test_datagrams_pass_both_ways_and_nothing_is_declared_lost(mixed: Mixed) -> None:
    sent, back = [], []
    for n in range(300):
        sent.append(b"E" + bytes([n & 0xFF]) * (n + 30))
        back.append(b"F" + bytes([n & 0xFF]) * (n + 30))
        mixed.transmit(sent[-1])
        mixed.peer.send_datagram_frame(b"\0\0" + back[-1])
        mixed.step()
    mixed.run(40)
    assert mixed.peer_received == sent
    assert mixed.received == back
    assert mixed.lost_packets() == []
    assert not mixed.peer._loss.spaces[-1].sent_packets  # all that it sent was acknowledged
    assert mixed.session.recovery.largest_acked >= PACKET_NUMBER_BASE + 300
    assert not mixed.terminated


def test_our_key_update_is_followed(mixed: Mixed) -> None:
    for epoch in range(1, 6):
        mixed.transmit(b"E" * 40)
        mixed.run(60)
        mixed.update(epoch)
        mixed.transmit(b"E%d" % epoch)
        mixed.peer.send_datagram_frame(b"\0\0F%d" % epoch)
        mixed.run(60)
        assert mixed.peer_received[-1] == b"E%d" % epoch
        assert mixed.received[-1] == b"F%d" % epoch
    assert mixed.session.phases.rx.epoch == 5
    assert not mixed.terminated


def test_its_key_update_is_followed(mixed: Mixed) -> None:
    for epoch in range(1, 6):
        mixed.peer.request_key_update()
        mixed.peer.send_datagram_frame(b"\0\0F%d" % epoch)
        mixed.run(10)
        changed = [event.key_epoch for event in mixed.session.events if isinstance(event, KeyPhaseChanged)]
        assert changed[-1] == epoch
        mixed.update(epoch)  # the handshake worker brings the keys after the next
        mixed.transmit(b"E%d" % epoch)
        mixed.run(60)
        assert mixed.peer_received[-1] == b"E%d" % epoch
        assert mixed.received[-1] == b"F%d" % epoch
    assert not mixed.terminated


def test_our_close_is_understood(mixed: Mixed) -> None:
    mixed.session.close(mixed.now, tell=True)
    mixed.run(400)
    assert [event.error_code for event in mixed.terminated] == [0x100]
    assert mixed.session.state is LifeState.ENDED


def test_its_close_is_understood(mixed: Mixed) -> None:
    mixed.peer.close(error_code=0x101)
    mixed.run(3)
    (lost,) = [event for event in mixed.session.events if isinstance(event, SessionLost)]
    assert (lost.reason, lost.error_code) == (LossReason.CLOSED, 0x101)


def test_it_lives_on_our_keepalive(mixed: Mixed) -> None:
    for _ in range(150):
        mixed.step(1.0)
    if mixed.role is Role.CLIENT:
        assert mixed.session.state is LifeState.ESTABLISHED
        assert not mixed.terminated
