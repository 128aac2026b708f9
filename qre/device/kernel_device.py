"""A profile's device in qre.ko: its settings, as ``up``, ``syncconf`` and ``set`` apply them, and its removal."""

from __future__ import annotations

import errno

import msgspec

from qre.config.model import Profile
from qre.device.kernel_module import check_outer
from qre.device.session_end import end_session
from qre.ends import Dataplane
from qre.kernel.answers import KernelDevice
from qre.kernel.port_registration import release, shared_address
from qre.kernel.qre_family import DeviceSettings, Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.kernel.udp.underlay_sockets import MARK
from qre.wire.close_reason import CloseReason


def synced_settings(profile: Profile) -> DeviceSettings:
    """All that ``syncconf`` and ``set`` give a device, which no profile brings up."""
    return msgspec.structs.replace(settings_of(profile), mtu=profile.mtu)


def settings_of(profile: Profile) -> DeviceSettings:
    """The kernel's settings for a profile: no key, no short id, no address. Its MTU is the link's, as on the user
    data plane (``Rtnl.set_up``)."""
    check_outer(profile, Dataplane.KERNEL)
    server, client = profile.server, profile.client
    named = server or client
    return DeviceSettings(
        role=profile.role,
        dest=str(server.dest) if server is not None else None,
        server_name=named.server_name if named is not None else None,
        listen=(str(profile.listen.ip), profile.listen.port) if profile.listen is not None else None,
        endpoint=str(profile.endpoint) if profile.endpoint is not None else None,
        keepalive_s=profile.keepalive_s,
        fwmark=MARK,
    )


def settings_as_they_were(device: KernelDevice) -> DeviceSettings:
    """Settings that restore the device's present ones."""
    return DeviceSettings(
        role=device.role,
        mtu=device.mtu,
        dest=device.dest,
        server_name=device.server_name,
        listen=device.listen,
        endpoint=device.endpoint,
        keepalive_s=device.keepalive_s,
        max_sessions=device.max_sessions,
        fwmark=device.fwmark,
    )


def sync_line(profile: Profile) -> str:
    """The plan's line for a sync."""
    where = f"listen {profile.listen}" if profile.listen is not None else f"endpoint {profile.endpoint}"
    return f"sync device {profile.device} to qre.ko: {profile.role}, {where}"


def kernel_holds_port(device: str, listen: tuple[str, int]) -> bool:
    """Whether qre.ko has a shared socket on this address, of any daemon."""
    with Qre() as qre:
        return shared_address(qre, device) == listen


def release_port(device: str, listen: tuple[str, int]) -> None:
    """Release a server's port and CID map from the kernel; no error for what is gone already."""
    with Qre() as qre:
        release(qre, device, listen)


def close_sessions(device: str) -> None:
    """End the device's sessions and tell their peers; no error for what is gone already."""
    with Qre() as qre:
        present = qre.device(device)
        if present is None:
            return
        for session in qre.sessions(device):
            try:
                end_session(qre, device, session.status.session_id, present.role, CloseReason.STOPPED)
            except NetlinkRefusedError as error:
                if error.code not in (errno.ENOENT, errno.ENODEV):
                    raise
