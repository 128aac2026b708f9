"""``import``: a client's profile from a link or a file into the configuration directory.

What comes in is somebody else's text. It is read by the rules of a profile's file, it must be a client's, and it must
not have hooks: importing never makes a command run. Nothing is overwritten; `--replace` changes in a profile that is
there what the link says, and no more.
"""

from __future__ import annotations

import itertools
import os
import stat
import sys
from typing import NamedTuple

from qre.cli.clients.client_replace import replaced
from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.profile.other_profiles import valid_profiles
from qre.cli.profile.private_files import locked, replace_file, write_all
from qre.cli.undo import terminable
from qre.config.client_link import ClientLink, decode_link_untrusted, is_link
from qre.config.model import GlobalConfig, Hooks, Profile
from qre.config.normalise import to_file
from qre.config.profile import load_profile, profile_from_values, profile_of_text, profile_path
from qre.config.profile_edit import keys_of
from qre.config.settings import load_global
from qre.config.syntax import MAX_FILE, read_config, shown
from qre.config.values import DEVICE_LENGTH, check_profile_name, is_profile_name
from qre.device.control_client import daemon_runs
from qre.errors import MachineError, UntrustedInputError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_DEFAULT_NAME = "client0"


def import_client(arguments: list[str], options: Options) -> int:
    """``import -|FILE [Profile=NAME]``, ``--replace``."""
    word, fields = _split(arguments)
    name = check_profile_name(fields["Profile"]) if "Profile" in fields else ""
    config = load_global(os.environ)
    given = _named(*_read(word), name)
    path = profile_path(given.profile.name, config)
    if "--replace" in options.flags:
        profile = _replace(given, config, plan=options.dry_run)
    else:
        others = _others(given.profile.name, config)
        profile = given.profile.replace(device=_free_device(given.profile.name, others))
        _warn_of_twins(profile, others)
        if options.dry_run:
            print(f"write {path} (client, mode 0600)")
        else:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with terminable(), locked(path):
                write_all({path: to_file(profile)})
            print(f"wrote {path} (client, mode 0600)")
    _tell_what_it_does(profile, config)
    return 0


class Given(NamedTuple):
    """What came in, and the keys that it says something of."""

    profile: Profile
    keys: Collection[str]


def _replace(given: Given, config: GlobalConfig, *, plan: bool) -> Profile:
    """Change the profile that is there; it as it is then."""
    name = given.profile.name
    path = profile_path(name, config)
    if not os.path.lexists(path):
        raise UserError(f"profile {name}", "there is none to replace", _way_out(given.profile, config))
    with terminable(), locked(os.path.realpath(path)):
        there = _client_there(name, config)
        data, status = read_config(path)
        done = replaced(data.decode("utf-8-sig"), there, given.profile, given.keys)
        if not plan:
            replace_file(os.path.realpath(path), done.text.encode(), status)
    print(f"{'replace' if plan else 'replaced'} {path} (client, mode 0600)")
    print("\n".join(done.told))
    return done.profile


def _client_there(name: str, config: GlobalConfig) -> Profile:
    """What comes in replaces a client's profile, never a server's, with its clients."""
    try:
        there = load_profile(name, config, os.environ)
    except UserError as error:
        why = f"it is not valid, so that nothing of it could be kept: {error.what}: {error.why}"
        raise UserError(f"profile {name}", why, "correct it, or move it away and leave --replace out") from None
    if there.server is not None:
        raise UserError(
            f"profile {name}", "it is a server's, and is not replaced by a client's", "choose another name"
        )
    return there


def _way_out(given: Profile, config: GlobalConfig) -> str:
    """Which profile is meant: the one with the same short id."""
    if same := _twins(given, _others(given.name, config)):
        return f"profile {same[0]} has this short id: write Profile={same[0]}"
    return "leave --replace out for a new profile, or name the one that is meant with Profile=NAME"


def _twins(profile: Profile, others: Collection[Profile]) -> list[str]:
    """Those of the same client."""
    if profile.client is None:
        raise AssertionError("it is a client's")
    return [
        other.name
        for other in others
        if other.client is not None and other.client.short_id == profile.client.short_id
    ]


def _warn_of_twins(profile: Profile, others: Collection[Profile]) -> None:
    for name in _twins(profile, others):
        way = f"`import --replace` with Profile={name} changes that one"
        print(
            f"qre-tool: profile {name} has this short id, too, and one of both is connected: {way}", file=sys.stderr
        )


def _free_device(name: str, others: Collection[Profile]) -> str:
    """The profile's name, cut where an interface name ends; with a number where another profile has that device."""
    taken = {other.device for other in others}
    device = name[:DEVICE_LENGTH]
    for number in itertools.count(2):
        if device not in taken:
            return device
        end = f"-{number}"
        device = f"{name[: DEVICE_LENGTH - len(end)]}{end}"
    raise AssertionError("there are more numbers than profiles")


def _others(name: str, config: GlobalConfig) -> list[Profile]:
    """The valid profiles of the configuration directory but the one of this name."""
    return [other for other in valid_profiles(config) if other.name != name]


def _split(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The source and the fields; a link has no ``=``."""
    words = [word for word in arguments if "=" not in word or is_link(word)]
    fields = parse_fields([word for word in arguments if word not in words], (), ("Profile",), command="import")
    if len(words) != 1:
        why = f"{len(words)} words are given, and it takes one link or file"
        raise UserError("import", why, "write `qre-tool import -` and paste the link")
    return words[0], fields


def _read(word: str) -> tuple[bytes, str]:
    """The bytes, and where it comes from."""
    if is_link(word):
        warning = "other users of this machine can see a command's arguments, and the shell remembers them"
        print(f"qre-tool: {warning}: better `qre-tool import -` and paste the link", file=sys.stderr)
        return word.encode(errors="replace"), "link"
    if word == "-":
        return _read_input(), "standard input"
    data, status = read_config(word)
    if status.st_mode & 0o066:
        mode = stat.S_IMODE(status.st_mode)
        print(f"qre-tool: {shown(word)}: others can read it (mode {mode:04o}); remove it", file=sys.stderr)
    return data, shown(word)


def _read_input() -> bytes:
    if sys.stdin is None:
        raise UserError("standard input", "it is closed", "write `qre-tool import - < FILE`")
    if sys.stdin.isatty():
        print("paste the link, then Enter and Ctrl-D:", file=sys.stderr)
    data = sys.stdin.buffer.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UserError("standard input", f"it is longer than {MAX_FILE} bytes", "give it a link, or a profile")
    return data


def _named(data: bytes, place: str, name: str) -> Given:
    """The profile in ``data``, called ``name``, or what it is called itself when that is empty."""
    text = data.decode("utf-8", "replace")
    if not text.strip():
        raise UserError(place, "it is empty", "give it a link, or a profile")
    if is_link(text):
        try:
            link = decode_link_untrusted(text)
        except UntrustedInputError as error:
            raise UserError(place, error.why or error.what, "ask for the link again, and copy it whole") from None
        return Given(_of_link(link, place, name), list(link.values))
    profile = profile_of_text(data, name or _DEFAULT_NAME, place)
    if profile.client is None:
        raise UserError(place, "it is a server's profile", "import what `qre-tool export` printed on the server")
    if profile.hooks != Hooks():
        why = "it has hooks, which are commands that would run as root"
        raise UserError(place, why, "remove them, or read them and copy the file yourself")
    given = name or (profile.device if is_profile_name(profile.device) else _DEFAULT_NAME)
    return Given(profile.replace(name=given, device=given[:DEVICE_LENGTH]), keys_of(text))


def _of_link(link: ClientLink, place: str, name: str) -> Profile:
    given = name or (link.name if is_profile_name(link.name) else _DEFAULT_NAME)
    return profile_from_values(given, {"Role": "client", "Device": given[:DEVICE_LENGTH], **link.values}, place)


def _tell_what_it_does(profile: Profile, config: GlobalConfig) -> None:
    """What a reader should see before the tunnel is up: where it leads, and what goes through it."""
    if profile.client is None:
        raise MachineError("import", "the profile has no client")
    routes = ", ".join(str(network) for network in profile.allowed_ips) or "no route"
    print(f"server: {' or '.join(map(str, profile.client.endpoints))}, as {profile.client.server_name}")
    print(f"address: {', '.join(str(each) for each in profile.address)}; routes: {routes}")
    if (dns := profile.client.dns) is not None:
        print(f"name servers: {', '.join(map(str, dns.servers))}")
    verb = "reload" if daemon_runs(config, profile.device) else "daemon"
    print(f"next: qre-tool {verb} {profile.name}")
