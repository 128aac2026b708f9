"""What ``check`` examines on the machine: kernel module, TUN, BPF, capabilities, packages, users.

Nothing is changed. The trials leave nothing behind: a BPF map without a pin ends when it is closed, and opening
/dev/net/tun alone makes no device.
"""

from __future__ import annotations

import errno
import os

from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo, refused
from qre.config.model import GlobalConfig
from qre.device.kernel_module import LOADED, MODULE, why_closed, why_not_loadable
from qre.ends import Dataplane, Role
from qre.errors import MachineError, QreError

#: What is imported at both ends -> the package that has it: Python's, and Debian's.
PACKAGES = {
    "aioquic.quic.connection": "aioquic",
    "brotli": "brotli",
    "certifi": "certifi",
    "cryptography.hazmat.primitives.asymmetric.x25519": "cryptography",
    "dpkt": "dpkt",
    "msgspec": "msgspec",
    "prometheus_client": "prometheus-client",
    "pyroute2": "pyroute2",
    "zmq": "pyzmq",
    "sdnotify": "sdnotify",
    "segno": "segno",
    "seccomp": "python3-seccomp",
    "capng": "python3-cap-ng",
}
_CAP_SYS_MODULE = "CAP_SYS_MODULE"


def packages() -> Findings:
    """Every package that some command or worker imports."""
    import importlib

    missing, reason = [], ""
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError, AttributeError) as error:  # a library behind a binding is missing or differs
            missing.append(package)
            reason = reason or str(error)
    if missing:
        seen = f"{', '.join(missing)} cannot be loaded: {reason}"
        remedy = "run `make setup`, or install them with pip (python3-… with apt)"
        yield Finding("python packages", YesNo.NO, seen, remedy)
    else:
        yield Finding("python packages", YesNo.YES, f"all {len(PACKAGES)} can be loaded")


def bcc(role: Role | None) -> Finding:
    """The library that loads BPF programs, which only a server needs (None: of either role)."""
    import importlib

    instead = "" if role is Role.SERVER else "a client needs none"
    try:
        importlib.import_module("bcc")
    except (ImportError, OSError, AttributeError) as error:
        seen = f"python3-bpfcc cannot be loaded: {error}"
        return Finding("bpf library", YesNo.NO, seen, "for a server: apt install python3-bpfcc", instead)
    return Finding("bpf library", YesNo.YES, "bcc can be loaded", instead=instead)


def kernel_module(config: GlobalConfig) -> Findings:
    """qre.ko: needed only where the configuration insists on it."""
    instead = "" if config.dataplane is Dataplane.KERNEL else "the user data plane takes over"
    if config.dataplane is Dataplane.USER:
        instead = "Dataplane is user"
    why, remedy = (why_closed(), "") if LOADED.exists() else _no_module(config)
    if LOADED.exists() and not why:
        yield Finding("kernel module", YesNo.YES, "qre.ko is loaded", instead=instead)
        return
    if why:
        yield Finding("kernel module", YesNo.NO, f"qre.ko: {why}", remedy, instead)
    else:
        seen = "qre.ko is installed; `up` and `daemon` load it"
        yield Finding("kernel module", YesNo.YES, seen, instead=instead)


def _no_module(config: GlobalConfig) -> tuple[str, str]:
    """Why the module cannot be loaded, and the remedy; empty when it can."""
    from qre.kernel.capabilities import missing_capabilities

    if why := why_not_loadable():
        return why, "install the package qre-dkms, or build it: `make -C kmod`, see docs/kernel.md"
    if not config.module_load:
        return "it is installed, but ModuleLoad is false", f"run `modprobe {MODULE}`"
    if _number("/proc/sys/kernel/modules_disabled"):
        return "it is installed, but this kernel no longer loads modules", "boot without kernel.modules_disabled"
    if missing_capabilities([_CAP_SYS_MODULE], "CapBnd"):
        return (
            "it is installed, but this container may not load modules",
            f"run `modprobe {MODULE}` outside the container",
        )
    return "", ""


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return 0


def tun(config: GlobalConfig) -> Findings:
    """The device of the user data plane, which works where the kernel module is not available."""
    from qre.kernel.tun import CLONE_DEVICE

    kernel = config.dataplane is not Dataplane.USER and (LOADED.exists() or not _no_module(config)[0])
    instead = "the kernel module is available" if kernel else ""
    try:
        os.close(os.open(CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        seen = f"{CLONE_DEVICE}: {error.strerror}"
        if error.errno == errno.EACCES and os.geteuid() != 0:
            yield Finding("tun device", YesNo.UNKNOWN, seen, AS_ROOT, instead)
        else:
            remedy = "run `modprobe tun`, or give the container the device /dev/net/tun"
            yield Finding("tun device", YesNo.NO, seen, remedy, instead)
        return
    yield Finding("tun device", YesNo.YES, f"{CLONE_DEVICE} can be opened", instead=instead)


def capabilities(role: Role | None) -> Findings:
    """The capabilities that a daemon of this role (None: of either role) needs at its start."""
    from qre.kernel.capabilities import missing_capabilities
    from qre.supervisor.parent.preconditions import CAPABILITIES, SERVER_CAPABILITIES

    wanted = CAPABILITIES if role is Role.CLIENT else SERVER_CAPABILITIES
    missing = missing_capabilities(wanted)
    never = missing_capabilities(wanted, "CapBnd")
    if never:
        seen = f"this container or unit cannot grant {', '.join(never)}"
        yield Finding("capabilities", YesNo.NO, seen, "grant them to the container or unit")
    elif missing and os.geteuid() != 0:
        yield Finding("capabilities", YesNo.UNKNOWN, f"this user lacks {', '.join(missing)}", AS_ROOT)
    elif missing:
        yield Finding("capabilities", YesNo.NO, f"{', '.join(missing)} were dropped", "run it in a root shell")
    else:
        yield Finding("capabilities", YesNo.YES, ", ".join(wanted))


def icmp_errors() -> Findings:
    """Whether a server can pass on to visitors what ICMP says of their datagrams on the way to Dest."""
    from qre.kernel.capabilities import missing_capabilities

    instead = "visitors are not told of ICMP errors about Dest"
    if missing_capabilities(["CAP_NET_RAW"], "CapBnd"):
        seen, remedy = "this container or unit cannot grant CAP_NET_RAW", "grant it to the container or unit"
        yield Finding("icmp errors", YesNo.NO, seen, remedy, instead)
    elif missing_capabilities(["CAP_NET_RAW"]):
        yield Finding("icmp errors", YesNo.UNKNOWN, "this user lacks CAP_NET_RAW", AS_ROOT, instead)
    else:
        yield Finding("icmp errors", YesNo.YES, "CAP_NET_RAW", instead=instead)


def bpf(config: GlobalConfig, with_library: bool) -> Findings:
    """How a server's port is steered: the program exists, a map can be created (with the library) and pinned."""
    looked_at = (("bpf program", _bpf_program), ("bpf pins", _bpf_pins), ("bpf maps", _bpf_map))
    for name, looks in looked_at if with_library else looked_at[:2]:
        try:
            yield Finding(name, YesNo.YES, looks(config))
        except QreError as error:
            yield refused(name, error)


def _bpf_program(config: GlobalConfig) -> str:
    from qre.supervisor.parent.preconditions import open_elf
    from qre.supervisor.parent.process_settings import bpf_elf

    path = bpf_elf(config)
    os.close(open_elf(path))
    return str(path)


def _bpf_pins(config: GlobalConfig) -> str:
    from qre.kernel.bpf_pins import check_pin_dir

    try:
        config.bpf_pin_dir.stat()
    except PermissionError as error:
        raise MachineError(f"BpfPinDir {config.bpf_pin_dir}", os.strerror(errno.EACCES), AS_ROOT) from error
    except OSError:
        pass  # check_pin_dir reports it
    check_pin_dir(config.bpf_pin_dir)
    return f"{config.bpf_pin_dir} is on a BPF file system"


def _bpf_map(config: GlobalConfig) -> str:
    from qre.kernel.bpf_program import CID_ROUTES, create
    from qre.kernel.capabilities import missing_capabilities

    del config
    if missing_capabilities(["CAP_BPF"]):
        raise MachineError("bpf(2)", "CAP_BPF is missing", "see capabilities") from PermissionError()
    os.close(create(CID_ROUTES))
    return "the kernel can create one"


def users() -> Findings:
    """The workers' own users."""
    from qre.causes import WORDS, Cause
    from qre.ipc.roles import ROLES, USERS_REMEDY, missing_users
    from qre.supervisor.parent.preconditions import unmapped_ids

    if unmapped := unmapped_ids():
        words = WORDS[Cause.IDS_MISSING]
        yield Finding("service users", YesNo.NO, f"{words.why} ({unmapped})", words.remedy)
        return
    missing = missing_users()
    instead = "fixed unprivileged user ids are used"
    if missing:
        seen = f"{', '.join(missing)}: no such user"
        yield Finding("service users", YesNo.NO, seen, USERS_REMEDY, instead)
    else:
        names = ", ".join(role.user for role in ROLES.values())
        yield Finding("service users", YesNo.YES, names, instead=instead)
