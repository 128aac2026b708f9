"""``qre-tool daemon``: its options, its plan, and the start of the daemon itself (``supervisor/parent/parent``).

Each option sets its QRE_ variable too, so that hooks and children see the same paths. Modules that only
the running daemon needs are imported when it runs.
"""

from __future__ import annotations

import os
import signal

from qre.cli.commands import Options
from qre.errors import UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from qre.config.model import GlobalConfig, Profile, SocketAddress

#: Option -> the variable that it sets.
_VARIABLES = {
    "--config-dir": "QRE_CONFIG_DIR",
    "--global-config": "QRE_GLOBAL_CONFIG",
    "--state-dir": "QRE_STATE_DIR",
    "--bpf-elf": "QRE_BPF_ELF",
    "--pin-dir": "QRE_BPF_PIN_DIR",
}
_UNDERLAYS = ("--server-underlay", "--client-underlay")
_MAX_U64 = (1 << 64) - 1


def daemon(arguments: list[str], options: Options) -> int:
    """Run a profile until it is stopped."""
    _open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing_to_undo)
    from qre.config.model import UnderlayOverride
    from qre.config.profile import load_profile
    from qre.config.settings import load_global
    from qre.config.values import check_profile_name
    from qre.kernel.capabilities import require_capabilities

    name, given = _split(arguments)
    check_profile_name(name)
    run_for_ms = _run_for_ms(given.get("--run-for-ms"))
    environment = dict(os.environ)
    for option, variable in _VARIABLES.items():
        if option in given:
            environment[variable] = os.path.abspath(given[option])
    _check_there(given)
    config = load_global(environment)
    if not options.dry_run:  # before the profile, which only root may read
        require_capabilities(f"daemon {name}", ("CAP_NET_ADMIN",))
    underlay = UnderlayOverride(
        *(_underlay(option, given[option]) if option in given else None for option in _UNDERLAYS)
    )

    def load() -> Profile:
        return load_profile(name, config, environment).replace(underlay=underlay)

    profile = load()
    if options.dry_run:
        from qre.device.lifecycle import plan_up

        for line in [*plan_up(profile, config, keep_tun=True), *_plan(profile, config, run_for_ms)]:
            print(line)
        return 0
    os.environ.update(environment)

    from qre.supervisor.parent.parent import run_daemon
    from qre.supervisor.parent.process_settings import DaemonOptions

    return run_daemon(profile, config, DaemonOptions(run_for_ms), load)


def _open_standard_streams() -> None:
    """Open closed standard streams as /dev/null, so that no later descriptor gets their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _nothing_to_undo(number: int, frame: object) -> NoReturn:
    """A signal before anything was changed; the daemon handles signals itself once it runs. Not by an exception: one
    that is raised while an extension module imports something is lost."""
    os._exit(0)


def _split(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The profile's name, and option -> value; options may stand on either side, with a blank or ``=``."""
    names: list[str] = []
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word == "--":
            names += words
        elif word.startswith("--"):
            option, equals, value = word.partition("=")
            if option in given:
                raise UserError(f"option {option}", "it is given twice", "leave one out")
            given[option] = value if equals else next(words, "")
            if not given[option]:
                raise UserError(f"option {option}", "its value is missing", "see `qre-tool help daemon`")
        else:
            names.append(word)
    if len(names) != 1:
        raise UserError(
            "daemon", f"it runs one profile, and {len(names)} are given", "write `qre-tool daemon PROFILE`"
        )
    return names[0], given


def _check_there(given: dict[str, str]) -> None:
    """Raise UserErrors for given paths that do not exist; a state directory is created."""
    wanted = (
        ("--config-dir", os.path.isdir, "directory"),
        ("--global-config", os.path.exists, "file"),
        ("--bpf-elf", os.path.exists, "file"),
        ("--pin-dir", os.path.isdir, "directory"),
    )
    errors = [
        UserError(f"option {option}", f"{given[option]}: there is no such {kind}", "check the name, or leave it out")
        for option, is_there, kind in wanted
        if option in given and not is_there(given[option])
    ]
    if errors:
        raise UserErrors(tuple(errors))


def _run_for_ms(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and 0 < int(text) <= _MAX_U64):
        raise UserError("option --run-for-ms", f"{text[:32]!r} is not a number of milliseconds above 0", "write 3000")
    return int(text)


def _underlay(option: str, text: str) -> SocketAddress:
    from qre.config.values import parse_socket_address

    try:
        return parse_socket_address(text)
    except UserError as error:
        raise UserError(f"option {option}", error.why or error.what, error.remedy) from None


def _plan(profile: Profile, config: GlobalConfig, run_for_ms: int | None) -> list[str]:
    """The plan after the steps of `up`, one operation a line."""
    from qre.device.kernel_module import expected_dataplane
    from qre.ends import Dataplane
    from qre.supervisor.parent.process_settings import bpf_elf

    dataplane = "" if expected_dataplane(config, profile) is Dataplane.KERNEL else "dataplane, "
    ends = [f"end after {run_for_ms} ms"] if run_for_ms is not None else []
    if profile.server is None:
        source = f" from {profile.underlay.client}" if profile.underlay.client is not None else ""
        return [
            f"start the workers netlink, {dataplane}handshake",
            f"connect{source} to {profile.endpoint}, and reconnect whenever the session ends",
            *_names_lines(profile),
            *ends,
        ]
    return [
        f"bind two sockets to UDP {profile.listen}",
        f"start the workers bpf_loader, netlink, {dataplane}handshake",
        f"load {bpf_elf(config)}",
        f"pin BPF maps and program below {config.bpf_pin_dir}",
        "attach qre_reuseport_demux",
        *_rules_lines(profile, config),
        f"serve; relay strangers to {profile.server.dest}",
        *ends,
    ]


def _names_lines(profile: Profile) -> list[str]:
    """What a client's daemon changes of the machine's name servers."""
    from qre.device.name_servers import name_service

    if profile.dns is None:
        return []
    servers = ", ".join(map(str, profile.dns.servers))
    return [f"once there is a session, have {name_service()} ask {servers} for all names"]


def _rules_lines(profile: Profile, config: GlobalConfig) -> list[str]:
    """What a server's daemon changes of nftables and of forwarding, a line for each table."""
    from qre.addresses import listen_by_version
    from qre.config.model import HostPort
    from qre.ends import Forward
    from qre.kernel.netfilter.listening import Listening
    from qre.kernel.netfilter.own_tables import FORWARD, SITE_TCP, OwnTable, table_of
    from qre.kernel.site_tcp.site_face import Wanted

    def line(table: OwnTable, forwards: str, what: str) -> str:
        return f"make nftables table {table.name} ({table.family}), {forwards}: {what}"

    assert profile.server is not None and profile.listen is not None
    device, dest, lines = profile.device, profile.server.dest, list[str]()
    for version, addresses in listen_by_version(profile.listen.addresses).items():
        wanted = Wanted(device, Listening(addresses, profile.listen.port), config.site_tcp, None, dest.port, 1)
        ports = ", ".join(f"{port} to {HostPort(dest.host, its)}" for port, its in wanted.chosen())
        forwards = "forward IPv4 on the uplink" if version == 4 else "where this machine forwards IPv6"
        if ports:
            lines.append(line(table_of(SITE_TCP[version], device), forwards, f"TCP {ports}"))
    if (mode := profile.server.forward) is not Forward.OFF:
        forwards = f"forward IPv4 on {device} and the uplinks"
        lines.append(line(table_of(FORWARD, device), forwards, f"Forward = {mode}"))
    return lines
