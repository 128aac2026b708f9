"""Where servers of this machine listen: a Dest must not be one of them."""

from __future__ import annotations

import os

from qre.addresses import Address
from qre.cli.profile.other_profiles import valid_profiles
from qre.config.settings import load_global
from qre.errors import QreError


def own_listens() -> frozenset[tuple[Address, int]]:
    """Listen of every server's profile that this user can read; what cannot be read is left out."""
    try:
        profiles = valid_profiles(load_global(os.environ))
    except QreError:
        return frozenset()
    return frozenset(end for each in profiles if each.listen is not None for end in each.listen.ends)
