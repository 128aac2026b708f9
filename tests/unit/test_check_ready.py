"""The health check: what a daemon says of itself decides, and without one nothing is ready."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qre.cli.check.ready import why_not
from qre.cli.main import main
from tests.support.json_schemas import check_against_schema
from tests.support.profiles import CLIENT, write_profile
from tests.unit.test_show_text import SERVER

READY = {
    "role": "server", "up": True, "status": "serving, 1 session", "link_up": True, "sessions": [{"health": "silent"}],
    "processes": [{"role": "handshake", "stage": "ready"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"processes": [{"role": "handshake", "stage": "dead"}]}, "workers are being started: handshake"),
        ({"up": False, "status": "Dest is down: nobody gets an answer"}, "Dest is down: nobody gets an answer"),
        ({"up": False, "status": ""}, "it is not up"),
        ({"link_up": False}, "the device is down"),
        ({"link_up": None}, ""),  # it is being asked
        ({"role": "client", "status": "connected; nothing has come back for 12 s"},
         "connected; nothing has come back for 12 s"),
        ({"role": "client", "sessions": [{"health": "silent"}, {"health": None}]}, ""),
    ],
)  # fmt: skip
def test_what_is_not_ready_says_why(changes: dict[str, Any], why: str) -> None:
    assert why_not({**SERVER, **READY, **changes}) == why


def test_without_a_daemon_nothing_is_ready(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(machine / "dev", "client0", CLIENT)
    assert main(["check", "--ready", "client0"]) == 2
    assert capsys.readouterr().err == (
        "qre-tool: profile client0 : not ready: no daemon runs; see `qre-tool show client0`\n"
    )
    assert main(["--json", "check", "--ready", "client0"]) == 2
    told = json.loads(capsys.readouterr().out)
    check_against_schema("check-ready", told)
    assert (told["ready"], told["status"]) == (False, "no daemon runs")
    assert main(["check", "--ready"]) == 2
    assert "PROFILE is missing" in capsys.readouterr().err
