"""``up``, ``down`` and ``reload``: the steps that make a profile's device a tunnel, in order, and how they are
undone.

Each operation is a ``Step`` with the line that ``--dry-run`` prints, the action and its undo: the plan is the
program. When a step fails, those before it are undone in reverse and the first error is the one reported. Nothing
here reads a packet or a key. The daemon's parent calls ``up_profile`` and ``down_profile``; the command line's side
is ``cli/profile/lifecycle_commands``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from qre.addresses import Interface, closed_beside, default_versions
from qre.config.model import GlobalConfig, Profile
from qre.device.kernel_device import close_sessions, settings_as_they_were, settings_of, sync_line
from qre.device.kernel_module import MODULE, choose_dataplane, expected_dataplane, outer_ipv6, wants_module
from qre.device.name_servers import name_service, unset_names
from qre.device.reverse_path import strict_devices
from qre.device.route_table import table_of
from qre.device.state import ProfileState, load_state, remove_state, save_state, state_of, state_path
from qre.device.steps import Notice, Step, address_lines, hook_steps, plan_of, route_lines, run_steps, spec_of
from qre.ends import Dataplane
from qre.errors import MachineError, UserError
from qre.kernel.abi import LINK_KIND
from qre.kernel.answers import KernelDevice
from qre.kernel.capabilities import require_capabilities
from qre.kernel.qre_family import Qre
from qre.kernel.rtnl import AssignedAddress, Link, Rtnl
from qre.kernel.tun import (
    ALIAS_PREFIX,
    claimed,
    is_held,
    open_tun,
    refuse_foreign,
)
from qre.kernel.tunnel import (
    DeviceSpec,
    clear_device,
    closed_rules,
    delete_rules,
    put_rules,
    refusing_versions,
    sync_addresses,
    sync_routes,
    tables_of,
    wanted_rules,
)


def print_notice(text: str) -> None:
    """One line for the user that is not an error."""
    print(f"qre-tool: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class UpResult:
    """A profile that is up. ``tun_fd`` is the caller's to close (``keep_tun`` on the user data plane); ``table`` is
    not 0 when one of its routes has a table of its own. ``closed_before``: an earlier daemon had left its rules."""

    tun_fd: int | None
    dataplane: Dataplane
    table: int
    closed_before: bool = False


@dataclass
class _Up:
    """Values that the steps of one ``up`` pass on to each other."""

    profile: Profile
    config: GlobalConfig
    keep_tun: bool
    notice: Notice
    rtnl: Rtnl
    spec: DeviceSpec
    before: ProfileState | None  # the saved state, or what was found on the device
    dataplane: Dataplane  # the expected one, until it is chosen
    tun_fd: int | None = None
    kernel_before: KernelDevice | None = None  # the settings of a device that was there
    #: Rules that existed before and refuse what they do not route: the IP versions, by table.
    rules_before: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    was_up: bool = False
    had_device: bool = False  # the profile had the device already
    theirs: tuple[AssignedAddress, ...] = ()  # addresses that somebody gave a device which no profile had
    attached: bool = False  # the device is ours now

    def link(self) -> Link:
        link = self.rtnl.link(self.profile.device)
        if link is None:
            raise MachineError(f"device {self.profile.device}", "it is gone", "find out what removed it")
        return link

    def previous(self) -> tuple[Interface, ...]:
        """Addresses that are the profile's, whatever they are marked with: those that were saved, of its device."""
        return self.before.address if self.before is not None and self.had_device else ()

    # --- deeds ---

    def take_names_back(self) -> None:
        """A killed daemon could not: Endpoint is looked up as before."""
        if self.before is not None and self.before.names is not None:
            unset_names(self.before.names, self.before.device)

    def choose_dataplane(self) -> None:
        self.dataplane = choose_dataplane(self.config, self.profile, self.notice)

    def make_device(self) -> None:
        existing = self.rtnl.link(self.profile.device)
        refuse_other_dataplane(self.profile, existing, self.dataplane)
        self.was_up = existing is not None and existing.up
        self.had_device = existing is not None and claimed(existing)
        if existing is not None and not self.had_device:
            self.theirs = tuple(entry for entry in self.rtnl.addresses(existing) if not entry.ours)
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
            qre.device_set(self.profile.device, settings_of(self.profile))
            self.attached = True

    def unmake_device(self) -> None:
        """Delete the device, unless it existed in qre.ko without a profile: then restore it."""
        if not self.attached:
            return
        if self.tun_fd is not None:
            os.close(self.tun_fd)
            self.tun_fd = None
        if self.kernel_before is not None and not self.had_device:
            self.restore_synced()
            link = self.link()
            self.rtnl.set_alias(link, "")
            if not self.was_up:
                self.rtnl.set_down(link)
                self.give_back_addresses(link)
        elif (found := self.rtnl.link(self.profile.device)) is not None:
            self.rtnl.delete_link(found)

    def give_back_addresses(self, link: Link) -> None:
        """With IFF_UP a link loses its IPv6 addresses."""
        left = {entry.interface for entry in self.rtnl.addresses(link)}
        for entry in self.theirs:
            if entry.interface not in left:
                self.rtnl.put_back(link, entry)

    def restore_synced(self) -> None:
        """Give a device of qre.ko its settings back."""
        if self.kernel_before is not None:
            with Qre() as qre:
                qre.device_set(self.profile.device, settings_as_they_were(self.kernel_before))

    def give_up(self) -> None:
        """After an `up` that failed nothing of the profile is left, nor of an earlier `up`: addresses, device, state.
        Only rules that existed stay: they keep packets from leaving in the clear."""
        try:
            link = self.rtnl.link(self.profile.device)
            if link is not None and claimed(link):
                if dataplane_of(link) is Dataplane.KERNEL:
                    close_sessions(link.name)
                self.remove_addresses_and_routes()
                self.rtnl.delete_link(link)
            for table, versions in self.rules_before.items():
                for version in versions:
                    put_rules(self.rtnl, closed_rules(version, table))
        finally:
            remove_state(self.config, self.profile.name)
        if any(self.rules_before.values()):
            self.notice(nothing_in_the_clear(self.profile.name))

    def restore(self) -> None:
        """Restore the device to the saved state."""
        if self.before is None:
            return
        spec, link = spec_of(self.before), self.link()
        self.rtnl.set_up(link, spec.mtu)
        sync_addresses(self.rtnl, link, spec)
        sync_routes(self.rtnl, link, spec)

    def set_up(self) -> None:
        self.rtnl.set_up(self.link(), self.spec.mtu)

    def replace_addresses(self) -> None:
        sync_addresses(self.rtnl, self.link(), self.spec, self.previous())

    def replace_routes(self) -> None:
        if self.before is not None and self.before.table not in (0, self.spec.table):
            delete_rules(self.rtnl, self.before.table)
        sync_routes(self.rtnl, self.link(), self.spec)
        marked = any(rules.version == 4 for rules in wanted_rules(self.spec))
        if marked and (strict := strict_devices(self.profile.device)):
            remedy = f"`sysctl net.ipv4.conf.{strict[0]}.rp_filter=2` lets them in"
            self.notice(
                f"rp_filter is strict on {', '.join(strict)}: datagrams of the server may be dropped; {remedy}"
            )

    def remove_addresses_and_routes(self) -> None:
        clear_device(self.rtnl, self.profile.device, self.spec.table, self.previous(), self.rules_before)

    def save(self) -> None:
        save_state(self.config, state_of(self.profile, self.spec.table))


def up_profile(profile: Profile, config: GlobalConfig, *, keep_tun: bool, notice: Notice = print_notice) -> UpResult:
    """Bring the profile up; the caller holds the device (``device_lock.hold_device``).

    With ``keep_tun`` (a daemon) a device that `up` left is taken over, and a TUN lives as long as the returned
    descriptor; without, a persistent device is left, as qre.ko's always is. A refusal changes nothing; after an error
    half-way nothing of the profile is up.
    """
    require_net_admin(f"up {profile.name}")
    if keep_tun and is_held(profile.device, profile.name):  # by a daemon with another RuntimeDir, for example
        raise UserError(f"device {profile.device}", "another process holds it", "stop the daemon that uses it")
    with Rtnl() as rtnl:
        up = _prepare(profile, config, keep_tun, notice, rtnl)
        run_steps(up_steps(up), notice)
    return UpResult(up.tun_fd, up.dataplane, up.spec.table, any(up.rules_before.values()))


def plan_up(profile: Profile, config: GlobalConfig, *, keep_tun: bool = False) -> list[str]:
    """What ``up_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        up = _prepare(profile, config, keep_tun, print_notice, rtnl)
        return plan_of(up_steps(up))


def _prepare(profile: Profile, config: GlobalConfig, keep_tun: bool, notice: Notice, rtnl: Rtnl) -> _Up:
    """Read the present state, and refuse impossible requests; changes nothing."""
    saved = load_state(config, profile.name)
    existing = rtnl.link(profile.device)
    refuse_foreign(profile.device, existing, ALIAS_PREFIX + profile.name)
    if existing is not None and claimed(existing) and not keep_tun:
        remedy = f"use `qre-tool reload {profile.name}` or `qre-tool down {profile.name}`"
        raise UserError(f"profile {profile.name}", f"its device {profile.device} is up already", remedy)
    if saved is not None and (saved.device, saved.role) != (profile.device, profile.role):
        up_as = "is up" if rtnl.link(saved.device) is not None else "was not taken down"
        remedy = f"run `qre-tool down {profile.name}` first"
        raise UserError(f"profile {profile.name}", f"it {up_as} as {saved.device}, a {saved.role}", remedy)
    if profile.dns is not None:
        name_service()  # there is one, or this raises
    spec = _spec(profile, table_of(profile, saved, existing, rtnl, config))
    tables = {spec.table, saved.table if saved is not None else 0} - {0}
    rules = {table: refusing_versions(rtnl, table) for table in tables}
    return _Up(
        profile, config, keep_tun, notice, rtnl, spec, saved, expected_dataplane(config, profile), rules_before=rules
    )


def nothing_in_the_clear(name: str) -> str:
    """The notice when a default route's rules outlive its device."""
    ways = f"`qre-tool up {name}` uses them, `qre-tool down {name}` removes them"
    return f"the rules of the default route stay, and nothing leaves in the clear: {ways}"


def _spec(profile: Profile, table: int) -> DeviceSpec:
    closed = closed_beside(profile.routes, profile.leak_protection)
    return DeviceSpec(profile.device, profile.address, profile.mtu, profile.routes, table, profile.outer, closed)


def dataplane_of(link: Link) -> Dataplane:
    """The data plane that this device belongs to."""
    return Dataplane.KERNEL if link.kind == LINK_KIND else Dataplane.USER


def refuse_other_dataplane(profile: Profile, existing: Link | None, wanted: Dataplane) -> None:
    """Raise when the device exists on the other data plane."""
    if existing is not None and dataplane_of(existing) is not wanted:
        why = f"it is up on the {dataplane_of(existing)} data plane, and the {wanted} one is to be used"
        raise UserError(f"device {profile.device}", why, f"run `qre-tool down {profile.name}` first")


def up_steps(up: _Up) -> list[Step]:
    """The steps of ``up``, in the order of the reference."""
    device, hooks, spec = up.profile.device, up.profile.hooks, up.spec
    steps: list[Step] = []
    if up.before is not None and up.before.names is not None:
        steps.append(Step((f"take back the name servers of {up.before.device}",), up.take_names_back))
    if wants_module(up.config) and (not up.profile.outer_ipv6 or outer_ipv6()):
        alternative = ", or else use the user data plane" if up.config.dataplane is Dataplane.AUTO else ""
        line = f"load {MODULE}.ko (modprobe {MODULE}){alternative}"
    else:
        line = f"use the {up.dataplane} data plane"
    steps.append(Step((line,), up.choose_dataplane, up.give_up))
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


# --- reload ---


def reload_profile(profile: Profile, config: GlobalConfig, *, notice: Notice = print_notice) -> UpResult:
    """Apply a profile's file to its device: qre.ko's settings, MTU, addresses, routes; no hooks, no sessions. The
    device must exist; a saved state is optional.

    The caller holds the device. After an error everything is as it was. ``UpResult.tun_fd`` is None.
    """
    require_net_admin(f"reload {profile.name}")
    with Rtnl() as rtnl:
        up = _prepare_reload(profile, config, rtnl, notice)
        run_steps(reload_steps(up), notice)
    return UpResult(None, up.dataplane, up.spec.table)


def plan_reload(profile: Profile, config: GlobalConfig) -> list[str]:
    """What ``reload_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        return plan_of(reload_steps(_prepare_reload(profile, config, rtnl, print_notice)))


def _prepare_reload(profile: Profile, config: GlobalConfig, rtnl: Rtnl, notice: Notice) -> _Up:
    saved = load_state(config, profile.name)
    device = saved.device if saved is not None else profile.device
    link = rtnl.link(device)
    if link is None:
        raise UserError(f"profile {profile.name}", "it is not up", f"see `qre-tool up {profile.name}`")
    refuse_foreign(device, link, ALIAS_PREFIX + profile.name)
    if saved is not None:
        refuse_replacement(profile, saved, down_and_up(profile.name))
    spec = _spec(profile, table_of(profile, saved, link, rtnl, config))
    before = saved if saved is not None else _found(profile, link, rtnl)
    return _Up(profile, config, False, notice, rtnl, spec, before, dataplane_of(link), had_device=True)


def _found(profile: Profile, link: Link, rtnl: Rtnl) -> ProfileState:
    """The state read from the device itself: our addresses and routes on it, and the rules of its table."""
    table = min(tables_of(rtnl, link), default=0)
    routes = tuple(sorted({prefix for prefix, _ in rtnl.routes(link)}, key=str))
    routed = default_versions(routes)
    return msgspec.structs.replace(
        state_of(profile, table),
        address=tuple(entry.interface for entry in rtnl.addresses(link) if entry.ours),
        mtu=link.mtu,
        allowed_ips=routes,
        closed=tuple(version for version in refusing_versions(rtnl, table) if table and version not in routed),
    )


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
