"""Paths of other sizes in a real kernel: what the ends find, what a stream makes of it, what senders inside are told.

Two routers stand between the ends, and the link between them is the narrow one; they answer what does not fit it with
ICMP, or drop it without a word. Lengths of time are a slow guest's: what matters is that they are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(900)
RecordProperty = Callable[[str, object], None]
LIBRARY = ". /tmp/library; . $GUEST/path.sh\n"
#: Link MTU, and what is found: the UDP payload.
PATHS = [(1280, 1200), (1300, 1200), (1400, 1326), (1420, 1389), (9000, 1436)]
#: What QUIC adds to a packet of the client and of the server, whose peer's connection ID is empty.
CLIENT, SERVER = 44, 24
IP_AND_UDP = 28
#: A client's hello has shown that the path takes a browser's datagrams.
BROWSER = 1250
#: enum qre_drop
TOO_BIG, IPV6_REFUSED = 4, 19
IPERF = """
$A iperf3 -s -D
until_true '$A ss -Hltn | grep -q :5201'
"""


@pytest.fixture
def guest(vm: Vm) -> Iterator[Vm]:
    yield vm
    vm.check(LIBRARY + "path_down")
    assert vm.splats() == []


def sizes(vm: Vm, namespace: str) -> tuple[int, int]:
    path, inner = vm.check(LIBRARY + f"told {namespace}").split()
    return int(path), int(inner)


def drops(vm: Vm, namespace: str) -> dict[int, int]:
    printed = vm.check(LIBRARY + f"ip netns exec {namespace} $TOOLS/qrectl device-get Device=qre0")
    return {int(why): int(count) for why, count in re.findall(r"^Drop(\d+)=(\d+)$", printed, re.M)}


@pytest.mark.parametrize("silent", [pytest.param("", id="icmp"), pytest.param("silent", id="black-hole")])
@pytest.mark.parametrize(("mtu", "payload"), PATHS, ids=[str(mtu) for mtu, _ in PATHS])
def test_tcp_runs_over_a_path_of_any_size_from_its_first_moment(
    guest: Vm, mtu: int, payload: int, silent: str, record_property: RecordProperty
) -> None:
    """The streams begin before the search has ended."""
    printed = guest.check(
        LIBRARY
        + f"path_up {mtu} {silent}\n{IPERF}"
        + """
        tunnel_up $(fresh_number)
        $B timeout 60 iperf3 -c 10.77.0.1 -n 1M
        $B timeout 60 iperf3 -c 10.77.0.1 -n 1M -R
        """
        + f"until_told a {payload + IP_AND_UDP} 20; until_told b {max(payload, BROWSER) + IP_AND_UDP} 20"
    )
    rates = [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec.*receiver", printed)]
    assert len(rates) == 2 and min(rates) > 0.3, printed
    record_property("rates", rates)
    upward = max(payload, BROWSER)
    assert sizes(guest, "b") == (upward + IP_AND_UDP, upward - CLIENT)
    assert sizes(guest, "a") == (payload + IP_AND_UDP, payload - SERVER)
    stream = "$B timeout 60 iperf3 -c fd77::1 -n 500k"
    if upward - CLIENT >= 1280:
        assert "receiver" in guest.check(LIBRARY + stream)
        assert IPV6_REFUSED not in drops(guest, "b")
    else:
        status, printed = guest.run(LIBRARY + stream + "; $B ping -6 -c 1 -W 2 fd77::1")
        assert status and "Permission denied" in printed and "Administratively prohibited" in printed, printed
        assert drops(guest, "b")[IPV6_REFUSED] >= 2


@pytest.mark.parametrize("way", ["", "-R"], ids=["up", "down"])
def test_a_stream_goes_on_when_the_path_shrinks_in_silence_and_when_it_grows(
    guest: Vm, way: str, record_property: RecordProperty
) -> None:
    sender, receiver = ("b", "a") if not way else ("a", "b")
    printed = guest.check(
        LIBRARY
        + f"path_up 1500 silent\n{IPERF}"
        + f"""
        tunnel_up $(fresh_number)
        until_told a 1464 20 >/dev/null; until_told b 1464 20 >/dev/null
        $B timeout 200 iperf3 -c 10.77.0.1 -t 180 {way} >/tmp/stream 2>&1 &
        until_flows {receiver} 300000 30 >/dev/null
        path_mtu 1400
        echo shrunk $(until_told {sender} 1354 20) $(until_flows {receiver} 300000 20)
        path_mtu 1300
        echo again $(until_told {sender} {1278 if sender == "b" else 1228} 20) $(until_flows {receiver} 300000 20)
        path_mtu 9000
        echo grown $(until_flows {receiver} 300000 20)
        kill -0 $!; kill $!
        """,
        timeout=240,
    )
    milliseconds = {word: [*map(int, rest.split())] for word, rest in re.findall(r"^(\w+) ([\d ]+)$", printed, re.M)}
    assert [len(milliseconds[word]) for word in ("shrunk", "again", "grown")] == [2, 2, 1], printed
    record_property("milliseconds", milliseconds)


def test_a_device_below_that_narrows_is_followed_at_once_and_searched_when_it_widens(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + """
        path_up 1500
        tunnel_up $(fresh_number)
        until_told b 1464 20
        ip -n b link set vb mtu 1400
        $B ping -c 1 -W 5 10.77.0.1
        until_told b 1354 5
        ip -n b link set vb mtu 9000
        $B ping -c 1 -W 5 10.77.0.1
        until_told b 1464 20
        # The same, as an administrator may say it of a route.
        ip -n b route replace default via 10.8.0.2 mtu 1300
        $B ping -c 1 -W 5 10.77.0.1
        until_told b 1278 5
        ip -n b route replace default via 10.8.0.2
        $B ping -c 1 -W 5 10.77.0.1
        until_told b 1464 20
        """
    )
    assert len(re.findall(r"^\d+$", printed, re.MULTILINE)) == 5, "milliseconds of each"


def test_senders_inside_are_told_what_fits_once_it_is_known(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + """
        path_up 1400 silent
        tunnel_up $(fresh_number)
        # Before it is known: nobody remembers what holds for a moment only.
        $B ping -M do -c 3 -i 0.01 -W 1 -s 1240 -q 10.77.0.1 || true
        $B ip route get 10.77.0.1
        echo known
        until_told b 1354 20 >/dev/null
        $B ping -M do -c 2 -W 2 -s 1254 -q 10.77.0.1
        $B ping -M do -c 2 -W 2 -s 1255 10.77.0.1 || true
        $B ping -6 -M do -c 2 -W 2 -s 1300 fd77::1 || true
        $B ping -M dont -c 2 -W 5 -s 3000 -q 10.77.0.1
        $B ip route get 10.77.0.1
        """
    )
    before, after = printed.split("known")
    assert "mtu" not in before.split("ping statistics")[-1], printed
    assert "mtu=1282" in after or "mtu = 1282" in after, printed
    assert re.search(r"fd77::2.*(mtu=1282|mtu: 1282)", after) or "Packet too big: mtu=1282" in after, printed
    assert re.findall(r"(\d+) received", after) == ["2", "0", "0", "2"], printed
    assert re.search(r"expires \d+sec mtu 1282", after), printed
    assert drops(guest, "b")[TOO_BIG] >= 2


def test_a_syn_offers_what_the_way_back_can_carry(guest: Vm) -> None:
    printed = guest.check(
        LIBRARY
        + f"path_up 1300 silent\n{IPERF}"
        + """
        tunnel_up $(fresh_number)
        until_told a 1228 20 >/dev/null; until_told b 1278 20 >/dev/null
        for each in a b; do
            ip netns exec $each tcpdump --immediate-mode -Z root -Q in -i qre0 -nn -w /tmp/syn.$each \
                'tcp[tcpflags] & tcp-syn != 0' 2>/tmp/heard.$each &
        done
        until_true '[ "$(cat /tmp/heard.? | grep -c "listening on")" = 2 ]'
        $B timeout 60 iperf3 -c 10.77.0.1 -n 100k
        pkill -INT tcpdump
        wait
        for each in a b; do
            echo $each $(tcpdump -r /tmp/syn.$each -nn -vv 2>/dev/null | grep -o 'mss [0-9]*\\|incorrect')
        done
        """
    )
    # Two connections of iperf3: their SYNs come to the server, the answers to the client.
    assert "a mss 1136 mss 1136" in printed and "b mss 1166 mss 1166" in printed, printed


@pytest.mark.parametrize("socket", ["own", "shared"])
def test_forged_icmp_changes_nothing(guest: Vm, socket: str) -> None:
    """The kernel makes an exception for the route of it, and the shared socket is one that asks to obey that."""
    hold = {"own": "", "shared": "$A $TOOLS/qrectl hold 10.9.0.1 443 register >/tmp/held &\n"}[socket]
    printed = guest.check(
        LIBRARY
        + "path_up 1500\n"
        + hold
        + """
        until_true '[ ! -e /tmp/held ] || grep -q held /tmp/held'
        tunnel_up $(fresh_number)
        until_told a 1464 20 >/dev/null; until_told b 1464 20 >/dev/null
        ip netns exec x $TOOLS/forge 203.0.113.9 600 10.9.0.1 443 10.9.0.2 5555 20
        ip netns exec x $TOOLS/forge 203.0.113.9 600 10.9.0.2 5555 10.9.0.1 443 20
        $A nstat -az IcmpInDestUnreachs
        $A ip route get 10.9.0.2
        $B ping -M do -c 10 -i 0.1 -W 2 -s 1300 -q 10.77.0.1
        $A ping -M do -c 10 -i 0.1 -W 2 -s 1300 -q 10.77.0.2
        told a; told b
        rm -f /tmp/held
        """
    )
    assert re.search(r"IcmpInDestUnreachs +20", printed), printed
    assert "mtu 600" in printed, printed
    assert printed.count(" 0% packet loss") == 2, printed
    assert printed.endswith("1464 1412\n1464 1392\n"), printed
    assert TOO_BIG not in drops(guest, "a") | drops(guest, "b")


def test_forwarded_streams_need_no_icmp_inside(guest: Vm) -> None:
    """A host behind the server, whose own device tells nobody anything, sends while the path shrinks."""
    printed = guest.check(
        LIBRARY
        + """
        path_up 1500 silent
        ip netns add c
        ip link add ca netns a type veth peer name va2 netns c
        ip -n a addr add 10.66.0.1/24 dev ca; ip -n c addr add 10.66.0.2/24 dev va2
        ip -n a link set ca up; ip -n c link set va2 up; ip -n c link set lo up
        ip -n c route add default via 10.66.0.1
        $A sysctl -qw net.ipv4.ip_forward=1
        silence a
        ip netns exec c iperf3 -s -D
        tunnel_up $(fresh_number)
        ip -n b route add 10.66.0.0/24 dev qre0
        until_told a 1464 20 >/dev/null; until_told b 1464 20 >/dev/null
        $B timeout 200 iperf3 -c 10.66.0.2 -t 180 -R >/tmp/stream 2>&1 &
        until_flows b 300000 30 >/dev/null
        path_mtu 1300
        until_told a 1228 20 >/dev/null
        echo flows $(until_flows b 300000 20)
        kill $!
        ip netns pids c | xargs -r kill -9
        ip netns del c
        """,
        timeout=240,
    )
    assert re.search(r"flows \d+$", printed, re.M), printed
