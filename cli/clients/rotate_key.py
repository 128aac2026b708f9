"""``rotate-key``: a new key for a server, and with it a new link for every client.

For a stated time hellos for the old key are accepted, too, so that clients can change one by one; running sessions go
on anyway. Clients without a section have no name to make a link for: they need the new public key.
"""

from __future__ import annotations

import json
import os
import time

from qre.cli.clients.client_commands import client_of, parse_field
from qre.cli.clients.handout import JSON_VERSION, described
from qre.cli.clients.profile_change import changing, planned
from qre.cli.commands import Options
from qre.cli.defaults import ROTATE_FOR
from qre.cli.fields import parse_fields
from qre.cli.profile.configuration import clamped, public_key, refuse_readers
from qre.config.client_profile import link_of
from qre.config.profile import load_profile, profile_of_text
from qre.config.profile_edit import set_key
from qre.config.server_places import parse_endpoints
from qre.config.settings import load_global
from qre.config.values import is_profile_name, parse_duration, show_key, show_time
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qre.config.model import GlobalConfig, HostPort, Profile

    Handed = tuple[Profile, str]  # and its link

_MAX_FOR_MS = 365 * 86_400_000


def rotate_key(arguments: list[str], options: Options) -> int:
    """``rotate-key PROFILE [Endpoint=HOST:PORT,…] [For=DURATION]``."""
    words = [word for word in arguments if "=" not in word]
    fields = parse_fields([word for word in arguments if "=" in word], (), ("Endpoint", "For"), command="rotate-key")
    if len(words) != 1:
        why = f"{len(words)} words are given, and it takes one PROFILE"
        raise UserError("rotate-key", why, "see `qre-tool help rotate-key`")
    until = int(time.time()) + _duration(fields.get("For", ROTATE_FOR)) // 1000
    given = parse_field(fields, "Endpoint", parse_endpoints) or ()
    config = load_global(os.environ)
    if not options.dry_run:
        refuse_readers()
    made: list[Handed] = []

    def edit(server: Profile, text: str) -> str:
        _refuse(server, config)
        old = server.server.private_key if server.server is not None else b""
        text = set_key(text, "RealityPrivateKey", show_key(clamped(os.urandom(32))))
        text = set_key(text, "RealityPreviousKey", show_key(old))
        fresh = set_key(text, "RealityPreviousKeyUntil", show_time(until))
        made[:] = _handed(profile_of_text(fresh.encode(), server.name, f"profile {server.name}"), given)
        return fresh

    if options.dry_run:
        planned(words[0], config, edit)
        print(f"change RealityPrivateKey of the profile {words[0]}, accept the old one until {show_time(until)}")
        return 0
    with changing(words[0], config) as apply:
        done = apply(edit)
    _print(done.profile, made, until, f"changed the key of {words[0]}: {done.words}", as_json=options.json)
    return 0


def _duration(text: str) -> int:
    try:
        return parse_duration(text, 0, _MAX_FOR_MS)
    except UserError as error:
        raise UserError("field For", error.why, error.remedy) from None


def _refuse(server: Profile, config: GlobalConfig) -> None:
    """While an earlier key is accepted a third one would lock its clients out. Another profile of the same port has
    the same key, and would not have the new one."""
    settings = server.server
    if settings is None:
        raise AssertionError("the profile is a server's")
    if settings.previous_key and settings.previous_key_until > time.time():
        why = f"the key before this one is accepted until {show_time(settings.previous_key_until)}"
        remedy = "wait, or remove RealityPreviousKey and RealityPreviousKeyUntil: who still has it is locked out then"
        raise UserError(f"profile {server.name}", why, remedy)
    for name in _others(server.name, config):
        try:
            other = load_profile(name, config, os.environ).server
        except UserError:
            continue  # it does not run as it is
        if other is not None and other.private_key == settings.private_key:
            why = f"profile {name} has the same key, as on a shared port"
            remedy = "write one new key into both by hand, with the old one as RealityPreviousKey, and reload both"
            raise UserError(f"profile {server.name}", why, remedy)


def _others(name: str, config: GlobalConfig) -> list[str]:
    names = (entry.removesuffix(".conf") for entry in os.listdir(config.config_dir) if entry.endswith(".conf"))
    return sorted(other for other in names if other != name and is_profile_name(other))


def _handed(server: Profile, given: Sequence[HostPort]) -> list[Handed]:
    """The profile and the link of every client with a name; ``given``: where those find the server that have no
    Endpoint of their own."""
    sections = server.server.clients if server.server is not None else ()
    clients = (client_of(server, section, section.endpoints or given) for section in sections)
    return [(client, link_of(client)) for client in clients]


def _print(server: Profile, clients: Sequence[Handed], until: int, done: str, *, as_json: bool) -> None:
    settings = server.server
    if settings is None:
        raise AssertionError("the profile is a server's")
    key = show_key(public_key(settings.private_key))
    if as_json:
        answer = {"version": JSON_VERSION, "profile": server.name, "previous_key_until": until, "public_key": key}
        told = [described(client, link) for client, link in clients]
        print(json.dumps({**answer, "clients": told}, indent=2, sort_keys=True))
        return
    print(f"# {done}")
    print(f"# the old one is accepted until {show_time(until)}; each client needs its new link before")
    for client, link in clients:
        print(f"{client.name} {link}")
    if len(settings.accepted_ids) > len(clients):
        print(f"# clients without a name need RealityPublicKey = {key}")
