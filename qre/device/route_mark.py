"""The mark of a profile's default route, which is also the number of its table: found again, or chosen.

A mark's owner is known from the profile's saved state and from the routes through its device, never from rules alone.
Rules without either were left by a killed daemon or a failed start: they keep packets from leaving in the clear until
the profile is up again or `down` removes them.
"""

from __future__ import annotations

from qre.config.model import GlobalConfig, Profile
from qre.device.state import ProfileState, load_state, saved_profiles
from qre.errors import QreError
from qre.kernel.rtnl import Link, Rtnl
from qre.kernel.tun import is_ours
from qre.kernel.tunnel import choose_fwmark, default_versions, marks_in_rules, marks_of


def mark_of(profile: Profile, saved: ProfileState | None, link: Link | None, rtnl: Rtnl, config: GlobalConfig) -> int:
    """The profile's mark, or a free one; 0 when it has no default route."""
    if not default_versions(profile.routes):
        return 0
    if saved is not None and saved.fwmark:
        return saved.fwmark
    found = marks_of(rtnl, link) if link is not None else set()
    return min(found or orphaned_marks(rtnl, config, profile.name, profile.device), default=0) or choose_fwmark(rtnl)


def orphaned_marks(rtnl: Rtnl, config: GlobalConfig, name: str, device: str) -> set[int]:
    """Marks of rules that no other profile's state and no other device's route accounts for; none when a state cannot
    be read."""
    marks = marks_in_rules(rtnl)
    if not marks:
        return set()
    try:
        others = [load_state(config, other) for other in saved_profiles(config) if other != name]
    except QreError:
        return set()
    marks -= {state.fwmark for state in others if state is not None}
    for link in rtnl.links():
        if link.name != device and is_ours(link):
            marks -= marks_of(rtnl, link)
    return marks
