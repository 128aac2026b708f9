"""One table of roles: each worker's user, privileges and descriptors. Everything else is derived from it.

Read a row as a promise: this uid, these capabilities and no other, these groups of system calls, these files, these
descriptors. ``qre.ipc.sandbox`` enforces it inside the worker; the supervisor starts workers by it.
"""

from __future__ import annotations

import pwd
import socket
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from qre.ends import Role
from qre.ipc.messages import Party, WorkerConfig
from qre.kernel.capabilities import NUMBERS

CAP_NET_ADMIN: Final = NUMBERS["CAP_NET_ADMIN"]
CAP_BPF: Final = NUMBERS["CAP_BPF"]


class Calls(Enum):
    """Groups of system calls. The value is a tuple of names."""

    #: What any Python process with asyncio and ZeroMQ needs: memory, threads, clocks, polling, its own descriptors.
    RUN = (
        "read", "write", "readv", "writev", "pread64", "pwrite64", "close", "lseek", "fstat", "newfstatat",
        "dup", "dup3", "munmap", "mremap", "madvise", "brk", "futex", "set_robust_list", "rseq",
        "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sigaltstack", "clock_gettime",
        "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "getrandom", "getpid", "gettid",
        "getppid", "getuid", "geteuid", "getgid", "getegid", "epoll_create1", "epoll_ctl", "epoll_wait",
        "epoll_pwait", "poll", "ppoll", "select", "pselect6", "timerfd_create", "timerfd_settime", "eventfd2",
        "pipe2", "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "getrusage", "uname",
        "restart_syscall", "exit", "exit_group",
    )  # fmt: skip
    #: Sockets that exist: the worker's channels, ZeroMQ, and what it was handed.
    SOCKETS = (
        "sendmsg", "recvmsg", "sendto", "recvfrom", "getsockopt", "setsockopt", "getsockname", "getpeername",
        "shutdown", "connect",
    )  # fmt: skip
    #: bind(2): a relay socket, a netlink socket.
    BIND = ("bind",)
    #: Opening files: Landlock says which (those of the resolver).
    OPEN = ("openat", "open", "stat", "lstat", "access", "readlink", "getdents64", "statx")
    #: One system call for many datagrams.
    BATCH = ("sendmmsg", "recvmmsg")
    #: mlock2(2): the memory of the sessions' secrets.
    LOCK = ("mlock2",)
    #: bpf(2).
    BPF = ("bpf",)


class Sockets(Enum):
    """What socket(2) may be asked for: family, types, protocols."""

    UDP = socket.AF_INET, (socket.SOCK_DGRAM,), (0, socket.IPPROTO_UDP)
    UDP6 = socket.AF_INET6, (socket.SOCK_DGRAM,), (0, socket.IPPROTO_UDP)
    #: A resolver's long answers. Only where Landlock can confine it to the resolver's port.
    TCP = socket.AF_INET, (socket.SOCK_STREAM,), (0, socket.IPPROTO_TCP)
    TCP6 = socket.AF_INET6, (socket.SOCK_STREAM,), (0, socket.IPPROTO_TCP)
    #: NETLINK_ROUTE. In the resolver: getaddrinfo asks which addresses there are.
    ROUTE = socket.AF_NETLINK, (socket.SOCK_RAW, socket.SOCK_DGRAM), (0,)
    #: NETLINK_GENERIC: qre.ko.
    GENERIC = socket.AF_NETLINK, (socket.SOCK_RAW, socket.SOCK_DGRAM), (16,)
    #: NETLINK_NETFILTER: nftables.
    NETFILTER = socket.AF_NETLINK, (socket.SOCK_RAW, socket.SOCK_DGRAM), (12,)
    #: NETLINK_SOCK_DIAG: who listens.
    SOCK_DIAG = socket.AF_NETLINK, (socket.SOCK_RAW, socket.SOCK_DGRAM), (4,)


class Given(Enum):
    """Which configurations' workers are handed a descriptor at their start."""

    ALWAYS = "with every configuration"
    SERVER = "to a server's worker"
    CLIENT = "to a client's worker"
    JOINED = "when another daemon has the port, which hands our clients on"
    IN_KERNEL = "when the sessions live in qre.ko"
    OWN_PORT_IN_KERNEL = (
        "when the sessions live in qre.ko and the port is our own: it hands back what it does not know"
    )
    LATER = "never at the start: each comes with a message of its own"

    def applies(self, config: WorkerConfig) -> bool:
        """Whether a worker with ``config`` is handed the descriptor at its start."""
        server = config.role is Role.SERVER
        match self:
            case Given.ALWAYS:
                return True
            case Given.SERVER:
                return server
            case Given.CLIENT:
                return not server
            case Given.JOINED:
                return config.joined
            case Given.IN_KERNEL:
                return not config.user_dataplane
            case Given.OWN_PORT_IN_KERNEL:
                return server and not config.user_dataplane and not config.joined
            case Given.LATER:
                return False


@dataclass(frozen=True)
class Expected:
    """What a handed descriptor must be (``qre.ipc.descriptors``): a socket, a file, a memfd of fixed size, a TUN
    device or a BPF object. ``reuseport`` is a server's socket, bound to Listen."""

    name: str
    kind: str
    families: tuple[int, ...] = ()
    type: int = 0
    protocol: int = 0
    reuseport: bool = False
    writable: bool = False  # a file, a memfd; a memfd that is not writable must be sealed
    given: Given = Given.ALWAYS
    optional: bool = False  # the supervisor may not have it yet: the worker starts without


def _udp(name: str, *, reuseport: bool, given: Given = Given.ALWAYS, optional: bool = False) -> Expected:
    udp = ((socket.AF_INET, socket.AF_INET6), socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    return Expected(name, "socket", *udp, reuseport, given=given, optional=optional)


def _raw(name: str, family: int, protocol: int) -> Expected:
    return Expected(name, "socket", (family,), socket.SOCK_RAW, protocol, optional=True)


#: A client's underlay socket; it also comes over ``keys``, with SessionInstall.
CLIENT_UDP: Final = _udp("client_udp", reuseport=False, optional=True)
#: To the worker that holds the sessions, or from it: the last to start of both makes a pair for both.
KEYS: Final = Expected("keys", "socket", (socket.AF_UNIX,), socket.SOCK_SEQPACKET)
#: The two ends of the channel between the front of a shared port and a daemon that has joined it.
FRONT_FEED: Final = Expected("front_feed", "socket", (socket.AF_UNIX,), socket.SOCK_SEQPACKET, given=Given.JOINED)
GUEST_FEED: Final = Expected("guest_feed", "socket", (socket.AF_UNIX,), socket.SOCK_SEQPACKET, given=Given.LATER)
#: Connections to the replay store that several servers share.
STORES: Final = (
    Expected("store_ipv4", "socket", (socket.AF_INET,), socket.SOCK_STREAM, socket.IPPROTO_TCP, given=Given.LATER),
    Expected("store_unix", "socket", (socket.AF_UNIX,), socket.SOCK_STREAM, given=Given.LATER),
)
#: Files that the resolver of the C library reads.
RESOLVER_FILES: Final = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/services",
    "/run/systemd/resolve",
    "/run/resolvconf",
)


@dataclass(frozen=True)
class WorkerRole:
    """One worker role."""

    party: Party
    user: str
    uid: int  # where the user does not exist
    module: str
    capabilities: frozenset[int]
    calls: tuple[Calls, ...]
    sockets: tuple[Sockets, ...]  # beside ZeroMQ's, before the work begins
    readable: tuple[str, ...]
    descriptors: tuple[Expected, ...]
    offers: tuple[str, ...] = ()  # descriptors it may hand to the supervisor
    address_space: int = 1 << 30  # RLIMIT_DATA, bytes
    open_files: int = 256
    locked_memory: int = 0  # RLIMIT_MEMLOCK, bytes
    wipes: bool = False  # it overwrites all memory that it frees; slower

    def expected(self, name: str) -> Expected | None:
        """The descriptor ``name`` of this role; None when the role takes no such descriptor."""
        return next((entry for entry in self.descriptors if entry.name == name), None)

    @property
    def holds_raw(self) -> bool:
        """Whether it may be handed a raw socket: then it sets no option of IP on any."""
        return any(entry.type == socket.SOCK_RAW for entry in self.descriptors)

    def missing(self, config: WorkerConfig, held: Collection[str]) -> list[str]:
        """What a worker of this configuration cannot start without, and does not have: names, in the row's order."""
        needed = (entry for entry in self.descriptors if entry.given.applies(config) and not entry.optional)
        return [entry.name for entry in needed if entry.name not in held]

    def ids(self) -> tuple[int, int]:
        """uid and gid: those of ``user`` where it exists, fixed numbers otherwise."""
        try:
            entry = pwd.getpwnam(self.user)
        except KeyError:
            return self.uid, self.uid
        return entry.pw_uid, entry.pw_gid


ROLES: Final = {
    role.party: role
    for role in (
        WorkerRole(
            Party.HANDSHAKE, "qre-handshake", 59871, "qre.workers.handshake.main", frozenset(),
            (Calls.RUN, Calls.SOCKETS, Calls.BIND, Calls.BATCH, Calls.LOCK),
            (Sockets.UDP, Sockets.UDP6), (),  # relays
            (
                Expected("profile_secrets", "memfd"),
                Expected("session_secrets", "memfd", writable=True),
                Expected("replay", "file", writable=True, given=Given.SERVER),
                Expected("leases", "file", writable=True, given=Given.SERVER),
                Expected("ticket_keys", "file", writable=True, given=Given.SERVER, optional=True),
                Expected("tickets", "file", writable=True, given=Given.CLIENT, optional=True),
                _udp("udp_userspace", reuseport=True, given=Given.SERVER),
                _udp("udp_kernel_slot", reuseport=True, given=Given.OWN_PORT_IN_KERNEL),
                CLIENT_UDP,
                replace(KEYS, optional=True),
                FRONT_FEED,
                Expected("guest_secrets", "memfd", given=Given.LATER),
                GUEST_FEED,
                *STORES,
            ),
            open_files=8192,
            locked_memory=1 << 21,
            wipes=True,
        ),
        WorkerRole(
            Party.BPF_LOADER, "qre-bpf-loader", 59872, "qre.workers.bpf_loader.main", frozenset({CAP_BPF}),
            (Calls.RUN, Calls.SOCKETS, Calls.BPF), (), (),
            (
                Expected("bpf_elf", "file"),
                _udp("udp_userspace", reuseport=True),
                _udp("udp_kernel_slot", reuseport=True),
                # of the process before, which go on steering
                Expected("cid_routes", "bpf", optional=True),
                Expected("sockets", "bpf", optional=True),
                Expected("program", "bpf", optional=True),
                # for ICMP errors about Dest; made with CAP_NET_RAW, which no worker has
                _raw("icmp", socket.AF_INET, socket.IPPROTO_ICMP),
                _raw("icmpv6", socket.AF_INET6, socket.IPPROTO_ICMPV6),
            ),
            offers=("cid_routes", "sockets", "program"),
        ),
        WorkerRole(
            Party.NETLINK, "qre-netlink", 59873, "qre.workers.netlink.main", frozenset({CAP_NET_ADMIN}),
            (Calls.RUN, Calls.SOCKETS, Calls.BIND),
            (Sockets.ROUTE, Sockets.GENERIC, Sockets.NETFILTER, Sockets.SOCK_DIAG), (),
            (
                # a server's, when the loader has made its map
                _udp("udp_kernel_slot", reuseport=True, given=Given.IN_KERNEL, optional=True),
                Expected("cid_routes", "bpf", given=Given.IN_KERNEL, optional=True),
                Expected("program", "bpf", given=Given.IN_KERNEL, optional=True),
                replace(KEYS, given=Given.IN_KERNEL, optional=True),
            ),
            wipes=True,
        ),
        WorkerRole(
            Party.DATAPLANE, "qre-dataplane", 59874, "qre.workers.dataplane.main", frozenset(),
            (Calls.RUN, Calls.SOCKETS, Calls.BATCH), (), (),
            (
                Expected("tun", "tun"),
                Expected("number_marks", "memfd", writable=True),
                _udp("udp_kernel_slot", reuseport=True, given=Given.SERVER),
                KEYS,
            ),
        ),
        WorkerRole(
            Party.VISIT, "qre-visit", 59875, "qre.workers.visit.main", frozenset(),
            (Calls.RUN, Calls.SOCKETS), (Sockets.UDP, Sockets.UDP6), (), (),
        ),
        WorkerRole(
            Party.RESOLVER, "qre-resolver", 59876, "qre.workers.resolver.main", frozenset(),
            (Calls.RUN, Calls.SOCKETS, Calls.BIND, Calls.OPEN, Calls.BATCH),
            (Sockets.UDP, Sockets.UDP6, Sockets.TCP, Sockets.TCP6, Sockets.ROUTE), RESOLVER_FILES, (),
        ),
    )
}  # fmt: skip

#: What makes the workers' users.
USERS_REMEDY: Final = "install packaging/sysusers.d/qre.conf in /etc/sysusers.d and run `systemd-sysusers`"


def missing_users() -> list[str]:
    """The workers' users that do not exist on this machine: fixed numbers take their place."""
    missing = []
    for role in ROLES.values():
        try:
            pwd.getpwnam(role.user)
        except KeyError:
            missing.append(role.user)
    return missing
