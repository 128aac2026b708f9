"""``up``, ``down`` and ``reload``: what makes a profile's device a tunnel, in order, and its undoing.

Each operation is a ``Step`` with the words that ``--dry-run`` prints, what it does, and what undoes it: the plan is
the program. When a step fails, those before it are undone in reverse and the first error is the one reported. Nothing
here reads a packet or a key. The daemon's parent calls ``up_profile`` and ``down_profile``; the command line's side
is ``cli/lifecycle_commands``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from qre.abi import LINK_KIND
from qre.capabilities import require_capabilities
from qre.cli.control_client import front_path, remove_left, runtime_paths
from qre.cli.device_lock import is_free, lock_path, port_name
from qre.cli.kernel_device import close_sessions, release_port, settings_as_they_were, settings_of, sync_line
from qre.cli.kernel_module import MODULE, choose_dataplane, expected_dataplane, wants_module
from qre.cli.reverse_path import strict_devices
from qre.cli.state import ProfileState, load_state, remove_state, save_state, state_of, state_path
from qre.cli.steps import Notice, Step, address_lines, hook_steps, plan_of, route_lines, run_steps, spec_of
from qre.config.model import GlobalConfig, Hooks, Interface, Profile
from qre.errors import MachineError, QreError, UserError
from qre.session import Dataplane
from qre.supervisor.pins import paths as pin_paths
from qre.workers.netlink.answers import KernelDevice
from qre.workers.netlink.device import (
    DeviceSpec,
    choose_fwmark,
    clear_device,
    default_versions,
    delete_rules,
    sync_addresses,
    sync_routes,
)
from qre.workers.netlink.generic import Qre
from qre.workers.netlink.rtnl import Link, Rtnl
from qre.workers.netlink.tun import (
    ALIAS_PREFIX,
    claimed,
    is_held,
    is_ours,
    open_tun,
    refuse_foreign,
    set_persistent,
)


def print_notice(text: str) -> None:
    """One line for the user that is not an error."""
    print(f"qre-tool: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class UpResult:
    """A profile that is up. ``tun_fd`` is the caller's to close (``keep_tun`` on the user data plane); ``fwmark`` is
    not 0 when AllowedIPs hold a default route: every underlay socket must carry it (SO_MARK)."""

    tun_fd: int | None
    dataplane: Dataplane
    fwmark: int


@dataclass
class _Up:
    """What the steps of one ``up`` pass on to each other."""

    profile: Profile
    config: GlobalConfig
    keep_tun: bool
    notice: Notice
    rtnl: Rtnl
    spec: DeviceSpec
    before: ProfileState | None  # the saved state of a device that is taken over
    dataplane: Dataplane  # the expected one, until it is chosen
    tun_fd: int | None = None
    kernel_before: KernelDevice | None = None  # the settings of a device that is taken over
    was_up: bool = False
    attached: bool = False  # the device is ours now
    made: bool = False  # and was not there before

    def link(self) -> Link:
        link = self.rtnl.link(self.profile.device)
        if link is None:
            raise MachineError(f"device {self.profile.device}", "it is gone", "look who removes it")
        return link

    # --- deeds ---

    def choose_dataplane(self) -> None:
        self.dataplane = choose_dataplane(self.config, self.notice)

    def make_device(self) -> None:
        existing = self.rtnl.link(self.profile.device)
        refuse_other_dataplane(self.profile, existing, self.dataplane)
        self.made = existing is None
        self.was_up = existing is not None and existing.up
        if self.dataplane is Dataplane.KERNEL:
            self.sync_kernel()
            self.rtnl.set_alias(self.link(), ALIAS_PREFIX + self.profile.name)
            return
        descriptor = open_tun(self.profile.device, persistent=not self.keep_tun, profile=self.profile.name)
        self.attached = True
        if self.keep_tun:
            self.tun_fd = descriptor
        else:
            os.close(descriptor)

    def sync_kernel(self) -> None:
        with Qre() as qre:
            self.kernel_before = qre.device(self.profile.device)
            qre.device_set(self.profile.device, settings_of(self.profile, self.spec.fwmark))
            self.attached = True

    def unmake_device(self) -> None:
        if not self.attached:
            return
        taken_over = not self.made and self.before is not None
        if self.tun_fd is not None:
            if taken_over:
                set_persistent(self.tun_fd, self.profile.device, True)
            os.close(self.tun_fd)
            self.tun_fd = None
        if self.kernel_before is not None:
            self.restore_kernel(self.kernel_before)
        if taken_over:
            self.restore()
        elif self.kernel_before is None and (link := self.rtnl.link(self.profile.device)) is not None:
            self.rtnl.delete_link(link)

    def restore_kernel(self, before: KernelDevice) -> None:
        """Give a device of qre.ko its settings back, and who had it."""
        with Qre() as qre:
            qre.device_set(self.profile.device, settings_as_they_were(before))
        if self.before is None:
            link = self.link()
            self.rtnl.set_alias(link, "")
            if not self.was_up:
                self.rtnl.set_down(link)

    def restore_synced(self) -> None:
        if self.kernel_before is not None:
            self.restore_kernel(self.kernel_before)

    def restore(self) -> None:
        """Give the device back as the saved state has it."""
        if self.before is None:
            return
        spec, link = spec_of(self.before), self.link()
        self.rtnl.set_up(link, spec.mtu)
        sync_addresses(self.rtnl, link, spec, self.spec.addresses)
        sync_routes(self.rtnl, link, spec)

    def set_up(self) -> None:
        self.rtnl.set_up(self.link(), self.spec.mtu)

    def replace_addresses(self) -> None:
        previous = self.before.address if self.before is not None else ()
        sync_addresses(self.rtnl, self.link(), self.spec, previous)

    def replace_routes(self) -> None:
        if self.before is not None and self.before.fwmark not in (0, self.spec.fwmark):
            delete_rules(self.rtnl, self.before.fwmark)
        sync_routes(self.rtnl, self.link(), self.spec)
        if 4 in default_versions(self.spec.allowed_ips) and (strict := strict_devices(self.profile.device)):
            remedy = f"`sysctl net.ipv4.conf.{strict[0]}.rp_filter=2` lets them in"
            self.notice(
                f"rp_filter is strict on {', '.join(strict)}: datagrams of the server may be dropped; {remedy}"
            )

    def remove_addresses_and_routes(self) -> None:
        clear_device(self.rtnl, self.profile.device, self.spec.fwmark)

    def save(self) -> None:
        save_state(self.config, state_of(self.profile, self.spec.fwmark))


def up_profile(profile: Profile, config: GlobalConfig, *, keep_tun: bool, notice: Notice = print_notice) -> UpResult:
    """Bring the profile up; the caller holds the device (``device_lock.hold_device``).

    With ``keep_tun`` (a daemon) a device that `up` left is taken over, and a TUN lives as long as the returned
    descriptor; without, a persistent device is left, as qre.ko's always is. After an error nothing is changed.
    """
    require_net_admin(f"up {profile.name}")
    with Rtnl() as rtnl:
        up = _prepare(profile, config, keep_tun, notice, rtnl)
        run_steps(up_steps(up), notice)
    return UpResult(up.tun_fd, up.dataplane, up.spec.fwmark)


def plan_up(profile: Profile, config: GlobalConfig, *, keep_tun: bool = False) -> list[str]:
    """What ``up_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        up = _prepare(profile, config, keep_tun, print_notice, rtnl)
        return plan_of(up_steps(up))


def _prepare(profile: Profile, config: GlobalConfig, keep_tun: bool, notice: Notice, rtnl: Rtnl) -> _Up:
    """Look at what is there, and refuse what cannot be; reads only."""
    saved = load_state(config, profile.name)
    existing = rtnl.link(profile.device)
    refuse_foreign(profile.device, existing, ALIAS_PREFIX + profile.name)
    if existing is not None and claimed(existing) and not keep_tun:
        remedy = f"use `qre-tool reload {profile.name}` or `qre-tool down {profile.name}`"
        raise UserError(f"profile {profile.name}", f"its device {profile.device} is up already", remedy)
    if saved is not None and saved.device != profile.device and rtnl.link(saved.device) is not None:
        remedy = f"run `qre-tool down {profile.name}` first"
        raise UserError(f"profile {profile.name}", f"it is up as {saved.device}", remedy)
    spec = DeviceSpec(
        profile.device, profile.address, profile.mtu, profile.allowed_ips, _fwmark(profile, saved, rtnl)
    )
    return _Up(profile, config, keep_tun, notice, rtnl, spec, saved, expected_dataplane(config))


def dataplane_of(link: Link) -> Dataplane:
    """Whose device this is."""
    return Dataplane.KERNEL if link.kind == LINK_KIND else Dataplane.USER


def refuse_other_dataplane(profile: Profile, existing: Link | None, wanted: Dataplane) -> None:
    """Raise when the device is there, on the other data plane."""
    if existing is not None and dataplane_of(existing) is not wanted:
        why = f"it is up on the {dataplane_of(existing)} data plane, and the {wanted} one is to be used"
        raise UserError(f"device {profile.device}", why, f"run `qre-tool down {profile.name}` first")


def _fwmark(profile: Profile, saved: ProfileState | None, rtnl: Rtnl) -> int:
    if not default_versions(profile.allowed_ips):
        return 0
    return saved.fwmark if saved is not None and saved.fwmark else choose_fwmark(rtnl)


def up_steps(up: _Up) -> list[Step]:
    """The steps of ``up``, in the order of the reference."""
    device, hooks, spec = up.profile.device, up.profile.hooks, up.spec
    steps: list[Step] = []
    if wants_module(up.config):
        alternative = ", or else use the user data plane" if up.config.dataplane is Dataplane.AUTO else ""
        steps.append(Step((f"load {MODULE}.ko (modprobe {MODULE}){alternative}",), up.choose_dataplane))
    else:
        steps.append(Step((f"use the {up.dataplane} data plane",), up.choose_dataplane))
    steps += hook_steps("PreUp", hooks.pre_up, device)
    kind = "for the daemon" if up.keep_tun else "persistent"
    line = sync_line(up.profile) if up.dataplane is Dataplane.KERNEL else f"make TUN device {device} ({kind})"
    steps.append(Step((line,), up.make_device, up.unmake_device))
    steps.append(Step((f"set {device} up, MTU {spec.mtu}",), up.set_up))
    steps.append(Step(address_lines(up.before, spec), up.replace_addresses, up.remove_addresses_and_routes))
    steps.append(Step(route_lines(up.before, spec), up.replace_routes))
    steps += hook_steps("PostUp", hooks.post_up, device)
    steps.append(Step((f"save state to {state_path(up.config, up.profile.name)}",), up.save))
    return steps


# --- down ---


@dataclass(frozen=True)
class _Down:
    """One ``down``: of the configured profile, of the saved state, or of both."""

    name: str
    device: str
    hooks: Hooks
    addresses: tuple[Interface, ...]
    fwmark: int
    config: GlobalConfig
    rtnl: Rtnl
    in_kernel: bool
    listen: tuple[str, int] | None  # the shared port that a dead daemon may have left registered
    left: tuple[Path, ...]  # pins, sockets and directories of a dead daemon

    def release(self) -> None:
        if self.listen is not None:
            release_port(self.device, self.listen)

    def remove_left(self) -> None:
        for path in self.left:
            remove_left(path)

    def close(self) -> None:
        link = self.rtnl.link(self.device)
        if link is not None and dataplane_of(link) is Dataplane.KERNEL and is_ours(link, self.name):
            close_sessions(self.device)

    def clear(self) -> None:
        link = self.rtnl.link(self.device)
        if link is None or is_ours(link, self.name):
            clear_device(self.rtnl, self.device, self.fwmark, self.addresses)

    def delete_device(self) -> None:
        link = self.rtnl.link(self.device)
        if link is not None and is_ours(link, self.name):
            self.rtnl.delete_link(link)

    def forget(self) -> None:
        remove_state(self.config, self.name)


def down_profile(
    profile: Profile | str, config: GlobalConfig, *, by_daemon: bool = False, notice: Notice = print_notice
) -> None:
    """Take the profile down; the caller holds the device. A profile's name alone stands for one whose file is gone.

    What is gone already is no error. The daemon's own clean-up (``by_daemon``) goes on after a failing PreDown, and
    does not mind that its workers still hold the device. The first error is raised when everything else is done.
    """
    name = profile if isinstance(profile, str) else profile.name
    require_net_admin(f"down {name}")
    with Rtnl() as rtnl:
        down = _prepare_down(profile, config, rtnl, by_daemon=by_daemon)
        if not by_daemon and is_held(down.device, name):
            remedy = f"stop the daemon first: `systemctl stop qred@{name}`"
            raise UserError(f"device {down.device}", "a daemon holds it", remedy)
        pre, rest = down_steps(down)
        first: QreError | OSError | None = None
        for step in [*pre, *rest]:
            try:
                step.do()
            except (QreError, OSError) as error:
                if step in pre and not by_daemon:
                    raise
                if first is None:
                    first = error
                else:
                    notice(str(error))
    if first is not None:
        raise first


def plan_down(profile: Profile | str, config: GlobalConfig) -> list[str]:
    """What ``down_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        pre, rest = down_steps(_prepare_down(profile, config, rtnl, by_daemon=False))
        return plan_of([*pre, *rest])


def _prepare_down(profile: Profile | str, config: GlobalConfig, rtnl: Rtnl, *, by_daemon: bool) -> _Down:
    name, configured = (profile, None) if isinstance(profile, str) else (profile.name, profile)
    saved = load_state(config, name)
    device = saved.device if saved is not None else configured.device if configured is not None else ""
    link = rtnl.link(device) if device else None
    if link is not None and not is_ours(link, name):
        raise UserError(f"device {device}", f"QRE did not make it for the profile {name}", "it is left alone")
    if saved is None and link is None and not by_daemon:
        raise UserError(f"profile {name}", "it is not up", f"see `qre-tool up {name}`")
    if link is not None and not by_daemon and os.geteuid() == 0 and is_held(device, name):
        raise UserError(
            f"device {device}", "a daemon holds it", f"stop the daemon first: `systemctl stop qred@{name}`"
        )
    addresses = saved.address if saved is not None else configured.address if configured is not None else ()
    hooks = configured.hooks if configured is not None else Hooks()
    fwmark = saved.fwmark if saved is not None else 0
    in_kernel = link is not None and dataplane_of(link) is Dataplane.KERNEL
    places = [] if by_daemon else [*pin_paths(config.bpf_pin_dir, device), *runtime_paths(config, name, device)]
    listen = None if by_daemon else _port_of(configured, saved)
    if listen is not None and is_free(config, port_name(*listen)):  # otherwise it is another daemon's
        places += [front_path(config.runtime_dir, port_name(*listen)), lock_path(config, port_name(*listen))]
    else:
        listen = None
    # Not Path.exists: that one minds what it may not see.
    left = tuple(path for path in places if os.path.exists(path))
    return _Down(name, device, hooks, addresses, fwmark, config, rtnl, in_kernel, listen if in_kernel else None, left)


def _port_of(configured: Profile | None, saved: ProfileState | None) -> tuple[str, int] | None:
    """Where the profile's server listened, or would."""
    text = (saved.underlay or saved.listen) if saved is not None else ""
    if not text and configured is not None and configured.listen is not None:
        text = str(configured.listen)
    ip, _, port = text.partition(":")
    return (ip, int(port)) if port.isdigit() else None


def down_steps(down: _Down) -> tuple[list[Step], list[Step]]:
    """The PreDown hooks, which may stop it, and everything after them, which goes on."""
    device = down.device
    lines = [f"delete address {address} from {device}" for address in down.addresses]
    if down.fwmark:
        lines.insert(0, f"delete routes and rules of table {down.fwmark}")
    rest = [Step((f"close the sessions of {device}",), down.close)] if down.in_kernel else []
    if down.listen is not None:
        host, port = down.listen
        rest.append(Step((f"let qre.ko go of UDP {host}:{port}",), down.release))
    if down.left:
        rest.append(Step(tuple(f"remove {path}" for path in down.left), down.remove_left))
    rest += [Step(tuple(lines), down.clear), Step((f"delete device {device}",), down.delete_device)]
    rest += hook_steps("PostDown", down.hooks.post_down, device)
    rest.append(Step((f"remove state {state_path(down.config, down.name)}",), down.forget))
    return hook_steps("PreDown", down.hooks.pre_down, device), rest


# --- reload ---


def reload_profile(profile: Profile, config: GlobalConfig, *, notice: Notice = print_notice) -> UpResult:
    """Bring the device of a profile that is up in line with its file: what qre.ko knows of it, MTU, addresses,
    routes; no hooks, no sessions.

    The caller holds the device. After an error everything is as it was. ``UpResult.tun_fd`` is None.
    """
    require_net_admin(f"reload {profile.name}")
    with Rtnl() as rtnl:
        up = _prepare_reload(profile, config, rtnl, notice)
        run_steps(reload_steps(up), notice)
    return UpResult(None, up.dataplane, up.spec.fwmark)


def plan_reload(profile: Profile, config: GlobalConfig) -> list[str]:
    """What ``reload_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        return plan_of(reload_steps(_prepare_reload(profile, config, rtnl, print_notice)))


def _prepare_reload(profile: Profile, config: GlobalConfig, rtnl: Rtnl, notice: Notice) -> _Up:
    saved = load_state(config, profile.name)
    link = rtnl.link(saved.device) if saved is not None else None
    if saved is None or link is None:
        raise UserError(f"profile {profile.name}", "it is not up", f"see `qre-tool up {profile.name}`")
    refuse_foreign(saved.device, link, ALIAS_PREFIX + profile.name)
    refuse_replacement(profile, saved, down_and_up(profile.name))
    spec = DeviceSpec(
        profile.device, profile.address, profile.mtu, profile.allowed_ips, _fwmark(profile, saved, rtnl)
    )
    return _Up(profile, config, False, notice, rtnl, spec, saved, dataplane_of(link))


def down_and_up(name: str) -> str:
    """The remedy for a profile that no daemon runs."""
    return f"run `qre-tool down {name}`, then up"


def refuse_replacement(profile: Profile, saved: ProfileState, remedy: str) -> None:
    """Raise when the file changed what only ``down`` and ``up`` can change."""
    wanted = state_of(profile, 0)
    for key, old, new in (
        ("Device", saved.device, wanted.device),
        ("Role", saved.role.value, wanted.role.value),
        ("Listen", saved.listen, wanted.listen),
    ):
        if old != new:
            raise UserError(
                f"profile {profile.name}", f"{key} was {old or 'unset'} and is now {new or 'unset'}", remedy
            )


def reload_steps(up: _Up) -> list[Step]:
    """The steps of ``reload``; the first carries the way back to how the device was."""
    in_kernel = up.dataplane is Dataplane.KERNEL
    return [
        *([Step((sync_line(up.profile),), up.sync_kernel, up.restore_synced)] if in_kernel else []),
        Step((f"set {up.profile.device} up, MTU {up.spec.mtu}",), up.set_up, up.restore),
        Step(address_lines(up.before, up.spec), up.replace_addresses),
        Step(route_lines(up.before, up.spec), up.replace_routes),
        Step((f"save state to {state_path(up.config, up.profile.name)}",), up.save),
    ]


def require_net_admin(what: str) -> None:
    """Raise MachineError unless this process has CAP_NET_ADMIN."""
    require_capabilities(what, ("CAP_NET_ADMIN",))
