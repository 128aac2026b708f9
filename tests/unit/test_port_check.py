"""shared-port-loader-check with Device: counters that cannot be compared are a failure, and never a success."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qre.cli.port import port_check
from qre.cli.port.port_check import _check_counted, _compare
from qre.cli.port.port_fields import CheckFields, Loading
from qre.config.values import parse_ipv4_socket_address
from qre.ends import Role
from qre.errors import MachineError, UserError
from qre.kernel.answers import SharedSocketStatus
from qre.kernel.qre_family import Qre

THERE = SharedSocketStatus(ip="192.0.2.1", port=443, rx=5, passed=7)


def fields(device: str | None) -> CheckFields:
    loading = Loading(Path("/elf"), Path("/pins"), False, 20)
    return CheckFields(loading, parse_ipv4_socket_address("192.0.2.1:443"), device, bytes(20))


def module(role: Role | None) -> Qre:
    """qre.ko with one device of this role, or with none."""
    found = SimpleNamespace(role=role) if role is not None else None
    return cast(Qre, SimpleNamespace(device=lambda _: found))


@pytest.mark.parametrize(("before", "after"), [(None, THERE), (THERE, None), (None, None)])
def test_counters_that_are_missing_are_a_failure(before: Any, after: Any) -> None:
    with pytest.raises(MachineError, match=r"shared socket of qre0: qre\.ko shows no shared socket"):
        _compare(fields("qre0"), before, after, 2)
    _compare(fields(None), None, None, 2)


def test_what_the_kernel_counted_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    counted = SharedSocketStatus(ip="192.0.2.1", port=443, rx=5, passed=9)
    _compare(fields("qre0"), THERE, counted, 2)
    assert "ok the kernel counted 2 packets in slot 1" in capsys.readouterr().out
    for wrong in (THERE, SharedSocketStatus(ip="192.0.2.1", port=443, rx=6, passed=9)):
        with pytest.raises(MachineError, match="of 2 packets in slot 1"):
            _compare(fields("qre0"), THERE, wrong, 2)


@pytest.mark.parametrize("role", [None, Role.CLIENT])
def test_a_device_without_counters_is_refused_before_anything_is_set_up(
    monkeypatch: pytest.MonkeyPatch, role: Role | None
) -> None:
    monkeypatch.setattr(port_check, "port_counters", lambda _: "qre0: it has no shared port")
    with pytest.raises(UserError, match=r"field Device: qre0 is not a server's device of qre\.ko"):
        _check_counted("qre0", module(role))
    _check_counted("qre0", module(Role.SERVER))


def test_without_the_module_nothing_counts() -> None:
    with pytest.raises(UserError, match="it is not loaded; load it with `modprobe qre`, or leave Device out"):
        _check_counted("qre0", None)
