"""All changes, by the statement of the row that they belong to; and the rows that have none, with the reason."""

from __future__ import annotations

from typing import Final

from tests.mutants import commands, ports, profiles, sessions
from tests.mutants.change import Mutant

MUTANTS: Final[dict[str, tuple[Mutant, ...]]] = commands.MUTANTS | profiles.MUTANTS | sessions.MUTANTS | ports.MUTANTS
#: A statement -> why nothing of it can be broken in one place.
WITHOUT: Final[dict[str, str]] = {}
