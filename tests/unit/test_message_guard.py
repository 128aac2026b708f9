"""What a worker may send to the supervisor: single frames of bounded length; anything else cuts it off."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.ipc.message_guard import FrameFilter, MessageGuard
from qre.ipc.messages import MAX_MESSAGE
from tests.support.daemons import PATIENCE, until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HELLO = GREETING + b"\x04" + bytes([len(READY)]) + READY
LONG_FRAME = b"\x02" + struct.pack(">Q", 70_000) + bytes(70_000)


def refused(data: bytes) -> str:
    with pytest.raises(UntrustedInputError) as caught:
        FrameFilter().check_untrusted(data)
    return caught.value.why


@given(st.lists(st.integers(1, 40_000), max_size=40))
def test_what_a_worker_sends_passes_in_pieces_of_any_size(sizes: list[int]) -> None:
    checked, data = FrameFilter(), HELLO + b"\x00\x05tulip" + LONG_FRAME + b"\x00\x00" + b"\x00\x01x"
    for size in sizes:
        checked.check_untrusted(data[:size])
        data = data[size:]
    checked.check_untrusted(data)
    assert checked._body == 0 and not checked._header, "it ends between two frames"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HELLO + b"\x01\x01a", "a message of several frames"),
        (HELLO + b"\x03" + struct.pack(">Q", 5), "a message of several frames"),
        (HELLO + b"\x05\x01a", "a message of several frames"),
        (HELLO + b"\x08\x00", "unknown flags"),
        (HELLO + b"\x02" + struct.pack(">Q", MAX_MESSAGE + 1), "a frame that is too long"),
        (HELLO + b"\x02" + b"\xff" * 8, "a frame that is too long"),
        (HELLO + b"\x06" + struct.pack(">Q", 1025), "a frame that is too long"),
        (b"\xfe" + HELLO[1:], "another greeting"),
        (HELLO[:10] + b"\x01" + HELLO[11:], "another greeting"),
        (b"\x01\x00", "another greeting"),
    ],
)
def test_anything_else_is_refused_at_its_first_byte(data: bytes, why: str) -> None:
    assert refused(data) == why
    checked = FrameFilter()
    with pytest.raises(UntrustedInputError, match=why):
        for at in range(len(data)):
            checked.check_untrusted(data[at : at + 1])


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    checked = FrameFilter()
    try:
        checked.check_untrusted(GREETING + data)
    except UntrustedInputError:
        return
    assert 0 <= checked._body <= MAX_MESSAGE and len(checked._header) < 9


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    yield tmp_path / "public", tmp_path / "private"
    assert len(list(tmp_path.iterdir())) <= 2


def test_an_endless_message_reaches_nobody(places: tuple[Path, Path]) -> None:
    """A frame of the largest size, with the promise of more, again and again."""
    public, private = places
    said: list[str] = []

    async def scenario() -> None:
        context = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{private}")
        guard = MessageGuard(public, private, said.append)
        guard.open()
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{public}")
        await dealer.send(b"an honest one")
        identity, message = await asyncio.wait_for(router.recv_multipart(), PATIENCE)
        assert message == b"an honest one"
        await router.send_multipart([identity, b"an answer"])
        assert await asyncio.wait_for(dealer.recv(), PATIENCE) == b"an answer"

        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as endless:
            endless.setblocking(False)
            await loop.sock_connect(endless, str(public))
            await loop.sock_sendall(endless, HELLO)
            sent, frame = 0, b"\x03" + struct.pack(">Q", MAX_MESSAGE) + bytes(MAX_MESSAGE)
            with pytest.raises(OSError):
                while True:
                    await asyncio.wait_for(loop.sock_sendall(endless, frame), PATIENCE)
                    sent += 1
            assert sent < 3, "what the kernel holds for a socket, and no more"
        await until(lambda: said == ["ZMTP: a message of several frames"])
        await dealer.send(b"another")
        assert (await asyncio.wait_for(router.recv_multipart(), PATIENCE))[1] == b"another"
        guard.close()
        for each in (dealer, router):
            each.close()
        context.term()

    asyncio.run(scenario())


def test_more_connections_than_a_worker_makes_are_refused(places: tuple[Path, Path]) -> None:
    public, private = places
    said: list[str] = []

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as router:
            router.bind(str(private))
            router.listen(16)
            guard = MessageGuard(public, private, said.append)
            guard.open()
            loop = asyncio.get_running_loop()
            made = [socket.socket(socket.AF_UNIX) for _ in range(6)]
            for each in made:
                each.setblocking(False)
                await loop.sock_connect(each, str(public))
            await until(lambda: said == ["too many connections"] * 4)
            assert [await loop.sock_recv(each, 1) for each in made[2:]] == [b""] * 4
            for each in made:
                each.close()
            await until(lambda: guard._open == 0)
            guard.close()

    asyncio.run(scenario())
