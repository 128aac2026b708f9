"""The TUN device of the user data plane: made, taken over, or refused (Documentation/networking/tuntap.rst).

Packets carry a ``virtio_net_hdr`` of ``VNET_HEADER_SIZE`` bytes and no protocol information (IFF_NO_PI), so 64 KiB
super-packets go in and out. QRE's devices are recognised by their alias, those of qre.ko also by their kind. It must
never attach to a device that another program made: it would steal traffic, and ``down`` would delete the device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from qre.errors import MachineError
from qre.kernel.abi import LINK_KIND
from qre.kernel.rtnl import Link, Rtnl

CLONE_DEVICE = "/dev/net/tun"
VNET_HEADER_SIZE = 10  # struct virtio_net_hdr without num_buffers
#: Alias of our devices: this and the profile's name.
ALIAS_PREFIX = "qre:"

_IFF_TUN, _IFF_TUN_EXCL, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x8000, 0x1000, 0x4000
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6
_IFREQ = struct.Struct("=16sH22x")


def is_ours(link: Link, profile: str | None = None) -> bool:
    """Whether QRE made this device (for ``profile``). A qre.ko device without a profile belongs to any."""
    if link.kind == LINK_KIND:
        return profile is None or not claimed(link) or link.alias == ALIAS_PREFIX + profile
    if link.kind != "tun":
        return False
    return link.alias == ALIAS_PREFIX + profile if profile is not None else link.alias.startswith(ALIAS_PREFIX)


def claimed(link: Link) -> bool:
    """Whether a profile has claimed this device."""
    return link.alias.startswith(ALIAS_PREFIX)


def open_tun(device: str, *, persistent: bool, profile: str | None = None) -> int:
    """A descriptor of the TUN device, made or taken over; non-blocking and close-on-exec.

    A persistent device outlives the descriptor; the other kind is gone with it. ``profile`` (default: the device's
    name) goes into the alias. Raises MachineError; nothing is left behind then.
    """
    alias = ALIAS_PREFIX + (profile if profile is not None else device)
    with Rtnl() as rtnl:
        existing = rtnl.link(device)
        refuse_foreign(device, existing, alias)
        descriptor = _open_clone()
        try:
            _attach(descriptor, device, exclusive=existing is None)
            _set_offloads(descriptor, device)
            if existing is None:
                made = rtnl.link(device)
                if made is None:
                    raise MachineError(f"device {device}", "it vanished while it was being made")
                rtnl.set_alias(made, alias)
            # Only a device with our alias may outlive us; before this line it ends with the process.
            set_persistent(descriptor, device, persistent)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def refuse_foreign(device: str, existing: Link | None, alias: str) -> None:
    """Raise unless the device is absent or ours, under this alias."""
    if existing is None:
        return
    if not is_ours(existing):
        kind = f"a {existing.kind} device" if existing.kind else "a device"
        raise MachineError(
            f"device {device}",
            f"{kind} of this name exists that QRE did not make",
            "choose another Device, or remove it",
        )
    if not is_ours(existing, alias.removeprefix(ALIAS_PREFIX)):
        other = existing.alias.removeprefix(ALIAS_PREFIX)
        raise MachineError(
            f"device {device}",
            f"it belongs to the profile {other}",
            f"run `qre-tool down {other}` or choose another Device",
        )


def is_held(device: str, profile: str) -> bool:
    """Whether a process is attached to this device of QRE; tested by attaching for a moment."""
    with Rtnl() as rtnl:
        existing = rtnl.link(device)
        if existing is None or existing.kind != "tun" or not is_ours(existing, profile):
            return False
        descriptor = _open_clone()
        try:
            _set_interface(descriptor, device, 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise _attach_error(device, error) from error
        finally:
            os.close(descriptor)
    return False


def _open_clone() -> int:
    try:
        return os.open(CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        remedy = "load it with `modprobe tun`, or give this container the device"
        raise MachineError(CLONE_DEVICE, "it does not exist", remedy) from error
    except PermissionError as error:
        raise MachineError(CLONE_DEVICE, "this process may not open it", "run as root") from error
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.ENXIO}:
            raise MachineError(
                CLONE_DEVICE, "this kernel has no TUN driver", "load it with `modprobe tun`"
            ) from error
        raise MachineError(CLONE_DEVICE, error.strerror or str(error), "see its owner and mode") from error


def _attach(descriptor: int, device: str, *, exclusive: bool) -> None:
    try:
        name = _set_interface(descriptor, device, _IFF_TUN_EXCL if exclusive else 0)
    except OSError as error:
        raise _attach_error(device, error) from error
    if name != device:
        raise MachineError(f"device {device}", f"the kernel named it {name}", "choose another Device")


def _set_interface(descriptor: int, device: str, extra: int) -> str:
    request = _IFREQ.pack(device.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | extra)
    answer = fcntl.ioctl(descriptor, _TUNSETIFF, request)
    name: bytes = _IFREQ.unpack(answer)[0]
    return name.rstrip(b"\0").decode(errors="replace")


def _attach_error(device: str, error: OSError) -> MachineError:
    what = f"device {device}"
    match error.errno:
        case errno.EBUSY:
            return MachineError(what, "another process holds it", "stop the daemon that uses it")
        case errno.EPERM | errno.EACCES:
            return MachineError(what, "making a TUN device needs CAP_NET_ADMIN, which is missing", "run as root")
        case errno.EINVAL:
            return MachineError(what, "it is not a usable TUN device", "choose another Device, or remove it")
        case _:
            return MachineError(what, error.strerror or str(error))


def _set_offloads(descriptor: int, device: str) -> None:
    """Checksum and TCP segmentation offload always; UDP segmentation where the kernel has it (6.2)."""
    size = struct.pack("=i", VNET_HEADER_SIZE)
    try:
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, size)
        try:
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS | _TUN_F_USO4 | _TUN_F_USO6)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    except OSError as error:
        raise MachineError(f"device {device}", f"offloads: {error.strerror or error}") from error


def set_persistent(descriptor: int, device: str, persistent: bool) -> None:
    """Set whether the device outlives its descriptor."""
    try:
        fcntl.ioctl(descriptor, _TUNSETPERSIST, int(persistent))
    except OSError as error:
        raise MachineError(f"device {device}", error.strerror or str(error)) from error
