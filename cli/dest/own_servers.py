"""Where servers of this machine listen: a Dest must not be one of them."""

from __future__ import annotations

import os

from qre.addresses import Address
from qre.config.profile import SUFFIX, load_profile
from qre.config.settings import load_global
from qre.config.values import is_profile_name
from qre.device.control_client import names_in
from qre.errors import QreError

#: At most this many profiles are read.
_MOST: int = 200


def own_listens() -> frozenset[tuple[Address, int]]:
    """Listen of every server's profile that this user can read; what cannot be read is left out."""
    found: set[tuple[Address, int]] = set()
    try:
        config = load_global(os.environ)
        names = names_in(config.config_dir, SUFFIX, "the directory")[:_MOST]
    except QreError:
        return frozenset()
    for name in filter(is_profile_name, names):
        try:
            listen = load_profile(name, config, os.environ).listen
        except QreError:
            continue
        if listen is not None:
            found.add((listen.ip, listen.port))
    return frozenset(found)
