"""The pages of the derivations are what the functions and the stored numbers give."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from kljax.derivations import KillTable, Report, catalogue, check, checking, museum, render
from kljax.derivations.kill import Fate
from kljax.derivations.mutants import Mutant

DOCS = Path(__file__).parent.parent / "docs"


def _script():
    spec = importlib.util.spec_from_file_location("make", DOCS / "make_derivations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _script()


def test_every_derivation_has_a_page():
    assert set(make.measured()) == {*catalogue.NAMES, make.OWN_KEY}


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


def _masked(text: str) -> str:
    """Without what the machine may change: all but four digits of a number."""
    return re.sub(r"(\d\.\d{3})\d+", r"\1", text)


def test_the_code_of_the_page_runs_and_its_report_is_fresh(monkeypatch):
    page = (DOCS / "derivations/your-own.md").read_text()
    family, line_of_pytest, wrong = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module = ModuleType("own_family")
    monkeypatch.setitem(sys.modules, "own_family", module)
    exec(family, vars(module))
    test = {}
    exec(line_of_pytest, test)
    test["test_exponential"]()
    assert own_lines(family) <= 50

    # The wrong line in place of the right one.
    broken = {"__name__": "own_family"}
    assert wrong in make.own_wrong(family)[1]
    exec(make.own_wrong(family)[1], broken)
    with pytest.raises(AssertionError) as said:
        check(broken["d"])
    assert _masked(f"```text\n{str(said.value).strip()}\n```") in _masked(page)

    # One of the repairs that the report lists is the line that was meant.
    meant = render.equation(module.d, module.d.steps[2])
    assert f"→  {meant}\n" in str(said.value)


def own_lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def test_a_survivor_fails_the_check(monkeypatch):
    d = catalogue.get("univariate")
    monkeypatch.setattr(checking, "verify", lambda d: Report(d, (), ()))
    mutant = Mutant("sign", d.tree(d.steps[0], d.symbols()), "a", "b", "c")
    fates = (Fate(3, mutant, frozenset()),)
    monkeypatch.setattr(checking, "kill_table", lambda d: KillTable(d, fates))
    with pytest.raises(AssertionError, match="univariate, line 3: no check sees sign: a → b"):
        check(d)


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
