"""``down``: removes everything of a profile, whether or not its state was saved or the profile is completely up.

In the order of the reference: PreDown, addresses, device, PostDown, state; also what a killed daemon left of its
port. What QRE did not make is left alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qre.addresses import Interface, closed_beside, default_versions, host_port
from qre.config.model import GlobalConfig, Hooks, Profile
from qre.config.server_places import parse_listen
from qre.config.values import DEVICE_LENGTH
from qre.device.control_client import front_path, ready_path, remove_left, runtime_paths
from qre.device.device_lock import is_free, lock_path, port_name
from qre.device.kernel_device import close_sessions, release_port
from qre.device.kernel_module import LOADED
from qre.device.lifecycle import dataplane_of, nothing_in_the_clear, print_notice, require_net_admin
from qre.device.name_servers import NameService, unset_names
from qre.device.route_table import has_table, orphaned_tables
from qre.device.state import ProfileState, load_state, remove_state, state_path, ticket_paths, wipe_file
from qre.device.steps import Notice, Step, hook_steps, plan_of
from qre.ends import Dataplane
from qre.errors import QreError, UserError
from qre.kernel.bpf_pins import paths as pin_paths
from qre.kernel.bpf_pins import places as places_of_pins
from qre.kernel.capabilities import missing_capabilities
from qre.kernel.forward.forwarder import Forwarder
from qre.kernel.netfilter.own_tables import SITE_TCP
from qre.kernel.port_registration import shared_address
from qre.kernel.qre_family import Qre
from qre.kernel.rtnl import Link, Rtnl
from qre.kernel.site_tcp.site_face import SiteFace
from qre.kernel.tun import claimed, is_held, is_ours
from qre.kernel.tunnel import (
    clear_device,
    closed_rules,
    delete_rules,
    put_rules,
    tables_of,
)


@dataclass(frozen=True)
class _Down:
    """One ``down``: of the configured profile, of the saved state, or of both."""

    name: str
    device: str
    hooks: Hooks
    addresses: tuple[Interface, ...]  # to be deleted though they are not marked as ours
    tables: tuple[int, ...]
    #: The IP versions of which nothing may leave in the clear when it is down.
    closed: tuple[int, ...]
    config: GlobalConfig
    rtnl: Rtnl
    link: Link | None  # when it was looked at
    foreign: bool  # the device of this name is not the profile's: another program's, or another profile's
    listen: tuple[str, int] | None  # the shared port that a dead daemon may have left registered
    left: tuple[Path, ...]  # pins, sockets and directories of a dead daemon
    rules: tuple[SiteFace | Forwarder, ...]  # nftables tables that a dead daemon has left
    tickets: tuple[Path, ...]  # session tickets and their keys
    names: NameService | None  # who was told of the tunnel's name servers

    def _link(self) -> Link | None:
        """The device, while it exists and belongs to the profile."""
        link = self.rtnl.link(self.device)
        return link if link is not None and is_ours(link, self.name) else None

    def release(self) -> None:
        if self.listen is not None:
            release_port(self.device, self.listen)

    def remove_left(self) -> None:
        for path in self.left:
            remove_left(path)

    def wipe_tickets(self) -> None:
        for path in self.tickets:
            wipe_file(path)

    def take_names_back(self) -> None:
        if self.names is not None:
            unset_names(self.names, self.device)

    def close(self) -> None:
        link = self._link()
        if link is not None and dataplane_of(link) is Dataplane.KERNEL:
            close_sessions(self.device)

    def clear(self) -> None:
        for table in self.tables:
            for version in self.closed:
                put_rules(self.rtnl, closed_rules(version, table))
            delete_rules(self.rtnl, table, tuple({4, 6}.difference(self.closed)))
        if self._link() is not None:
            kept = dict.fromkeys(self.tables, self.closed)
            clear_device(self.rtnl, self.device, 0, self.addresses, kept)

    def delete_device(self) -> None:
        link = self._link()
        if link is not None:
            self.rtnl.delete_link(link)

    def forget(self) -> None:
        remove_state(self.config, self.name)


def down_profile(
    profile: Profile | str,
    config: GlobalConfig,
    *,
    by_daemon: bool = False,
    closed: bool = False,
    notice: Notice = print_notice,
) -> None:
    """Take the profile down; the caller holds the device. A name alone is given when the profile's file is gone.

    It is not an error when parts, or everything, are gone already. The daemon's own clean-up (``by_daemon``)
    continues after a failing PreDown, and while its workers still hold the device. ``closed``: the rules of a default
    route stay, so that nothing leaves in the clear, and the state with them. The first error is raised when
    everything else is done. A device of that name that is not the profile's is left alone, and the notice says so.
    """
    name = profile if isinstance(profile, str) else profile.name
    require_net_admin(f"down {name}")
    with Rtnl() as rtnl:
        down = _prepare(profile, config, rtnl, by_daemon=by_daemon, closed=closed)
        if not by_daemon and is_held(down.device, name):
            raise _held(down.device, name)
        _tell_foreign(down, notice)
        pre, rest = _steps(down)
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
        if down.closed and down.tables:
            notice(nothing_in_the_clear(name))
    if first is not None:
        raise first


def plan_down(profile: Profile | str, config: GlobalConfig, notice: Notice = print_notice) -> list[str]:
    """What ``down_profile`` would do, one operation a line; changes nothing."""
    with Rtnl() as rtnl:
        down = _prepare(profile, config, rtnl, by_daemon=False)
        _tell_foreign(down, notice)
        pre, rest = _steps(down)
        return plan_of([*pre, *rest])


def _tell_foreign(down: _Down, notice: Notice) -> None:
    if down.foreign:
        notice(f"device {down.device}: QRE did not make it for the profile {down.name}; it is left alone")


def device_up_as(name: str) -> str:
    """The device that a profile of this name has claimed; empty when there is none."""
    with Rtnl() as rtnl:
        return next((link.name for link in rtnl.links() if claimed(link) and is_ours(link, name)), "")


def left_tables(config: GlobalConfig, name: str) -> set[int]:
    """Tables of rules that a killed daemon left, and that belong to nobody else."""
    with Rtnl() as rtnl:
        return orphaned_tables(rtnl, config, name, name)


def _held(device: str, name: str) -> UserError:
    return UserError(f"device {device}", "a daemon holds it", f"stop the daemon first: `systemctl stop qred@{name}`")


def _prepare(
    profile: Profile | str, config: GlobalConfig, rtnl: Rtnl, *, by_daemon: bool, closed: bool = False
) -> _Down:
    """Read the present state; changes nothing."""
    name, configured = (profile, None) if isinstance(profile, str) else (profile.name, profile)
    saved = load_state(config, name)
    device = (
        saved.device if saved else configured.device if configured else device_up_as(name) or name[:DEVICE_LENGTH]
    )
    found = rtnl.link(device) if device else None
    link = found if found is not None and is_ours(found, name) else None
    foreign = found if link is None else None
    another = foreign is not None and is_ours(foreign)  # another profile's, as is what has the device's name
    if link is not None and not by_daemon and os.geteuid() == 0 and is_held(device, name):
        raise _held(device, name)
    listen = None if by_daemon else _port_of(configured, saved)
    pins = [path for place in places_of_pins(config.bpf_pin_dir) for path in pin_paths(place, device)]
    places = [] if by_daemon else [*pins, *runtime_paths(config, name, device)]
    if another:
        places = [path for path in places if path == ready_path(config, name)]
    if listen is not None and is_free(config, port_name(*listen)):  # otherwise it is another daemon's
        places += [front_path(config.runtime_dir, port_name(*listen)), lock_path(config, port_name(*listen))]
    else:
        listen = None
    return _Down(
        name=name,
        device=device,
        hooks=configured.hooks if configured is not None else Hooks(),
        addresses=(*(saved.address if saved is not None else ()), *(configured.address if configured else ())),
        tables=_tables(name, configured, saved, found, rtnl, config, ours=foreign is None),
        closed=_closed(configured) if closed and configured is not None else (),
        config=config,
        rtnl=rtnl,
        link=link,
        foreign=foreign is not None,
        listen=listen if listen is not None and _kernel_has(device, listen) else None,
        # Not Path.exists: that one minds what it may not see.
        left=tuple(path for path in places if os.path.exists(path)),
        rules=() if another else _rules_of(device, configured, saved),
        tickets=() if by_daemon else tuple(path for path in ticket_paths(config, name) if os.path.lexists(path)),
        names=_names_of(saved, foreign),
    )


def _closed(configured: Profile) -> tuple[int, ...]:
    return default_versions(configured.routes) + closed_beside(configured.routes, configured.leak_protection)


def _tables(
    name: str,
    configured: Profile | None,
    saved: ProfileState | None,
    link: Link | None,
    rtnl: Rtnl,
    config: GlobalConfig,
    *,
    ours: bool,
) -> tuple[int, ...]:
    """Tables of the profile's rules. ``ours``: the link is the profile's, or there is none."""
    of_link = tables_of(rtnl, link) if link is not None else set()
    found = set(of_link) if ours else set()
    if saved is not None:
        found |= {saved.table} - {0}
    elif configured is None or has_table(configured):
        found |= orphaned_tables(rtnl, config, name, configured.device if configured is not None else name)
    return tuple(sorted(found if ours else found - of_link))


def _names_of(saved: ProfileState | None, foreign: Link | None) -> NameService | None:
    """Who has to forget the name servers. systemd-resolved forgot them with the device; what it knows of a foreign
    one is not the profile's."""
    if saved is None or (foreign is not None and saved.names is NameService.RESOLVED):
        return None
    return saved.names


def _port_of(configured: Profile | None, saved: ProfileState | None) -> tuple[str, int] | None:
    """Where the profile's server listened, or would."""
    text = (saved.underlay or saved.listen) if saved is not None else ""
    if not text and configured is not None and configured.listen is not None:
        text = str(configured.listen)
    if not text:
        return None
    listen = parse_listen(text)
    return str(listen.ip), listen.port


def _kernel_has(device: str, listen: tuple[str, int]) -> bool:
    """Whether a socket of this address is registered with qre.ko."""
    if not LOADED.exists():
        return False  # asking for the family would make the kernel load the module
    try:
        with Qre() as qre:
            return shared_address(qre, device) == listen
    except QreError:
        return False


def _rules_of(
    device: str, configured: Profile | None, saved: ProfileState | None
) -> tuple[SiteFace | Forwarder, ...]:
    """What a server's daemon has left of its nftables tables; nothing where there is no nftables."""
    if _port_of(configured, saved) is None or not device or missing_capabilities(["CAP_NET_ADMIN"]):
        return ()
    try:
        tables: list[SiteFace | Forwarder] = [SiteFace(device, version) for version in SITE_TCP]
        tables.append(Forwarder(device))
        return tuple(each for each in tables if each.present())
    except QreError:
        return ()


def _steps(down: _Down) -> tuple[list[Step], list[Step]]:
    """The PreDown hooks, whose failure stops `down`, and all later steps, whose failure does not. Lines name what
    exists."""
    device, rest = down.device, []
    if down.names is not None:
        rest.append(Step((f"take back the name servers of {device}",), down.take_names_back))
    if down.link is not None and dataplane_of(down.link) is Dataplane.KERNEL:
        rest.append(Step((f"close the sessions of {device}",), down.close))
    if down.listen is not None:
        rest.append(Step((f"let qre.ko go of UDP {host_port(*down.listen)}",), down.release))
    for each in down.rules:
        rest.append(Step((f"remove nftables table {each.table.name} ({each.table.family})",), each.undo))
    if down.left:
        rest.append(Step(tuple(f"remove {path}" for path in down.left), down.remove_left))
    if down.tickets:
        rest.append(Step(tuple(f"wipe {path}" for path in down.tickets), down.wipe_tickets))
    rest.append(Step(_cleared_lines(down), down.clear))
    rest.append(Step((f"delete device {device}",) if down.link is not None else (), down.delete_device))
    rest += hook_steps("PostDown", down.hooks.post_down, device)
    state = state_path(down.config, down.name)
    if not (down.closed and down.tables):
        rest.append(Step((f"remove state {state}",) if os.path.lexists(state) else (), down.forget))
    return hook_steps("PreDown", down.hooks.pre_down, device), rest


def _cleared_lines(down: _Down) -> tuple[str, ...]:
    lines = [f"delete routes and rules of table {table}" for table in down.tables]
    if down.link is not None:
        lines += [
            f"delete address {entry.interface} from {down.device}"
            for entry in down.rtnl.addresses(down.link)
            if entry.ours or entry.interface in down.addresses
        ]
    return tuple(lines)
