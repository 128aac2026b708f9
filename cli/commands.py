"""Every command of qre-tool: the function, its arguments and its options. Data only.

A command's function is called as ``function(arguments, options)`` and returns the exit status. It is imported when it
is called: this table must load nothing. Help, the manual page and shell completion are generated from it and from
``cli/help/examples``; defaults of fields are in ``cli/defaults``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[[list[str], "Options"], int]

GLOBAL_OPTIONS = {
    "--json": "print JSON (show, show-cid-map, check)",
    "--dry-run": "print the plan, one operation a line, and change nothing (up, reload, down, daemon, init)",
    "--help": "print help; also -h",
}


class Options:
    """The given options: the global ones, and the command's own options without a value (``flags``)."""

    __slots__ = ("dry_run", "flags", "json")

    def __init__(self, json: bool = False, dry_run: bool = False, flags: set[str] | None = None) -> None:
        self.json = json
        self.dry_run = dry_run
        self.flags = flags if flags is not None else set()


class Command:
    """``arguments``: the words after the name, as help shows them; those in brackets may be left out, those with
    ``=`` are fields, which the command itself looks after. ``dry_run``: it can print its plan, or changes nothing
    anyway."""

    __slots__ = ("arguments", "dry_run", "options", "summary", "target", "text")

    def __init__(
        self,
        target: str,
        arguments: str,
        summary: str,
        *,
        options: dict[str, str] | None = None,
        text: str = "",
        dry_run: bool = False,
    ) -> None:
        self.target = target
        self.arguments = arguments
        self.summary = summary
        self.options = options or {}  # name, with its value's name after a blank when it takes one -> meaning
        self.text = text
        self.dry_run = dry_run

    def fields(self) -> dict[str, str]:
        """Every field that ``arguments`` and ``text`` speak of as ``Name=VALUE`` -> what they call its value."""
        found: dict[str, str] = {}
        for word in f"{self.arguments} {self.text}".split():
            name = ""
            for part in word.strip("[](),;:.`…").split("|"):  # A=PATH|B=FD are two fields, A=true|false is one
                before, equals, value = part.partition("=")
                if equals and before.isalnum() and before[0].isupper() and before != "Key":
                    name = before if before not in found else ""
                    if name:
                        found[name] = value.strip("[]…")
                elif name:
                    found[name] += f"|{part}"
        return found


_SHOW_KEYS = {"--show-keys": "print secrets, too (or set QRE_HIDE_KEYS=never)"}
_SESSION_FIELDS = """\
Fields, bytes in hex:
  SessionId=64HEX ConnectionId=HEX KeyEpoch=NUMBER PacketNumber=NUMBER
  TxKey=32HEX RxKey=32HEX TxHpKey=32HEX RxHpKey=32HEX TxIv=24HEX RxIv=24HEX
  [NextRxKey=32HEX NextRxHpKey=32HEX NextRxIv=24HEX] [NextTxKey=32HEX NextTxIv=24HEX]
  [UnderlayLocalIPv4=IP UnderlayLocalPort=PORT UnderlayPeerIPv4=IP UnderlayPeerPort=PORT]
  [ClientConnectionId=HEX]   on packets to the client; may be empty
  [AllowedIPs=CIDR,…]        inner addresses that may pass
  [IdleTimeout=DURATION]     end when the peer sends nothing for this long, 1s to 1h
  [PersistentKeepalive=SECONDS] ask the peer for a packet after this time, or off
  [SocketFd=FD]              a UDP socket that this process inherited
PacketNumber is raised to 65536 at least: a handshake has used the numbers below under the same keys.
"""

_UNDERLAY_FIELDS = """\
Fields, both or none:
  [ServerUnderlay=IP:PORT]   the server's outer address
  [ClientUnderlay=IP:PORT]   the client's
"""
_LOADING_FIELDS = """\
  [PinDir=DIRECTORY]         on a BPF file system
  [RegisterCidMap=true|false] register the CID map with qre.ko
  [RoutedCidLen=17..20]      bytes of a routed connection ID
"""
_LASTING_FIELDS = """\
  [ReadyFile=PATH]           exists while the command is ready
  [RunForMs=MILLISECONDS]    end after this time, not 0
"""

COMMANDS = {
    "help": Command(
        "qre.cli.help.help:help_command",
        "[COMMAND]",
        "print this, or the help of a command",
        options={"--man": "print the manual page qre-tool(8), which man -l reads"},
        dry_run=True,
    ),
    "version": Command("qre.cli.profile.configuration:version", "", "print the version", dry_run=True),
    "completion": Command(
        "qre.cli.completion:completion",
        "bash|zsh|fish",
        "print the shell script that completes commands, fields and names",
        dry_run=True,
    ),
    "check": Command(
        "qre.cli.check.check:check",
        "[PROFILE]",
        "check that this machine, or a profile on it, can run; changes nothing",
        text="""\
One line for each item: yes, no or ?; what was examined; after a no, the remedy. What only root can see is a ? for
other users. With PROFILE the answer is for that profile: a server's Dest is visited and its Listen port tried, a
client's Endpoint is looked up. Exit status 0: everything that is needed is available. An item that is not needed says
so: without qre.ko, for example, the user data plane takes over.
""",
        dry_run=True,
    ),
    "init": Command(
        "qre.cli.profile.init:init",
        "Endpoint=HOST:PORT Dest=HOST:PORT [Key=Value]…",
        "write a matching server and client profile",
        text="""\
Makes keys and a short id and writes two profiles with mode 0600 into the configuration directory; both are written,
or none, and nothing is overwritten. Fields:
  Endpoint=HOST:PORT         where clients reach the server
  Dest=HOST:PORT             the web site (HTTP/3) that everybody else sees
  [ServerName=NAME]          its name
  [Listen=IP:PORT]           where the server listens
  [ServerProfile=NAME] [ClientProfile=NAME]
  [ServerAddress=CIDR,…] [ClientAddress=CIDR,…]
  [AllowedIPs=CIDR,…]        the client's routes; 0.0.0.0/0 sends everything through the tunnel
  [MTU=NUMBER] [PersistentKeepalive=SECONDS] [RealityMaxTimeDiff=DURATION]
""",
        dry_run=True,
    ),
    "genkey": Command("qre.cli.profile.configuration:genkey", "", "print a new private key", dry_run=True),
    "pubkey": Command(
        "qre.cli.profile.configuration:pubkey",
        "",
        "read a private key, print its public key (standard input)",
        dry_run=True,
    ),
    "genshortid": Command("qre.cli.profile.configuration:genshortid", "", "print a new short id", dry_run=True),
    "strip": Command(
        "qre.cli.profile.configuration:strip",
        "PROFILE",
        "print a profile of the configuration directory as normalised JSON",
        options=_SHOW_KEYS,
        dry_run=True,
    ),
    "showconf": Command(
        "qre.cli.profile.configuration:showconf",
        "FILE",
        "check a global or profile file, print it as normalised JSON",
        options=_SHOW_KEYS,
        dry_run=True,
    ),
    "up": Command("qre.cli.profile.lifecycle_commands:up", "PROFILE", "make a profile's device ready", dry_run=True),
    "reload": Command(
        "qre.cli.profile.lifecycle_commands:reload", "PROFILE", "read a profile again, apply it", dry_run=True
    ),
    "down": Command("qre.cli.profile.lifecycle_commands:down", "PROFILE", "take a profile down", dry_run=True),
    "daemon": Command(
        "qre.cli.profile.daemon:daemon",
        "PROFILE",
        "run a profile: server or client, until it is stopped",
        options={
            "--config-dir PATH": "the directory of the profiles (QRE_CONFIG_DIR)",
            "--global-config PATH": "the global configuration file (QRE_GLOBAL_CONFIG)",
            "--state-dir PATH": "the directory of saved state (QRE_STATE_DIR)",
            "--bpf-elf PATH": "the BPF program (QRE_BPF_ELF)",
            "--pin-dir PATH": "the directory of BPF pins (QRE_BPF_PIN_DIR)",
            "--server-underlay IP:PORT": "override the server's outer address (tests)",
            "--client-underlay IP:PORT": "override the client's outer address (tests)",
            "--run-for-ms MS": "end after this many milliseconds, not 0 (tests)",
        },
        text="Does what `up` does, then serves or connects until SIGTERM or SIGINT; SIGHUP reloads.\n",
        dry_run=True,
    ),
    "show": Command("qre.cli.show.show:show", "[DEVICE]", "show devices, sessions and counters", dry_run=True),
    "watch": Command(
        "qre.cli.show.watch:watch",
        "[DEVICE] [Interval=SECONDS] [Count=NUMBER]",
        "show devices again and again, with rates, until Ctrl-C",
        text="""\
The output of `show`, with the rates since the previous block. A terminal is redrawn, any other output gets one block
after another. Fields:
  [Interval=SECONDS]   0.1 to 3600
  [Count=NUMBER]       end after this many blocks
""",
        dry_run=True,
    ),
    "refresh": Command("qre.cli.profile.refresh:refresh", "DEVICE", "measure Dest now, save and show the result"),
    "syncconf": Command(
        "qre.cli.kernel.kernel_commands:syncconf",
        "DEVICE FILE",
        "apply a configuration file to a device in the kernel",
    ),
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
    "session-demo": Command(
        "qre.cli.kernel.session_commands:session_demo",
        "SERVER-CONFIG CLIENT-CONFIG [Key=Value]…",
        "run a handshake in memory, install both ends in the kernel",
        text=_UNDERLAY_FIELDS,
    ),
    "session-plan": Command(
        "qre.cli.session.session_plan:session_plan",
        "SERVER-CONFIG CLIENT-CONFIG [Key=Value]…",
        "run a handshake in memory, print both ends' install-session arguments",
        text=f"{_UNDERLAY_FIELDS}Printed as comments: the commands that change to the next keys.\n",
        dry_run=True,
    ),
    "session-capture": Command(
        "qre.cli.session.session_capture:session_capture",
        "valid-client|invalid-short-id|wrong-sni|malformed-initial|random-udp SERVER-CONFIG CLIENT-CONFIG PCAP "
        "[Key=Value]…",
        "write what a client and a server send each other as a file for Wireshark",
        text="""\
Everything happens in memory: no packet is sent, the kernel is not touched. A valid client (also: valid) must be let
in and the others refused, or the command fails. The file is raw IPv4 in pcapng, with a note of what it shows. Fields:
  [ServerUnderlay=IP:PORT]   the server's outer address
  [ClientUnderlay=IP:PORT]   the client's; both are given, or none
  [KeyLog=true|false]        write the secrets of a valid client's handshake beside it, in PCAP.keys
""",
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
    "register-shared-socket": Command(
        "qre.cli.kernel.shared_port:register_shared_socket",
        "SocketFd=FD",
        "give the kernel the shared port's UDP socket",
    ),
    "unregister-shared-socket": Command(
        "qre.cli.kernel.shared_port:unregister_shared_socket", "", "take the shared port's socket from the kernel"
    ),
    "show-cid-map": Command(
        "qre.cli.kernel.maps:show_cid_map",
        "BpfMapPath=PATH|BpfMapFd=FD",
        "list a map of routed connection ids",
        dry_run=True,
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
  [Device=DEVICE]            let qre.ko adopt the connection ID on it, and compare its shared-port counters
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
        "serve several configurations on one port, each client by its short id",
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
