"""What ``check`` examines of Forward: whether it is done, or could be, and which firewall chains stand in its way."""

from __future__ import annotations

import os
from typing import Any

from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo
from qre.config.model import GlobalConfig, Profile
from qre.ends import Forward
from qre.errors import QreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.kernel.forward.forwarder import IPv6

_NAME = "forward"
_INSTEAD = "the tunnel works without it, but leads to this machine alone"


def forward(loaded: Profile, config: GlobalConfig) -> Findings:
    """As the running daemon says; where none runs, by looking."""
    from qre.cli.show.show import daemon_of
    from qre.kernel.capabilities import require_capabilities
    from qre.kernel.forward.forwarder import Forwarder

    if loaded.server is None or loaded.server.forward is Forward.OFF:
        return
    described = daemon_of(config, loaded.device)
    told = described.get("forward") if described is not None else None
    if told is not None and told["why"]:
        yield Finding(_NAME, YesNo.NO, told["why"], "see docs/configuration.md", _INSTEAD)
        return
    try:
        require_capabilities("nftables", ["CAP_NET_ADMIN"])
        closed = Forwarder(loaded.device).closed()
    except QreError as error:
        answer, remedy = (YesNo.NO, error.remedy) if os.geteuid() == 0 else (YesNo.UNKNOWN, AS_ROOT)
        yield Finding(_NAME, answer, error.why or error.what, remedy, _INSTEAD)
        return
    for chain in closed:
        seen = f"the chain {chain} drops what is forwarded, unless a rule lets it pass"
        place = f"{chain.family} {chain.table} {chain.place}"
        ways = (f"`nft insert rule {place} {way} {loaded.device} accept`" for way in ("iifname", "oifname"))
        yield Finding(_NAME, YesNo.UNKNOWN, seen, " and ".join(ways), _INSTEAD)
    if not closed:
        yield Finding(_NAME, YesNo.YES, _seen(told, loaded.server.forward), instead=_INSTEAD)
    if any(address.version == 6 for address in loaded.address):
        yield from _ipv6(Forwarder(loaded.device).ipv6())


def _ipv6(found: IPv6) -> Findings:
    deaf = [f"net.ipv6.conf.{name.replace('.', '/')}.accept_ra=2" for name in found.deaf]
    if not found.forwarded:
        wanted = " ".join([*deaf, "net.ipv6.conf.all.forwarding=1"])
        seen = "net.ipv6.conf.all.forwarding is off, and QRE leaves this switch of the whole machine alone"
        yield Finding("forward ipv6", YesNo.NO, seen, f"`sysctl {wanted}`", "clients use IPv4")
    elif deaf:
        seen = f"this machine forwards IPv6; no router advertisement is heard any more by {', '.join(found.deaf)}"
        remedy = f"`sysctl {' '.join(deaf)}`, if its address comes from one"
        yield Finding("forward ipv6", YesNo.UNKNOWN, seen, remedy, "clients use IPv4")


def _seen(told: dict[str, Any] | None, mode: Forward) -> str:
    if told is None or told["mode"] == Forward.OFF:
        return f"nothing stands in the way of Forward = {mode}"
    versions = "IPv4 and IPv6" if told["ipv6"] else "IPv4"
    return f"{versions} by {', '.join(told['uplinks'])} ({told['mode']})"
