"""Every command of qre-tool that speaks to qre.ko, against qre.ko: what it does is what ``show`` says afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.json_schemas import check_against_schema
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.guest_python]
LIBRARY = ". /tmp/library\n"
CID, OTHER_CID = "22" * 20, "33" * 20
SESSION = (
    f"SessionId={'11' * 32}", f"connection-id={CID}", "tx_key=" + "44" * 16, "RxKey=" + "55" * 16,
    "TxHpKey=" + "66" * 16, "rx-hp-key=" + "77" * 16, "TxIv=" + "88" * 12, "RxIv=" + "99" * 12,
)  # fmt: skip
#: No key is taken twice.
OTHER_KEYS = tuple(field.replace("44" * 16, "46" * 16).replace("55" * 16, "57" * 16) for field in SESSION)
UNDERLAY = (
    "UnderlayLocalIPv4=10.9.0.1", "UnderlayLocalPort=443", "UnderlayPeerIPv4=10.9.0.2", "UnderlayPeerPort=5555",
)  # fmt: skip
SERVER = ("Address=10.77.0.1/24", "Listen=10.9.0.1:443", "MTU=1380", "Dest=10.9.0.2:443", "sni=example.com")
CLIENT = ("address=10.77.0.2/24", "endpoint=10.9.0.1:443", "mtu=1300", "server_name=example.com")


@dataclass
class Answer:
    status: int
    out: str
    error: str

    @property
    def device(self) -> dict[str, Any]:
        """The one that ``--json show DEVICE`` told of."""
        (device,) = json.loads(self.out)["devices"]
        assert isinstance(device, dict)
        return device


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    """Two namespaces; nothing is left in them."""
    vm.check(LIBRARY + "net_up; mkdir -p /tmp/bpf /tmp/e; mount -t bpf bpf /tmp/bpf")
    yield vm
    vm.check(LIBRARY + "net_down; rm -f /tmp/bpf/*; umount /tmp/bpf; rm -rf /tmp/e /tmp/commands")
    assert vm.splats() == []


def run(vm: Vm, *commands: Sequence[str], variables: str = "") -> list[Answer]:
    """In namespace a, all in one process, which has these variables."""
    printed = vm.check(
        LIBRARY
        + f"""
        cat >/tmp/commands <<'END'\n{json.dumps(commands)}\nEND
        cd $CHECKOUT
        QRE_GLOBAL_CONFIG=/tmp/e/none {variables} $A .venv/bin/python -m tests.support.guest_commands /tmp/commands
        """,
        400,
    )
    answers = [Answer(*each) for each in json.loads(printed.splitlines()[-1])]
    for command, answer in zip(commands, answers, strict=True):
        assert all(line.startswith("qre-tool: ") for line in answer.error.splitlines()), (command, answer)
    return answers


def refused(answer: Answer, *named: str) -> None:
    assert answer.status == 2 and answer.out == "" and answer.error.startswith("qre-tool: "), answer
    assert all(name in answer.error for name in named), answer


def done(*answers: Answer) -> None:
    for answer in answers:
        assert (answer.status, answer.error) == (0, ""), answer


def test_devices_are_made_changed_and_deleted(guest: Vm) -> None:
    guest.check(
        "cat >/tmp/e/qre7.conf <<'END'\nDevice = qre7\nAddress = 10.78.0.2/24\nEndpoint = 10.9.0.1:443\n"
        "ServerName = example.com\nRealityPublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"
        "RealityShortId = 01\nPersistentKeepalive = 25\nEND\nchmod 600 /tmp/e/qre7.conf"
    )
    (
        server, client, synced, other, shown, shown_client, shown_synced, bad_role, missing, again, gone, unknown,
    ) = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["set", "qre1", "role", "client", *CLIENT, "persistent-keepalive=25"],
        ["syncconf", "qre7", "/tmp/e/qre7.conf"],
        ["syncconf", "qre8", "/tmp/e/qre7.conf"],
        ["--json", "show", "qre0"],
        ["show", "--json", "qre1"],
        ["--json", "show", "qre7"],
        ["set", "qre0", "role", "client", *SERVER],
        ["set", "qre2", "role", "client", *CLIENT[1:]],
        ["delete", "qre1"],
        ["delete", "qre1"],
        ["show", "qre1"],
    )  # fmt: skip
    done(server, client, synced, shown, shown_client, shown_synced, again)
    for answer in (shown, shown_client, shown_synced):
        check_against_schema("show", json.loads(answer.out))
    device = shown.device
    assert (device["role"], device["listen"], device["dest"], device["mtu"], device["server_name"]) == (
        "server", "10.9.0.1:443", "10.9.0.2:443", 1380, "example.com",
    )  # fmt: skip
    device = shown_client.device
    assert (device["role"], device["endpoint"], device["mtu"], device["persistent_keepalive"]) == (
        "client", "10.9.0.1:443", 1300, 25,
    )  # fmt: skip
    assert shown_synced.device["endpoint"] == "10.9.0.1:443"
    refused(other, "qre7", "qre8")
    refused(bad_role, "Listen")
    refused(missing, "Address")
    refused(gone, "qre1")
    refused(unknown, "qre1")
    assert guest.run("ip -n a link show qre8")[0] and guest.run("ip -n a link show qre2")[0]


def test_an_up_that_fails_leaves_a_device_that_set_made_the_addresses_of_its_user(guest: Vm) -> None:
    changed = guest.check(
        LIBRARY
        + f"""
        export QRE_GLOBAL_CONFIG=/tmp/e/none QRE_CONFIG_DIR=/tmp/e QRE_STATE_DIR=/tmp/e/state
        cd $CHECKOUT
        cat >/tmp/e/qre1.conf <<'END'\nDevice = qre1\nAddress = 10.77.0.2/24, fd77::2/64\nEndpoint = 10.9.0.1:443
        ServerName = example.com\nRealityPublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
        RealityShortId = 01\nPostUp = exit 7\nEND
        chmod 600 /tmp/e/qre1.conf
        $A $QRE set qre1 role client {" ".join(CLIENT)}
        for each in 10.77.0.2/24 fd77::2/64 10.78.0.2/24; do ip -n a address add $each dev qre1; done
        addresses() {{
            ip -n a -d -o address show dev qre1 | sort
            ip -n a link show dev qre1 | sed 's/ qdisc [a-z]*//'
        }}
        addresses >/tmp/e/before
        ! $A $QRE up qre1 2>/tmp/e/said || exit 1
        grep -q 'exit status 7' /tmp/e/said
        addresses | diff /tmp/e/before - || true
        """,
        400,
    )
    assert changed == ""


def test_sessions_are_installed_updated_and_shown(guest: Vm) -> None:
    newer = [field.replace("44" * 16, "45" * 16).replace("55" * 16, "56" * 16) for field in SESSION]
    (
        made, installed, shown, again, half, adopted, released, for_session, with_other, unknown, text, behind,
        without, repeated, with_both,
    ) = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["install-session", "qre0", *SESSION, *UNDERLAY, "KeyEpoch=0", "PacketNumber=65536"],
        ["--json", "show", "qre0"],
        ["install-session", "qre0", *SESSION, *UNDERLAY, "KeyEpoch=0", "PacketNumber=65536"],
        ["install-session", "qre0", *newer, *UNDERLAY[:3], "KeyEpoch=0", "PacketNumber=65536"],
        ["adopt-cid", "qre0", f"ConnectionId={OTHER_CID}"],
        ["release-cid", "qre0", f"connection_id={OTHER_CID}"],
        ["adopt-cid", "qre0", f"ConnectionId={OTHER_CID}", f"SessionId={'11' * 32}"],
        ["--json", "show", "qre0"],
        ["release-cid", "qre0", f"ConnectionId={'01' * 20}"],
        ["show", "qre0"],
        ["update-session", "qre0", *newer, "KeyEpoch=7", "PacketNumber=70000"],
        ["release-cid", "qre0", f"ConnectionId={CID}"],
        ["install-session", "qre0", *SESSION, *UNDERLAY, "KeyEpoch=0", "PacketNumber=65536"],
        ["--json", "show", "qre0"],
    )  # fmt: skip
    done(
        made, installed, shown, again, adopted, released, for_session, with_other, text, without, repeated, with_both
    )
    (session,) = shown.device["sessions"]
    assert (session["session_id"], session["connection_id"], session["key_epoch"]) == ("11" * 32, CID, 0)
    assert session["endpoint"] == "10.9.0.2:5555" and session["tx_packet_number"] >= 65536
    assert shown.device["adopted_cids"] == [CID]
    assert set(with_other.device["adopted_cids"]) == {CID, OTHER_CID}
    assert with_both.device["adopted_cids"] == [OTHER_CID, CID], "one that was released is adopted again"
    refused(half, "UnderlayPeerPort")
    refused(unknown, "ConnectionId")
    refused(behind, "KeyEpoch")
    assert CID in text.out or CID[:16] in text.out
    for answer in (shown, with_other, text, behind, half):
        assert "44" * 16 not in answer.out + answer.error


def test_a_map_mirrors_what_is_adopted_before_and_after(guest: Vm) -> None:
    pin = "/tmp/bpf/routes"
    (
        made, created, twice, installed, registered, shown, adopted, later, text, released, without, taken,
        unregistered, emptied, by_fd, ended, nothing, wrong, sockets, wrong_shape,
    ) = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["create-cid-map", f"BpfMapPath={pin}"],
        ["create-cid-map", f"BpfMapPath={pin}"],
        ["install-session", "qre0", *OTHER_KEYS, *UNDERLAY, "KeyEpoch=0", "PacketNumber=65536"],
        ["register-cid-map", f"bpf-map-path={pin}"],
        ["--json", "show-cid-map", f"BpfMapPath={pin}"],
        ["adopt-cid", "qre0", f"ConnectionId={OTHER_CID}"],
        ["show-cid-map", "--json", f"BpfMapFd={{map {pin}}}"],
        ["show-cid-map", f"BpfMapPath={pin}"],
        ["release-cid", "qre0", f"ConnectionId={OTHER_CID}"],
        ["--json", "show-cid-map", f"BpfMapPath={pin}"],
        ["register-cid-map", f"BpfMapPath={pin}"],
        ["unregister-cid-map"],
        ["--json", "show-cid-map", f"BpfMapPath={pin}"],
        ["register-cid-map", f"BpfMapFd={{map {pin}}}"],
        ["unregister-cid-map"],
        ["unregister-cid-map"],
        ["register-cid-map", "BpfMapFd={tcp}"],
        ["create-reuseport-socket-map", "BpfMapPath=/tmp/bpf/sockets"],
        ["register-cid-map", "BpfMapPath=/tmp/bpf/sockets"],
    )  # fmt: skip
    done(made, created, installed, registered, shown, adopted, later, text, released, without, unregistered, emptied)
    done(by_fd, ended, sockets)
    assert [entry["connection_id"] for entry in json.loads(shown.out)["entries"]] == [CID]
    assert {entry["connection_id"] for entry in json.loads(later.out)["entries"]} == {CID, OTHER_CID}
    assert [entry["connection_id"] for entry in json.loads(without.out)["entries"]] == [CID]
    assert json.loads(emptied.out)["entries"] == []
    assert {entry["socket_index"] for entry in json.loads(later.out)["entries"]} == {1}
    assert CID in text.out and OTHER_CID in text.out
    refused(twice, pin)
    refused(taken, "BpfMapFd")
    refused(nothing, "no CID map")
    refused(wrong, "not a BPF map")
    refused(wrong_shape, "/tmp/bpf/sockets")


def test_a_shared_socket_is_registered_after_all_the_checks(guest: Vm) -> None:
    (
        made, registered, shown, unregistered, nothing, six, shown_six, unregistered_six, unbound_six, stream,
        unbound, closed,
    ) = run(
        guest,
        ["set", "qre0", "role", "server", *SERVER],
        ["register-shared-socket", "SocketFd={udp 10.9.0.1:443}"],
        ["--json", "show", "qre0"],
        ["unregister-shared-socket"],
        ["unregister-shared-socket"],
        ["register-shared-socket", "SocketFd={udp :::443}"],
        ["--json", "show", "qre0"],
        ["unregister-shared-socket"],
        ["register-shared-socket", "SocketFd={udp6}"],
        ["register-shared-socket", "SocketFd={tcp}"],
        ["register-shared-socket", "SocketFd={udp4}"],
        ["register-shared-socket", "SocketFd=987"],
    )  # fmt: skip
    done(made, registered, shown, unregistered, six, shown_six, unregistered_six)
    assert shown.device["shared_socket"] == {
        "registered": True, "local": "10.9.0.1:443", "rx_packets": 0, "passed_packets": 0,
    }  # fmt: skip
    refused(nothing, "no shared socket")
    assert shown_six.device["shared_socket"]["local"] == "[::]:443"
    refused(unbound_six, "SocketFd", "not bound")
    refused(stream, "SocketFd", "UDP socket of IPv4 or IPv6")
    refused(unbound, "SocketFd", "not bound")
    refused(closed, "SocketFd")


def test_a_demonstration_installs_both_ends(guest: Vm) -> None:
    guest.check(
        LIBRARY
        + """
        QRE_CONFIG_DIR=/tmp/e/dev QRE_GLOBAL_CONFIG=/tmp/e/none $QRE init Endpoint=10.9.0.1:443 Dest=10.9.0.2:443 \\
            ServerName=example.com
        """,
        200,
    )
    files = ("/tmp/e/dev/server0.conf", "/tmp/e/dev/client0.conf")
    half, demo, server, client = run(
        guest,
        ["session-demo", *files, "ServerUnderlay=10.9.0.1:4443"],
        ["session-demo", *files, "ServerUnderlay=10.9.0.1:4443", "ClientUnderlay=10.9.0.1:50999"],
        ["--json", "show", "server0"],
        ["--json", "show", "client0"],
    )
    refused(half, "ServerUnderlay", "ClientUnderlay")
    done(server, client)
    assert demo.status == 0 and "server0" in demo.out and "client0" in demo.out
    (one,), (other,) = server.device["sessions"], client.device["sessions"]
    assert one["session_id"] == other["session_id"] and one["connection_id"] == other["connection_id"]
    assert server.device["adopted_cids"] == [one["connection_id"]]
    assert (one["endpoint"], other["endpoint"]) == ("10.9.0.1:50999", "10.9.0.1:4443")
