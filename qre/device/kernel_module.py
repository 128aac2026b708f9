"""Which data plane: qre.ko when it can be loaded, the user data plane otherwise, and why."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from qre.config.model import GlobalConfig, Profile
from qre.ends import Dataplane
from qre.errors import MachineError, UserError

MODULE = "qre"
LOADED = Path("/sys/module") / MODULE
_USERNS = LOADED / "parameters" / "userns"
#: The content of /proc/self/uid_map in the initial user namespace.
_INITIAL_USER_NAMESPACE = ["0", "0", "4294967295"]
_TIMEOUT = 30.0
_OUTER_IPV6 = "the one that is loaded is older: its outer packets are IPv4, and this profile's are IPv6"


def wants_module(config: GlobalConfig) -> bool:
    """Whether to run `modprobe`."""
    return config.module_load and config.dataplane is not Dataplane.USER


def load_module() -> str:
    """Load qre.ko; empty when it is loaded, otherwise the reason."""
    return "" if LOADED.exists() else _modprobe() or ("" if LOADED.exists() else f"modprobe {MODULE} did not load it")


def why_closed() -> str:
    """Empty when qre.ko may be used from here; otherwise the reason. Root of a user namespace may not, by default."""
    if Path("/proc/self/uid_map").read_text().split() == _INITIAL_USER_NAMESPACE:
        return ""
    if _USERNS.exists() and _USERNS.read_text().strip() == "Y":
        return ""
    return f"it accepts no commands from this user namespace (load it with `modprobe {MODULE} userns=1` on the host)"


def why_not_loadable() -> str:
    """Empty when qre.ko is loaded or `modprobe` would find it; otherwise the reason. Changes nothing.

    Users without /usr/sbin in PATH may ask, too.
    """
    if LOADED.exists():
        return ""
    return _modprobe("--dry-run", program=shutil.which("modprobe") or "/usr/sbin/modprobe")


def _modprobe(*options: str, program: str = "modprobe") -> str:
    """Empty when it succeeded, otherwise its reason."""
    try:
        done = subprocess.run(
            [program, *options, MODULE],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return "there is no modprobe on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"modprobe {MODULE}: {error}"
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[0] if lines else f"modprobe {MODULE} failed with exit status {done.returncode}"


def require_module(config: GlobalConfig) -> None:
    """Load qre.ko if that is allowed. Raises MachineError unless it is loaded then."""
    if LOADED.exists():
        return
    if not config.module_load:
        raise MachineError("qre.ko", "it is not loaded, and ModuleLoad is false", f"run `modprobe {MODULE}`")
    reason = load_module()
    if reason:
        raise MachineError("qre.ko", reason, "install qre.ko, which `make -C kmod` builds")


def outer_ipv6() -> bool:
    """Whether the module that is loaded sends outer packets of IPv6, which one of before does not; true while none
    is. Raises MachineError."""
    from qre.kernel.qre_family import Qre  # most commands do not ask

    if not LOADED.exists():
        return True
    with Qre() as qre:
        return qre.outer_ipv6


def check_outer(profile: Profile, dataplane: Dataplane) -> None:
    """Raise UserError when this data plane cannot send the profile's outer packets."""
    if dataplane is Dataplane.KERNEL and profile.outer_ipv6 and not outer_ipv6():
        remedy = f"load the module anew (`rmmod {MODULE}`), set Dataplane = auto or user, or write an IPv4 address"
        raise UserError(f"profile {profile.name}", f"qre.ko is not to be used: {_OUTER_IPV6}", remedy)


def expected_dataplane(config: GlobalConfig, profile: Profile) -> Dataplane:
    """What ``choose_dataplane`` will most likely choose; changes nothing."""
    if config.dataplane is not Dataplane.AUTO:
        return config.dataplane
    if profile.outer_ipv6 and not outer_ipv6():
        return Dataplane.USER
    there = LOADED.exists() or (config.module_load and not _modprobe("--dry-run", "--quiet"))
    if there and not why_closed():
        return Dataplane.KERNEL
    return Dataplane.USER


def choose_dataplane(config: GlobalConfig, profile: Profile, notice: Callable[[str], None]) -> Dataplane:
    """The data plane of this ``up``; ``notice`` gets a line when `auto` falls back to the user data plane.

    Raises MachineError when `kernel` was configured and is not available, UserError when the profile rules it out.
    """
    if config.dataplane is Dataplane.USER:
        return Dataplane.USER
    reason = load_module() if wants_module(config) else ""
    if not reason and not LOADED.exists():
        reason = "it is not loaded, and ModuleLoad is false"
    reason = reason or why_closed()
    if not reason and profile.outer_ipv6 and not outer_ipv6():
        check_outer(profile, config.dataplane)
        reason = _OUTER_IPV6
    if not reason:
        return Dataplane.KERNEL
    if config.dataplane is Dataplane.KERNEL:
        raise MachineError("Dataplane = kernel", f"qre.ko: {reason}", "install qre.ko, or set Dataplane = auto")
    notice(f"qre.ko is not used ({reason}): the user data plane is used")
    return Dataplane.USER
