"""docs/privsep.md says what the tables in the code say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qre.ipc.messages import Party
from qre.ipc.roles import CAP_BPF, CAP_NET_ADMIN, ROLES, Calls, WorkerRole
from qre.supervisor.members.routes import ROUTES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "privsep.md").read_text()
CAPABILITIES = {CAP_BPF: "CAP_BPF", CAP_NET_ADMIN: "CAP_NET_ADMIN"}


def rows(heading: str) -> dict[str, list[list[str]]]:
    """First cell -> the other cells of each row of the tables below a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found: dict[str, list[list[str]]] = {}
    for line in section.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(first, []).append(rest)
    return found


def words(cell: str) -> set[str]:
    return set() if cell in ("none", "nothing") else set(cell.split(", "))


@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
def test_users_and_capabilities(role: WorkerRole) -> None:
    user, capabilities, *_ = rows("Processes")[role.party][0]
    assert user == f"{role.user} ({role.uid})"
    assert words(capabilities) == {CAPABILITIES[number] for number in role.capabilities}


@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
def test_calls_families_files_and_descriptors(role: WorkerRole) -> None:
    calls, sockets, files = rows("What a worker gives up, in this order")[role.party][0]
    assert words(calls) == {group.name for group in role.calls if group is not Calls.RUN}
    assert words(sockets) == {kind.name for kind in role.sockets}
    assert (files == "none") is not bool(role.readable)
    takes, offers = rows("Descriptors")[role.party][0]
    assert words(takes) == {expected.name for expected in role.descriptors}
    assert words(offers) == set(role.offers)


def test_messages() -> None:
    found = set()
    for sender, cells in rows("Messages").items():
        for names, to, how in cells:
            if sender == "from":
                continue
            request = how.startswith("request; ")
            found |= {(sender, name, to, request, how.removeprefix("request; ")) for name in names.split(", ")}
    assert found == {
        (sender.value, kind.__name__, route.to.value, route.request, route.when.value)
        for sender, row in ROUTES.items()
        for kind, route in row.items()
    }
    assert set(rows("Messages")) == {"from", *(party.value for party in Party if party is not Party.SUPERVISOR)}
