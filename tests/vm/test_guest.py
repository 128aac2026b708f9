"""What the other tests take for granted of the guest: its answers are whole, it goes on, this machine is safe."""

from __future__ import annotations

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(600)


def test_a_script_s_status_and_every_byte_that_it_prints_come_back(vm: Vm) -> None:
    status, printed = vm.run("printf 'one\\ntwo\\\\x QRE-1-END\\n'; echo three >&2; exit 7")
    assert (status, printed) == (7, "one\ntwo\\x QRE-1-END\nthree\n")
    status, printed = vm.run("head -c 300000 /dev/zero | tr '\\0' x")
    assert status == 0 and printed == "x" * 300_000


def test_a_script_that_hangs_is_ended_and_the_next_one_runs(vm: Vm) -> None:
    status, _ = vm.run("sleep 1000", timeout=2)
    assert status == 124
    assert vm.check("echo next") == "next\n"


def test_this_machine_s_files_cannot_be_changed_from_inside(vm: Vm) -> None:
    status, _ = vm.run(f"touch {__file__}")
    assert status != 0
    vm.check("touch /tmp/own && rm /tmp/own")
