"""Every command of qre-tool: the function, its arguments and its options. Data only.

A command's function is called as ``function(arguments, options)`` and returns the exit status. It is imported when it
is called: this table must load nothing. Help, the manual page and shell completion are generated from it and from
``cli/help/examples``; defaults of fields are in ``cli/defaults``.
"""

from __future__ import annotations

from qre.cli.command import Command, Options
from qre.cli.laboratory import LABORATORY

__all__ = ("COMMANDS", "GLOBAL_OPTIONS", "GROUPS", "SYNONYMS", "Command", "Options")

GLOBAL_OPTIONS = {
    "--json": "print JSON (show, show-cid-map, check, find-dest, clients by name)",
    "--dry-run": "print the plan and change nothing, with the commands whose help names it",
    "--help": "print help; also -h",
}

_SHOW_KEYS = {"--show-keys": "print secrets, too (or set QRE_HIDE_KEYS=never)"}

_FIRST_STEPS = {
    "check": Command(
        "qre.cli.check.check:check",
        "[PROFILE]",
        "check that this machine, or a profile on it, can run; changes nothing",
        options={"--ready": "ask whether the daemon of PROFILE works now, and nothing else: a health check"},
        text="""\
One line for each item: yes, no or ?; what was examined; after a no, the remedy. What only root can see is a ? for
other users. With PROFILE the answer is for that profile: a server's Dest is visited and its Listen port tried, a
client's Endpoint is looked up. Exit status 0: everything that is needed is available. An item that is not needed says
so: without qre.ko, for example, the user data plane takes over.
""",
        dry_run=True,
    ),
    "find-dest": Command(
        "qre.cli.dest.find_dest:find_dest",
        "[NAME]… [Endpoint=IP] [Parallel=NUMBER] [TimeLimit=DURATION]",
        "visit web sites, and rank them by how good a Dest each is",
        options={"--file PATH": "visit the sites of a file, too: one a line, # begins a comment"},
        text="""\
A site is NAME, NAME:PORT, or NAME@HOST:PORT for one address of it. Each is visited as a server visits its Dest, and
looked at by TCP. What speaks against it is told with its weight, and with what an observer would see of a server
before it: unusable (no client gets in), telling (tunnels can be told from visits), slight. The best comes first; exit
status 0: one of them can be used. The sites see this machine's address. Fields:
  [Endpoint=IP]            this server's address as clients see it, where this machine does not have it itself (NAT)
  [Parallel=NUMBER]        visits at once, 1 to 32
  [TimeLimit=DURATION]     end after this time, 1s to 1h; what was not visited then is told
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
  [Listen=IP:PORT,…]         where the server listens
  [ServerProfile=NAME] [ClientProfile=NAME]
  [ServerAddress=CIDR,…] [ClientAddress=CIDR,…]
  [AllowedIPs=CIDR,…]        the client's routes; 0.0.0.0/0 sends everything through the tunnel
  [MTU=NUMBER] [PersistentKeepalive=SECONDS] [RealityMaxTimeDiff=DURATION]
""",
        dry_run=True,
    ),
}
_TUNNELS = {
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
    "reload": Command(
        "qre.cli.profile.lifecycle_commands:reload", "PROFILE", "read a profile again, apply it", dry_run=True
    ),
    "up": Command("qre.cli.profile.lifecycle_commands:up", "PROFILE", "make a profile's device ready", dry_run=True),
    "down": Command("qre.cli.profile.lifecycle_commands:down", "PROFILE", "take a profile down", dry_run=True),
}
_LOOKING = {
    "show": Command(
        "qre.cli.show.show:show",
        "[DEVICE] [CLIENT]",
        "show devices, sessions and counters, or one client of a server",
        text="A server's sessions are a table when they are more than three; CLIENT is told whole.\n",
        dry_run=True,
    ),
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
    "metrics": Command(
        "qre.cli.metrics.metrics:metrics",
        "[DEVICE]",
        "print the numbers of show as OpenMetrics, for Prometheus and others",
        options={"--serve": "answer over HTTP on the socket of qre-metrics.socket, which systemd hands over"},
        dry_run=True,
    ),
    "refresh": Command("qre.cli.profile.refresh:refresh", "DEVICE", "measure Dest now, save and show the result"),
}
_CLIENTS = {
    "add-client": Command(
        "qre.cli.clients.client_commands:add_client",
        "PROFILE NAME [Address=ADDRESS,…] [AllowedIPs=CIDR,…] [Endpoint=HOST:PORT,…] [File=PATH]",
        "add a client to a server, print its profile as a file, a link and a code",
        text="""\
Writes a section [Client NAME] with a random short id into the server's profile; a running daemon takes it at once.
The client's profile is printed as a file, whose first line is the link for `import`; a terminal shows a QR code of
the link, too. Whoever has one of them can use the tunnel as this client. Fields:
  [Address=ADDRESS,…]     the client's addresses, in the server's networks
  [AllowedIPs=CIDR,…]     networks behind the client, which get routes to it; never 0.0.0.0/0
  [Endpoint=HOST:PORT,…]  the server's address, or its several ones, for this client; kept for later links
  [File=PATH]             write the profile there (mode 0600) and print no secret
""",
        dry_run=True,
    ),
    "list-clients": Command(
        "qre.cli.clients.client_list:list_clients",
        "PROFILE",
        "list a server's clients: address, last seen, transfer, endpoint",
        dry_run=True,
    ),
    "export": Command(
        "qre.cli.clients.client_commands:export",
        "PROFILE CLIENT [As=all|file|link|qr] [Endpoint=HOST:PORT,…] [File=PATH]",
        "print a client's profile again",
        text="""\
What `add-client` printed. Fields:
  [As=all|file|link|qr]   the file with its code, the file alone, the link alone, the code alone
  [Endpoint=HOST:PORT,…]  where the client finds the server
  [File=PATH]             write the profile there (mode 0600) and print no secret
""",
        dry_run=True,
    ),
    "rename-client": Command(
        "qre.cli.clients.client_commands:rename_client", "PROFILE CLIENT NEW", "give a client another name"
    ),
    "remove-client": Command(
        "qre.cli.clients.client_commands:remove_client",
        "PROFILE CLIENT",
        "remove a client, by its name or its short id; its session ends at once",
    ),
    "rotate-key": Command(
        "qre.cli.clients.rotate_key:rotate_key",
        "PROFILE [Endpoint=HOST:PORT,…] [For=DURATION]",
        "give a server a new key and every client a new link",
        text="""\
Prints a line for each client: its name and its new link, for `qre-tool import --replace -`. Clients that still have
the old key are let in meanwhile; running sessions go on, whatever the time. Fields:
  [Endpoint=HOST:PORT,…]  where clients find the server, but for those with an Endpoint of their own
  [For=DURATION]          how long the old key is accepted, up to 365d; 0: not at all
""",
        dry_run=True,
    ),
    "import": Command(
        "qre.cli.clients.client_import:import_client",
        "-|FILE [Profile=NAME]",
        "on the client: write its profile from a link or a file",
        options={"--replace": "change what the link says in the profile of this name, keep the rest of it"},
        text="""\
`-` is standard input, where a link can be pasted. A link in place of FILE works, too, but other users can see it.
Hooks are refused: importing makes no command run. With --replace the profile keeps what the link does not say, as
hooks and further servers, and what is changed is printed. Fields:
  [Profile=NAME]   the name of the profile and of its device
""",
        dry_run=True,
    ),
}
_FILES = {
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
    "genkey": Command("qre.cli.profile.configuration:genkey", "", "print a new private key", dry_run=True),
    "pubkey": Command(
        "qre.cli.profile.configuration:pubkey",
        "",
        "read a private key, print its public key (standard input)",
        dry_run=True,
    ),
    "genshortid": Command("qre.cli.profile.configuration:genshortid", "", "print a new short id", dry_run=True),
}
_PROGRAM = {
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
}
#: What `help` says, in this order: heading -> the commands below it.
GROUPS = {
    "First steps": _FIRST_STEPS,
    "Running a tunnel": _TUNNELS,
    "Clients by name": _CLIENTS,
    "Looking at it": _LOOKING,
    "Files and keys": _FILES,
    "This program": _PROGRAM,
    "Laboratory: single parts by hand, for tests and debugging": LABORATORY,
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
#: What people call a command who know another program -> how it is called here.
SYNONYMS = {
    "status": "show",
    "list-devices": "show",
    "top": "watch",
    "monitor": "watch",
    "ping": "check PROFILE",
    "test": "check PROFILE",
    "doctor": "check",
    "start": "daemon PROFILE",
    "run": "daemon PROFILE",
    "connect": "daemon PROFILE",
    "stop": "down PROFILE",
    "disconnect": "down PROFILE",
    "restart": "reload PROFILE",
    "keygen": "genkey",
    "generate": "genkey",
    "setup": "init",
    "new": "init",
    "config": "showconf FILE",
    "man": "help --man",
    "add": "add-client PROFILE NAME",
    "add-peer": "add-client PROFILE NAME",
    "qr": "export PROFILE CLIENT As=qr",
    "link": "export PROFILE CLIENT As=link",
    "list": "list-clients PROFILE",
    "clients": "list-clients PROFILE",
    "peers": "list-clients PROFILE",
    "users": "list-clients PROFILE",
    "remove": "remove-client PROFILE CLIENT",
    "revoke": "remove-client PROFILE CLIENT",
    "rename": "rename-client PROFILE CLIENT NEW",
    "rotate": "rotate-key PROFILE",
    "stats": "metrics",
    "prometheus": "metrics",
    "rekey": "rotate-key PROFILE",
}
