"""Changes a server's profile on disk and has its daemon reload it: both, or neither.

One change at a time: the directory of the profiles is locked meanwhile. The file is replaced as a whole, by one that
was validated first and that only its owner could read from its first moment. When the daemon refuses the reload, the
file is put back. A change that is interrupted leaves the old file or the new one, either of them whole; what an
interrupted one left beside it is removed by the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qre.cli.profile.private_files import locked, replace_file
from qre.cli.undo import terminable
from qre.config.model import GlobalConfig, Profile
from qre.config.profile import load_profile, profile_of_text, profile_path
from qre.config.syntax import read_config
from qre.device.control_client import RELOAD_TIMEOUT, ask_daemon, daemon_runs
from qre.errors import MachineError, QreError, UserError


def load_server(name: str, config: GlobalConfig) -> Profile:
    """The profile ``name``, which must be a server's."""
    profile = load_profile(name, config, os.environ)
    if profile.server is None:
        raise UserError(f"profile {name}", "it is a client's, and clients belong to a server", "name the server's")
    return profile


class Changed:
    """What became of a change: the profile as it is now, and whether a daemon uses it already."""

    def __init__(self, profile: Profile, applied: bool) -> None:
        self.profile = profile
        self.applied = applied

    @property
    def words(self) -> str:
        """For the line that says what was done."""
        return "the daemon has it" if self.applied else "no daemon runs; the next one has it"


Edit = Callable[[Profile, str], str]


def planned(name: str, config: GlobalConfig, edit: Edit) -> Profile:
    """The profile as the edit would make it; nothing is changed."""
    profile = load_server(name, config)
    path = profile_path(name, config)
    return profile_of_text(edit(profile, read_config(path)[0].decode()).encode(), name, path)


@contextmanager
def changing(name: str, config: GlobalConfig) -> Iterator[Callable[[Edit], Changed]]:
    """Holds the lock, and gives a function that applies one edit: (profile, text of its file) -> new text."""
    load_server(name, config)  # where there is none, its directory may be missing, too
    path = os.path.realpath(profile_path(name, config))
    with terminable(), locked(path):

        def apply(edit: Edit) -> Changed:
            profile = load_server(name, config)
            before, status = read_config(path)
            fresh = edit(profile, before.decode()).encode()
            changed = profile_of_text(fresh, name, path)
            replace_file(path, fresh, status)
            try:
                applied = _reload(config, profile.device)
            except QreError:
                replace_file(path, before, status)
                raise
            return Changed(changed, applied)

        yield apply


def _reload(config: GlobalConfig, device: str) -> bool:
    """Have the daemon read its profile again; False when none runs."""
    if not daemon_runs(config, device):
        return False
    try:
        ask_daemon(config, device, "reload", RELOAD_TIMEOUT)
    except QreError as error:
        remedy = "the profile is as it was; see the daemon's log"
        raise MachineError(f"device {device}", f"its daemon did not take the change: {error}", remedy) from error
    return True
