"""What a client sends is never larger than what a browser sends, whatever is inside; and all of it arrives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import wait_for
from tests.support.ping import answered, numbers_answered
from tests.support.tcpdump import Tcpdump
from tests.support.tunnel import CLIENT_INNER, PORT, SERVER_INNER, Tunnel

BROWSER = 1250
#: Around a packet inside (bytes): 20 of IPv4, and 24 of the datagram.
LEAST_WITH_A_PACKET = 48
SERVER_INNER6, CLIENT_INNER6 = "fd77::1", "fd77::2"
#: Of all that the client sends, one datagram in twenty.
LOSSY = "type filter hook prerouting priority 0; udp dport 443 numgen random mod 20 0 drop;"


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    """IPv4 and IPv6 inside, and devices as wide as they may be."""
    with Tunnel() as made:
        for name, number in (("server0", 1), ("client0", 2)):
            made.edit(name, "Address", f"10.77.0.{number}/24, fd77::{number}/64")
            made.edit(name, "MTU", "1428")
        made.edit("client0", "AllowedIPs", "10.77.0.0/24, fd77::/64")
        made.up()
        settled = "path mtu: 1464 bytes"  # until then what is too large downward is lost
        wait_for("the server's search", lambda: settled in made.server.tool("show", "server0"))
        yield made


class Uplink(Tcpdump):
    """What leaves the client's machine, while the context lasts."""

    def __init__(self, tunnel: Tunnel, directory: Path) -> None:
        super().__init__(tunnel.lab.client, tunnel.lab.client_device, directory / "up.pcap", PORT)
        self._client = tunnel.lab.CLIENT

    @property
    def lengths(self) -> list[int]:
        return [len(each.payload) for each in self.datagrams() if each.source[0] == self._client]


def iperf(tunnel: Tunnel, *options: str, to: str = SERVER_INNER) -> dict[str, Any]:
    """The result of iperf3 from the client to the server, as the server saw it."""
    listener = tunnel.lab.server.popen(["iperf3", "--server", "--one-off", "--bind", to])
    try:
        wait_for("iperf3", lambda: ":5201" in tunnel.lab.server.run("ss", "-Hltn"))
        options = ("--client", to, "--json", "--connect-timeout", "60000", *options)
        said = json.loads(tunnel.lab.client.run("iperf3", *options, timeout=120))
        end: dict[str, Any] = said["end"]
        return end
    finally:
        listener.terminate()
        listener.wait()


def test_ten_megabytes_of_tcp_go_up_in_datagrams_of_a_browser_and_down_in_large_ones(
    tunnel: Tunnel, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    for version, address in (("4", SERVER_INNER), ("6", SERVER_INNER6)):
        (tmp_path / version).mkdir()
        with Uplink(tunnel, tmp_path / version) as capture:
            sent = iperf(tunnel, "--bytes", "14M", to=address)["sum_received"]
        lengths = capture.lengths
        assert sum(lengths) >= 10 << 20, "what is left in buffers in the end does not count"
        assert max(lengths) == BROWSER
        assert sum(length == BROWSER for length in lengths) > len(lengths) * 0.9, "cut, and not split"
        record_property(f"IPv{version}", f"{sent['bits_per_second'] / 1e6:.0f} Mbit/s")
        with Uplink(tunnel, tmp_path / version) as capture:
            iperf(tunnel, "--bytes", "2M", "--reverse", to=address)
        assert max(len(each.payload) for each in capture.datagrams()) > 1400, "downward as large as the path takes"
        assert max(capture.lengths) <= BROWSER


def test_what_must_not_be_fragmented_goes_up_in_two_datagrams_and_nothing_is_lost(
    tunnel: Tunnel, tmp_path: Path
) -> None:
    with Uplink(tunnel, tmp_path) as capture:
        for size in ("1194", "1195", "1372", "1384"):  # 1,222 bytes are the largest in one
            assert answered(tunnel.lab.client, SERVER_INNER, "-M", "do", "-s", size) == 5
        for size in ("1232", "1352", "1364"):  # 1,280 bytes, which every link has to carry
            assert answered(tunnel.lab.client, SERVER_INNER6, "-M", "do", "-s", size) == 5
        assert answered(tunnel.lab.client, SERVER_INNER, "-s", "4000") == 5, "what the kernel has fragmented"
        for length in ("1200", "1372"):  # as QUIC's, and 1,400 bytes with the headers
            sent = iperf(tunnel, "--udp", "--length", length, "--bitrate", "4M", "--bytes", "1M", "--dont-fragment")
            assert sent["sum"]["lost_packets"] == 0 < sent["sum"]["packets"]
    assert max(capture.lengths) == BROWSER
    said = tunnel.client.tool("show", "client0")
    assert "path mtu: 1278 bytes, inner packets up to 1222, up to 1500 in two datagrams" in said
    assert "path mtu: 1464 bytes, inner packets up to 1412\n" in tunnel.server.tool("show", "server0")


def test_of_packets_in_two_datagrams_the_lost_ones_alone_are_missing(tunnel: Tunnel) -> None:
    tunnel.lab.server.run("nft", f"table ip lossy {{ chain out {{ {LOSSY} }}; }}")
    try:
        command = ("ping", "-n", "-c", "700", "-i", "0.005", "-W", "2", "-M", "do", "-s", "1372", SERVER_INNER)
        said = tunnel.lab.client.run(*command)
    finally:
        tunnel.lab.server.run("nft", "delete table ip lossy")
    assert 525 < len(numbers_answered(said)) < 679, "one of the two parts of one packet in ten is lost"
    sums = tunnel.lab.server.run("nstat", "-az", "UdpInCsumErrors", "UdpInErrors")
    assert not [line for line in sums.splitlines() if line.startswith("Udp") and line.split()[1] != "0"], sums
    wait_for("a tunnel as before", lambda: answered(tunnel.lab.client, SERVER_INNER, "-M", "do", "-s", "1372") == 5)
    assert answered(tunnel.lab.server, CLIENT_INNER) == answered(tunnel.lab.server, CLIENT_INNER6) == 5
    wait_for("parts that were alone", lambda: "part-alone" in tunnel.server.tool("show", "server0"))


def test_a_download_is_acknowledged_in_a_browsers_few_bytes_and_seldom(tunnel: Tunnel, tmp_path: Path) -> None:
    """Of datagrams, which ask for no answer inside."""
    with Uplink(tunnel, tmp_path) as capture:
        iperf(tunnel, "--udp", "--reverse", "--length", "1300", "--bitrate", "40M", "--bytes", "6M")
    down = sum(len(each.payload) > 1300 for each in capture.datagrams())
    lone = [length for length in capture.lengths if length < LEAST_WITH_A_PACKET]
    assert down > 4000
    assert set(lone) <= set(range(25, 45))
    print(down, len(lone), sorted(Counter(lone).items()))
    assert len(lone) < down / 4
