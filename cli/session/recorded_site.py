"""The site whose recorded flight the server of an in-memory handshake plays, where a daemon follows the living one.

Without the field DestProfile it is Caddy's, as far as it is known. A file is what ``refresh`` and a daemon keep in
StateDir; it is the user's own, and no secret.
"""

from __future__ import annotations

from pathlib import Path

from qre.config.syntax import quoted
from qre.errors import UntrustedInputError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from qre.dest_profile import DestProfile

RECORDED = "DestProfile"
_REMEDY = "give the file PROFILE.dest of StateDir; `qre-tool refresh` makes it"


def recorded_site(fields: Mapping[str, str]) -> DestProfile | None:
    """The profile of ``fields``, None when there is none. Raises UserError."""
    if RECORDED not in fields:
        return None
    from qre.dest_profile import read_dest_profile

    what = f"field {RECORDED}"
    try:
        found = read_dest_profile(Path(fields[RECORDED]))
    except OSError as error:
        raise UserError(what, f"{quoted(fields[RECORDED])}: {error.strerror or error}", _REMEDY) from error
    except ValueError as error:
        raise UserError(what, f"{quoted(fields[RECORDED])} is no path", _REMEDY) from error
    except UntrustedInputError as error:
        raise UserError(what, f"{quoted(fields[RECORDED])} is no profile of a Dest", _REMEDY) from error
    if not found.reachable:
        raise UserError(what, "its Dest could not be reached, so that there is nothing to play", _REMEDY)
    return found
