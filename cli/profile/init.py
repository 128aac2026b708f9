"""``init``: a matching server and client profile, both written or none, nothing overwritten."""

from __future__ import annotations

import os

from qre.cli.commands import Options
from qre.cli.defaults import INIT
from qre.cli.fields import parse_fields
from qre.cli.profile.configuration import public_key
from qre.config.model import Profile
from qre.config.normalise import to_file
from qre.config.profile import profile_from_values, profile_path
from qre.config.settings import load_global
from qre.config.values import check_profile_name, is_ipv4, parse_host_port, show_key
from qre.errors import MachineError, UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

REQUIRED = ("Endpoint", "Dest")
OPTIONAL = (
    "ServerName",
    "Listen",
    "ServerProfile",
    "ClientProfile",
    "ServerAddress",
    "ClientAddress",
    "AllowedIPs",
    "MTU",
    "PersistentKeepalive",
    "RealityMaxTimeDiff",
)
#: Dest is the choice that matters most, and nobody can make it for the user.
_WITHOUT_DEST = (
    "it is the web site that everybody else sees in your server's place: one with HTTP/3 that people near it would"
    " visit, and not yours; `qre-tool find-dest NAME…` says which of some sites is good, and why; add Dest=NAME:443"
)
ALIASES = {"sni": "ServerName", "server": "ServerProfile", "client": "ClientProfile"}


def init(arguments: list[str], options: Options) -> int:
    """Write the pair, print what was written and the next steps."""
    fields = INIT | parse_fields(
        arguments, REQUIRED, OPTIONAL, ALIASES, command="init", remedies={"Dest": _WITHOUT_DEST}
    )
    config = load_global(os.environ)
    names = check_profile_name(fields["ServerProfile"]), check_profile_name(fields["ClientProfile"])
    if names[0] == names[1]:
        raise UserError("init", f"both profiles would be {names[0]}", "name them ServerProfile= and ClientProfile=")
    server, client = make_pair(fields, os.urandom(32), os.urandom(8))
    texts = {profile_path(profile.name, config): to_file(profile) for profile in (server, client)}
    if not options.dry_run:
        write_all(texts)
    verb = "would write" if options.dry_run else "wrote"
    for path, profile in zip(texts, (server, client), strict=True):
        print(f"{verb} {path} ({profile.role.value}, mode 0600)")
    print(f"server: qre-tool daemon {server.name}")
    print(f"client: move {client.name}.conf to the client's configuration directory; qre-tool daemon {client.name}")
    return 0


def make_pair(fields: Mapping[str, str], private: bytes, short_id: bytes) -> tuple[Profile, Profile]:
    """The two profiles. Raises UserErrors with all errors of the fields."""
    key = bytearray(private)
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    own = {
        "Listen": fields.get("Listen") or _listen_for(fields["Endpoint"]),
        "Dest": fields["Dest"],
        "Address": fields["ServerAddress"],
        "RealityPrivateKey": show_key(bytes(key)),
        "RealityShortIds": short_id.hex(),
        **_given(fields, "ServerName", "MTU", "RealityMaxTimeDiff"),
    }
    errors: list[UserError] = []
    server = _build(fields["ServerProfile"], {"Role": "server", **own}, errors)
    name = fields.get("ServerName") or (server.server.server_name if server and server.server else "")
    own = {
        "Endpoint": fields["Endpoint"],
        "Address": fields["ClientAddress"],
        "RealityPublicKey": show_key(public_key(bytes(key))),
        "RealityShortId": short_id.hex(),
        **_given(fields, "MTU", "PersistentKeepalive", "AllowedIPs"),
    }
    if name or server is not None:
        own["ServerName"] = name
    else:
        own["ServerName"] = "unknown.invalid"  # a missing one is reported for the server
    client = _build(fields["ClientProfile"], {"Role": "client", **own}, errors)
    if errors:
        raise UserErrors(tuple(errors))
    if server is None or client is None:
        raise AssertionError("what is missing is an error")
    _check_addresses(server, client)
    return server, client


def _given(fields: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: fields[name] for name in names if name in fields}


def _build(name: str, texts: dict[str, str], errors: list[UserError]) -> Profile | None:
    try:
        return profile_from_values(name, texts, f"init: {texts['Role']}")
    except UserErrors as error:
        errors += error.errors
    return None


def _listen_for(endpoint: str) -> str:
    """The default of Listen. An invalid Endpoint is reported for the client."""
    try:
        address = parse_host_port(endpoint)
    except UserError:
        return "0.0.0.0:443"
    return f"{address.host if is_ipv4(address.host) else '0.0.0.0'}:{address.port}"


def _check_addresses(server: Profile, client: Profile) -> None:
    """ClientAddress must lie inside the server's networks and differ from the server's addresses."""
    for interface in client.address:
        if not any(interface.ip in network.network for network in server.address):
            why = f"{interface} is outside the server's networks, so the server cannot grant it"
            raise UserError("init: ClientAddress", why, "choose one inside ServerAddress")
        if any(interface.ip == other.ip for other in server.address):
            raise UserError("init: ClientAddress", f"{interface.ip} is the server's own", "choose another")


def write_all(texts: Mapping[str, str]) -> None:
    """Create every file with mode 0600, or none; an existing file is never overwritten."""
    temporary: list[str] = []
    made: list[str] = []
    path = next(iter(texts))
    try:
        for path, text in texts.items():
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            temporary.append(_write_beside(path, text.encode()))
        for path, source in zip(texts, temporary, strict=True):
            os.link(source, path)  # unlike a rename, a link fails when the name exists
            made.append(path)
    except BaseException as error:
        for path_made in made:
            os.unlink(path_made)
        if isinstance(error, FileExistsError):
            remedy = "choose another profile name, or move the old one away"
            raise UserError(path, "it exists already, and nothing was written", remedy) from None
        if isinstance(error, OSError):
            why = f"cannot be written: {error.strerror or error}"
            raise MachineError(path, why, "check the directory, or name another with QRE_CONFIG_DIR") from None
        raise
    finally:
        for source in temporary:
            os.unlink(source)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_beside(path: str, data: bytes) -> str:
    """Write a synced file with mode 0600 in the same directory; its path."""
    directory, name = os.path.split(path)
    beside = os.path.join(directory, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(beside)
        raise
    return beside
