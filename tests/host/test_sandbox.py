"""Privileges given up for real: a forked process enters a role's sandbox, and /proc and the kernel judge it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import capng
import pytest
import seccomp
import zmq

from qre.errors import MachineError
from qre.ipc import sandbox
from qre.ipc.messages import Party
from qre.ipc.roles import ROLES, WorkerRole
from qre.kernel.udp.icmp_sockets import ICMP_SOCKETS, icmp_socket, send_error
from qre.kernel.udp.port_errors import Failing, PortError
from qre.supervisor.members.router import make_directories
from tests.support.daemons import PATIENCE, threads

EVERY_ROLE = pytest.mark.parametrize("party", list(ROLES))


def in_sandbox(role: WorkerRole, deed: Callable[[], str]) -> str:
    """What ``deed`` says, run in a forked process inside ``role``'s sandbox."""
    parent = os.getpid()

    def inside() -> str:
        sandbox.enter(role, parent)
        return deed()

    return in_process(inside)


def in_process(deed: Callable[[], str]) -> str:
    """What ``deed`` says, run in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, deed().encode())
        except BaseException as error:  # noqa: BLE001 - the child must not return into the test runner
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def refused(deed: Callable[[], object]) -> str:
    try:
        deed()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


@EVERY_ROLE
def test_every_thread_is_confined_zeromqs_included(party: Party) -> None:
    role = ROLES[party]
    read, write = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            sandbox.enter(role, parent)
            context = zmq.Context()
            made = context.socket(zmq.DEALER)
            made.connect("ipc:///nowhere")
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            os.write(write, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"x"
        found = threads(child)
        assert len(found) >= 4
        granted = sum(1 << capability for capability in role.capabilities)
        for thread in found:
            assert thread.capabilities == (0, granted, granted, 0, 0)
            assert (thread.uid, thread.no_new_privs, thread.seccomp) == (role.ids()[0], 1, 2)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)


@EVERY_ROLE
def test_no_role_can_start_a_process_or_read_other_files_or_regain_privileges(party: Party) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def deed() -> str:
        found = {
            "fork": refused(os.fork),
            "exec": refused(lambda: os.execv("/bin/true", ["true"])),
            "passwd": refused(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            "write": refused(lambda: os.open("/tmp/qre-sandbox-test", os.O_WRONLY | os.O_CREAT)),
            "proc": refused(lambda: os.open("/proc/self/mem", os.O_RDWR)),
            "root": refused(lambda: os.setuid(0)),
            "packet": refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "raw": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)),
            "kill": refused(lambda: os.kill(os.getppid(), signal.SIGCONT)),
            "unshare": "allowed" if libc.unshare(0x10000000) == 0 else errno.errorcode[ctypes.get_errno()],
            "ptrace": "allowed" if libc.ptrace(0, 0, 0, 0) == 0 else errno.errorcode[ctypes.get_errno()],
        }
        return " ".join(f"{name}={how}" for name, how in found.items() if how == "allowed")

    assert in_sandbox(ROLES[party], deed) == ""
    assert not Path("/tmp/qre-sandbox-test").exists()


def test_only_the_resolver_reads_a_resolvers_files() -> None:
    for party, role in ROLES.items():
        said = in_sandbox(role, lambda: refused(lambda: os.open("/etc/nsswitch.conf", os.O_RDONLY)))
        assert (said == "allowed") is (party is Party.RESOLVER), (party, said)


def test_no_role_makes_new_code_and_only_the_resolver_may_use_tcp() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p

    def executable() -> str:
        address = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
        return "allowed" if address != ctypes.c_void_p(-1).value else errno.errorcode[ctypes.get_errno()]

    def tcp(port: int) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            return refused(lambda: made.connect(("127.0.0.1", port)))

    for party, role in ROLES.items():
        assert in_sandbox(role, executable) == "EPERM", party
        resolves = party is Party.RESOLVER
        assert "PermissionError" in in_sandbox(role, lambda: tcp(53)) or resolves
        said = in_sandbox(role, lambda: tcp(9))
        assert said == "EACCES" if resolves else "PermissionError" in said, (party, said)
    assert in_sandbox(ROLES[Party.RESOLVER], lambda: tcp(53)) in ("ECONNREFUSED", "allowed")


def test_only_roles_that_need_it_call_bpf_or_netlink() -> None:
    for party, role in ROLES.items():
        libc = ctypes.CDLL(None, use_errno=True)

        def bpf(libc: ctypes.CDLL = libc) -> str:
            libc.syscall(321, 0, None, 0)
            return errno.errorcode[ctypes.get_errno()]

        assert (in_sandbox(role, bpf) != "EPERM") is (party is Party.BPF_LOADER)
        netlink = in_sandbox(role, lambda: refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)))
        assert (netlink == "allowed") is (party in (Party.NETLINK, Party.RESOLVER))


#: Ways out that were open once: name -> a socket that nobody may make, or what nobody may do with one.
WAYS: dict[str, Callable[[], object]] = {
    "mptcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
    "mptcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262),
    "sctp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    "udplite": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136),
    "ping": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    "nfnetlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "sock_diag": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4),
    "audit": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "datagrams to a path": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "another's signal": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "its kind": lambda: fcntl.fcntl(0, 10, signal.SIGTERM),  # F_SETSIG
}


#: What a server's TCP face needs (SiteTcp).
NEEDED = {(Party.NETLINK, "nfnetlink"), (Party.NETLINK, "sock_diag")}


@EVERY_ROLE
@pytest.mark.parametrize("way", WAYS)
def test_no_role_has_a_way_around(party: Party, way: str) -> None:
    if (party, way) in NEEDED:
        return
    assert in_sandbox(ROLES[party], lambda: refused(WAYS[way])) == "EPERM"


def test_nobody_connects_by_sending() -> None:
    def fast_open() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            return refused(lambda: made.sendto(b"GET /", socket.MSG_FASTOPEN, ("127.0.0.1", 9)))

    assert in_sandbox(ROLES[Party.RESOLVER], fast_open) == "EPERM"


@pytest.mark.parametrize(
    ("name", "ip", "options"),
    [("icmp", "127.0.0.1", ("IP_HDRINCL", "IP_FREEBIND")), ("icmpv6", "::1", ("IPV6_HDRINCL", "IPV6_FREEBIND"))],
)
def test_the_loader_sends_icmp_by_sockets_that_it_was_handed_and_makes_and_hears_none(
    name: str, ip: str, options: tuple[str, ...]
) -> None:
    numbers = {"IP_HDRINCL": (0, 3), "IP_FREEBIND": (0, 15), "IPV6_HDRINCL": (41, 36), "IPV6_FREEBIND": (41, 78)}
    family, local = ICMP_SOCKETS[name][0], ip_address(ip)
    with (
        icmp_socket(name) as raw,
        socket.socket(family, socket.SOCK_DGRAM) as visitor,
        socket.socket(family, socket.SOCK_DGRAM) as port,
        socket.socket(family, socket.SOCK_DGRAM) as other,
    ):
        port.bind((ip, 0))
        visitor.connect(port.getsockname()[:2])
        other.connect((ip, 9))
        other.send(b"x")  # the kernel says that nobody listens
        error = PortError(
            visitor=local, visitor_port=visitor.getsockname()[1], local=local, local_port=port.getsockname()[1],
            failing=Failing.PORT, hops=64, traffic=0, length=1, checksum=1, payload=b"x",
        )  # fmt: skip

        def deed() -> str:
            send_error(raw.fileno(), error)
            tried = (
                lambda: icmp_socket(name),
                lambda: raw.recv(100),
                lambda: raw.setsockopt(socket.SOL_SOCKET, 27, 0),  # SO_DETACH_FILTER
                *(partial(raw.setsockopt, *numbers[option], 1) for option in options),
            )
            return " ".join(map(refused, tried))

        assert in_sandbox(ROLES[Party.BPF_LOADER], deed) == "EPERM EAGAIN EPERM EPERM EPERM"
        visitor.settimeout(PATIENCE)
        with pytest.raises(ConnectionRefusedError):
            visitor.recv(10)
        assert refused(lambda: raw.recv(100)) == "EAGAIN"


def test_a_connection_that_a_worker_was_handed_is_led_nowhere_else() -> None:
    """A replay store's: connect(2) to no family ends it, and would begin another."""
    libc = ctypes.CDLL(None, use_errno=True)
    local = ("127.0.0.1", 0)
    with (
        socket.create_server(local) as store,
        socket.create_server(local) as other,
        socket.create_connection(store.getsockname()) as made,
    ):

        def lead() -> str:
            libc.connect(made.fileno(), bytes(16), 16)
            return refused(lambda: made.connect(other.getsockname()))

        assert in_sandbox(ROLES[Party.HANDSHAKE], lead) == "EACCES"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_stream_of_a_path_is_never_connected_anew(kind: socket.SocketKind, tmp_path: Path) -> None:
    """What ZeroMQ and the pairs are."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with socket.socket(socket.AF_UNIX, kind) as other, ours:
        other.bind(str(tmp_path / "other"))
        other.listen()
        theirs.close()
        ours.shutdown(socket.SHUT_RDWR)
        assert refused(lambda: ours.connect(other.getsockname())) == "EISCONN"


def test_tcp_is_left_out_where_landlock_cannot_confine_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_landlock", lambda readable: 3)  # as on Linux 6.1

    def made(kind: int) -> str:
        return refused(lambda: socket.socket(socket.AF_INET, kind))

    assert in_sandbox(ROLES[Party.RESOLVER], lambda: made(socket.SOCK_STREAM)) == "EPERM"
    assert in_sandbox(ROLES[Party.RESOLVER], lambda: made(socket.SOCK_DGRAM)) == "allowed"


@EVERY_ROLE
def test_the_sockets_of_other_programs_are_out_of_reach_when_the_work_begins(party: Party) -> None:
    def made() -> str:
        return refused(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))

    def closed() -> str:
        ready, done = threading.Event(), threading.Event()
        said: list[str] = []

        def beside() -> None:
            ready.wait()
            said.append(made())
            done.set()

        threading.Thread(target=beside, daemon=True).start()
        before = made()
        sandbox.close_the_door()
        ready.set()
        done.wait()
        with socket.socketpair()[0]:  # asyncio's
            return f"{before} {made()} {said[0]}"

    assert in_sandbox(ROLES[party], closed) == "allowed EPERM EPERM"

    def again() -> str:
        sandbox.close_the_door()
        sandbox.close_the_door()
        return "twice"

    assert "Error" in in_sandbox(ROLES[party], again), "nor can a filter be added any more"


def test_a_worker_that_cannot_drop_refuses_to_run() -> None:
    """As another user than root: the ids cannot be changed."""
    script = (
        "import os, sys\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from qre.ipc import sandbox; from qre.ipc.roles import ROLES; from qre.ipc.messages import Party\n"
        "from qre.errors import MachineError\n"
        "try: sandbox.enter(ROLES[Party.NETLINK], os.getppid())\n"
        "except MachineError as error: print(error)\n"
        "else: print('it ran')\n"
    )
    preload = "import qre.ipc.sandbox, qre.ipc.roles\n"
    done = subprocess.run([sys.executable, "-c", preload + script], capture_output=True, text=True, check=False)
    assert "cannot drop privileges" in done.stdout, done.stderr


def test_a_second_drop_changes_nothing_and_a_dead_parent_is_noticed() -> None:
    role = ROLES[Party.DATAPLANE]

    def twice() -> str:
        try:
            sandbox.enter(role, os.getppid())
        except MachineError as error:
            return str(error)
        return "it ran twice"

    assert "cannot drop privileges" in in_sandbox(role, twice)

    def orphan() -> str:
        try:
            sandbox.die_with_parent(1 << 22)
        except (MachineError, OSError) as error:
            return str(error)
        return "nothing noticed"

    assert "nothing" not in in_sandbox(role, orphan)


def test_a_directory_made_as_a_group_belongs_to_it_without_cap_chown(tmp_path: Path) -> None:
    """What a change of ids clears is set again: the death signal, and that nobody can dump the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    gid = ROLES[Party.NETLINK].ids()[1]
    leftover = tmp_path / "netlink"
    leftover.mkdir()
    (leftover / "s").write_text("")
    tmp_path.chmod(0o2755)  # would hand down its own group

    def deed() -> str:
        libc.prctl(24, 0, 0, 0, 0)  # PR_CAPBSET_DROP of CAP_CHOWN; and the sets:
        capng.capng_get_caps_process()
        capng.capng_update(capng.CAPNG_DROP, capng.CAPNG_EFFECTIVE | capng.CAPNG_PERMITTED, 0)
        capng.capng_apply(capng.CAPNG_SELECT_CAPS)
        refusal = refused(lambda: os.chown(tmp_path, 0, gid))
        make_directories(tmp_path, (Party.NETLINK,), os.getppid())
        pdeathsig = ctypes.c_int()
        libc.prctl(2, ctypes.byref(pdeathsig), 0, 0, 0)
        return f"{refusal} {os.getegid()} {pdeathsig.value} {libc.prctl(3, 0, 0, 0, 0)}"

    assert in_process(deed) == "EPERM 0 9 0"
    made = leftover.stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (0, gid, 0o710)
    assert not list(leftover.iterdir())


def test_zeromq_works_where_scheduling_classes_may_not_be_set() -> None:
    def deed() -> str:
        system = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
        system.add_rule(seccomp.ERRNO(errno.EPERM), "sched_setscheduler")
        system.load()
        before = refused(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
        sandbox.keep_scheduling()
        after = refused(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
        context = zmq.Context()
        context.socket(zmq.DEALER).close()
        context.term()
        return f"{before} {after} {os.sched_getscheduler(0)}"

    assert in_process(deed) == f"EPERM allowed {os.SCHED_OTHER}"
