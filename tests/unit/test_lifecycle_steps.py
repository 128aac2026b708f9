"""Steps: done in order, undone in reverse, the first error reported. Netlink answers: checked byte by byte."""

from __future__ import annotations

import errno
import re
import struct
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.config.model import GlobalConfig, HostPort, Listen, Profile
from qre.device import kernel_module
from qre.device.kernel_device import settings_of
from qre.device.kernel_module import choose_dataplane, expected_dataplane, load_module, wants_module
from qre.device.state import state_of
from qre.device.steps import Step, address_lines, plan_of, route_lines, run_steps, spec_of
from qre.ends import Dataplane
from qre.errors import MachineError, UserError
from qre.kernel import qre_family
from qre.kernel.socket import NetlinkRefusedError, raise_refusal, split_messages
from qre.kernel.tunnel import wanted_rules
from qre.supervisor.parent import process_settings
from qre.supervisor.parent.process_settings import worker_config
from tests.support.profile_values import client_profile, server_profile

NLMSG_ERROR, NLMSG_DONE, CAPPED, TLVS = 2, 3, 0x100, 0x200


class Diary:
    """Steps that write down what happens to them."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, name: str, *, fails: bool = False, undo_fails: bool = False) -> Step:
        def do() -> None:
            self.said.append(name)
            if fails:
                raise UserError(name, "failed")

        def undo() -> None:
            self.said.append(f"undo {name}")
            if undo_fails:
                raise MachineError(f"undo {name}", "failed")

        return Step((f"line of {name}",), do, undo)


def test_steps_are_done_in_order_and_nothing_is_undone_when_all_succeed() -> None:
    diary = Diary()
    run_steps([diary.step("a"), diary.step("b")], diary.said.append)
    assert diary.said == ["a", "b"]


def test_after_a_failure_the_begun_steps_are_undone_in_reverse_and_the_rest_never_begins() -> None:
    diary = Diary()
    with pytest.raises(UserError, match="b: failed"):
        run_steps([diary.step("a"), diary.step("b", fails=True), diary.step("c")], diary.said.append)
    assert diary.said == ["a", "b", "undo b", "undo a"]


def test_what_cannot_be_undone_is_told_and_the_undoing_goes_on() -> None:
    diary = Diary()
    steps = [diary.step("a"), diary.step("b", undo_fails=True), diary.step("c", fails=True)]
    with pytest.raises(UserError, match="c: failed"):
        run_steps(steps, diary.said.append)
    assert diary.said[3:] == ["undo c", "undo b", "undoing `line of b`: undo b: failed", "undo a"]


def test_a_keyboard_interrupt_undoes_too() -> None:
    diary = Diary()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps([diary.step("a"), Step((), interrupt)], diary.said.append)
    assert diary.said == ["a", "undo a"]


def test_a_plan_has_one_operation_a_line_old_addresses_first_and_old_routes_last() -> None:
    old = state_of(client_profile(address=("10.1.0.2/24",), allowed_ips=("0.0.0.0/0", "10.9.0.0/16")), 7)
    new = spec_of(state_of(client_profile(address=("10.2.0.2/24",), allowed_ips=("::/0", "10.9.0.0/16")), 7))
    assert plan_of([Step(address_lines(old, new), lambda: None), Step(route_lines(old, new), lambda: None)]) == [
        "delete address 10.1.0.2/24 from qre0",
        "set address 10.2.0.2/24 on qre0",
        "route 10.9.0.0/16 to qre0",
        "route ::/0 to qre0 in table 7",
        "rule -6: lookup main suppress_prefixlength 0",
        "rule -6: not fwmark 0x515245 lookup 7",
        "rule -6: not fwmark 0x515245 unreachable",
        "rule -6: fwmark 0x515245 lookup main",
        "delete route 0.0.0.0/0 of qre0",
        "delete rules -4 of table 7",
    ]


def test_a_tunnel_for_all_of_ipv4_closes_ipv6_beside_it_unless_that_is_off_or_goes_in_too() -> None:
    def closed(prefixes: tuple[str, ...], *, on: bool = True) -> tuple[int, ...]:
        profile = client_profile(allowed_ips=prefixes)
        assert profile.client is not None
        made = profile.replace(client=profile.client.replace(leak_protection=on))
        return tuple(rules.version for rules in wanted_rules(spec_of(state_of(made, 7))) if rules.refuse)

    assert closed(("0.0.0.0/0",)) == closed(("0.0.0.0/1", "128.0.0.0/1", "fd00::/8")) == (4, 6)
    assert closed(("0.0.0.0/0",), on=False) == (4,)
    assert closed(("::/0",)) == (6,)
    assert closed(("10.0.0.0/8",)) == ()
    assert closed(("0.0.0.0/0", "::/0")) == (4, 6)


# --- which data plane ---


def test_the_module_is_wanted_unless_it_is_switched_off_or_the_user_data_plane_is_asked_for() -> None:
    assert wants_module(GlobalConfig())
    assert not wants_module(GlobalConfig(module_load=False))
    assert not wants_module(GlobalConfig(dataplane=Dataplane.USER))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo modprobe: FATAL: Module qre not found. >&2; exit 1", "modprobe: FATAL: Module qre not found."),
        ("exit 3", "modprobe qre failed with exit status 3"),
        (None, "there is no modprobe on this machine"),
    ],
)
def test_why_the_module_could_not_be_loaded_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    if script is not None:
        program = tmp_path / "modprobe"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_module() == reason
    notices: list[str] = []
    assert choose_dataplane(GlobalConfig(), client_profile(), notices.append) is Dataplane.USER
    assert notices == [f"qre.ko is not used ({reason}): the user data plane is used"]
    with pytest.raises(MachineError, match=r"Dataplane = kernel"):
        choose_dataplane(GlobalConfig(dataplane=Dataplane.KERNEL), client_profile(), notices.append)


class LoadedModule:
    """What asks the kernel, where a module is loaded that sends outer packets of IPv6, or one of before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, outer_ipv6: bool) -> None:
        self.outer_ipv6 = outer_ipv6
        self.splits = True
        monkeypatch.setattr(kernel_module, "LOADED", Path("/"))
        monkeypatch.setattr(kernel_module, "why_closed", lambda: "")
        for asked in (qre_family, process_settings):
            monkeypatch.setattr(asked, "Qre", lambda: self)

    def __enter__(self) -> LoadedModule:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("listens", [True, False], ids=["server", "client"])
def test_a_profile_of_ipv6_gets_a_module_that_sends_it(listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    LoadedModule(monkeypatch, outer_ipv6=True)
    profile = with_ipv6(listens)
    notices: list[str] = []
    assert expected_dataplane(GlobalConfig(), profile) is Dataplane.KERNEL
    assert choose_dataplane(GlobalConfig(), profile, notices.append) is Dataplane.KERNEL
    assert notices == []
    assert worker_config(profile, GlobalConfig(), None, Dataplane.KERNEL).outer_version == 0
    assert settings_of(profile).listen == (("::", 443) if listens else None)


@pytest.mark.parametrize("listens", [True, False], ids=["server", "client"])
def test_a_profile_of_ipv6_beside_an_older_module_gets_the_user_data_plane_or_is_refused(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    LoadedModule(monkeypatch, outer_ipv6=False)
    profile = with_ipv6(listens)
    notices: list[str] = []
    assert expected_dataplane(GlobalConfig(), profile) is Dataplane.USER
    assert choose_dataplane(GlobalConfig(), profile, notices.append) is Dataplane.USER
    why = "the one that is loaded is older: its outer packets are IPv4, and this profile's are IPv6"
    assert notices == [f"qre.ko is not used ({why}): the user data plane is used"]
    assert choose_dataplane(GlobalConfig(dataplane=Dataplane.USER), profile, notices.append) is Dataplane.USER
    refused = f"qre.ko is not to be used: {why}; load the module anew (`rmmod qre`), set Dataplane = auto or user, "
    with pytest.raises(UserError, match=re.escape(refused)):
        choose_dataplane(GlobalConfig(dataplane=Dataplane.KERNEL), profile, notices.append)
    with pytest.raises(UserError, match=re.escape(refused)):  # a reload of a daemon on qre.ko
        worker_config(profile, GlobalConfig(), None, Dataplane.KERNEL)
    with pytest.raises(UserError, match=re.escape(refused)):  # syncconf, set
        settings_of(profile)
    ipv4 = worker_config(client_profile(), GlobalConfig(), None, Dataplane.KERNEL)
    assert ipv4.outer_version == 4, "of a name, no other address is tried"


def with_ipv6(listens: bool) -> Profile:
    profile = server_profile() if listens else client_profile()
    if profile.server is not None:
        return profile.replace(server=profile.server.replace(listen=Listen((IPv6Address("::"),), 443)))
    assert profile.client is not None
    return profile.replace(client=profile.client.replace(endpoint=HostPort("2001:db8::1", 443)))


# --- answers of the kernel ---


def error_message(code: int, *, flags: int = 0, quoted: bytes = b"", attributes: bytes = b"") -> bytes:
    request = struct.pack("=IHHII", 16 + len(quoted), 16, 1, 1, 0)
    body = struct.pack("=i", -code) + request + (b"" if flags & CAPPED else quoted) + attributes
    return struct.pack("=IHHII", 16 + len(body), NLMSG_ERROR, flags, 1, 0) + body


def text_attribute(text: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(text), 1) + text + bytes(-len(text) % 4)


@pytest.mark.parametrize("flags", [TLVS, TLVS | CAPPED])
def test_a_refusal_carries_the_kernels_explanation(flags: int) -> None:
    message = error_message(errno.EINVAL, flags=flags, quoted=bytes(8), attributes=text_attribute(b"mtu too small\0"))
    with pytest.raises(NetlinkRefusedError) as caught:
        raise_refusal("setting up qre0", NLMSG_ERROR, flags, message)
    assert str(caught.value) == "setting up qre0: Invalid argument (mtu too small)"
    assert caught.value.code == errno.EINVAL


def test_a_missing_capability_is_named() -> None:
    with pytest.raises(NetlinkRefusedError, match="CAP_NET_ADMIN is missing"):
        raise_refusal("x", NLMSG_ERROR, 0, error_message(errno.EPERM))


def test_an_impossible_error_number_is_still_an_error() -> None:
    with pytest.raises(NetlinkRefusedError):
        raise_refusal("x", NLMSG_DONE, 0, struct.pack("=IHHIIi", 20, NLMSG_DONE, 0, 1, 0, -(1 << 31)))


def refusal(kind: int, flags: int, message: bytes) -> MachineError | None:
    """The error that an answer is; None: it is a success."""
    try:
        raise_refusal("x", kind, flags, message)
    except MachineError as error:
        return error
    return None


def test_an_acknowledgement_is_no_error() -> None:
    assert refusal(NLMSG_ERROR, 0, error_message(0)) is None
    assert refusal(NLMSG_DONE, 0, struct.pack("=IHHIIi", 20, NLMSG_DONE, 0, 1, 0, 0)) is None


@settings(max_examples=80)
@given(st.binary(max_size=96), st.integers(0, 0xFFFF))
def test_no_answer_whatever_its_bytes_does_anything_but_parse_or_be_a_machine_error(data: bytes, flags: int) -> None:
    for kind in (NLMSG_ERROR, NLMSG_DONE):
        assert isinstance(refusal(kind, flags, data), MachineError | None)
        try:
            whole = sum(len(message) for *_, message in split_messages("x", data))
        except MachineError:
            continue
        assert whole <= len(data)
