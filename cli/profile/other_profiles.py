"""The valid profiles of the configuration directory, for a command that compares one with all others."""

from __future__ import annotations

import os

from qre.config.model import GlobalConfig, Profile
from qre.config.profile import SUFFIX, load_profile
from qre.config.values import is_profile_name
from qre.device.control_client import names_in
from qre.errors import QreError

#: At most this many files are read: more than a machine has devices of ours.
MOST: int = 1024


def valid_profiles(config: GlobalConfig) -> list[Profile]:
    """Those that this user can read and that could come up, by name. Raises MachineError when the directory may not
    be read."""
    found = []
    for name in filter(is_profile_name, names_in(config.config_dir, SUFFIX, "the directory")[:MOST]):
        try:
            found.append(load_profile(name, config, os.environ))
        except QreError:
            continue  # it does not come up as it is, or is not this user's
    return found
