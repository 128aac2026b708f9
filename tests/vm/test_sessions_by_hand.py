"""Sessions without a daemon: what ``session-plan`` prints is installed as it is, and the guide's life is lived."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import ROOT
from tests.support.vm import Vm
from tests.vm.test_commands import CID, LIBRARY, SERVER, SESSION, UNDERLAY, done, guest, refused, run

__all__ = ["guest"]  # a fixture
pytestmark = [pytest.mark.timeout(900), pytest.mark.guest_python]
GUIDE = ROOT / "docs" / "sessions-by-hand.md"
FILES = ("/tmp/e/dev/server0.conf", "/tmp/e/dev/client0.conf")
#: Kinds of pairs that ``init`` writes; tests/unit/test_session_plan.py has all of them, without a kernel.
PAIRS = {
    "listens on every address": ("Endpoint=vpn.example.net:443", "AllowedIPs=0.0.0.0/0,::/0"),
    "listens on one address": (
        "Endpoint=10.9.0.1:443", "PersistentKeepalive=25", "MTU=1280",
        "ServerAddress=10.77.0.1/24,fd77::1/64", "ClientAddress=10.77.0.2/32,fd77::2/64",
        "AllowedIPs=" + ",".join(f"10.78.{number}.0/24" for number in range(256)),
    ),
}  # fmt: skip


def make_pair(vm: Vm, *fields: str) -> None:
    words = shlex.join(["init", "Dest=10.9.0.2:443", "ServerName=example.com", *fields])
    vm.check(
        LIBRARY + f"rm -rf /tmp/e/dev; QRE_CONFIG_DIR=/tmp/e/dev QRE_GLOBAL_CONFIG=/tmp/e/none $QRE {words}", 200
    )


@pytest.mark.parametrize("fields", PAIRS.values(), ids=PAIRS)
def test_what_session_plan_prints_install_session_takes(guest: Vm, fields: tuple[str, ...]) -> None:
    make_pair(guest, *fields)
    made, other, plan = run(
        guest, ["syncconf", "server0", FILES[0]], ["syncconf", "client0", FILES[1]], ["session-plan", *FILES]
    )
    done(made, other)
    assert (plan.status, plan.error.partition(";")[0]) == (0, "qre-tool: others can read the file with the keys")
    calls = [shlex.split(line)[1:] for line in plan.out.splitlines() if not line.startswith("#")]
    assert [call[:2] for call in calls] == [["install-session", "server0"], ["install-session", "client0"]]
    server, client, shown, shown_client = run(
        guest, *calls, ["--json", "show", "server0"], ["--json", "show", "client0"]
    )
    done(server, client)
    (one,), (two,) = shown.device["sessions"], shown_client.device["sessions"]
    assert one["session_id"] == two["session_id"]
    assert "IdleTimeout" in server.out and "10m" in server.out
    if fields[0] == "Endpoint=vpn.example.net:443":  # both ends are on this machine: they hear each other
        (shown,) = run(guest, ["--json", "show", "client0"])
        assert shown.device["sessions"][0]["rx_packet_number"] >= 65536


def test_session_demo_installs_both_ends_of_a_server_that_listens_on_every_address(guest: Vm) -> None:
    make_pair(guest, *PAIRS["listens on every address"])
    demo, server, client = run(
        guest, ["session-demo", *FILES], ["--json", "show", "server0"], ["--json", "show", "client0"]
    )
    assert demo.status == 0, demo
    (one,), (two,) = server.device["sessions"], client.device["sessions"]
    assert one["session_id"] == two["session_id"]
    assert (one["endpoint"], two["endpoint"]) == ("127.0.0.1:50443", "127.0.0.1:443")


def test_a_handshake_behind_a_port_of_every_address_installs_both_ends(guest: Vm) -> None:
    make_pair(guest, *PAIRS["listens on every address"])
    elf = ROOT / "workers" / "bpf_loader" / "qre_reuseport.bpf.o"
    (demo,) = run(guest, ["shared-port-session-demo", *FILES, f"BpfElf={elf}", "PinDir=/tmp/bpf", "RunForMs=1"])
    done(demo)
    assert "qre.ko has the shared socket 0.0.0.0:443" in demo.out
    assert "installed the client's session on client0" in demo.out


def test_reload_changes_addresses_under_a_running_tunnel_and_loses_no_packet(guest: Vm) -> None:
    make_pair(guest, "Endpoint=10.9.0.1:443")
    printed = guest.check(
        LIBRARY
        + f"""
        export QRE_CONFIG_DIR=/tmp/e/dev QRE_GLOBAL_CONFIG=/tmp/e/none PATH=$CHECKOUT/.venv/bin:$PATH
        address() {{ sed -i "0,/^Address/s|^Address.*|Address = $1|" /tmp/e/dev/server0.conf; }}
        address "10.77.0.9/24, 10.77.0.1/24"  # the one that stays is a secondary of one that goes
        $QRE session-plan {" ".join(FILES)} ServerUnderlay=10.9.0.1:443 ClientUnderlay=10.9.0.2:50443 >/tmp/e/plan
        for each in "a server0 sa" "b client0 sb"; do
            set -- $each
            QRE_STATE_DIR=/tmp/e/$3 ip netns exec $1 $QRE up $2
            grep "^qre-tool install-session $2 " /tmp/e/plan | ip netns exec $1 sh
        done
        ip -n a -o -4 address show dev server0
        $B ping -i 0.1 -W 5 -q 10.77.0.1 >/tmp/e/pings 2>&1 & pings=$!
        for each in 10.77.0.1/24 "10.77.0.7/24, fd77::1/64, 10.77.0.1/24" 10.77.0.1/24; do
            address "$each"
            QRE_STATE_DIR=/tmp/e/sa $A $QRE reload server0
            ip -n a -o -4 address show dev server0
        done
        kill -INT $pings
        wait $pings || true
        cat /tmp/e/pings
        for each in "a server0 sa" "b client0 sb"; do
            set -- $each
            QRE_STATE_DIR=/tmp/e/$3 ip netns exec $1 $QRE down $2
        done
        """,
        600,
    )
    assert "10.77.0.9/24" in printed and "10.77.0.7/24" in printed
    assert re.search(r"[1-9]\d+ packets transmitted, .* 0% packet loss", printed), printed


def test_a_number_that_the_handshake_used_is_raised_and_the_answer_says_so(guest: Vm) -> None:
    keys = [field.replace("44" * 16, "4a" * 16).replace("55" * 16, "5a" * 16) for field in SESSION]
    common = ("qre0", *keys, *UNDERLAY, "KeyEpoch=0")
    made, low, shown, again, kept, timed = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER, "PersistentKeepalive=20"],
        ["install-session", *common, "PacketNumber=1"],
        ["--json", "show", "qre0"],
        ["update-session", *common, "PacketNumber=70000"],
        ["update-session", *common, "PacketNumber=1"],
        ["update-session", *common, "PacketNumber=70000", "IdleTimeout=1m"],
    )
    done(made, low, shown, again, kept)
    assert low.out.splitlines()[0].startswith("PacketNumber 1 is raised to 65536: ")
    assert "30s (IdleTimeout)" in low.out and "every 20 s (PersistentKeepalive)" in low.out
    assert shown.device["sessions"][0]["tx_packet_number"] >= 65536
    assert "raised" not in again.out
    raised = re.match(r"PacketNumber 1 is raised to (\d+): ", kept.out)
    assert raised is not None and int(raised[1]) >= 70000
    refused(timed, "field IdleTimeout")


def test_an_update_refuses_by_name_what_it_cannot_change(guest: Vm) -> None:
    keys = [field.replace("44" * 16, "4c" * 16).replace("55" * 16, "5c" * 16) for field in SESSION]
    common = ("qre0", *keys, "KeyEpoch=0", "PacketNumber=70000")
    further = [field for field in common if not field.startswith("connection-id")]
    made, installed, *wrong, same, adopted, ahead, shown, unknown = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["install-session", *common, *UNDERLAY, "AllowedIPs=10.77.0.2/32", "ClientConnectionId=abcd"],
        ["update-session", *common, "AllowedIPs=10.77.0.3/32"],
        ["update-session", *common, "ClientConnectionId="],
        ["update-session", *common, "PersistentKeepalive=25"],
        ["update-session", *common, "SocketFd={udp 10.9.0.1:999}"],
        ["update-session", *common, "UnderlayLocalIPv4=10.9.0.1", "UnderlayLocalPort=444", *UNDERLAY[2:]],
        ["update-session", *common, *UNDERLAY, "AllowedIPs=10.77.0.2/32", "ClientConnectionId=abcd"],
        ["update-session", *further, f"ConnectionId={'66' * 20}"],
        [
            "update-session",
            *[field.replace("KeyEpoch=0", "KeyEpoch=9") for field in further],
            f"ConnectionId={'68' * 20}",
        ],
        ["--json", "show", "qre0"],
        ["update-session", *[field.replace("11" * 32, "12" * 32) for field in further], f"ConnectionId={'67' * 20}"],
    )
    done(made, installed, same, adopted, shown)
    for answer, name in zip(
        wrong,
        ("AllowedIPs", "ClientConnectionId", "PersistentKeepalive", "SocketFd", "UnderlayLocalIPv4"),
        strict=True,
    ):
        refused(answer, name)
    refused(ahead, "KeyEpoch")
    refused(unknown, "SessionId")
    assert set(shown.device["adopted_cids"]) == {CID, "66" * 20}, "what a refused update names is not adopted"


def test_a_session_lives_as_long_in_silence_as_its_idle_timeout_says(guest: Vm) -> None:
    keys = [field.replace("44" * 16, "4b" * 16).replace("55" * 16, "5b" * 16) for field in SESSION]
    made, installed = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["install-session", "qre0", *keys, *UNDERLAY, "KeyEpoch=0", "PacketNumber=65536", "IdleTimeout=45s"],
    )
    done(made, installed)
    assert "the session is installed; it ends when its peer sends nothing for 45s (IdleTimeout); " in installed.out
    there = "$A $TOOLS/qrectl sessions Device=qre0 | grep -c SessionId"
    assert guest.check(LIBRARY + f"sleep 36; {there}", 120) == "1\n", "four fifths of it are over"
    counted = guest.check(LIBRARY + f"for i in $(seq 60); do {there} || exit 0; sleep 1; done; exit 1", 120)
    assert counted.split()[-1] == "0"


def blocks() -> Iterator[tuple[str, str]]:
    """Each block of shell in the guide: where it is run, and what."""
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        where, _, commands = block.partition("\n")
        yield where.removeprefix("# "), commands


def test_the_life_that_the_guide_tells_of(guest: Vm) -> None:
    make_pair(guest, "Endpoint=192.0.2.1:443")
    guest.check(
        LIBRARY
        + """
        ip -n a addr add 192.0.2.1/32 dev va
        ip -n b addr add 198.51.100.7/32 dev vb
        ip -n a route add 198.51.100.7 dev va src 192.0.2.1
        ip -n b route add 192.0.2.1 dev vb src 198.51.100.7
        """
    )
    printed = []
    for where, commands in blocks():
        namespace = {"where both files are": "", "on the server": "$A", "on the client": "$B"}[where]
        script = Path("/tmp/e/block.sh")
        printed.append(
            guest.check(
                LIBRARY
                + f"cat >{script} <<'END'\nset -ex\n{commands}\nEND\n"
                + "export PATH=$CHECKOUT/.venv/bin:$PATH QRE_GLOBAL_CONFIG=/tmp/e/none; cd /tmp/e/dev\n"
                + f"{namespace} bash {script} 2>&1",
                300,
            )
        )
    text = "\n".join(printed)
    assert text.count(" 0% packet loss") == 3, text
    assert "key epoch: 1;" in text, text
    assert text.count("the session's key epoch is 1") == 2, text
    for namespace in ("a", "b"):
        assert guest.run(f"ip -n {namespace} link show type qre | grep .")[0] == 1
