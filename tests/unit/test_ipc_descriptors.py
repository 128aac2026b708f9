"""What a worker makes of descriptors that it is handed: only what its role asked for, and only if it is that."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qre.ends import Role
from qre.errors import MachineError
from qre.ipc import descriptors
from qre.ipc.messages import Party, WorkerConfig
from qre.ipc.roles import ROLES, Expected
from qre.kernel.udp.icmp_sockets import icmp_sockets
from qre.supervisor.parent.process_settings import empty_memfd

ROWS = [(party, expected) for party, role in ROLES.items() for expected in role.descriptors]
CONFIG = WorkerConfig(
    profile="p", device="d", role=Role.SERVER, address=(), mtu=1380, keepalive_s=0, allowed_ips=(), server_name="",
    listen_ip="127.0.0.1", listen_port=4433,
)  # fmt: skip


def udp(*, reuseport: bool = False, bound: bool = True, family: int = socket.AF_INET) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    if reuseport:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if bound:
        made.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    return made


@pytest.fixture
def things(tmp_path: Path) -> Iterator[dict[str, int]]:
    """One of everything that could be handed, right or wrong."""
    (tmp_path / "file").write_bytes(b"x")
    with ExitStack() as stack:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sockets = {
            "udp": udp(),
            "udp group": udp(reuseport=True),
            "udp unbound": udp(bound=False),
            "udp group unbound": udp(bound=False, reuseport=True),
            "udp6": udp(family=socket.AF_INET6),
            "udp6 group": udp(family=socket.AF_INET6, reuseport=True),
            "udplite": socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136),
            "tcp": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
            "tcp connected": socket.create_connection(listener.getsockname()),
            "seqpacket": pair[0],
            "stream": stream[0],
        }
        for made in (*sockets.values(), pair[1], stream[1]):
            stack.callback(made.close)
        sealed = empty_memfd("number_marks")
        fds = {
            "memfd": os.memfd_create("plain", os.MFD_ALLOW_SEALING),
            "memfd of fixed size": sealed,
            "file": os.open(tmp_path / "file", os.O_RDONLY),
            "file rw": os.open(tmp_path / "file", os.O_RDWR),
            "directory": os.open(tmp_path, os.O_RDONLY),
            "null": os.open("/dev/null", os.O_RDWR),
            "anonymous": os.eventfd(0),
            **{f"raw {name}": fd for name, fd in icmp_sockets().items()},
        }
        with suppress(PermissionError):  # as the two before it
            fds["raw"] = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).detach()
        for fd in fds.values():
            stack.callback(os.close, fd)
        yield fds | {name: made.fileno() for name, made in sockets.items()}


#: What passes as what: a name in a row of the table -> those of ``things`` that are taken for it.
TAKEN = {
    "profile_secrets": set(),  # none of them is sealed against writing
    "session_secrets": {"memfd of fixed size"},
    "number_marks": {"memfd of fixed size"},
    "replay": {"file rw", "memfd", "memfd of fixed size"},
    "leases": {"file rw", "memfd", "memfd of fixed size"},
    "ticket_keys": {"file rw", "memfd", "memfd of fixed size"},
    "tickets": {"file rw", "memfd", "memfd of fixed size"},
    "bpf_elf": {"file"},
    "udp_userspace": {"udp group", "udp6 group"},
    "udp_kernel_slot": {"udp group", "udp6 group"},
    "client_udp": {"udp", "udp6"},
    "keys": {"seqpacket"},
    "front_feed": {"seqpacket"},
    "guest_feed": {"seqpacket"},
    "guest_secrets": set(),
    "store_ipv4": {"tcp connected"},
    "store_unix": {"stream"},
    "tun": set(),
    "cid_routes": {"anonymous"},
    "sockets": {"anonymous"},
    "program": {"anonymous"},
    "icmp": {"raw icmp"},
    "icmpv6": {"raw icmpv6"},
}


@pytest.mark.parametrize(("party", "expected"), ROWS)
def test_only_what_the_row_says_is_taken(party: Party, expected: Expected, things: dict[str, int]) -> None:
    taken = set()
    for name, fd in things.items():
        try:
            descriptors.check(fd, expected)
        except MachineError as error:
            assert expected.name in str(error)
        else:
            taken.add(name)
        os.fstat(fd)  # checking closes nothing
    assert taken == TAKEN[expected.name] & set(things)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_bound_elsewhere_than_listen_is_refused(family: int) -> None:
    expected = ROLES[Party.HANDSHAKE].expected("udp_userspace")
    assert expected is not None
    with udp(reuseport=True, family=family) as made:
        with pytest.raises(MachineError, match="not to Listen"):
            descriptors.check_bound(made.fileno(), expected, CONFIG)
        ip, port = made.getsockname()[:2]
        descriptors.check_bound(made.fileno(), expected, replace(CONFIG, listen_ip=ip, listen_port=port))


def test_a_descriptor_that_is_closed_is_refused() -> None:
    expected = ROLES[Party.DATAPLANE].expected("tun")
    assert expected is not None
    with pytest.raises(MachineError, match="Bad file"):
        descriptors.check(10_000, expected)


#: Worker, configuration -> what it does not start without.
NEEDED = [
    (Party.HANDSHAKE, {"role": Role.CLIENT}, {"profile_secrets", "session_secrets"}),
    (Party.HANDSHAKE, {}, {"profile_secrets", "session_secrets", "replay", "leases", "udp_userspace"}),
    (
        Party.HANDSHAKE,
        {"user_dataplane": False},
        {"profile_secrets", "session_secrets", "replay", "leases", "udp_userspace", "udp_kernel_slot"},
    ),
    (
        Party.HANDSHAKE,
        {"user_dataplane": False, "joined": True},
        {"profile_secrets", "session_secrets", "replay", "leases", "udp_userspace", "front_feed"},
    ),
    (Party.BPF_LOADER, {}, {"bpf_elf", "udp_userspace", "udp_kernel_slot"}),
    (Party.NETLINK, {}, set()),
    (Party.NETLINK, {"user_dataplane": False}, set()),
    (Party.DATAPLANE, {"role": Role.CLIENT}, {"tun", "number_marks", "keys"}),
    (Party.DATAPLANE, {}, {"tun", "number_marks", "keys", "udp_kernel_slot"}),
]


@pytest.mark.parametrize(("party", "changed", "needed"), NEEDED)
def test_each_worker_starts_with_what_its_row_says_and_not_without(
    party: Party, changed: dict[str, Any], needed: set[str]
) -> None:
    config, role = replace(CONFIG, **{"user_dataplane": True, **changed}), ROLES[party]
    assert set(role.missing(config, ())) == needed
    assert role.missing(config, needed) == []
    for name in needed:
        assert role.missing(config, needed - {name}) == [name]
