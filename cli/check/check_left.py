"""What ``check`` says of rules that a client's daemon left: nothing is reachable, and nothing runs that says why."""

from __future__ import annotations

from qre.cli.check.findings import Finding, Findings, YesNo
from qre.config.model import GlobalConfig, Profile
from qre.device.lifecycle_down import left_tables
from qre.kernel.rtnl import Rtnl


def left_rules(loaded: Profile, config: GlobalConfig) -> Findings:
    """Nothing for a profile that is up, or that left no rules."""
    with Rtnl() as rtnl:
        if rtnl.link(loaded.device) is not None:
            return
    if left_tables(config, loaded.name):
        seen = "a daemon that failed or was killed left the rules of its default route: nothing leaves this machine"
        remedy = f"start the profile, or give it up: `qre-tool down {loaded.name}`"
        yield Finding("left rules", YesNo.NO, seen, remedy)
