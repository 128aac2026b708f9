"""What ``check`` examines of a server's TCP ports: who listens there, whether nftables is to be had, what other rules
drop. A tunnel works without all of it, so nothing here is needed."""

from __future__ import annotations

import os
from typing import Any

from qre.addresses import ipv4_of_listen
from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo
from qre.config.model import GlobalConfig, Profile
from qre.errors import QreError

_NAME = "tcp to dest"
_INSTEAD = "the tunnel works without it, but a closed TCP port tells it from a site"


def site_tcp(loaded: Profile, config: GlobalConfig) -> Findings:
    """As the running daemon says; where none runs, by looking."""
    from qre.cli.show.show import daemon_of

    if loaded.server is None or loaded.listen is None:
        return
    if config.site_tcp == ():
        yield Finding(_NAME, YesNo.YES, "SiteTcp is off", instead=_INSTEAD)
        return
    described = daemon_of(config, loaded.device)
    yield _as_told(described.get("site_tcp")) if described is not None else _as_seen(loaded, config)
    try:
        closed = _closed(loaded)
    except QreError:
        return  # said above, or seen by root alone
    if closed:
        seen = f"the chain {closed[0]} drops what is forwarded, unless a rule lets it pass"
        yield Finding(
            "forwarding", YesNo.UNKNOWN, seen, f"let `ct status dnat` pass in {', '.join(closed)}", _INSTEAD
        )


def _closed(loaded: Profile) -> tuple[str, ...]:
    from qre.kernel.capabilities import require_capabilities
    from qre.kernel.site_tcp.site_face import SiteFace

    require_capabilities("nftables", ["CAP_NET_ADMIN"])
    return SiteFace(loaded.device).closed()


def _as_told(ports: list[dict[str, Any]] | None) -> Finding:
    if ports is None:
        return Finding(_NAME, YesNo.UNKNOWN, "the daemon's worker is being restarted", "try again", _INSTEAD)
    missing = [f"TCP port {each['port']}: {each['why']}" for each in ports if each["why"]]
    if missing:
        return Finding(_NAME, YesNo.NO, "; ".join(dict.fromkeys(missing)), "see docs/configuration.md", _INSTEAD)
    passed = ", ".join(str(each["port"]) for each in ports)
    return Finding(_NAME, YesNo.YES, f"TCP {passed} is passed to Dest", instead=_INSTEAD)


def _as_seen(loaded: Profile, config: GlobalConfig) -> Finding:
    from qre.kernel.site_tcp.listeners import taken_ports
    from qre.kernel.site_tcp.site_face import TAKEN, Wanted

    assert loaded.listen is not None
    address = ipv4_of_listen(loaded.listen.ip)
    if address is None:
        seen = "Listen is an IPv6 address, and TCP is passed over IPv4"
        return Finding(_NAME, YesNo.NO, seen, "listen on [::], which takes IPv4, too", _INSTEAD)
    wanted = Wanted(loaded.device, (address, loaded.listen.port), config.site_tcp, None, 0, 1)
    ports = [port for port, _ in wanted.chosen()]
    try:
        _closed(loaded)
        taken = taken_ports(address)
    except QreError as error:
        if os.geteuid() != 0:
            return Finding(_NAME, YesNo.UNKNOWN, error.why or error.what, AS_ROOT, _INSTEAD)
        seen = ": ".join(filter(None, (error.what, error.why)))
        return Finding(_NAME, YesNo.NO, seen, error.remedy, _INSTEAD)
    busy = [str(port) for port in ports if port in taken]
    if busy:
        seen = f"TCP port {', '.join(busy)}: {TAKEN}"
        return Finding(_NAME, YesNo.NO, seen, "see `ss -ltp`; it answers in Dest's place", _INSTEAD)
    return Finding(_NAME, YesNo.YES, f"TCP {', '.join(map(str, ports))} can be passed to Dest", instead=_INSTEAD)
