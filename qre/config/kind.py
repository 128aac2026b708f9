"""A configuration file of either kind, told apart by its keys."""

from __future__ import annotations

import os

from qre.config.keys import GLOBAL_KEYS, PROFILE_KEYS, SECTION_KEYS
from qre.config.profile import load_profile_file
from qre.config.settings import load_global_file
from qre.config.syntax import read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.config.model import GlobalConfig, Profile


def load_file(path: str | os.PathLike[str]) -> Profile | GlobalConfig:
    """The file's model. Its keys decide which kind it is, the majority when they are mixed."""
    data, _ = read_config(os.fspath(path))
    return load_profile_file(path) if is_profile(data) else load_global_file(path)


def is_profile(data: bytes) -> bool:
    """More keys of a profile than of the global file; without any key, an ``[Interface]`` header decides."""
    profile = {key.lower() for key in (*PROFILE_KEYS, *SECTION_KEYS)}
    settings = {key.lower() for key in GLOBAL_KEYS}
    balance = unknown = 0
    header = False
    for raw in data.split(b"\n"):
        line = raw.strip().lower().decode("ascii", "replace")
        key, equals, _ = line.partition("=")
        if line.startswith(("[interface]", "[client ")):
            header = True
        elif line and not line.startswith("#"):
            key = key.strip()
            balance += (key in profile) - (key in settings)
            unknown += not equals or key not in profile | settings
    return balance > 0 or (balance == 0 and (header or unknown > 0))
