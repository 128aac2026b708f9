"""A client's DNS: name servers and search domains for the machine, while the tunnel is up.

Through whatever manages /etc/resolv.conf, as wg-quick(8): systemd-resolved, which forgets what it was told of a
device with the device (resolvectl(1)), or resolvconf(8), which keeps it until it is taken back. All names are asked
of the tunnel's servers then. The state file says who was told, so that whoever comes after a killed daemon can undo
it.

Nothing of it may come from the network: servers and domains are the profile's, checked where they were read.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qre.config.model import DnsSettings, Profile
from qre.errors import MachineError, UserError

#: Seconds for one command; a resolver that hangs must not keep a daemon from ending.
TIMEOUT: Final = 10.0
_CONF: Final = "/etc/resolv.conf"
#: Where its link leads when systemd-resolved manages it (systemd-resolved.service(8)).
_OF_RESOLVED: Final = (
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/usr/lib/systemd/resolv.conf",
    "/lib/systemd/resolv.conf",
)
_STUBS: Final = ("127.0.0.53", "127.0.0.54")
_LONGEST_CONF: Final = 65_536
#: Debian's resolvconf prefers some names of devices (wg-quick(8) reads them there, too).
_ORDER: Final = Path("/etc/resolvconf/interface-order")
_PREFERRED: Final = re.compile(r"([A-Za-z0-9-]+)\*")
_LONGEST_SAID: Final = 200
#: Where resolvconf(8) keeps what it was told, a file a record: Debian's, openresolv's, that of 3.13 and later.
_RECORDS: Final = ("/run/resolvconf/interface", "/run/resolvconf/interfaces", "/run/resolvconf/keys")


class NameService(enum.StrEnum):
    """Who manages the resolver's configuration."""

    RESOLVED = "systemd-resolved"
    RESOLVCONF = "resolvconf"


def name_service() -> NameService:
    """The one of this machine. Raises UserError when there is none that could be told."""
    if _leads_to_resolved():
        if shutil.which("resolvectl") is not None:
            return NameService.RESOLVED
    elif (found := shutil.which("resolvconf")) is not None and Path(found).resolve().name != "resolvectl":
        return NameService.RESOLVCONF
    remedy = "apt install systemd-resolved, or openresolv; or remove the line"
    raise UserError("DNS", f"neither systemd-resolved nor resolvconf manages {_CONF}", remedy)


def service_of(profile: Profile) -> NameService | None:
    """Who is told for this profile; None when nobody is."""
    if profile.dns is None:
        return None
    try:
        return name_service()
    except UserError:
        return None


def _leads_to_resolved() -> bool:
    if os.path.realpath(_CONF) in _OF_RESOLVED:
        return True
    try:
        with open(_CONF, "rb") as file:
            lines = file.read(_LONGEST_CONF).decode("ascii", "replace").splitlines()
    except OSError:
        return False
    servers = [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]
    return bool(servers) and all(server in _STUBS for server in servers)


def set_names(service: NameService, device: str, dns: DnsSettings) -> None:
    """Have all names asked of these servers. Raises MachineError; what was done by then is taken back."""
    servers = list(map(str, dns.servers))
    if service is NameService.RESOLVCONF:
        lines = [f"nameserver {server}" for server in servers]
        lines += [f"search {' '.join(dns.domains)}"] if dns.domains else []
        _run(["resolvconf", "-a", _record(device), "-m", "0", "-x"], "\n".join([*lines, ""]))
        return
    try:
        _run(["resolvectl", "dns", device, *servers])
        _run(["resolvectl", "domain", device, *dns.domains, "~."])
        _run(["resolvectl", "default-route", device, "yes"])
    except MachineError:
        unset_names(service, device)
        raise


def unset_names(service: NameService, device: str) -> None:
    """Take it back; no error when there is nothing, nor when the service is gone. Raises MachineError."""
    if service is NameService.RESOLVCONF:
        if shutil.which("resolvconf") is not None:
            _run(["resolvconf", "-d", _record(device), "-f"])
        return
    try:
        socket.if_nametoindex(device)
    except OSError:
        return  # and what was said of it went with it
    if shutil.which("resolvectl") is not None:
        _run(["resolvectl", "revert", device])


def names_are_set(service: NameService, device: str) -> bool:
    """Whether ``service`` was told of name servers for the device, and not to forget them. Raises MachineError."""
    if service is NameService.RESOLVCONF:
        return any(os.path.exists(f"{directory}/{_record(device)}") for directory in _RECORDS)
    try:
        socket.if_nametoindex(device)
    except OSError:
        return False
    if shutil.which("resolvectl") is None:
        return False
    said = _run(["resolvectl", "dns", device])  # Link 7 (client0): 10.77.0.1
    return bool(said.partition("):")[2].strip())


def _record(device: str) -> str:
    """The device's name for resolvconf."""
    try:
        lines = _ORDER.read_text(errors="replace")[:_LONGEST_CONF].splitlines()
    except OSError:
        return device
    preferred = next(filter(None, map(_PREFERRED.fullmatch, lines)), None)
    return device if preferred is None else f"{preferred[1]}.{device}"


def _run(command: Sequence[str], text: str = "") -> str:
    """What it printed."""
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"DNS: `{shown}`", f"it did not end within {TIMEOUT:g} s") from None
    except OSError as error:
        raise MachineError(f"DNS: `{shown}`", error.strerror or str(error)) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:_LONGEST_SAID]
        raise MachineError(f"DNS: `{shown}`", said or f"it failed with exit status {done.returncode}")
    return done.stdout
