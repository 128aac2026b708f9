"""``session-plan``: a handshake of two configurations in memory, and the install-session commands of both ends.

Touches no kernel, no network, no state. The keys it prints are of a session that exists nowhere: they are made for
this run, and differ at each.
"""

from __future__ import annotations

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from qre.config.model import Profile, SocketAddress
    from qre.quic.keys import HandedOver
    from qre.quic.plan import Plan
    from qre.session import Role, SessionInstall

UNDERLAYS = ("ServerUnderlay", "ClientUnderlay")
#: Where a client is when nothing says so.
TEST_CLIENT_UNDERLAY = "127.0.0.1:50443"


def session_plan(arguments: list[str], options: Options) -> int:
    """SERVER-CONFIG CLIENT-CONFIG [ServerUnderlay=IP:PORT ClientUnderlay=IP:PORT]"""
    del options
    for line in plan_lines(*read_arguments("session-plan", arguments)):
        print(line)
    return 0


def read_arguments(command: str, arguments: list[str]) -> tuple[Profile, Profile, str | None, str | None]:
    """Both profiles and both underlays, which are given together or not at all."""
    from qre.config.profile import load_profile_file

    server_file, client_file, *rest = arguments
    fields = parse_fields(rest, (), UNDERLAYS, command=command)
    check_both_or_none(command, fields)
    server, client = load_profile_file(server_file), load_profile_file(client_file)
    return server, client, fields.get("ServerUnderlay"), fields.get("ClientUnderlay")


def check_both_or_none(command: str, fields: Mapping[str, str]) -> None:
    """Raise UserError when one underlay is given without the other."""
    if len([name for name in UNDERLAYS if name in fields]) == 1:
        raise UserError(command, "ServerUnderlay and ClientUnderlay go together", "give both, or none")


def plan_lines(
    server: Profile, client: Profile, server_underlay: str | None, client_underlay: str | None
) -> list[str]:
    """Two commands, ready to paste, each below a comment that says whose it is."""
    lines = []
    for profile, role, install in planned_installs(server, client, server_underlay, client_underlay):
        lines += [
            f"# {role} {profile.device}",
            f"qre-tool install-session {profile.device} {' '.join(install_arguments(install))}",
        ]
    return lines


def planned_installs(
    server: Profile, client: Profile, server_underlay: str | None, client_underlay: str | None
) -> list[tuple[Profile, Role, SessionInstall]]:
    """What both ends of a handshake in memory would install, the server's first."""
    from qre.config.values import parse_socket_address
    from qre.session import Role

    if server.server is None or client.client is None:
        wrong, role = (server, "server") if server.server is None else (client, "client")
        raise UserError(f"profile {wrong.name}", f"it is no {role}'s", "give the server's file, then the client's")
    ends = (
        parse_socket_address(server_underlay) if server_underlay else server.server.listen,
        parse_socket_address(client_underlay or TEST_CLIENT_UNDERLAY),
    )
    plan = run_plan(server, client, *ends)
    here, there = ((str(end.ip), end.port) for end in ends)
    return [
        (server, Role.SERVER, session_of(server, Role.SERVER, plan.server, here, there)),
        (client, Role.CLIENT, session_of(client, Role.CLIENT, plan.client, there, here)),
    ]


def run_plan(
    server: Profile,
    client: Profile,
    server_underlay: SocketAddress,
    client_underlay: SocketAddress,
    key_log: TextIO | None = None,
) -> Plan:
    """The handshake itself; the server's addresses are granted as its daemon would. ``key_log`` gets its secrets."""
    import os
    import time

    from qre.config.settings import load_global
    from qre.quic.plan import InMemoryHandshake
    from qre.workers.handshake.grants import Grants

    assert server.server is not None and client.client is not None
    grants = Grants(server.address)
    return InMemoryHandshake(
        server=server.server,
        client=client.client,
        addresses=client.address,
        grant=lambda short_id, wanted: grants.ask(short_id, short_id, wanted),
        routes=grants.routes(),
        routed_cid_len=load_global(os.environ).routed_cid_len,
        server_address=(str(server_underlay.ip), server_underlay.port),
        client_address=(str(client_underlay.ip), client_underlay.port),
        unix_time=int(time.time()),
        key_log=key_log,
    ).run()


def session_of(
    profile: Profile, role: Role, handed_over: HandedOver, local: tuple[str, int], peer: tuple[str, int]
) -> SessionInstall:
    """What an end of a handshake installs: a server lets pass what it has assigned, a client its AllowedIPs."""
    from qre.quic.keys import handed_over_install
    from qre.session import Role, Underlay

    underlay = Underlay(local_ip=local[0], local_port=local[1], peer_ip=peer[0], peer_port=peer[1])
    allowed = handed_over.addresses if role is Role.SERVER else profile.allowed_ips
    return handed_over_install(handed_over, role, underlay, allowed_ips=tuple(map(str, allowed)))


def install_arguments(install: SessionInstall) -> list[str]:
    """The fields of ``install-session``, in the reference's order, then those beyond it."""
    keys, following, underlay = install.keys, install.next_keys, install.underlay
    values = {
        "SessionId": install.session_id.hex(),
        "ConnectionId": install.connection_id.hex(),
        "TxKey": keys.tx_key.hex(),
        "RxKey": keys.rx_key.hex(),
        "TxHpKey": install.tx_hp_key.hex(),
        "RxHpKey": install.rx_hp_key.hex(),
        "TxIv": keys.tx_iv.hex(),
        "RxIv": keys.rx_iv.hex(),
        "KeyEpoch": install.key_epoch,
        "PacketNumber": install.packet_number,
    }
    if following is not None:
        values |= {
            "NextRxKey": following.rx_key.hex(),
            "NextRxHpKey": install.rx_hp_key.hex(),  # header keys never change (RFC 9001 §6.1)
            "NextRxIv": following.rx_iv.hex(),
            "NextTxKey": following.tx_key.hex(),
            "NextTxIv": following.tx_iv.hex(),
        }
    values |= {
        "UnderlayLocalIPv4": underlay.local_ip,
        "UnderlayLocalPort": underlay.local_port,
        "UnderlayPeerIPv4": underlay.peer_ip,
        "UnderlayPeerPort": underlay.peer_port,
        "ClientConnectionId": install.client_connection_id.hex(),
    }
    if install.allowed_ips:
        values["AllowedIPs"] = ",".join(install.allowed_ips)
    return [f"{name}={value}" for name, value in values.items()]
