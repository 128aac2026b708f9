"""What ``--dry-run`` prints is what the run then does: the plan, applied to what was there, gives what is there."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.machine import CLIENT, Machine
from tests.support.network import ip

pytestmark = pytest.mark.root

#: Lines of a plan -> the fact that comes, and those that go.
PLANNED = (
    (r"use the user data plane", "", ""),
    (r"\w+: (echo \w+ >>.*)", "{0}", ""),
    (r"make TUN device (\w+) \(persistent\)", "device {0}", ""),
    (r"set (\w+) up, MTU (\d+)", "up {0} {1}", r"up {0} .*"),
    (r"set address (\S+) on (\w+)", "address {0} {1}", ""),
    (r"delete address (\S+) from (\w+)", "", r"address {0} {1}"),
    (r"route (\S+) to (\w+) in table (\d+)", "route {0} {1} {2}", ""),
    (r"route (\S+) to (\w+)", "route {0} {1} main", ""),
    (r"delete route (\S+) of (\w+)", "", r"route {0} {1} \w+"),
    (r"rule -(\d): not fwmark (\S+) lookup (\d+)", "rule -{0} not fwmark {1} {2}", ""),
    (r"rule -(\d): lookup main suppress_prefixlength (\d+)", "rule -{0} suppress {1} main", ""),
    (r"rule -(\d): fwmark (\S+) lookup main", "rule -{0} fwmark {1} main", ""),
    (r"rule -(\d): not fwmark (\S+) unreachable", "rule -{0} not fwmark {1} unreachable", ""),
    (r"delete rules -(\d) of table \d+", "", r"rule -{0} .*"),
    (r"delete routes and rules of table (\d+)", "", r"rule .*|route \S+ \w+ \w+"),
    (r"delete device (\w+)", "", r"device {0}|up {0} .*|route \S+ {0} \w+"),
    (r"save state to (\S+)", "state {0}", ""),
    (r"remove state (\S+)", "", "state {0}"),
)
HOOKS = ("PreUp", "PostUp", "PreDown", "PostDown")


def profile(machine: Machine, address: str, allowed_ips: str, mtu: int) -> None:
    """Writes it; each hook adds its command to a log when it runs."""
    hooks = "".join(f"{kind} = echo {kind}{n} >>{machine.directory}/log\n" for kind in HOOKS for n in (1, 2))
    text = re.sub("Address = .*", f"Address = {address}", CLIENT)
    machine.write(f"{text}AllowedIPs = {allowed_ips}\nMTU = {mtu}\n{hooks}")


def facts(machine: Machine) -> set[str]:
    """What ``up`` and its like can change, as iproute2 and the file system show it."""
    found = set()
    for link in json.loads(ip("-j", "-d", "addr")):
        if link["ifname"] == "lo":
            continue
        name = link["ifname"]
        found.add(f"device {name}")
        if "UP" in link["flags"]:
            found.add(f"up {name} {link['mtu']}")
        scopes = [entry for entry in link["addr_info"] if entry["scope"] != "link"]
        found |= {f"address {entry['local']}/{entry['prefixlen']} {name}" for entry in scopes}
    for version, everywhere in ((4, "0.0.0.0/0"), (6, "::/0")):
        for route in json.loads(ip("-j", "-d", f"-{version}", "route", "show", "table", "all")):
            if route["protocol"] != "kernel" and route["type"] == "unicast":
                prefix = everywhere if route["dst"] == "default" else route["dst"]
                found.add(f"route {prefix} {route['dev']} {route.get('table', 'main')}")
        for rule in json.loads(ip("-j", f"-{version}", "rule")):
            table = rule["action"] if "action" in rule else rule["table"]
            if "suppress_prefixlen" in rule:
                found.add(f"rule -{version} suppress {rule['suppress_prefixlen']} {table}")
            elif "fwmark" in rule:
                found.add(f"rule -{version} {'not ' if 'not' in rule else ''}fwmark {rule['fwmark']} {table}")
            else:
                assert table in ("main", "local", "default"), rule
    found |= {f"state {path}" for path in machine.config.state_dir.glob("*") if path.is_file()}
    log = machine.directory / "log"
    return found | {f"echo {line} >>{log}" for line in (log.read_text().splitlines() if log.exists() else [])}


def applied(plan: list[str], before: set[str]) -> set[str]:
    facts = set(before)
    for line in plan:
        found = [(matched, comes, goes) for regex, comes, goes in PLANNED if (matched := re.fullmatch(regex, line))]
        assert found, f"a line of another kind: {line}"
        matched, comes, goes = found[0]
        if goes:
            gone = re.compile(goes.format(*map(re.escape, matched.groups())))
            facts = {fact for fact in facts if not gone.fullmatch(fact)}
        if comes:
            facts.add(comes.format(*matched.groups()))
    return facts


def test_the_plan_applied_to_what_was_there_is_what_is_there(machine: Machine) -> None:
    def runs(command: str) -> None:
        before = facts(machine)
        plan = machine.does("--dry-run", command, "tunnel").splitlines()
        assert facts(machine) == before
        machine.does(command, "tunnel")
        assert facts(machine) == applied(plan, before), plan
        hooks = [line.partition(": ")[2] for line in plan if line.partition(": ")[0] in HOOKS]
        log = (machine.directory / "log").read_text().splitlines()
        assert log[len(log) - len(hooks) :] == [words.split()[1] for words in hooks]

    profile(machine, "10.77.0.2/24, fd77::2/64", "0.0.0.0/0, ::/0, 192.168.0.0/16", 1380)
    runs("up")
    profile(machine, "10.77.0.9/24, fd77::2/64", "0.0.0.0/0, 172.16.0.0/12", 1300)
    runs("reload")
    profile(machine, "10.77.0.9/24, fd77::9/64", "::/0, 192.168.0.0/16", 1300)
    runs("reload")
    runs("down")
    profile(machine, "10.77.0.2/24", "192.168.0.0/16", 1380)
    runs("up")
    runs("down")
    assert facts(machine) == {f"echo {kind}{n} >>{machine.directory}/log" for kind in HOOKS for n in (1, 2)}
