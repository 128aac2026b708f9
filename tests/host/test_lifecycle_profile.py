"""up, down and reload on real TUN devices: order, rollback at every step, takeover, plans that change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

import qre.device.kernel_module
import qre.device.lifecycle
import qre.device.lifecycle_down
from qre.config.model import GlobalConfig, Hooks, Profile
from qre.device.kernel_module import LOADED, MODULE
from qre.device.lifecycle import plan_reload, plan_up, reload_profile, up_profile
from qre.device.lifecycle_down import down_profile, plan_down
from qre.device.name_servers import NameService
from qre.device.state import load_state, save_state, state_of, state_path
from qre.ends import Dataplane
from qre.errors import MachineError, QreError, UserError
from qre.kernel.rtnl import Link, Rtnl, Rule
from tests.support.daemons import wait_for
from tests.support.network import everything, ip
from tests.support.profile_values import client_profile, global_config, server_profile

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("network")]


@pytest.fixture
def config(tmp_path: Path) -> GlobalConfig:
    return global_config(tmp_path)


def full_profile(tmp_path: Path, **changes: object) -> Profile:
    """Routes, both families, and hooks that write down when they ran and what they saw."""
    log = tmp_path / "log"
    states = tmp_path / "state"
    see = f"echo $(ip -o -4 address show dev %i 2>/dev/null | wc -l) $(ls {states} 2>/dev/null | wc -l) >> {log}"
    hooks = Hooks(
        pre_up=(f"echo PreUp1 %i >> {log}", f"echo PreUp2 >> {log}"),
        post_up=(f"echo PostUp %i >> {log}; {see}",),
        pre_down=(f"echo PreDown %i >> {log}; {see}",),
        post_down=(f"echo PostDown %i >> {log}; {see}",),
    )
    profile = client_profile(allowed_ips=("0.0.0.0/0", "::/0", "192.168.0.0/16"), hooks=hooks)
    return profile.replace(**changes)


def said(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def up(profile: Profile, config: GlobalConfig) -> None:
    assert up_profile(profile, config, keep_tun=False).tun_fd is None


def test_up_then_down_leaves_nothing_and_runs_the_hooks_in_order_at_the_right_moments(
    tmp_path: Path, config: GlobalConfig
) -> None:
    before = everything()
    profile = full_profile(tmp_path)
    up(profile, config)
    shown = everything()
    assert "inet 10.77.0.2/24" in shown
    assert "inet6 fd77::2/64" in shown
    assert "192.168.0.0/16 dev qre0" in shown
    assert "alias qre:tunnel" in shown
    assert "persist on" in shown
    assert said(tmp_path) == ["PreUp1 qre0", "PreUp2", "PostUp qre0", "1 0"]  # addresses, saved states
    down_profile(profile, config)
    assert said(tmp_path)[4:] == ["PreDown qre0", "1 1", "PostDown qre0", "0 1"]
    assert everything() == before
    assert list(config.state_dir.iterdir()) == []


def test_a_daemon_gets_the_descriptor_and_the_mark_of_its_default_route(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    profile = full_profile(tmp_path)
    result = up_profile(profile, config, keep_tun=True)
    assert result.tun_fd is not None
    assert result.dataplane is Dataplane.USER
    assert f"fwmark {result.table:#x}" in ip("rule")
    assert "LOWER_UP" in ip("link", "show", "qre0")
    with pytest.raises(UserError, match="stop the daemon first"):
        down_profile(profile, config)
    down_profile(profile, config, by_daemon=True)
    os.close(result.tun_fd)
    assert everything() == before


def test_without_a_default_route_there_is_no_mark(config: GlobalConfig) -> None:
    result = up_profile(client_profile(allowed_ips=("192.168.0.0/16",)), config, keep_tun=False)
    assert result.table == 0


def test_up_twice_is_refused_with_the_two_ways_on(config: GlobalConfig) -> None:
    up(client_profile(), config)
    before = everything()
    with pytest.raises(UserError, match="up already; use `qre-tool reload tunnel` or `qre-tool down tunnel`"):
        up_profile(client_profile(), config, keep_tun=False)
    assert everything() == before


@pytest.mark.parametrize("keep_tun", [True, False])
def test_up_is_refused_while_the_devices_name_is_anothers(config: GlobalConfig, keep_tun: bool) -> None:
    up(client_profile("other"), config)
    before = everything()
    with pytest.raises(MachineError, match="it belongs to the profile other; run `qre-tool down other`"):
        up_profile(client_profile(), config, keep_tun=keep_tun)
    assert everything() == before
    down_profile(client_profile("other"), config)
    ip("tuntap", "add", "qre0", "mode", "tun")
    before = everything()
    with pytest.raises(MachineError, match="a tun device of this name exists that QRE did not make"):
        up_profile(client_profile(), config, keep_tun=keep_tun)
    assert everything() == before


def test_a_daemon_takes_over_what_up_left(tmp_path: Path, config: GlobalConfig) -> None:
    profile = client_profile(allowed_ips=("0.0.0.0/0",))
    up(profile, config)
    changed = profile.replace(address=client_profile(address=("10.88.0.2/24",)).address, allowed_ips=(), mtu=1300)
    result = up_profile(changed, config, keep_tun=True)
    assert result.tun_fd is not None
    shown = everything()
    assert "10.88.0.2" in shown
    assert "10.77.0.2" not in shown
    assert "fwmark" not in shown
    os.close(result.tun_fd)


@pytest.mark.parametrize("hooks", [Hooks(pre_up=("exit 7",)), Hooks(post_up=("exit 7",))])
@pytest.mark.parametrize("left", ["by up", "by a daemon that was killed"])
@pytest.mark.parametrize("before_prefixes", [(), ("192.168.0.0/16",)])
def test_a_start_that_fails_leaves_nothing_of_an_earlier_one_either(
    config: GlobalConfig, hooks: Hooks, left: str, before_prefixes: tuple[str, ...]
) -> None:
    before = everything()
    profile = client_profile(allowed_ips=before_prefixes)
    result = up_profile(profile, config, keep_tun=left != "by up")
    if result.tun_fd is not None:
        os.close(result.tun_fd)
    assert state_path(config, "tunnel").exists()
    changed = client_profile(address=("10.88.0.2/24",), allowed_ips=("172.16.0.0/12",), hooks=hooks)
    with pytest.raises(UserError, match="exit status 7"):
        up_profile(changed, config, keep_tun=True)
    assert everything() == before
    assert list(config.state_dir.iterdir()) == []


@pytest.mark.parametrize("hooks", [Hooks(pre_up=("exit 7",)), Hooks(post_up=("exit 7",))])
@pytest.mark.parametrize("prefixes", [("0.0.0.0/0", "::/0"), ("::/0",), ()])
@pytest.mark.parametrize("left", ["by up", "by a daemon that was killed"])
def test_a_start_that_fails_does_not_open_what_rules_kept_closed(
    config: GlobalConfig, monkeypatch: pytest.MonkeyPatch, hooks: Hooks, prefixes: tuple[str, ...], left: str
) -> None:
    """Rules keep packets from leaving in the clear after a daemon was killed, and go on doing so."""
    before = everything()
    profile = client_profile(allowed_ips=("0.0.0.0/0",))
    result = up_profile(profile, config, keep_tun=left != "by up")
    if result.tun_fd is not None:
        os.close(result.tun_fd)
    rules = ip("-4", "rule"), ip("-6", "rule")
    notices: list[str] = []
    deleted: list[int] = []
    real = Rtnl.delete_rule

    def delete_rule(self: Rtnl, rule: Rule) -> None:
        deleted.append(rule.version)
        real(self, rule)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="exit status 7"):
        patched.setattr(Rtnl, "delete_rule", delete_rule)
        up_profile(client_profile(allowed_ips=prefixes, hooks=hooks), config, keep_tun=True, notice=notices.append)
    assert (ip("-4", "rule"), ip("-6", "rule")) == rules
    assert "0.0.0.0/0" not in prefixes or 4 not in deleted, "not even for a moment"
    assert "qre0" not in ip("link") and not state_path(config, "tunnel").exists()
    assert len(notices) == 1 and "`qre-tool down tunnel` removes them" in notices[0]
    again = up_profile(profile, config, keep_tun=True)
    assert again.table == result.table, "they are used again"
    assert (ip("-4", "rule"), ip("-6", "rule")) == rules
    assert again.tun_fd is not None
    os.close(again.tun_fd)
    state_path(config, "tunnel").unlink()
    down_profile(profile, config)
    assert everything() == before


def test_a_daemon_does_not_take_a_device_that_another_process_holds(config: GlobalConfig, tmp_path: Path) -> None:
    """One with another RuntimeDir, whose lock we do not see."""
    first = up_profile(client_profile(), config, keep_tun=True)
    before = everything()
    with pytest.raises(UserError, match="another process holds it"):
        up_profile(client_profile(), config, keep_tun=True)
    assert everything() == before and state_path(config, "tunnel").exists()
    assert first.tun_fd is not None
    os.close(first.tun_fd)


def test_a_daemon_starts_again_after_its_predecessor_was_killed_without_a_word(config: GlobalConfig) -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
    for end in ("eth0", "eth1"):
        ip("link", "set", end, "addrgenmode", "none")  # whose address would come at any moment
        ip("link", "set", end, "up")
    ip("route", "add", "default", "dev", "eth0")
    wait_for("the kernel's routes", lambda: ip("-6", "route", "show", "table", "all").count("ff00::/8") == 2)
    before = everything()
    profile = client_profile(allowed_ips=("0.0.0.0/0",))
    first = up_profile(profile, config, keep_tun=True)
    assert first.tun_fd is not None
    os.close(first.tun_fd)  # the device went with it; state and rules are still there, and nothing leaves
    assert "fwmark" in ip("rule")
    with pytest.raises(RuntimeError, match="unreachable"):
        ip("route", "get", "198.51.100.1")
    assert "dev eth0" in ip("route", "get", "198.51.100.1", "mark", str(first.table))
    second = up_profile(profile, config, keep_tun=True)
    assert second.tun_fd is not None
    assert second.table == first.table
    assert ip("-4", "rule").count("proto 81") == 4
    down_profile(profile, config, by_daemon=True)
    os.close(second.tun_fd)
    assert everything() == before


# --- rollback ---


@pytest.mark.parametrize("where", ["pre_up", "post_up"])
@pytest.mark.parametrize("keep_tun", [False, True])
def test_a_failing_hook_undoes_everything_and_is_what_is_reported(
    tmp_path: Path, config: GlobalConfig, where: str, keep_tun: bool
) -> None:
    before, descriptors = everything(), os.listdir("/proc/self/fd")
    profile = full_profile(tmp_path)
    hooks = profile.hooks.replace(**{where: ("true", "echo broken >&2; exit 7", "touch never")})
    with pytest.raises(UserError, match="exit status 7"):
        up_profile(profile.replace(hooks=hooks), config, keep_tun=keep_tun)
    assert everything() == before
    assert not config.state_dir.exists() or list(config.state_dir.iterdir()) == []
    assert os.listdir("/proc/self/fd") == descriptors
    assert not Path("never").exists()


@pytest.mark.parametrize(
    "operation", ["set_alias", "set_up", "put_address", "add_route", "add_rule", "addresses", "routes"]
)
@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_netlink_operation_that_fails_undoes_everything(
    tmp_path: Path, config: GlobalConfig, monkeypatch: pytest.MonkeyPatch, operation: str, calls_before: int
) -> None:
    before = everything()
    real, left = getattr(Rtnl, operation), [calls_before]

    def fails(self: Rtnl, *arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == -1:
            raise MachineError("the operation under test", "failed")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Rtnl, operation, fails)
    try:
        up_profile(full_profile(tmp_path), config, keep_tun=False)
    except MachineError as error:
        assert str(error) == "the operation under test: failed"
        assert everything() == before
        assert not state_path(config, "tunnel").exists()
    else:
        assert calls_before == 1  # it is called once only
    assert left[0] <= 0


def test_a_full_disk_under_the_state_undoes_everything(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    config.state_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(config.state_dir)], check=True)
    try:
        (config.state_dir / "filler").write_bytes(bytes(4096))
        with pytest.raises(MachineError, match="No space left on device"):
            up_profile(full_profile(tmp_path), config, keep_tun=False)
        assert [path.name for path in config.state_dir.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(config.state_dir)], check=True)
    assert everything() == before


def test_a_route_that_somebody_else_has_undoes_everything(tmp_path: Path, config: GlobalConfig) -> None:
    ip("route", "add", "192.168.0.0/16", "dev", "lo")
    before = everything()
    with pytest.raises(MachineError, match=r"routing 192\.168\.0\.0/16"):
        up_profile(full_profile(tmp_path), config, keep_tun=False)
    assert everything() == before


def test_the_first_error_is_reported_even_when_undoing_fails_too(
    tmp_path: Path, config: GlobalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Rtnl, *arguments: object) -> None:
        raise MachineError("deleting", "failed too")

    notices: list[str] = []
    monkeypatch.setattr(Rtnl, "delete_link", fails)
    with pytest.raises(UserError, match="exit status 5"):
        up_profile(client_profile(hooks=Hooks(post_up=("exit 5",))), config, keep_tun=False, notice=notices.append)
    assert notices == [
        "undoing `make TUN device qre0 (persistent)`: deleting: failed too",
        "undoing `use the user data plane`: deleting: failed too",
    ]
    assert not state_path(config, "tunnel").exists()


@pytest.mark.parametrize("filtering", [0, 1, 2])
def test_a_default_route_with_strict_reverse_path_filtering_is_warned_of(
    config: GlobalConfig, filtering: int
) -> None:
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    for name in ("all", "lan0", "lan1"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    Path("/proc/sys/net/ipv4/conf/lan0/rp_filter").write_text(str(filtering))
    notices: list[str] = []
    profile = client_profile(allowed_ips=("0.0.0.0/0",))
    up_profile(profile, config, keep_tun=False, notice=notices.append)
    assert len(notices) == (1 if filtering == 1 else 0)
    assert all("rp_filter is strict on lan0" in notice for notice in notices)


# --- down ---


@pytest.mark.parametrize("gone", ["device", "state", "address", "route", "rule"])
def test_down_works_when_half_of_it_is_gone(tmp_path: Path, config: GlobalConfig, gone: str) -> None:
    before = everything()
    profile = full_profile(tmp_path)
    up(profile, config)
    match gone:
        case "device":
            ip("link", "del", "qre0")
        case "state":
            state_path(config, "tunnel").unlink()
        case "address":
            ip("address", "flush", "dev", "qre0")
        case "route":
            ip("route", "flush", "dev", "qre0", "table", "all")
        case "rule":
            ip("rule", "del", "pref", "32765")
    down_profile(profile, config)
    assert "qre0" not in ip("link")
    assert not state_path(config, "tunnel").exists()
    if gone != "rule":  # half of a pair that somebody took apart is not recognised as ours
        assert everything() == before


def test_down_by_name_uses_the_saved_state_when_the_file_is_gone(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    up(full_profile(tmp_path), config)
    down_profile("tunnel", config)
    assert everything() == before


def test_down_deletes_the_addresses_before_the_device(config: GlobalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Rtnl.delete_link

    def delete_link(self: Rtnl, link: Link) -> None:
        seen.append(len(self.addresses(link)))
        real(self, link)

    up(client_profile(), config)
    monkeypatch.setattr(Rtnl, "delete_link", delete_link)
    down_profile(client_profile(), config)
    assert seen == [0]


def test_down_takes_away_the_device_that_was_saved_when_the_file_names_another(config: GlobalConfig) -> None:
    before = everything()
    up(client_profile(), config)
    down_profile(client_profile(device="qre9"), config)
    assert everything() == before
    assert not state_path(config, "tunnel").exists()


def test_down_of_what_is_not_up_runs_its_hooks_and_succeeds(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    profile = full_profile(tmp_path)
    for _ in range(2):
        assert plan_down(profile, config) == [
            *(f"PreDown: {command.replace('%i', 'qre0')}" for command in profile.hooks.pre_down),
            *(f"PostDown: {command.replace('%i', 'qre0')}" for command in profile.hooks.post_down),
        ]
        down_profile(profile, config)
    assert said(tmp_path) == ["PreDown qre0", "0 0", "PostDown qre0", "0 0"] * 2
    assert everything() == before
    assert not config.state_dir.exists()


@pytest.mark.parametrize(
    ("left", "known"),
    [("by up", "by its file"), ("by up", "by its name"), ("by a daemon that was killed", "by its file")],
)
def test_down_without_a_saved_state_cleans_what_is_there(
    tmp_path: Path, config: GlobalConfig, left: str, known: str
) -> None:
    before = everything()
    profile = client_profile(allowed_ips=("0.0.0.0/0", "192.168.0.0/16"))
    result = up_profile(profile, config, keep_tun=left != "by up")
    if result.tun_fd is not None:
        os.close(result.tun_fd)
    ip("rule", "add", "from", "10.9.9.9", "lookup", "1234")
    state_path(config, "tunnel").unlink()
    config = config.replace(bpf_pin_dir=tmp_path / "pins")
    stale = (config.runtime_dir / "tunnel.ready", config.bpf_pin_dir / "QRE_CID_ROUTES-qre0")
    for path in stale:
        path.parent.mkdir()
        path.touch()
    target = profile if known == "by its file" else "tunnel"
    plan = plan_down(target, config)
    assert f"delete routes and rules of table {result.table}" in plan
    assert all(f"remove {path}" in plan for path in stale)
    down_profile(target, config)
    ip("rule", "del", "from", "10.9.9.9", "lookup", "1234")
    assert everything() == before
    assert not any(path.exists() for path in stale)


def test_down_leaves_the_rules_of_another_profile_alone(config: GlobalConfig) -> None:
    other = client_profile("other", device="qre1", allowed_ips=("0.0.0.0/0",))
    result = up_profile(other, config, keep_tun=True)
    before = everything()
    down_profile(client_profile(allowed_ips=("0.0.0.0/0",)), config)
    assert everything() == before
    assert result.tun_fd is not None
    os.close(result.tun_fd)  # killed: its state still speaks for its rules
    rules = ip("rule")
    assert "proto 81" in rules
    down_profile(client_profile(allowed_ips=("0.0.0.0/0",)), config)
    assert ip("rule") == rules


def test_a_failing_predown_stops_down_and_leaves_the_tunnel(tmp_path: Path, config: GlobalConfig) -> None:
    profile = full_profile(tmp_path)
    up(profile, config)
    before = everything()
    hooks = profile.hooks.replace(pre_down=("exit 4",))
    with pytest.raises(UserError, match="exit status 4"):
        down_profile(profile.replace(hooks=hooks), config)
    assert everything() == before
    assert load_state(config, "tunnel") is not None


def test_a_failing_predown_does_not_keep_a_daemon_from_cleaning_up(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    profile = client_profile(hooks=Hooks(pre_down=("exit 4",)))
    result = up_profile(profile, config, keep_tun=True)
    with pytest.raises(UserError, match="exit status 4"):
        down_profile(profile, config, by_daemon=True)
    assert everything() == before
    assert result.tun_fd is not None
    os.close(result.tun_fd)


def test_a_failing_postdown_is_reported_after_everything_is_gone(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    profile = client_profile(hooks=Hooks(post_down=("exit 4",)))
    up(profile, config)
    with pytest.raises(UserError, match="exit status 4"):
        down_profile(profile, config)
    assert everything() == before
    assert not state_path(config, "tunnel").exists()


def test_a_forged_state_cannot_make_down_delete_another_device(config: GlobalConfig) -> None:
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    ip("address", "add", "10.77.0.2/24", "dev", "lan0")
    before = everything()
    save_state(config, msgspec.structs.replace(state_of(client_profile(), 0), device="lan0"))
    notices: list[str] = []
    down_profile(client_profile(), config, notice=notices.append)
    assert notices == ["device lan0: QRE did not make it for the profile tunnel; it is left alone"]
    assert everything() == before
    assert not state_path(config, "tunnel").exists()


def test_down_leaves_a_device_alone_that_is_another_programs_now_and_cleans_the_rest(
    tmp_path: Path, config: GlobalConfig
) -> None:
    profile = full_profile(tmp_path)
    before_up = everything()
    up(profile, config)
    ip("link", "del", "qre0")
    ip("tuntap", "add", "qre0", "mode", "tun")
    ip("address", "add", "10.77.0.2/24", "dev", "qre0")  # as the profile has it
    assert "proto 81" in ip("rule")
    link = ip("address", "show", "qre0")
    config = config.replace(bpf_pin_dir=tmp_path / "pins")
    stale = (config.runtime_dir / "tunnel.ready", config.bpf_pin_dir / "QRE_CID_ROUTES-qre0")
    for path in stale:
        path.parent.mkdir()
        path.touch()
    told, notices = "device qre0: QRE did not make it for the profile tunnel; it is left alone", list[str]()
    plan = plan_down(profile, config, notices.append)
    assert notices == [told] and not any(line.startswith(("delete device", "delete address")) for line in plan)
    assert all(f"remove {path}" in plan for path in stale)
    down_profile(profile, config, notice=notices.append)
    assert notices == [told] * 2
    assert ip("address", "show", "qre0") == link
    assert [line for line in said(tmp_path) if "Down" in line] == ["PreDown qre0", "PostDown qre0"]
    assert not state_path(config, "tunnel").exists() and not any(path.exists() for path in stale)
    ip("link", "del", "qre0")
    assert everything() == before_up


def test_down_leaves_a_device_alone_that_is_another_profiles_now(tmp_path: Path, config: GlobalConfig) -> None:
    up(client_profile(allowed_ips=("0.0.0.0/0",)), config)
    for version in ("-4", "-6"):
        ip(version, "rule", "flush", "proto", "81")
    ip("link", "del", "qre0")
    up(client_profile("other", allowed_ips=("0.0.0.0/0",)), config)
    config = config.replace(bpf_pin_dir=tmp_path / "pins")
    pins = config.bpf_pin_dir / "QRE_CID_ROUTES-qre0"
    pins.parent.mkdir()
    pins.touch()
    before = everything()
    down_profile(client_profile(allowed_ips=("0.0.0.0/0",)), config, notice=lambda _: None)
    assert everything() == before and pins.exists()
    assert not state_path(config, "tunnel").exists() and state_path(config, "other").exists()


@pytest.mark.parametrize("foreign", [True, False])
def test_systemd_resolved_is_not_asked_to_forget_what_it_knows_of_a_foreign_device(
    config: GlobalConfig, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(qre.device.lifecycle_down, "unset_names", lambda service, device: asked.append(service))
    for service in NameService:
        up(client_profile(), config)
        save_state(config, msgspec.structs.replace(state_of(client_profile(), 0), names=service))
        if foreign:
            ip("link", "del", "qre0")
            ip("tuntap", "add", "qre0", "mode", "tun")
        down_profile(client_profile(), config, notice=lambda _: None)
        if foreign:
            ip("link", "del", "qre0")
    assert asked == ([NameService.RESOLVCONF] if foreign else list(NameService))


# --- reload ---


def test_reload_replaces_addresses_mtu_and_routes_and_saves_it(tmp_path: Path, config: GlobalConfig) -> None:
    profile = full_profile(tmp_path)
    up(profile, config)
    hooks_ran = said(tmp_path)
    changed = profile.replace(
        address=client_profile(address=("10.77.0.9/24",)).address,
        mtu=1300,
        allowed_ips=client_profile(allowed_ips=("172.16.0.0/12",)).allowed_ips,
    )
    reload_profile(changed, config)
    shown = everything()
    assert "inet 10.77.0.9/24" in shown
    assert "mtu 1300" in shown
    assert "172.16.0.0/12 dev qre0" in shown
    for gone in ("10.77.0.2/", "fd77::2/", "192.168.0.0/16", "fwmark"):
        assert gone not in shown
    assert load_state(config, "tunnel") == state_of(changed, 0)
    assert said(tmp_path) == hooks_ran
    down_profile(changed, config)


def test_a_reload_that_fails_leaves_everything_as_it_was(tmp_path: Path, config: GlobalConfig) -> None:
    profile = full_profile(tmp_path)
    up(profile, config)
    ip("route", "add", "172.16.0.0/12", "dev", "lo")
    before, state = everything(), load_state(config, "tunnel")
    changed = client_profile(address=("10.88.0.9/24",), mtu=1300, allowed_ips=("10.50.0.0/16", "172.16.0.0/12"))
    with pytest.raises(MachineError, match=r"172\.16\.0\.0/12"):
        reload_profile(changed, config)
    assert everything() == before
    assert load_state(config, "tunnel") == state


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        (server_profile("tunnel", device="qre9"), "Device"),
        (client_profile(), "Role"),
        (server_profile("tunnel", port=8443), "Listen"),
    ],
)
def test_reload_refuses_what_only_down_and_up_can_change(config: GlobalConfig, changed: Profile, key: str) -> None:
    up(server_profile("tunnel"), config)
    before = everything()
    with pytest.raises(UserError, match=rf"{key} was .*; run `qre-tool down tunnel`, then up"):
        reload_profile(changed, config)
    assert everything() == before


def test_reload_of_what_is_not_up_says_so(config: GlobalConfig) -> None:
    with pytest.raises(UserError, match="it is not up"):
        reload_profile(client_profile(), config)


def test_reload_without_a_saved_state_goes_by_what_is_on_the_device(tmp_path: Path, config: GlobalConfig) -> None:
    before = everything()
    up(client_profile(allowed_ips=("0.0.0.0/0", "192.168.0.0/16")), config)
    rules, state = ip("rule"), load_state(config, "tunnel")
    state_path(config, "tunnel").unlink()
    changed = client_profile(address=("10.88.0.2/24",), allowed_ips=("0.0.0.0/0",), mtu=1300)
    plan = plan_reload(changed, config)
    assert plan[:4] == [
        "set qre0 up, MTU 1300",
        "delete address 10.77.0.2/24 from qre0",
        "delete address fd77::2/64 from qre0",
        "set address 10.88.0.2/24 on qre0",
    ]
    assert "delete route 192.168.0.0/16 of qre0" in plan
    reload_profile(changed, config)
    shown = everything()
    assert "10.88.0.2/24" in shown and "10.77.0.2/" not in shown and "192.168.0.0/16" not in shown
    assert ip("rule") == rules
    assert state is not None and load_state(config, "tunnel") == state_of(changed, state.table)

    state_path(config, "tunnel").unlink()
    ip("route", "add", "172.16.0.0/12", "dev", "lo")
    shown = everything()
    with pytest.raises(MachineError, match=r"172\.16\.0\.0/12"):
        reload_profile(client_profile(allowed_ips=("172.16.0.0/12",)), config)
    assert everything() == shown, "what fails is undone without a state, too"
    ip("route", "del", "172.16.0.0/12", "dev", "lo")
    down_profile(changed, config)
    assert everything() == before


# --- plans ---


def test_the_plan_of_up_lists_each_operation_in_order_and_changes_nothing(
    tmp_path: Path, config: GlobalConfig
) -> None:
    before = everything()
    profile = client_profile(allowed_ips=("0.0.0.0/0", "192.168.0.0/16"), hooks=Hooks(("a %i",), ("b",)))
    auto = config.replace(dataplane=Dataplane.AUTO)
    assert plan_up(profile, auto) == [
        "load qre.ko (modprobe qre), or else use the user data plane",
        "PreUp: a qre0",
        "make TUN device qre0 (persistent)",
        "set qre0 up, MTU 1380",
        "set address 10.77.0.2/24 on qre0",
        "set address fd77::2/64 on qre0",
        "route 192.168.0.0/16 to qre0",
        "route 0.0.0.0/0 to qre0 in table 5329477",
        "rule -4: lookup main suppress_prefixlength 0",
        "rule -4: not fwmark 0x515245 lookup 5329477",
        "rule -4: not fwmark 0x515245 unreachable",
        "rule -4: fwmark 0x515245 lookup main",
        "rule -6: lookup main suppress_prefixlength 0",
        "rule -6: not fwmark 0x515245 lookup 5329477",
        "rule -6: not fwmark 0x515245 unreachable",
        "rule -6: fwmark 0x515245 lookup main",
        "PostUp: b",
        f"save state to {tmp_path}/state/tunnel.state",
    ]
    assert everything() == before
    assert list(tmp_path.iterdir()) == []


def test_the_plans_of_reload_and_down_change_nothing_and_name_what_goes(tmp_path: Path, config: GlobalConfig) -> None:
    profile = full_profile(tmp_path, hooks=Hooks(pre_down=("a %i",), post_down=("b",)))
    up(profile, config)
    before = everything()
    changed = client_profile(address=("10.77.0.9/24",), mtu=1300)
    assert plan_reload(changed, config) == [
        "set qre0 up, MTU 1300",
        "delete address 10.77.0.2/24 from qre0",
        "delete address fd77::2/64 from qre0",
        "set address 10.77.0.9/24 on qre0",
        "delete route 192.168.0.0/16 of qre0",
        "delete route 0.0.0.0/0 of qre0",
        "delete route ::/0 of qre0",
        "delete rules -4 of table 5329477",
        "delete rules -6 of table 5329477",
        f"save state to {tmp_path}/state/tunnel.state",
    ]
    assert plan_down(profile, config) == [
        "PreDown: a qre0",
        "delete routes and rules of table 5329477",
        "delete address 10.77.0.2/24 from qre0",
        "delete address fd77::2/64 from qre0",
        "delete device qre0",
        "PostDown: b",
        f"remove state {tmp_path}/state/tunnel.state",
    ]
    assert everything() == before


# --- module ---


def test_auto_without_the_module_says_so_in_one_line_and_takes_the_user_data_plane(config: GlobalConfig) -> None:
    notices: list[str] = []
    auto = config.replace(dataplane=Dataplane.AUTO)
    up_profile(client_profile(), auto, keep_tun=False, notice=notices.append)
    assert len(notices) == 1
    assert "\n" not in notices[0]
    assert notices[0].endswith("the user data plane is used")


def test_the_kernel_data_plane_without_its_module_is_an_error_that_changes_nothing(config: GlobalConfig) -> None:
    before = everything()
    kernel = config.replace(dataplane=Dataplane.KERNEL)
    with pytest.raises(MachineError, match=r"Dataplane = kernel: qre\.ko: .*; install qre\.ko"):
        up_profile(client_profile(), kernel, keep_tun=False)
    assert everything() == before


@pytest.mark.skipif(LOADED.exists(), reason="qre.ko is loaded")
def test_the_module_is_asked_for_by_a_modprobe_that_only_notes_it(
    tmp_path: Path, config: GlobalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    up_profile(client_profile(), config.replace(dataplane=Dataplane.AUTO), keep_tun=False, notice=lambda _: None)
    assert MODULE in (tmp_path / "asked").read_text().splitlines()


def test_no_module_is_loaded_when_it_is_not_wanted(config: GlobalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(qre.device.kernel_module, "load_module", lambda: asked.append("modprobe"))
    for wanted in (config, config.replace(dataplane=Dataplane.AUTO, module_load=False)):
        up_profile(client_profile(), wanted, keep_tun=False, notice=lambda _: None)
        down_profile(client_profile(), wanted)
    assert asked == []


NOBODY = """
import os, sys
from pathlib import Path
from qre.device import lifecycle, lifecycle_down
from qre.errors import MachineError
from tests.support.profile_values import client_profile, global_config
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
config = global_config(Path(sys.argv[1]))
profile = client_profile()
print(len(lifecycle.plan_up(profile, config)))
for work in (
    lambda: lifecycle.up_profile(profile, config, keep_tun=False),
    lambda: lifecycle_down.down_profile(profile, config),
    lambda: lifecycle.reload_profile(profile, config),
):
    try:
        work()
    except MachineError as error:
        print(error)
"""


def test_without_the_capability_every_command_names_it_and_a_plan_needs_none() -> None:
    before = everything()
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", NOBODY, directory], capture_output=True, text=True, check=False, cwd=root
        )
    assert done.stdout.splitlines() == ["6"] + [
        f"{command} tunnel: it needs CAP_NET_ADMIN, which is missing; run it as root"
        for command in ("up", "down", "reload")
    ], done.stderr
    assert everything() == before


def test_every_error_of_the_lifecycle_is_one_line(config: GlobalConfig) -> None:
    with pytest.raises(QreError) as caught:
        up_profile(client_profile(hooks=Hooks(pre_up=("echo one; echo two; false",))), config, keep_tun=False)
    assert "\n" not in str(caught.value)
