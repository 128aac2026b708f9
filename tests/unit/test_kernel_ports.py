"""What the netlink worker decides of another port for a client's session in qre.ko that hears nothing."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from qre.dataplane.giving_up import RoundTrip
from qre.dataplane.new_port import MOST_TRIALS, TRIALS_WITHIN
from qre.dataplane.protocol import (
    DataplaneReport,
    NewPort,
    PortTried,
    PortUse,
    PortWanted,
    SessionMark,
)
from qre.errors import QreError
from qre.kernel.answers import KernelSession, PathDegraded, PortAnswered, PortDropped
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.workers.netlink.kernel_ports import KernelPorts
from tests.unit.test_kernel_sessions import seen

ID = b"\x07" * 32
SPARE = b"\x0a" * 4
MOVED = PortUse(number=9, connection_id=SPARE, sequence=1, reset_token=None)
ANSWERED = PortAnswered(session_id=ID, connection_id=SPARE, sequence=1)
MARK = SessionMark(session_id=ID, connection_id=b"\x09" * 4, key_epoch=0, packet_number=70_000, confirmed=True)


class Orders(Qre):
    """Takes them where the module would, or refuses those that it is told to."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.refusals: dict[str, int] = {}
        self.tries = False

    def session(self, device: str, session_id: bytes) -> KernelSession | None:
        return trying(self.tries) if session_id == ID else None

    def _order(self, name: str, session_id: bytes) -> None:
        assert session_id == ID
        if code := self.refusals.get(name):
            raise NetlinkRefusedError(name, code)
        self.taken.append(name)

    def session_give_up(self, device: str, session_id: bytes, times_ms: tuple[int, int], frames: bytes) -> None:
        self._order("give up", session_id)

    def session_try_port(self, device: str, session_id: bytes, socket_fd: int) -> None:
        os.fstat(socket_fd)
        self._order("try", session_id)

    def session_move(self, device: str, session_id: bytes) -> None:
        self._order("move", session_id)

    def session_drop_port(self, device: str, session_id: bytes) -> None:
        self._order("drop", session_id)


class Worker:
    def __init__(self) -> None:
        self.orders = Orders()
        self.said: list[DataplaneReport] = []
        self.now = 1000.0
        self.ports = KernelPorts(self.orders, "qre0", self.said.append, lambda: self.now)

    def degraded(self, *, spare: bool = True) -> list[DataplaneReport]:
        path = PathDegraded(session_id=ID, round_trip=RoundTrip(0.003, 0.001, 0.03), several=False, spare=spare)
        before = len(self.said)
        self.ports.happened(path)
        return self.said[before:]

    def looks(self, *sessions: KernelSession) -> list[DataplaneReport]:
        before = len(self.said)
        self.ports.look(sessions)
        return self.said[before:]


@pytest.fixture
def udp() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.connect(("127.0.0.1", 9))
        yield made.fileno()


def trying(tries: bool) -> KernelSession:
    return msgspec.structs.replace(seen(), tries=tries)


@pytest.fixture
def worker(udp: int) -> Worker:
    """Its session tries the port of socket 9."""
    made = Worker()
    assert made.degraded() == [PortWanted(session_id=ID)]
    made.ports.lend(NewPort(id=1, session_id=ID, number=9), [udp])
    return made


def test_a_port_is_asked_for_when_the_end_is_ordered_and_the_module_takes_its_socket(worker: Worker) -> None:
    assert worker.orders.taken == ["give up", "try"]
    assert worker.ports.marked(MARK).lent == 9 and worker.ports.marked(MARK).port is None
    assert worker.degraded() == [], "one at a time"


def test_a_module_that_offers_no_port_is_asked_for_none() -> None:
    worker = Worker()
    assert worker.degraded(spare=False) == []
    assert worker.orders.taken == ["give up"]


def test_a_port_that_answers_is_moved_to(worker: Worker) -> None:
    worker.ports.happened(ANSWERED)
    assert worker.orders.taken[-1] == "move"
    assert worker.said[-1] == PortTried(session_id=ID, number=9, moved=MOVED)
    mark = worker.ports.marked(MARK)
    assert (mark.port, mark.lent) == (MOVED, 0)
    assert worker.looks(trying(False)) == []
    assert worker.ports.marked(MARK).port == MOVED, "as long as the session lives"


@pytest.mark.parametrize("code", [errno.EALREADY, errno.ENOENT, errno.ENODEV])
def test_a_port_that_answers_too_late_is_dropped(worker: Worker, code: int) -> None:
    worker.orders.refusals = {"move": code, "drop": 0 if code == errno.EALREADY else code}
    worker.ports.happened(ANSWERED)
    assert worker.said[-1] == PortTried(session_id=ID, number=9, moved=None)
    assert worker.orders.taken[2:] == (["drop"] if code == errno.EALREADY else [])
    assert worker.ports.marked(MARK) == MARK


@pytest.mark.parametrize("order", ["move", "drop"])
def test_another_refusal_is_told(worker: Worker, order: str) -> None:
    worker.orders.refusals = {"move": errno.EALREADY, order: errno.EINVAL}
    with pytest.raises(NetlinkRefusedError):
        worker.ports.happened(ANSWERED)


def test_a_port_that_was_tried_in_vain_is_given_back_once(worker: Worker) -> None:
    for _ in range(2):
        worker.ports.happened(PortDropped(session_id=ID))
    assert worker.said.count(PortTried(session_id=ID, number=9, moved=None)) == 1


def test_a_listing_tells_what_a_lost_event_would_have(worker: Worker) -> None:
    assert worker.looks(trying(True)) == []
    assert worker.looks(trying(False)) == [PortTried(session_id=ID, number=9, moved=None)]
    assert worker.looks(trying(False)) == []


def test_of_a_session_that_is_gone_nothing_is_kept(worker: Worker) -> None:
    assert worker.looks() == []
    assert worker.ports.marked(MARK) == MARK


def test_the_number_of_a_port_that_is_tried_since_an_earlier_process_is_told_again(udp: int) -> None:
    worker = Worker()
    worker.orders.tries = True
    worker.degraded()  # it seems to try none
    worker.ports.lend(NewPort(id=1, session_id=ID, number=9, again=True), [udp])
    assert worker.orders.taken == ["give up"] and worker.ports.marked(MARK).lent == 9
    assert worker.degraded() == [], "one at a time"
    with pytest.raises(QreError, match="no port is wanted"):
        worker.ports.lend(NewPort(id=2, session_id=ID, number=10), [udp])
    worker.ports.happened(ANSWERED)
    assert worker.orders.taken[-1] == "move"
    assert worker.said[-1] == PortTried(session_id=ID, number=9, moved=MOVED)


@pytest.mark.parametrize(("tries", "number", "session_id"), [(False, 9, ID), (True, 0, ID), (True, 9, bytes(32))])
def test_a_number_of_a_port_that_is_not_tried_is_refused(
    udp: int, tries: bool, number: int, session_id: bytes
) -> None:
    worker = Worker()
    worker.orders.tries = tries
    with pytest.raises(QreError, match="no such port is tried"):
        worker.ports.lend(NewPort(id=1, session_id=session_id, number=number, again=True), [udp])
    assert worker.ports.marked(MARK) == MARK and worker.orders.taken == []


def test_the_port_that_is_tried_has_one_number(worker: Worker, udp: int) -> None:
    worker.orders.tries = True
    with pytest.raises(QreError, match="no such port is tried"):
        worker.ports.lend(NewPort(id=2, session_id=ID, number=10, again=True), [udp])
    assert worker.ports.marked(MARK).lent == 9


def test_a_port_of_an_earlier_process_is_dropped_when_it_answers_before_its_number_is_told() -> None:
    worker = Worker()
    worker.ports.happened(ANSWERED)
    assert worker.orders.taken == ["drop"] and worker.said == []


def test_a_refused_socket_is_no_trial(udp: int) -> None:
    worker = Worker()
    worker.degraded()
    worker.orders.refusals = {"try": errno.EALREADY}
    with pytest.raises(NetlinkRefusedError):
        worker.ports.lend(NewPort(id=1, session_id=ID, number=9), [udp])
    assert worker.ports.marked(MARK).lent == 0


def test_what_is_no_clients_socket_never_reaches_the_module(udp: int) -> None:
    worker = Worker()
    with open(os.devnull) as other:
        for given in ([], [udp, udp], [other.fileno()]):
            assert worker.degraded() == [PortWanted(session_id=ID)]
            with pytest.raises(QreError):
                worker.ports.lend(NewPort(id=1, session_id=ID, number=9), given)
    assert set(worker.orders.taken) == {"give up"}


def test_a_socket_that_was_not_asked_for_never_reaches_the_module(worker: Worker, udp: int) -> None:
    """One for each question, and with a number."""
    never = Worker()
    with pytest.raises(QreError, match="no port is wanted"):
        never.ports.lend(NewPort(id=1, session_id=ID, number=9), [udp])
    worker.ports.happened(PortDropped(session_id=ID))
    with pytest.raises(QreError, match="no port is wanted"):
        worker.ports.lend(NewPort(id=2, session_id=ID, number=10), [udp])
    assert worker.degraded() == [PortWanted(session_id=ID)]
    with pytest.raises(QreError, match="no port is wanted"):
        worker.ports.lend(NewPort(id=3, session_id=ID, number=0), [udp])
    assert worker.orders.taken == ["give up", "try", "give up"] and never.orders.taken == []


def test_as_many_ports_are_asked_for_as_on_the_user_data_plane() -> None:
    worker = Worker()
    asked = [len(worker.degraded()) for _ in range(MOST_TRIALS + 2)]
    assert asked == [1] * MOST_TRIALS + [0, 0]
    worker.now += TRIALS_WITHIN
    assert len(worker.degraded()) == 1
