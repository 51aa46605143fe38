"""The pages of the derivations are what the functions and the stored numbers give."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kljax.derivations import catalogue, museum

DOCS = Path(__file__).parent.parent / "docs"


def _script():
    spec = importlib.util.spec_from_file_location("make", DOCS / "make_derivations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _script()


def test_every_derivation_has_a_page():
    assert set(make.measured()) == set(catalogue.NAMES)


def test_pages_are_fresh():
    assert make.stale(make.measured()) == [], "run python docs/make_derivations.py --text"


@pytest.mark.parametrize(
    "page", sorted((DOCS / "derivations").glob("*.md")), ids=lambda p: p.stem
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_museum_shows_every_mistake():
    text = (DOCS / "derivations/museum.md").read_text()
    for mistake in museum.MISTAKES:
        assert f"\n## {mistake.name}\n" in text
        assert mistake.effect in text
    assert text.count("```math") == len(museum.MISTAKES) + 1
    assert "](museum.md)" in (DOCS / "derivations/README.md").read_text()


def test_figures_are_svg_without_a_date():
    for figure in (DOCS / "derivations").glob("*.svg"):
        text = figure.read_text()
        ElementTree.fromstring(text)
        assert "dc:date" not in text


def test_a_changed_line_is_noticed():
    numbers = make.measured()
    name = next(iter(numbers))
    numbers[name]["lines"][0]["example"] = 1.5
    assert make.stale(numbers) == [f"{name}.md"]
    numbers[name]["lines"].pop()
    with pytest.raises(ValueError, match="run python docs/make_derivations"):
        make.stale(numbers)
