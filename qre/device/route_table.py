"""The routing table of a profile's device, found again or chosen: for routes that the tunnel's own packets avoid.

A table's owner is known from the profile's saved state and from the routes through its device, never from rules
alone. Rules without either were left by a killed daemon or a failed start: they keep packets from leaving in the
clear until the profile is up again or `down` removes them.
"""

from __future__ import annotations

from qre.config.model import GlobalConfig, Profile
from qre.device.state import ProfileState, load_state, saved_profiles
from qre.errors import QreError
from qre.kernel.rtnl import Link, Rtnl
from qre.kernel.tun import is_ours
from qre.kernel.tunnel import choose_table, needs_table, tables_in_rules, tables_of


def has_table(profile: Profile) -> bool:
    """Whether AllowedIPs have a default route, or may cover the server."""
    return needs_table(profile.routes, profile.outer)


def table_of(
    profile: Profile, saved: ProfileState | None, link: Link | None, rtnl: Rtnl, config: GlobalConfig
) -> int:
    """The profile's table, or a free one; 0 when it needs none."""
    if not has_table(profile):
        return 0
    if saved is not None and saved.table:
        return saved.table
    found = tables_of(rtnl, link) if link is not None else set()
    return min(found or orphaned_tables(rtnl, config, profile.name, profile.device), default=0) or choose_table(rtnl)


def chosen_table(profile: Profile, config: GlobalConfig) -> int:
    """The table for a profile that is up and had none so far; 0 when it still needs none."""
    with Rtnl() as rtnl:
        return table_of(profile, None, rtnl.link(profile.device), rtnl, config)


def orphaned_tables(rtnl: Rtnl, config: GlobalConfig, name: str, device: str) -> set[int]:
    """Tables in rules that no other profile's state and no other device's route accounts for; none when a state
    cannot be read."""
    tables = tables_in_rules(rtnl)
    if not tables:
        return set()
    try:
        others = [load_state(config, other) for other in saved_profiles(config) if other != name]
    except QreError:
        return set()
    tables -= {state.table for state in others if state is not None}
    for link in rtnl.links():
        if link.name != device and is_ours(link):
            tables -= tables_of(rtnl, link)
    return tables
