"""Configurations from bytes and texts that are in no file."""

from __future__ import annotations

from collections.abc import Mapping

from qre.config.keys import PROFILE_KEYS
from qre.config.model import GlobalConfig, Profile
from qre.config.profile import build_profile
from qre.config.settings import _build, _parse
from qre.config.syntax import Entry, Problems, parse_entries


def parse_profile(data: bytes, name: str, place: str) -> Profile:
    """A profile from the bytes of its file; ``place`` stands in the errors."""
    problems = Problems(place)
    return build_profile(parse_entries(data, PROFILE_KEYS, problems), problems, name)


def parse_global(data: bytes, place: str) -> GlobalConfig:
    """A global configuration from the bytes of its file; ``place`` stands in the errors."""
    problems = Problems(place)
    settings = _parse(data, problems)
    problems.raise_if_any()
    return GlobalConfig(**settings)


def global_from_values(texts: Mapping[str, str], place: str = "arguments") -> GlobalConfig:
    """A global configuration from canonical keys and texts, with the rules of a file."""
    problems = Problems(place)
    settings = _build([Entry(0, key, text) for key, text in texts.items()], problems)
    problems.raise_if_any()
    return GlobalConfig(**settings)
