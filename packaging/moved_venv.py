"""Repairs the programs of a Python environment that was moved or copied: ``moved_venv.py ENVIRONMENT PLACE``.

The first line of each script in its bin names the interpreter by its whole path, and so do a few lines of the scripts
that activate it. They are changed to PLACE, the path where the environment is now; nothing is fetched. pyvenv.cfg,
which says for which place the others are right, is changed last: a repair that was interrupted is begun again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def repair(environment: Path, place: Path) -> None:
    """``environment``: as a path that can be opened now. Links and binary programs are left alone."""
    settings = environment / "pyvenv.cfg"
    text = settings.read_text()
    said = re.search(r"^command = .* -m venv (?:--[a-z-]+ )*(/.*)$", text, re.MULTILINE)
    if said is None:
        raise SystemExit(f"{settings}: it does not say where the environment was made")
    before, after = said[1].encode(), bytes(place)
    for path in sorted((environment / "bin").iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        script = path.read_bytes()
        if before in script and after not in script and b"\0" not in script:
            new = path.with_name(f".{path.name}.new")
            new.write_bytes(script.replace(before, after))
            new.chmod(path.stat().st_mode)
            new.rename(path)
    new = settings.with_name("pyvenv.cfg.new")
    new.write_text(text.replace(said[1], str(place)))
    new.rename(settings)


if __name__ == "__main__":
    repair(Path(sys.argv[1]), Path(sys.argv[2]))
