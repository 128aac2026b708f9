"""``import --replace``: what a link or a file says goes into a client's profile that is there; all the rest stays.

A link carries what the server knows of its client. Routes, hooks and further servers are the client's own: they stay
as they were written, line by line. Where the profile has several servers, only the place and the credentials of the
one that the link names change, as the other keys hold for all of them. Sans-IO.
"""

from __future__ import annotations

import re

from qre.config.keys import HOOK_KEYS, PROFILE_KEYS
from qre.config.model import ServerPlace
from qre.config.normalise import profile_values
from qre.config.profile import profile_of_text
from qre.config.profile_edit import keys_of, set_key
from qre.config.values import show_key
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qre.config.model import Profile

#: What a place of a server consists of.
_PLACE = ("Endpoint", "RealityPublicKey", "RealityShortId")
#: What the other end does not decide.
_OWN = ("Device", "Role", *HOOK_KEYS)
#: A profile that `export` wrote says in a comment how it is written as a link, which it no longer is.
_LINK_COMMENT = re.compile(r"^#[ \t]*qre://\S*[ \t]*\n", re.MULTILINE | re.IGNORECASE)


class Replaced:
    """The profile's new text, the profile, and lines that say what is different."""

    def __init__(self, text: str, profile: Profile, told: list[str]) -> None:
        self.text = text
        self.profile = profile
        self.told = told


def replaced(text: str, there: Profile, given: Profile, carried: Collection[str]) -> Replaced:
    """``there`` is the profile of ``text``; ``carried`` are the keys that were given. Raises UserErrors."""
    before, after = _places(there), _merged(there.name, _places(there), _places(given))
    keys = {place.public_key for place in _places(given)}
    others = any(place.public_key not in keys for place in after)
    old, new = profile_values(there), profile_values(given)
    fresh = _LINK_COMMENT.sub("", text)
    for key, value in zip(_PLACE, _texts(after), strict=True):
        if value != _texts(before)[_PLACE.index(key)]:
            fresh = set_key(fresh, key, value)
    left = []
    for key in PROFILE_KEYS:
        if key not in carried or key in (*_PLACE, *_OWN) or old.get(key) == new.get(key):
            continue
        if others:
            left.append(f"not changed: {key}, which holds for all servers; here it is {_text(new.get(key))}")
        else:
            fresh = set_key(fresh, key, _text(new.get(key)))
    changed = profile_of_text(fresh.encode(), there.name, f"profile {there.name}")
    return Replaced(fresh, changed, [*_differences(there, changed), *left, *_kept(text, carried)])


def _places(profile: Profile) -> list[ServerPlace]:
    client = profile.client
    if client is None:
        raise AssertionError("both profiles are clients'")
    return [ServerPlace(client.endpoint, client.public_key, client.short_id), *client.others]


def _merged(name: str, there: Sequence[ServerPlace], given: Sequence[ServerPlace]) -> list[ServerPlace]:
    """The places that are there, with the credentials that were given for them. One that has those of a place that
    is renewed is the same server at another address."""
    fresh = {str(place.endpoint): place for place in given}
    known = [place for place in there if str(place.endpoint) in fresh]
    if not known:
        return _moved(name, there, given)
    renewed = {(place.public_key, place.short_id): fresh[str(place.endpoint)] for place in known}
    merged: list[ServerPlace] = []
    behind = 0
    for place in there:
        new = fresh.pop(str(place.endpoint), None) or renewed.get((place.public_key, place.short_id))
        merged.append(ServerPlace(place.endpoint, new.public_key, new.short_id) if new is not None else place)
        behind = len(merged) if new is not None else behind
    return [*merged[:behind], *fresh.values(), *merged[behind:]]


def _moved(name: str, there: Sequence[ServerPlace], given: Sequence[ServerPlace]) -> list[ServerPlace]:
    """Where no address is the same: the only server has moved, or the one with this key, or this short id."""
    keys, short_ids = {place.public_key for place in given}, {place.short_id for place in given}
    same = [place for place in there if place.public_key in keys]
    same = same or [place for place in there if place.short_id in short_ids]
    if len({place.public_key for place in there}) == 1:
        same = list(there)
    if len({place.public_key for place in same}) != 1:
        servers = ", ".join(str(place.endpoint) for place in there)
        why = f"its servers are {servers}, and the new one is none of them"
        remedy = (
            "add it to Endpoint, RealityPublicKey and RealityShortId yourself, or give it a Profile=NAME of its own"
        )
        raise UserError(f"profile {name}", why, remedy)
    at = there.index(same[0])
    return [*there[:at], *given, *(place for place in there[at:] if place not in same)]


def _texts(places: Sequence[ServerPlace]) -> tuple[str, str, str]:
    """The values of the keys; of what is the same for all servers, one."""
    keys = [show_key(place.public_key) for place in places]
    short_ids = [place.short_id.hex() for place in places]
    columns = [each if len(set(each)) > 1 else each[:1] for each in (keys, short_ids)]
    return ", ".join(str(place.endpoint) for place in places), ", ".join(columns[0]), ", ".join(columns[1])


def _text(value: object) -> str | None:
    """None where the key is left out."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return str(value) if value else None


def _differences(before: Profile, after: Profile) -> list[str]:
    """A line for each key with another value; credentials are not repeated."""
    old, new = profile_values(before), profile_values(after)
    told = []
    for key in PROFILE_KEYS:
        if old.get(key) == new.get(key):
            continue
        if key in _PLACE[1:]:
            told.append(f"changed: {key} of {_renewed(_places(before), _places(after), key)}")
        else:
            told.append(
                f"changed: {key} is {_text(new.get(key)) or 'left out'}, was {_text(old.get(key)) or 'left out'}"
            )
    return told or ["nothing is changed: all of it was there"]


def _renewed(before: Sequence[ServerPlace], after: Sequence[ServerPlace], key: str) -> str:
    """The servers whose credential is another one."""
    attribute = "public_key" if key == "RealityPublicKey" else "short_id"
    old = {str(place.endpoint): getattr(place, attribute) for place in before}
    places = (place for place in after if old.get(str(place.endpoint)) != getattr(place, attribute))
    return ", ".join(str(place.endpoint) for place in places) or "a server that is left out"


def _kept(text: str, carried: Collection[str]) -> list[str]:
    keys = [key for key in keys_of(text) if key not in (*carried, "Device", "Role")]
    return [f"kept: {', '.join(keys)}"] if keys else []
