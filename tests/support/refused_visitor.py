"""A visitor whose datagrams do not arrive: what ICMP tells it, and what its socket.

``python refused_visitor.py ADDRESS PORT FROM TIMES LENGTH SECONDS`` sends datagrams of LENGTH bytes with DF, in turns
from its port FROM and, from a connected socket, from the next one. It prints a JSON object: ``packets``, each ICMP
error that came to this namespace (hex, from the IP header on), and ``errors``, those that the connected socket was
told (names). It imports nothing of QRE.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
import time

_ETH_P_IP, _ETH_P_IPV6, _OUTGOING = 0x0800, 0x86DD, 4
_PROBE = 3  # IP_PMTUDISC_PROBE: DF, and an identification of 0


def is_error(packet: bytes) -> bool:
    """An ICMP error of a host or a router: ICMP's «unreachable», ICMPv6's below 128."""
    if packet[0] >> 4 == 4:
        return packet[9] == 1 and packet[20] == 3
    return packet[6] == 58 and packet[40] < 128


def made_socket(family: int, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    level, option = (socket.IPPROTO_IPV6, 23) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 10)
    made.setsockopt(level, option, _PROBE)
    made.bind(("", port))
    made.setblocking(False)
    return made


def main() -> None:
    address, port, source, times, length, seconds = sys.argv[1], *map(int, sys.argv[2:6]), float(sys.argv[6])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packets, errors = [], []
    data = (bytes(range(250)) * 262)[:length]
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as wire,
        made_socket(family, source) as loose,
        made_socket(family, source + 1) as connected,
    ):
        connected.connect((address, port))
        for number in range(times):
            try:
                if number % 2:
                    connected.send(data)
                else:
                    loose.sendto(data, (address, port))
            except OSError as error:
                errors.append(errno.errorcode[error.errno or 0])
            if times > 10:
                time.sleep(seconds / times)
        end = time.monotonic() + (seconds if times <= 10 else 1.0)
        while (left := end - time.monotonic()) > 0:
            if not select.select([wire], [], [], left)[0]:
                break
            packet, (_, protocol, kind, *_) = wire.recvfrom(65_535)
            if kind != _OUTGOING and protocol in {_ETH_P_IP, _ETH_P_IPV6} and is_error(packet):
                packets.append(packet.hex())
        try:
            connected.recv(10)
        except BlockingIOError:
            pass
        except OSError as error:
            errors.append(errno.errorcode[error.errno or 0])
    json.dump({"packets": packets, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main()
