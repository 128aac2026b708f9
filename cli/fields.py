"""Arguments of the form ``Key=Value``.

A field may be written in CamelCase, kebab-case, snake_case or lower case. Unknown, repeated and missing fields are
reported together.
"""

from __future__ import annotations

from qre.config.keys import did_you_mean, snake_case
from qre.config.syntax import quoted
from qre.errors import UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_FIELD = 16_384


def parse_fields(
    arguments: Sequence[str],
    required: Iterable[str],
    optional: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
    *,
    command: str = "",
    remedies: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Canonical name -> text. ``aliases``: other names in lower case, as ``sni`` -> ``ServerName``. ``remedies``:
    what to do when a required field is missing."""
    required = tuple(required)
    names = (*required, *optional)
    forms = forms_of(names) | dict(aliases or {})
    errors: list[UserError] = []
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        field = forms.get(name.lower())
        if not equals:
            remedy = f"write {field}=…" if field else "write Key=Value"
            errors.append(UserError(f"argument {quoted(name)}", "it is not a field", remedy))
        elif field is None:
            known = f"the fields are {', '.join(names)}"
            errors.append(
                UserError(f"field {quoted(name)}", "there is no such field", did_you_mean(name, names, known))
            )
        elif field in found:
            errors.append(UserError(f"field {field}", "it is given twice", "give it once"))
        elif len(text) > MAX_FIELD or "\0" in text:
            errors.append(UserError(f"field {field}", f"it is longer than {MAX_FIELD} characters", "shorten it"))
        else:
            found[field] = text
    topic = f"see `qre-tool help {command}`" if command else ""
    errors += [
        UserError(f"field {name}", "it is missing", (remedies or {}).get(name) or topic or f"add {name}=…")
        for name in required
        if name not in found
    ]
    if errors:
        raise UserErrors(tuple(errors))
    return found


def forms_of(names: Iterable[str]) -> dict[str, str]:
    """Every form of the names, in lower case -> the canonical name."""
    forms = {}
    for name in names:
        snake = snake_case(name)
        for form in (name.lower(), snake, snake.replace("_", "-")):
            forms[form] = name
    return forms
