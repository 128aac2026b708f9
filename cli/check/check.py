"""``check``: can this machine run QRE, and with PROFILE: can that profile run now? Changes nothing, needs no root.

Each item is one line. The exit status is 0 when everything that is needed is available; an item that could not be
examined counts as missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from qre.cli.check import (
    check_dest,
    check_firewall,
    check_forward,
    check_left,
    check_machine,
    check_profile,
    check_replay_store,
    check_site_tcp,
)
from qre.cli.check.findings import Finding, YesNo, look
from qre.cli.commands import Options
from qre.cli.show.columns import folded
from qre.cli.show.show_text import clean
from qre.config.values import check_profile_name
from qre.ends import Role
from qre.errors import MachineError

_COLOURS = {YesNo.YES: "\033[32m", YesNo.NO: "\033[31m", YesNo.UNKNOWN: "\033[33m"}
_NOT_NEEDED, _PLAIN = "\033[33m", "\033[0m"
_WIDTH = max(map(len, YesNo))


def check(arguments: list[str], options: Options) -> int:
    """``check [PROFILE]``, ``check --ready PROFILE``."""
    if "--ready" in options.flags:
        from qre.cli.check.ready import ready

        return ready(arguments, options)
    name = check_profile_name(arguments[0]) if arguments else None
    if options.json:
        found = list(findings(name))
        items = [_item(finding) for finding in found]
        able = not any(finding.stops for finding in found)
        print(json.dumps({"version": 1, "able": able, "profile": name, "items": items}, indent=2, sort_keys=True))
    else:
        found = _printed(findings(name))
    stopping = [finding for finding in found if finding.stops]
    if not stopping:
        return 0
    what = f"profile {name}" if name else "this machine"
    known = [finding.name for finding in stopping if finding.answer is YesNo.NO]
    if known:
        raise MachineError(what, f"not ready: {', '.join(known)}", "see their remedies")
    unseen = ", ".join(finding.name for finding in stopping)
    raise MachineError(what, f"cannot be determined: {unseen}", "see their remedies")


def findings(name: str | None) -> Iterator[Finding]:
    """Of the machine and all profiles, or of what one profile needs."""
    config, global_file = check_profile.global_file()
    loaded, own = check_profile.profile(name, config) if name else (None, None)
    role = loaded.role if loaded is not None else None
    yield from check_machine.packages()
    yield from look("kernel module", lambda: check_machine.kernel_module(config))
    yield from look("tun device", lambda: check_machine.tun(config))
    yield from look("capabilities", lambda: check_machine.capabilities(role))
    if role is not Role.CLIENT:
        library = check_machine.bcc(role)
        yield library
        yield from look("bpf", lambda: check_machine.bpf(config, library.answer is YesNo.YES))
    yield from look("service users", check_machine.users)
    yield global_file
    if own is None:
        yield from check_profile.profiles(config)
        return
    yield own
    if loaded is None:
        return
    device = loaded.device
    yield from look("tunnel", lambda: check_profile.tunnel(device, config))
    addressed = loaded
    yield from look("ipv6", lambda: check_profile.ipv6(addressed))
    yield from look("default route", lambda: check_profile.default_route(addressed))
    if (server := loaded.server) is not None:
        profile = loaded
        yield from look("listen", lambda: check_profile.listen(profile, server, config))
        yield from look("firewall", lambda: check_firewall.firewall(profile))
        yield from look("tcp to dest", lambda: check_site_tcp.site_tcp(profile, config))
        yield from look("icmp errors", check_machine.icmp_errors)
        yield from look("forward", lambda: check_forward.forward(profile, config))
        if (store := server.replay_store) is not None:
            place = store
            yield from look("replay store", lambda: check_replay_store.replay_store(place))
        yield from look("dest", lambda: check_dest.dest(profile))
    if (client := loaded.client) is not None:
        yield from look("left rules", lambda: check_left.left_rules(addressed, config))
        yield from look("left names", lambda: check_left.left_names(addressed, config))
        yield from look("endpoint", lambda: check_profile.endpoint(client))
        yield from look("dns", lambda: check_profile.dns(client))


def _printed(found: Iterator[Finding]) -> list[Finding]:
    """Print each as soon as it is known: a visit to Dest takes its time."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    kept = []
    for finding in found:
        kept.append(finding)
        print(line(finding, colour=colour), flush=True)
    return kept


def line(finding: Finding, *, colour: bool) -> str:
    """``no   bpf pins         /sys/fs/bpf: not a BPF file system; mount -t bpf bpf /sys/fs/bpf``."""
    answer = f"{finding.answer:<{_WIDTH}}"
    if colour:
        chosen = _NOT_NEEDED if finding.answer is YesNo.NO and not finding.needed else _COLOURS[finding.answer]
        answer = f"{chosen}{answer}{_PLAIN}"
    missing = finding.answer is not YesNo.YES
    parts = [finding.seen, f"not needed: {finding.instead}" if missing and finding.instead else ""]
    parts.append(finding.remedy if missing else "")
    head = f"  {finding.name:<16} "
    return f"{answer}{head}{folded(clean('; '.join(filter(None, parts))), _WIDTH + len(head))}"


def _item(finding: Finding) -> dict[str, object]:
    return {
        "item": finding.name,
        "answer": "unknown" if finding.answer is YesNo.UNKNOWN else finding.answer.value,
        "needed": finding.needed,
        "seen": clean(finding.seen),
        "instead": finding.instead or None,
        "remedy": clean(finding.remedy) or None,
    }
