"""The text of `show`: all of a device that a person wants, in the manner of `wg show`, and nothing that escapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.cli.show.show_text import ago, clean, plural, render, size, span
from tests.support.unfolded import unfolded

NOW = 1_800_000_000.0
CID, SPARE = "11" * 20, "22" * 20
SERVER: dict[str, Any] = {
    "device": "qre0", "profile": "server0", "role": "server", "dataplane": "user", "daemon_pid": 100, "up": True,
    "status": "serving, 1 session", "mtu": 1380, "address": ["10.77.0.1/24"], "allowed_ips": [],
    "listen": "192.0.2.1:443", "endpoint": None, "dest": "site.example:443", "server_name": "site.example",
    "persistent_keepalive": 25, "link_up": True,
    "counters": {"rx_packets": 12, "rx_bytes": 1_310_720, "tx_packets": 7, "tx_bytes": 900,
                 "drops": {"replayed": 2, "no-session": 1, "held": 0}},
    "handshake": {"pending_flows": 0, "relay_flows": 3, "handshakes": 5, "strangers": 41, "rekeys": 9},
    "dest_profile": {"reachable": True, "checked_at": int(NOW) - 3700, "address": "198.51.100.9:443",
                     "scid_length": 8, "rtt_ms": 12, "cipher": "TLS_AES_128_GCM_SHA256", "group": "X25519MLKEM768",
                     "alpn": "h3", "certificate_chain_length": 3000,
                     "warnings": ["its connection IDs have 8 bytes, ours 20"]},
    "sessions": [{
        "session_id": "ab" * 32, "connection_id": CID, "client_connection_id": "", "short_id": "0123456789abcdef",
        "state": "established", "key_epoch": 4, "tx_packet_number": 65600, "rx_packet_number": 65700,
        "endpoint": "203.0.113.5:40000", "allowed_ips": ["10.77.0.2/32"], "age_ms": 7_262_000,
        "last_receive_ms": 3000, "rx_packets": 12, "rx_bytes": 2048, "tx_packets": 7, "tx_bytes": 100,
        "cids": [CID, SPARE], "path_mtu": 1464, "inner_mtu": 1412,
    }],
    "adopted_cids": [CID, SPARE],
    "cid_map": {"registered": True, "path": "/sys/fs/bpf/QRE_CID_ROUTES-qre0", "entries": 2,
                "connection_ids": [CID, SPARE], "in_sync": True, "sync_failures": 0},
    "shared_socket": {"registered": True, "local": "192.0.2.1:443"},
    "shared_loader": {"attached": True, "program": "qre_reuseport_demux", "pin_dir": "/sys/fs/bpf",
                      "routed_cid_len": 20},
    "processes": [{"role": "handshake", "pid": 101, "stage": "ready", "restarts": 0, "dropped_messages": 0},
                  {"role": "dataplane", "pid": None, "stage": "dead", "restarts": 2, "dropped_messages": 0}],
}  # fmt: skip

SERVER_TEXT = f"""\
interface: qre0
  profile: server0 (server, user data plane)
  status: serving, 1 session
  address: 10.77.0.1/24
  mtu: 1380
  listening on: 192.0.2.1:443
  server name: site.example
  persistent keepalive: every 25 seconds
  transfer: 1.25 MiB received, 900 B sent
  packets: 12 received, 7 sent
  dropped: 3 (no-session 1, replayed 2)
  handshakes: 5 accepted, 41 strangers (3 relayed now, 0 undecided)
  rekeys: 9
  dest: site.example:443
  dest profile: reachable, checked 1 hour, 1 minute ago: 198.51.100.9:443, 12 ms, TLS_AES_128_GCM_SHA256, \
X25519MLKEM768, h3, connection IDs of 8 bytes
  dest warning: its connection IDs have 8 bytes, ours 20
  connection ids: 2 adopted
  bpf map: /sys/fs/bpf/QRE_CID_ROUTES-qre0: 2 entries, in sync
  shared socket: 192.0.2.1:443
  shared loader: qre_reuseport_demux attached, connection IDs of 20 bytes
  processes: handshake 101, dataplane dead (restarted 2 times)

session: abababababababab
  state: established for 2 hours, 1 minute
  endpoint: 203.0.113.5:40000
  connection id: {CID}
  spare connection ids: {SPARE}
  client's connection id: (empty)
  short id: 0123456789abcdef
  allowed ips: 10.77.0.2/32
  last receive: 3 seconds ago
  path mtu: 1464 bytes, inner packets up to 1412
  transfer: 2.00 KiB received, 100 B sent
  packets: 12 received, 7 sent
  key epoch: 4; packet numbers: next sent 65600, highest received 65700
"""


def text(device: dict[str, Any]) -> str:
    return unfolded(render([device], now=NOW, colour=False))


def test_no_line_is_wider_than_a_hundred_columns_and_nothing_is_lost() -> None:
    client = {**SERVER, "role": "client", "status": "no answer from the server, " * 12, "dest": None}
    for device in (SERVER, client):
        shown = render([device], now=NOW, colour=False)
        assert max(map(len, shown.splitlines())) <= 100
        assert shown.count("\n") > unfolded(shown).count("\n")
    assert unfolded(render([SERVER], now=NOW, colour=False)) == SERVER_TEXT
    beginning, below = render([client], now=NOW, colour=False).partition("  status: ")[2].splitlines()[:2]
    assert beginning.startswith("no answer") and below.startswith(" " * len("  status: ")) and below[10] != " "


def test_the_servers_of_a_client_are_all_named_and_which_it_has() -> None:
    several = ["192.0.2.1:443", "198.51.100.7:443", "vpn.example.org:443"]
    client = {**SERVER, "role": "client", "listen": None, "endpoint": several[0], "endpoints": several}
    there = text({**client, "status": "connected to 198.51.100.7:443; 3 of the last 9 packets were lost"})
    assert "  endpoints: 192.0.2.1:443, 198.51.100.7:443 (connected), vpn.example.org:443\n" in there
    away = text({**client, "up": False, "status": "connecting to 192.0.2.1:443"})
    assert "  endpoints: 192.0.2.1:443, 198.51.100.7:443, vpn.example.org:443\n" in away
    assert "  endpoint: 192.0.2.1:443\n" in text({**client, "endpoints": several[:1]})


def test_a_server_with_a_session_is_told_whole() -> None:
    assert text(SERVER) == SERVER_TEXT


def test_a_path_that_is_too_small_for_ipv6_inside_says_so_and_an_unknown_one_says_nothing() -> None:
    (session,) = SERVER["sessions"]
    small = text({**SERVER, "sessions": [{**session, "path_mtu": 1228, "inner_mtu": 1176}]})
    assert "  path mtu: 1228 bytes, inner packets up to 1176 (larger ones do not pass)" in small
    assert "; IPv6 inside is refused, it needs 1280\n" in small
    assert "path mtu" not in text({**SERVER, "sessions": [{**session, "path_mtu": None, "inner_mtu": None}]})


def test_what_a_client_sends_in_two_datagrams_or_in_larger_ones_is_told() -> None:
    (session,) = SERVER["sessions"]
    split = {**session, "path_mtu": 1278, "inner_mtu": 1222, "inner_mtu_ipv6": 1222, "inner_mtu_in_two": 1500}
    said = "  path mtu: 1278 bytes, inner packets up to 1222, up to 1500 in two datagrams\n"
    assert said in text({**SERVER, "sessions": [split]})
    large = {**session, "path_mtu": 1464, "inner_mtu": 1222, "inner_mtu_ipv6": 1408, "inner_mtu_in_two": None}
    said = "inner packets up to 1222, of IPv6 up to 1408: such datagrams are larger than a browser's\n"
    assert said in text({**SERVER, "sessions": [large]})
    alone = {**large, "path_mtu": 1278, "inner_mtu_ipv6": 0}
    assert "up to 1222; IPv6 inside is refused, it needs 1280\n" in text({**SERVER, "sessions": [alone]})


def test_a_session_whose_packets_are_lost_or_not_answered_says_so() -> None:
    (session,) = SERVER["sessions"]
    ill = {**session, "health": "silent", "unanswered_ms": 12_400, "tx_acknowledged": 90, "tx_lost": 10}
    told = text({**SERVER, "sessions": [ill]})
    assert "  answers: none for 12 seconds, though packets were sent\n" in told
    assert "  lost: 10 of 100 packets sent\n" in told


def test_a_client_has_no_lines_of_the_server() -> None:
    client = {
        **SERVER, "role": "client", "listen": None, "endpoint": "vpn.example:443", "dest": None, "dest_profile": None,
        "cid_map": None, "shared_socket": None, "shared_loader": None, "adopted_cids": [], "sessions": [],
    }  # fmt: skip
    shown = text(client)
    assert "endpoint: vpn.example:443" in shown
    assert "handshakes: 5 completed" in shown
    for absent in ("listening", "dest", "connection ids", "bpf map", "shared", "session:"):
        assert absent not in shown


def test_parts_whose_worker_is_being_restarted_are_left_out_or_said_to_be_unknown() -> None:
    shown = text({**SERVER, "counters": None, "handshake": None, "cid_map": None, "shared_loader": None})
    assert "bpf map: unknown: the loader is being restarted" in shown
    assert "dropped" not in shown
    assert "handshakes" not in shown


def test_a_server_that_has_joined_a_port_tells_of_the_fronts_loader() -> None:
    shown = text(
        {
            **SERVER,
            "cid_map": {**SERVER["cid_map"], "front": "qre9", "path": "/sys/fs/bpf/QRE_CID_ROUTES-qre9"},
            "shared_loader": {**SERVER["shared_loader"], "front": "qre9"},
        }
    )
    assert "bpf map: /sys/fs/bpf/QRE_CID_ROUTES-qre9: 2 entries, in sync" in shown
    assert "connection IDs of 20 bytes; it belongs to qre9, the front of this port" in shown


def test_what_is_wrong_is_visible() -> None:
    shown = text(
        {
            **SERVER,
            "link_up": False,
            "dest_profile": {**SERVER["dest_profile"], "reachable": False, "warnings": []},
            "cid_map": {**SERVER["cid_map"], "in_sync": False, "sync_failures": 1, "entries": 1},
            "shared_loader": {**SERVER["shared_loader"], "attached": False},
            "sessions": [{**SERVER["sessions"][0], "last_receive_ms": None, "allowed_ips": []}],
        }
    )
    for wanted in (
        "mtu: 1380, link down",
        "dest profile: not reachable, checked 1 hour, 1 minute ago",
        "1 entry, not in sync, 1 failure",
        "qre_reuseport_demux not attached",
        "last receive: never",
        "allowed ips: (all)",
    ):
        assert wanted in shown


def test_devices_are_apart_by_an_empty_line_and_nothing_up_is_nothing_shown() -> None:
    both = render([SERVER, {**SERVER, "device": "qre1"}], now=NOW, colour=False)
    assert "\n\ninterface: qre1\n" in both
    assert render([], now=NOW, colour=False) == ""


def test_colour_is_for_terminals_and_adds_nothing_else() -> None:
    import re

    coloured = render([SERVER], now=NOW, colour=True)
    assert "\033[" in coloured
    assert unfolded(re.sub(r"\033\[[0-9]+m", "", coloured)) == SERVER_TEXT


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_nothing_that_is_shown_can_steer_a_terminal(evil: str) -> None:
    assert clean(evil).isprintable() or clean(evil) == ""
    shown = text({**SERVER, "status": evil, "profile": evil, "device": evil})
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert shown.count("\n") == SERVER_TEXT.count("\n")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1 << 40, "1.00 TiB"),
        (1 << 63, "8192.00 PiB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


def test_spans() -> None:
    assert [span(seconds) for seconds in (0, 1, 61, 3600, 90_061)] == [
        "0 seconds",
        "1 second",
        "1 minute, 1 second",
        "1 hour",
        "1 day, 1 hour",
    ]
    assert ago(0.4) == "now"
    assert ago(2) == "2 seconds ago"
    assert [plural(count, "entry", "entries") for count in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
