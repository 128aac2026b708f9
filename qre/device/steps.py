"""The steps of ``up``, ``down`` and ``reload``: lines of the plan, the action, its undo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qre.device.hooks import hook_command, run_hook
from qre.device.state import ProfileState
from qre.errors import QreError
from qre.kernel.rtnl import MAIN_TABLE, Rule
from qre.kernel.tunnel import DeviceSpec, wanted_routes, wanted_rules

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """Operations that are done together: their lines of the plan, the action, its undo.

    ``undo`` is also called after an action that failed half-way.
    """

    lines: tuple[str, ...]
    do: Callable[[], None]
    undo: Callable[[], None] | None = None


def plan_of(steps: Sequence[Step]) -> list[str]:
    """One operation a line."""
    return [line for step in steps for line in step.lines]


def run_steps(steps: Sequence[Step], notice: Notice) -> None:
    """Do the steps; when one fails, undo in reverse and raise its error. A failing undo is reported."""
    begun: list[Step] = []
    try:
        for step in steps:
            begun.append(step)
            step.do()
    except BaseException:
        for step in reversed(begun):
            if step.undo is None:
                continue
            try:
                step.undo()
            except (QreError, OSError) as error:
                notice(f"undoing `{step.lines[0] if step.lines else 'a step'}`: {error}")
        raise


def hook_steps(kind: str, commands: tuple[str, ...], device: str) -> list[Step]:
    """One step a hook."""

    def step(command: str) -> Step:
        return Step((f"{kind}: {hook_command(command, device)}",), lambda: run_hook(kind, command, device))

    return [step(command) for command in commands]


def address_lines(before: ProfileState | None, spec: DeviceSpec) -> tuple[str, ...]:
    """The plan's lines for addresses: those that go, then those that come."""
    gone = [] if before is None else [address for address in before.address if address not in spec.addresses]
    return (
        *(f"delete address {address} from {spec.device}" for address in gone),
        *(f"set address {address} on {spec.device}" for address in spec.addresses),
    )


def route_lines(before: ProfileState | None, spec: DeviceSpec) -> tuple[str, ...]:
    """The plan's lines for routes and rules."""
    lines = []
    for prefix, table in wanted_routes(spec):
        where = "" if table == MAIN_TABLE else f" in table {table}"
        lines.append(f"route {prefix} to {spec.device}{where}")
    sets = wanted_rules(spec)
    for each in sets:
        lines += [rule_line(rule) for rule in each.placed(0)]
    if before is not None:
        old = spec_of(before)
        kept = {prefix for prefix, _ in wanted_routes(spec)}
        for prefix, _ in wanted_routes(old):
            if prefix not in kept:
                lines.append(f"delete route {prefix} of {spec.device}")
        for version in {each.version for each in wanted_rules(old)}.difference(each.version for each in sets):
            lines.append(f"delete rules -{version} of table {old.table}")
    return tuple(lines)


def spec_of(state: ProfileState) -> DeviceSpec:
    """The device that a saved state describes."""
    return DeviceSpec(
        state.device, state.address, state.mtu, state.allowed_ips, state.table, state.outer, state.closed
    )


def rule_line(rule: Rule) -> str:
    """A rule in the words of ip-rule(8), without its priority."""
    table = "main" if rule.table == MAIN_TABLE else str(rule.table)
    mark = f"{'not ' if rule.inverted else ''}fwmark {rule.fwmark:#x} " if rule.fwmark else ""
    suppress = f" suppress_prefixlength {rule.suppress}" if rule.suppress is not None else ""
    return f"rule -{rule.version}: {mark}" + ("unreachable" if rule.unreachable else f"lookup {table}{suppress}")
