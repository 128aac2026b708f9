"""Commands that test or drive a single part by hand: sessions, connection IDs, maps, a shared port. Data only.

A user of a tunnel needs none of them. ``cli/commands`` has the others, and puts both together.
"""

from __future__ import annotations

from qre.cli.command import Command

_SESSION_FIELDS = """\
Fields, bytes in hex:
  SessionId=64HEX ConnectionId=HEX KeyEpoch=NUMBER PacketNumber=NUMBER
  TxKey=32HEX RxKey=32HEX TxHpKey=32HEX RxHpKey=32HEX TxIv=24HEX RxIv=24HEX
  [NextRxKey=32HEX NextRxHpKey=32HEX NextRxIv=24HEX] [NextTxKey=32HEX NextTxIv=24HEX]
  [UnderlayLocalIPv4=IP UnderlayLocalPort=PORT UnderlayPeerIPv4=IP UnderlayPeerPort=PORT]
  [UnderlayLocalIPv6=IP UnderlayPeerIPv6=IP] instead of those of IPv4
  [ClientConnectionId=HEX]   on packets to the client; may be empty
  [AllowedIPs=CIDR,…]        inner addresses that may pass
  [IdleTimeout=DURATION]     end when the peer sends nothing for this long, 1s to 1h
  [PersistentKeepalive=SECONDS] ask the peer for a packet after this time, or off
  [SocketFd=FD]              a UDP socket that this process inherited
PacketNumber is raised to 65536 at least: a handshake has used the numbers below under the same keys.
"""

_RECORDED_FIELD = """\
  [DestProfile=FILE]         whose recorded flight the server plays: PROFILE.dest of StateDir
"""
_PLAN_FIELDS = f"""\
Fields, of the first two both or none:
  [ServerUnderlay=IP:PORT]   the server's outer address
  [ClientUnderlay=IP:PORT]   the client's
{_RECORDED_FIELD}"""
_LOADING_FIELDS = """\
  [PinDir=DIRECTORY]         on a BPF file system
  [RegisterCidMap=true|false] register the CID map with qre.ko
  [RoutedCidLen=17..20]      bytes of a routed connection ID
"""
_LASTING_FIELDS = """\
  [ReadyFile=PATH]           exists while the command is ready
  [RunForMs=MILLISECONDS]    end after this time, not 0
"""

LABORATORY = {
    "set": Command(
        "qre.cli.kernel.kernel_commands:set_device",
        "DEVICE role server|client Address=CIDR Key=Value…",
        "apply a minimal configuration to a device in the kernel",
        text="""\
Keys and short ids are placeholders: for tests and debugging. Fields:
  server: Address=CIDR Listen=IP:PORT MTU=NUMBER Dest=HOST:PORT ServerName=NAME
  client: Address=CIDR Endpoint=HOST:PORT MTU=NUMBER ServerName=NAME
  both:   [PersistentKeepalive=SECONDS]; ServerName is also called sni
""",
    ),
    "delete": Command("qre.cli.kernel.kernel_commands:delete", "DEVICE", "delete a device from the kernel"),
    "syncconf": Command(
        "qre.cli.kernel.kernel_commands:syncconf",
        "DEVICE FILE",
        "apply a configuration file to a device in the kernel",
    ),
    "install-session": Command(
        "qre.cli.kernel.session_commands:install_session",
        "DEVICE SessionId=HEX ConnectionId=HEX Key=Value…",
        "install a session in the kernel, adopt its connection ID",
        text=f"{_SESSION_FIELDS}The life of such a session: docs/sessions-by-hand.md.\n",
    ),
    "update-session": Command(
        "qre.cli.kernel.session_commands:update_session",
        "DEVICE SessionId=HEX ConnectionId=HEX Key=Value…",
        "give a session in the kernel its next keys",
        text=f"""\
{_SESSION_FIELDS}\
A server adopts another ConnectionId beside those of the session.
""",
    ),
    "adopt-cid": Command(
        "qre.cli.kernel.kernel_commands:adopt_cid",
        "DEVICE ConnectionId=HEX [SessionId=HEX]",
        "let the kernel receive packets with a connection ID",
    ),
    "release-cid": Command(
        "qre.cli.kernel.kernel_commands:release_cid",
        "DEVICE ConnectionId=HEX [SessionId=HEX]",
        "release a connection ID from the kernel",
    ),
    "session-plan": Command(
        "qre.cli.session.session_plan:session_plan",
        "SERVER-CONFIG CLIENT-CONFIG [Key=Value]…",
        "run a handshake in memory, print what install-session wants",
        text=f"{_PLAN_FIELDS}Printed as comments: the commands that change to the next keys.\n",
        dry_run=True,
    ),
    "session-demo": Command(
        "qre.cli.kernel.session_commands:session_demo",
        "SERVER-CONFIG CLIENT-CONFIG [Key=Value]…",
        "run a handshake in memory, install both ends in the kernel",
        text=_PLAN_FIELDS,
    ),
    "session-capture": Command(
        "qre.cli.session.session_capture:session_capture",
        "valid-client|invalid-short-id|wrong-sni|malformed-initial|random-udp SERVER-CONFIG CLIENT-CONFIG PCAP "
        "[Key=Value]…",
        "write what both ends send each other as a file for Wireshark",
        text=f"""\
Everything happens in memory: no packet is sent, the kernel is not touched. A valid client (also: valid) must be let
in and the others refused, or the command fails. PCAP is a classic pcap of raw IPv4; with a name
in .pcapng it is pcapng, and what it shows is a comment in it, in place of lines of the output. Fields:
  [ServerUnderlay=IP:PORT]   the server's outer address
  [ClientUnderlay=IP:PORT]   the client's; both are given, or none
  [KeyLog=true|false]        write the secrets of a valid client's handshake beside it, in PCAP.keys
{_RECORDED_FIELD}""",
    ),
    "create-cid-map": Command(
        "qre.cli.kernel.maps:create_cid_map", "BpfMapPath=PATH", "make and pin a map of routed connection ids"
    ),
    "create-reuseport-socket-map": Command(
        "qre.cli.kernel.maps:create_reuseport_socket_map", "BpfMapPath=PATH", "make and pin a map of two sockets"
    ),
    "register-cid-map": Command(
        "qre.cli.kernel.shared_port:register_cid_map",
        "BpfMapPath=PATH|BpfMapFd=FD",
        "let the kernel mirror connection IDs into a BPF map",
    ),
    "unregister-cid-map": Command(
        "qre.cli.kernel.shared_port:unregister_cid_map", "", "stop mirroring connection IDs"
    ),
    "show-cid-map": Command(
        "qre.cli.kernel.maps:show_cid_map",
        "BpfMapPath=PATH|BpfMapFd=FD",
        "list a map of routed connection ids",
        dry_run=True,
    ),
    "register-shared-socket": Command(
        "qre.cli.kernel.shared_port:register_shared_socket",
        "SocketFd=FD",
        "give the kernel the shared port's UDP socket",
    ),
    "unregister-shared-socket": Command(
        "qre.cli.kernel.shared_port:unregister_shared_socket", "", "take the shared port's socket from the kernel"
    ),
    "shared-port-loader": Command(
        "qre.cli.port.port_loader:shared_port_loader",
        "BpfElf=PATH Listen=IP:PORT UserspaceBind=true|UserspaceSocketFd=FD [Key=Value]…",
        "hold a shared port: two sockets, the BPF program, its pins",
        text=f"""\
For debugging; a server's daemon has its own. Fields:
  BpfElf=PATH                the compiled program
  Listen=IP:PORT             numeric
  UserspaceBind=true         bind the user-space socket here; or
  UserspaceSocketFd=FD       take one that this process inherited, bound to Listen with SO_REUSEPORT
{_LOADING_FIELDS}\
  [Device=DEVICE]            print its shared-port counters at the beginning and at the end
{_LASTING_FIELDS}\
The pins are named by the address: QRE_CID_ROUTES-127-0-0-1-443 for Listen=127.0.0.1:443.
""",
    ),
    "shared-port-loader-check": Command(
        "qre.cli.port.port_check:shared_port_loader_check",
        "BpfElf=PATH Listen=IP:PORT ConnectionId=HEX [Key=Value]…",
        "test with real packets that the BPF program steers them",
        text=f"""\
Sets up the shared port, sends packets to it, and removes it again. Fields:
  BpfElf=PATH                the compiled program
  Listen=IP:PORT             numeric
  ConnectionId=HEX           as long as RoutedCidLen
{_LOADING_FIELDS}\
  [Device=DEVICE]            a server's device of qre.ko: it adopts the connection ID, and its counters are compared
""",
    ),
    "shared-port-session-demo": Command(
        "qre.cli.port.port_demo:shared_port_session_demo",
        "SERVER-CONFIG CLIENT-CONFIG BpfElf=PATH [Key=Value]…",
        "a handshake over UDP behind a shared port, both ends in the kernel",
        text=f"""\
Both sessions, and the devices that were made for them, stay until the command ends. Fields:
  BpfElf=PATH                the compiled program
{_LOADING_FIELDS}\
{_LASTING_FIELDS}\
  [ServerUnderlay=IP:PORT]   listen there
  [ClientUnderlay=IP:PORT]   the client's outer address
""",
    ),
    "shared-port-handshake-daemon": Command(
        "qre.cli.port.port_daemon:handshake_daemon",
        "SERVER-CONFIG… BpfElf=PATH [Key=Value]…",
        "several configurations on one port, each client by its short id",
        text=f"""\
Listen, ServerName, Dest, RealityPrivateKey and RealityMaxTimeDiff must be equal, and no short id be in two of them;
several need the kernel's data plane. Each is run by a daemon of its own until the command ends. Fields:
  BpfElf=PATH                the compiled program
{_LOADING_FIELDS}\
{_LASTING_FIELDS}""",
    ),
    "shared-port-handshake-client": Command(
        "qre.cli.port.port_client:shared_port_handshake_client",
        "CLIENT-CONFIG [Key=Value]…",
        "one client handshake over UDP: what was agreed, what was assigned",
        text="""\
Fields:
  [ServerUnderlay=IP:PORT]   where the server is
  [ClientUnderlay=IP:PORT]   the client's outer address
  [InstallSession=true|false] install the client's session in the kernel, which needs root
""",
    ),
}
