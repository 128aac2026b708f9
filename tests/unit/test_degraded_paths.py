"""What the netlink worker orders of a client's session in qre.ko that hears nothing: the user data plane's times."""

from __future__ import annotations

import errno

import pytest

from qre.dataplane.giving_up import FAREWELL, RoundTrip, gives_up_after
from qre.kernel.answers import PathDegraded
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.wire.frames import ConnectionClose, frames_untrusted
from qre.workers.netlink.degraded_paths import order_end

ID = bytes(range(32))
SHORT = RoundTrip(0.0026, 0.00055, 0.0298)


class Orders(Qre):
    """Takes them where the module would."""

    def __init__(self, refusal: int = 0) -> None:
        self.taken: list[tuple[str, bytes, int, int, bytes]] = []
        self.refusal = refusal

    def session_give_up(self, device: str, session_id: bytes, times_ms: tuple[int, int], frames: bytes) -> None:
        if self.refusal:
            raise NetlinkRefusedError("giving up", self.refusal)
        self.taken.append((device, session_id, *times_ms, frames))


def degraded(round_trip: RoundTrip = SHORT, *, several: bool = False) -> PathDegraded:
    return PathDegraded(session_id=ID, round_trip=round_trip, several=several)


def test_the_session_repeats_for_the_last_time_and_ends_when_the_user_data_planes_would() -> None:
    orders = Orders()
    order_end(orders, "qre0", degraded())
    ((device, session_id, last_repeat, ends, frames),) = orders.taken
    assert (device, session_id, frames) == ("qre0", ID, FAREWELL)
    assert ends == pytest.approx(6408, abs=2), "milliseconds, as in captures of Chromium"
    assert 790 <= ends - last_repeat <= 830
    (close,) = frames_untrusted(frames)
    assert isinstance(close, ConnectionClose)
    assert (close.error, close.application, close.reason) == (0, False, b"85:Network blackhole detected")


def test_a_longer_round_trip_and_several_packets_count() -> None:
    far = RoundTrip(0.2, 0.05, 0.425)
    for several in (False, True):
        orders = Orders()
        order_end(orders, "qre0", degraded(far, several=several))
        assert orders.taken[0][3] == round(1000 * gives_up_after(far, several=several))


@pytest.mark.parametrize("code", [errno.EALREADY, errno.ENOENT, errno.ENODEV])
def test_an_order_that_comes_too_late_is_none(code: int) -> None:
    orders = Orders(code)
    order_end(orders, "qre0", degraded())
    assert orders.taken == []


def test_another_refusal_is_told() -> None:
    with pytest.raises(NetlinkRefusedError):
        order_end(Orders(errno.EINVAL), "qre0", degraded())
