"""How a worker gives up its privileges, in the order that matters, and proves it before it says ready.

Order (each step was seen to fail when done later): death signal → not dumpable → no new privileges → resource limits
→ groups, uid and all five capability sets → death signal again (a change of uid clears it) → Landlock → seccomp with
TSYNC. Only then may a thread or a ZeroMQ context be made. A worker that cannot drop does not run.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import capng
import seccomp

from qre.errors import MachineError
from qre.ipc.roles import Calls, Sockets, WorkerRole

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
_PR_SET_KEEPCAPS = 8
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
_LANDLOCK_PATH, _LANDLOCK_PORT = 1, 2  # kinds of rules
_LANDLOCK_BIND_TCP, _LANDLOCK_CONNECT_TCP = 1 << 0, 1 << 1
_LANDLOCK_ABSTRACT_SOCKETS, _LANDLOCK_SIGNALS = 1 << 0, 1 << 1
#: Access rights that each Landlock ABI knows (bits of handled_access_fs).
_LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_LANDLOCK_KNOWS_TCP = 4
_CLONE_THREAD = 0x00010000
_MSG_FASTOPEN = 0x20000000
_SOCK_TYPE = 0xF
_SET_MODE_FILTER, _FILTER_NEW_LISTENER = 1, 1 << 3
#: What a descriptor may be asked for. Not who gets a signal of it.
_FCNTL = (
    fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL,
    fcntl.F_GET_SEALS,
)  # fmt: skip
_WIPING = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"}
#: Calls that send, and which of their arguments are the flags.
_SENDING = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_FIONBIO = 0x5421
_PROT_EXEC = 4
_DNS = 53


def set_name(name: str) -> None:
    """The name that ps and /proc show, at most 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the one that started it ends; raises MachineError when it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise MachineError("worker", "its supervisor is gone")


def forbid_dumps() -> None:
    """No core file, of this process or of what it starts, and no process but root's can read its memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


@contextmanager
def as_group(gid: int, parent: int) -> Iterator[None]:
    """What is made inside belongs to group ``gid``. Needs CAP_SETGID."""
    before = os.getegid()
    os.setegid(gid)
    try:
        yield
    finally:
        os.setegid(before)
        # A change of ids has cleared both.
        forbid_dumps()
        die_with_parent(parent)


def keep_scheduling() -> None:
    """From now on, a thread that sets its scheduling class is told that it did, and nothing changes.

    ZeroMQ's threads set the class that they have already, and abort where that is forbidden, as in a unit without the
    system calls @resources. Of two filters that refuse a call the newer one's answer counts, so this one comes after
    the unit's. Raises OSError or RuntimeError.
    """
    system = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    system.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    system.add_rule(seccomp.ERRNO(0), "sched_setscheduler")
    system.load()


@contextmanager
def starting(role: WorkerRole) -> Iterator[None]:
    """The environment for the process of ``role``. One that ``wipes`` overwrites every byte that it frees, the keys
    among them. (The C library's caches do not, nor does Python's own allocator.)"""
    before = {name: os.environ.get(name) for name in _WIPING}
    try:
        if role.wipes:
            os.environ.update(_WIPING)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forbid_new_privileges() -> None:
    """As ``forbid_dumps``, and no program that this process runs has more privileges."""
    forbid_dumps()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def enter(role: WorkerRole, parent: int) -> None:
    """Drop everything that ``role`` was not granted. Raises MachineError when one step fails; the worker must end
    then."""
    uid, gid = role.ids()
    try:
        set_name(f"qre:{role.party}")
        die_with_parent(parent)
        forbid_new_privileges()
        _limit(role)
        _drop_capabilities(role, uid, gid)
        die_with_parent(parent)
        _prctl(_PR_SET_DUMPABLE, 0)
        _verify(role, uid, gid)
        _seccomp(role, confined_tcp=_landlock(role.readable) >= _LANDLOCK_KNOWS_TCP)
    except (OSError, KeyError, ValueError) as error:
        raise MachineError(f"worker {role.party}", f"cannot drop privileges: {error}") from error


def _verify(role: WorkerRole, uid: int, gid: int) -> None:
    """Read this process's ids and capabilities back from the kernel. Raises OSError when they are not as
    requested."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    granted = sum(1 << capability for capability in role.capabilities)
    sets = {name: int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    ids = set(fields["Uid"].split()), set(fields["Gid"].split())
    if sets != {"CapInh": 0, "CapPrm": granted, "CapEff": granted, "CapBnd": 0, "CapAmb": 0}:
        raise OSError(errno.EPERM, "it still has capabilities")
    if ids != ({str(uid)}, {str(gid)}) or fields["Groups"].split() or fields["NoNewPrivs"].strip() != "1":
        raise OSError(errno.EPERM, "its user, groups or NO_NEW_PRIVS are not as requested")


def _prctl(option: int, argument: int | bytes) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(ctypes.c_int(option), value, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _limit(role: WorkerRole) -> None:
    """Lower limits only: raising a hard limit needs a capability that hardened machines do not give."""
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_NOFILE, role.open_files),
        (resource.RLIMIT_DATA, role.address_space),
        (resource.RLIMIT_MEMLOCK, role.locked_memory),
    ):
        _, hard = resource.getrlimit(kind)
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (bound, bound))


def _drop_capabilities(role: WorkerRole, uid: int, gid: int) -> None:
    """Groups, ids, and the five capability sets: permitted and effective as granted, the others empty or less."""
    os.setgroups([])
    capng.capng_clear(capng.CAPNG_SELECT_ALL)
    for capability in role.capabilities:
        kinds = capng.CAPNG_EFFECTIVE | capng.CAPNG_PERMITTED
        if capng.capng_update(capng.CAPNG_ADD, kinds, capability):
            raise OSError(errno.EINVAL, f"capability {capability}")
    # Clears the bounding set and keeps what was added over the change of uid.
    code = capng.capng_change_id(uid, gid, capng.CAPNG_CLEAR_BOUNDING | capng.CAPNG_DROP_SUPP_GRP)
    if code:
        raise OSError(errno.EPERM, f"changing to uid {uid} (libcap-ng {code})")


def _landlock(readable: tuple[str, ...]) -> int:
    """Allow reading ``readable`` and below, and no other use of a path; no TCP but a resolver's; no signal and no
    abstract socket beyond this process. Older kernels know less of this, or nothing: seccomp stands beside it.
    Returns the ABI that this kernel knows, 0 for none."""
    abi = int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    if abi <= 0:
        return 0
    attribute = struct.pack("=Q", (1 << _LANDLOCK_RIGHTS[min(abi, max(_LANDLOCK_RIGHTS))]) - 1)
    if abi >= _LANDLOCK_KNOWS_TCP:
        attribute += struct.pack("=Q", _LANDLOCK_BIND_TCP | _LANDLOCK_CONNECT_TCP)
    if abi >= 6:
        attribute += struct.pack("=Q", _LANDLOCK_ABSTRACT_SOCKETS | _LANDLOCK_SIGNALS)
    ruleset = _call(_LANDLOCK_CREATE, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0))
    try:
        for name in readable:
            _allow_reading(ruleset, Path(name))
        if readable and abi >= _LANDLOCK_KNOWS_TCP:  # a resolver's long answers come over TCP
            _add_rule(ruleset, _LANDLOCK_PORT, struct.pack("=QQ", _LANDLOCK_CONNECT_TCP, _DNS))
        _call(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return abi


def _allow_reading(ruleset: int, path: Path) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if path.is_dir() else 0)
        _add_rule(ruleset, _LANDLOCK_PATH, struct.pack("=Qi", rights, target))
    finally:
        os.close(target)


def _add_rule(ruleset: int, kind: int, rule: bytes) -> None:
    _call(_LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(kind), rule, ctypes.c_uint32(0))


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _seccomp(role: WorkerRole, *, confined_tcp: bool) -> None:
    """Allow the listed system calls; every other one fails with EPERM. In every thread (TSYNC)."""
    system = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    system.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    for name in (name for group in role.calls for name in group.value):
        if name in _SENDING:  # not to connect by sending
            system.add_rule(seccomp.ALLOW, name, seccomp.Arg(_SENDING[name], seccomp.MASKED_EQ, _MSG_FASTOPEN, 0))
        elif name == "setsockopt" and role.holds_raw:  # its kernel goes on to write the headers (IP_HDRINCL)
            system.add_rule(seccomp.ALLOW, name, seccomp.Arg(1, seccomp.EQ, socket.SOL_SOCKET))
        else:
            system.add_rule(seccomp.ALLOW, name)
    # Threads, never processes. clone3 hides its flags from the filter: the C library falls back to clone.
    system.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    system.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    system.add_rule(seccomp.ERRNO(0), "sched_setscheduler")  # see ``keep_scheduling``
    system.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, _FIONBIO))
    system.add_rule(seccomp.ALLOW, "prctl", seccomp.Arg(0, seccomp.EQ, _PR_SET_NAME))
    system.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))
    system.add_rule(seccomp.ALLOW, "kill", seccomp.Arg(0, seccomp.EQ, os.getpid()))
    system.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))
    for command in _FCNTL:
        system.add_rule(seccomp.ALLOW, "fcntl", seccomp.Arg(1, seccomp.EQ, command))
    for name in ("mmap", "mprotect"):  # memory, but no new code in it
        system.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, _PROT_EXEC, 0))
    for kind in role.sockets:
        if confined_tcp or kind not in (Sockets.TCP, Sockets.TCP6):
            _allow_sockets(system, *kind.value)
    # ZeroMQ's, until ``close_the_door``. asyncio wakes itself up through a pair.
    _allow_sockets(system, socket.AF_UNIX, (socket.SOCK_STREAM,), (0,))
    pair = (
        seccomp.Arg(0, seccomp.EQ, socket.AF_UNIX),
        seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE, socket.SOCK_STREAM),
    )
    system.add_rule(seccomp.ALLOW, "socketpair", *pair)
    listener = seccomp.Arg(1, seccomp.MASKED_EQ, _FILTER_NEW_LISTENER, 0)
    system.add_rule(seccomp.ALLOW, "seccomp", seccomp.Arg(0, seccomp.EQ, _SET_MODE_FILTER), listener)
    if Calls.OPEN not in role.calls:
        # Python and the C library try optional files; answer ENOENT.
        for name in ("openat", "open", "stat", "lstat", "access", "readlink"):
            system.add_rule(seccomp.ERRNO(errno.ENOENT), name)
    system.load()


def _allow_sockets(
    system: seccomp.SyscallFilter, family: int, types: tuple[int, ...], protocols: tuple[int, ...]
) -> None:
    for kind in types:
        for protocol in protocols:
            system.add_rule(
                seccomp.ALLOW,
                "socket",
                seccomp.Arg(0, seccomp.EQ, family),
                seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE, kind),
                seccomp.Arg(2, seccomp.EQ, protocol),
            )


def close_the_door() -> None:
    """No more AF_UNIX sockets, in any thread: the worker's channels are connected, and the sockets of other programs
    stay out of its reach. Raises OSError or RuntimeError."""
    system = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    system.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    system.set_attr(seccomp.Attr.CTL_NNP, 0)  # it is set already, and prctl is not allowed any more
    system.add_rule(seccomp.ERRNO(errno.EPERM), "socket", seccomp.Arg(0, seccomp.EQ, socket.AF_UNIX))
    system.add_rule(seccomp.ERRNO(errno.EPERM), "seccomp")
    system.load()
