"""What ``check`` examines of a server's TCP ports: who listens there, whether nftables is to be had, what other rules
drop. A tunnel works without all of it, so nothing here is needed."""

from __future__ import annotations

import os
from typing import Any

from qre.addresses import listen_by_version
from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo
from qre.config.model import GlobalConfig, Profile
from qre.errors import QreError
from qre.kernel.netfilter.listening import Listening

_NAMES = {4: "tcp to dest", 6: "tcp over ipv6"}
_INSTEAD = "the tunnel works without it, but a closed TCP port tells it from a site"


def site_tcp(loaded: Profile, config: GlobalConfig) -> Findings:
    """As the running daemon says; where none runs, by looking."""
    from qre.cli.show.show import daemon_of

    if loaded.server is None or loaded.listen is None:
        return
    if config.site_tcp == ():
        yield Finding(_NAMES[4], YesNo.YES, "SiteTcp is off", instead=_INSTEAD)
        return
    described = daemon_of(config, loaded.device)
    for version, addresses in listen_by_version(loaded.listen.addresses).items():
        if described is not None:
            told = described.get("site_tcp")
            yield _as_told(version, None if told is None else [each for each in told if each["ip"] == version])
        else:
            yield _as_seen(loaded, config, Listening(addresses, loaded.listen.port))
        try:
            closed = _closed(loaded, version)
        except QreError:
            return  # said above, or seen by root alone
        if closed:
            seen = f"the chain {closed[0]} drops what is forwarded, unless a rule lets it pass"
            remedy = f"let `ct status dnat` pass in {', '.join(closed)}"
            yield Finding("forwarding", YesNo.UNKNOWN, seen, remedy, _INSTEAD)


def _closed(loaded: Profile, version: int) -> tuple[str, ...]:
    from qre.kernel.capabilities import require_capabilities
    from qre.kernel.site_tcp.site_face import SiteFace

    require_capabilities("nftables", ["CAP_NET_ADMIN"])
    return SiteFace(loaded.device, version).closed()


def _as_told(version: int, ports: list[dict[str, Any]] | None) -> Finding:
    name = _NAMES[version]
    if ports is None:
        return Finding(name, YesNo.UNKNOWN, "the daemon's worker is being restarted", "try again", _INSTEAD)
    missing = [f"TCP port {each['port']}: {each['why']}" for each in ports if each["why"]]
    if missing:
        return Finding(name, YesNo.NO, "; ".join(dict.fromkeys(missing)), "see docs/configuration.md", _INSTEAD)
    passed = ", ".join(str(each["port"]) for each in ports)
    return Finding(name, YesNo.YES, f"TCP {passed} is passed to Dest", instead=_INSTEAD)


def _as_seen(loaded: Profile, config: GlobalConfig, listen: Listening) -> Finding:
    from qre.kernel.site_tcp.listeners import taken_ports
    from qre.kernel.site_tcp.site_face import NO_FORWARDING, TAKEN, Wanted, can_be_sent_on
    from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket

    name = _NAMES[listen.version]
    wanted = Wanted(loaded.device, listen, config.site_tcp, None, 0, 1)
    ports = [port for port, _ in wanted.chosen()]
    try:
        _closed(loaded, listen.version)
        taken = frozenset[int]().union(*map(taken_ports, listen.addresses))
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            sent_on = can_be_sent_on(netlink, listen.version)
    except QreError as error:
        if os.geteuid() != 0:
            return Finding(name, YesNo.UNKNOWN, error.why or error.what, AS_ROOT, _INSTEAD)
        seen = ": ".join(filter(None, (error.what, error.why)))
        return Finding(name, YesNo.NO, seen, error.remedy, _INSTEAD)
    busy = [str(port) for port in ports if port in taken]
    if busy:
        seen = f"TCP port {', '.join(busy)}: {TAKEN}"
        return Finding(name, YesNo.NO, seen, "see `ss -ltp`; it answers in Dest's place", _INSTEAD)
    if not sent_on:
        return Finding(name, YesNo.NO, NO_FORWARDING, "see docs/configuration.md", _INSTEAD)
    return Finding(name, YesNo.YES, f"TCP {', '.join(map(str, ports))} can be passed to Dest", instead=_INSTEAD)
