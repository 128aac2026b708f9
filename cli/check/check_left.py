"""What ``check`` says of rules and name servers that a client's daemon left: nothing is reachable, or no name is
found, and nothing runs that says why."""

from __future__ import annotations

from qre.cli.check.findings import Finding, Findings, YesNo
from qre.config.model import GlobalConfig, Profile
from qre.device.control_client import daemon_runs
from qre.device.lifecycle_down import left_tables
from qre.device.name_servers import names_are_set
from qre.device.state import load_state
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


def left_names(loaded: Profile, config: GlobalConfig) -> Findings:
    """Nothing while a daemon runs, or where none left its name servers. A killed one could not take them back."""
    state = load_state(config, loaded.name)
    if state is None or state.names is None or daemon_runs(config, state.device):
        return
    if names_are_set(state.names, state.device):
        seen = f"a daemon that was killed left its name servers with {state.names}: this machine may find no name"
        remedy = f"start the profile, or give it up: `qre-tool down {loaded.name}`"
        yield Finding("left names", YesNo.NO, seen, remedy)
