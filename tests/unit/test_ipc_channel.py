"""The channel between two processes: typed messages, descriptors, hostile bytes."""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.errors import MachineError, UntrustedInputError
from qre.ipc.channel import MAX_DESCRIPTORS, Channel, ChannelClosedError, MessageTooLargeError
from qre.ipc.messages import Descriptor


class Ends:
    """A channel, and the raw socket at its other end."""

    def __init__(self) -> None:
        ours, self.raw = Channel.pair()
        self.channel: Channel[Descriptor] = Channel(ours, Descriptor)

    def close(self) -> None:
        self.channel.close()
        self.raw.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_a_message_and_its_descriptor_arrive_close_on_exec(ends: Ends) -> None:
    other: Channel[Descriptor] = Channel(ends.raw.dup(), Descriptor)
    with open("/dev/null") as file:
        other.send(Descriptor(name="tun", number=7), [file.fileno()])
    received = ends.channel.receive()
    assert received is not None
    message, (fd,) = received
    assert message == Descriptor(name="tun", number=7)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)
    assert ends.channel.receive() is None
    other.close()


def test_the_end_is_told_apart_from_nothing(ends: Ends) -> None:
    assert ends.channel.receive() is None
    ends.raw.close()
    with pytest.raises(ChannelClosedError):
        ends.channel.receive()
    with pytest.raises(ChannelClosedError):
        ends.channel.send(Descriptor(name="x"))


def test_descriptors_of_a_bad_message_are_closed(ends: Ends) -> None:
    before = open_descriptors()
    with open("/dev/null") as file:
        send_fds(ends.raw, b"garbage", [file.fileno()])
        send_fds(ends.raw, msgspec.msgpack.encode(Descriptor(name="x")), [file.fileno()] * (MAX_DESCRIPTORS + 1))
        send_fds(ends.raw, msgspec.msgpack.encode(Descriptor(name="x")), [file.fileno()] * 30)
    for _ in range(3):
        with pytest.raises(UntrustedInputError):
            ends.channel.receive()
    assert open_descriptors() == before


def test_a_message_over_the_bound_is_neither_sent_nor_taken() -> None:
    ours, raw = Channel.pair()
    channel: Channel[Descriptor] = Channel(ours, Descriptor, max_size=64)
    with pytest.raises(MessageTooLargeError, match=r"a Descriptor of \d+ bytes is over the bound"):
        channel.send(Descriptor(name="x" * 100))
    assert not any(channel._sent), "what was not sent is not kept either"
    raw.send(msgspec.msgpack.encode(Descriptor(name="x" * 30)) + bytes(200))
    with pytest.raises(UntrustedInputError):
        channel.receive()
    channel.close()
    raw.close()


def test_a_reader_that_does_not_read_is_an_error_and_not_a_wait(ends: Ends) -> None:
    with pytest.raises(MachineError, match="does not read"):
        for _ in range(100_000):
            ends.channel.send(Descriptor(name="x"))


def test_only_a_seqpacket_socket_will_do() -> None:
    for one, other in (socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM),):
        with pytest.raises(MachineError, match="SEQPACKET"):
            Channel(one, Descriptor)
        assert one.fileno() == -1
        other.close()


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_parse_or_raise_the_one_exception(data: bytes) -> None:
    made = Ends()
    made.raw.send(data)
    try:
        received = made.channel.receive()
        assert received is not None
        assert isinstance(received[0], Descriptor)
    except UntrustedInputError as error:
        assert str(error) == "channel: a message that does not parse"  # and nothing of the message
    finally:
        made.close()
