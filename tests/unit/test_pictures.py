"""Pictures of the documents: each is shown somewhere, with words for who cannot see it, and has a source."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.conformance import ROOT

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Made by ``demo/recording.py``.
RECORDED = {"first-tunnel", "show"}
SVG = "{http://www.w3.org/2000/svg}"


def shown() -> dict[Path, str]:
    """Every picture that a page shows, and its words."""
    return {
        (page.parent / target).resolve(): words
        for page in PAGES
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
    }


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_shown_with_words_and_the_build_makes_it(picture: Path) -> None:
    assert shown()[picture]
    sources = [picture.with_suffix(suffix) for suffix in (".dot", ".msc", ".gp")]
    assert picture.stem in RECORDED or any(source.exists() for source in sources)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_runs_nothing_and_loads_nothing(picture: Path) -> None:
    text = picture.read_text()
    parts = list(ElementTree.fromstring(text).iter())
    assert not [part for part in parts if part.tag == f"{SVG}script"]
    assert not re.search(r'(?:href|src)="(?!#)|url\((?!#)|@import', text)
    assert "/tmp/" not in text and "/root/" not in text


def test_every_picture_that_is_shown_is_there() -> None:
    assert set(shown()) == set(PICTURES)
