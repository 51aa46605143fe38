"""The command line: what it prints, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from kljax import __version__, cli
from kljax.derivations import anchors, catalogue, museum, page, rules
from kljax.derivations.verify import Failure, LineReport, Report


@pytest.fixture
def report() -> Report:
    """What verification says, without its time."""
    derivation = catalogue.get("univariate")
    lines = (
        LineReport(step.number, 1e-16, 1e-15, 1e-14, None, None, 0.3, np.float64(1.25))
        for step in derivation.steps
    )
    return Report(derivation, tuple(lines), ())


@pytest.fixture
def checked(monkeypatch, report) -> Report:
    _replace_verify(monkeypatch, lambda _: report)
    return report


def _replace_verify(monkeypatch, function) -> None:
    monkeypatch.setattr(sys.modules["kljax.derivations.verify"], "verify", function)


def _run(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_it_lists(capsys):
    status, out, err = _run(capsys, "derive")
    assert (status, err) == (0, "")
    for name in catalogue.NAMES:
        assert f"{catalogue.get(name).title}\n" in out
        assert f"\n{name} " in f"\n{out}"


def test_it_walks(capsys, checked):
    status, out, err = _run(capsys, "derive", "univariate")
    assert status == 0
    assert "every check passed" in out
    assert out.count("1.25\n") == len(checked.lines)
    assert "\x1b" not in out + err


def test_it_prints_latex_without_checking(capsys, monkeypatch):
    _replace_verify(monkeypatch, None)
    status, out, _ = _run(capsys, "derive", "univariate", "--latex")
    assert status == 0
    steps = len(catalogue.get("univariate").steps)
    assert out.startswith("\\begin{align*}\n")
    assert out.count("\\\\\n") == steps - 1
    assert out.count("&=") == steps


def test_it_prints_markdown(capsys, checked):
    status, out, _ = _run(capsys, "derive", "univariate", "--markdown")
    assert status == 0
    assert out.startswith("# Two normal distributions of a number")


def test_it_verifies(capsys):
    status, out, err = _run(capsys, "verify", "univariate")
    assert status == 0
    assert out.splitlines()[1].split()[0] == "univariate"
    assert "[1/1] univariate: 9 lines, ok" in err
    assert "\r" not in err


def test_it_counts_mutants(capsys, checked):
    status, out, err = _run(capsys, "verify", "univariate", "univariate", "--mutants")
    assert status == 0
    assert "altered formulas, 0 unseen, ok" in err
    rows = [line.split("  ")[0] for line in out.splitlines()]
    assert "all" in rows
    assert {mistake.name for mistake in museum.MISTAKES} <= set(rows)


def test_the_whole_catalogue_begins_with_what_it_stands_on(capsys, monkeypatch, checked):
    false = anchors.Anchor("log-density of a number and SciPy's", 0.3)
    monkeypatch.setattr(catalogue, "NAMES", ("univariate",))
    monkeypatch.setattr(anchors, "check", lambda: (false._replace(error=0.0),))
    status, out, err = _run(capsys, "verify")
    assert status == 0
    assert "[1/3] anchors: 1 comparisons, ok" in err
    assert "anchors: 1 of 1 hold" in out
    assert f"rules: {len(rules.catalogue())} of {len(rules.catalogue())} hold" in out

    monkeypatch.setattr(anchors, "check", lambda: (false,))
    two = rules.Rule("two is three", "2 = 3.", "algebra", "nowhere", lambda _: (2.0, 3.0))
    monkeypatch.setattr(rules, "catalogue", lambda: {"two": two})
    status, out, err = _run(capsys, "verify")
    assert status == 1
    assert "anchors: 1 comparisons, FAILED" in err
    assert 'The anchor "log-density of a number and SciPy\'s" does not hold' in out
    assert "The rule 'two is three' is false" in out


def test_a_failure_is_told_and_is_the_exit_status(capsys, monkeypatch, report):
    failure = Failure(4, "gradient", 3, "σ", "generic 1", 1.0, -1.0, 2.0)
    wrong = report._replace(failures=(failure,))
    _replace_verify(monkeypatch, lambda _: wrong)
    for words in (("verify", "univariate"), ("derive", "univariate")):
        status, out, _ = _run(capsys, *words)
        assert status == 1
        assert "univariate, line 4 (second central moment)" in out
        assert "Gradient by σ" in out


def test_html(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "page", lambda derivation: f"<title>{derivation.title}</title>")
    file = tmp_path / "page.html"
    status, out, _ = _run(capsys, "derive", "univariate", "--html", str(file))
    assert status == 0
    assert str(file) in out
    assert file.read_text() == "<title>Two normal distributions of a number</title>"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["derive", "univariat"], "did you mean 'univariate'?"),
        (["verify", "fulll"], "did you mean 'full'?"),
        (["derive", "zzz"], "there is no derivation 'zzz'"),
        (["derive", "--latex"], "which derivation is meant?"),
        (["derive", "univariate", "--html", "/nowhere/page.html"], "cannot write"),
        (["derive", "univariate", "--latex", "--markdown"], "not allowed with"),
        (["prove"], "invalid choice"),
        ([], "required"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(capsys, monkeypatch, words, said):
    monkeypatch.setattr(page, "page", lambda _: "")
    status, out, err = _run(capsys, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("kljax")
    assert len(err.splitlines()) == 1


def test_an_invalid_derivation_is_one_sentence(capsys, monkeypatch):
    def invalid(derivation):
        raise ValueError("line 3 of 'univariate' is not finite.")

    _replace_verify(monkeypatch, invalid)
    status, _, err = _run(capsys, "verify", "univariate")
    assert status == 2
    assert err.splitlines()[-1] == "kljax: line 3 of 'univariate' is not finite."


def test_ctrl_c_is_quiet(capsys, monkeypatch):
    def interrupted(derivation):
        raise KeyboardInterrupt

    _replace_verify(monkeypatch, interrupted)
    status, out, err = _run(capsys, "verify", "univariate")
    assert (status, out) == (130, "")
    assert "Traceback" not in err


def test_colors_need_a_terminal_and_leave(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli._color(Terminal())
    assert not cli._color(object())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not cli._color(Terminal())


def test_version(capsys):
    assert _run(capsys, "--version") == (0, f"kljax {__version__}\n", "")


def test_as_a_module_into_a_closed_pipe():
    """A reader that stops early, `head` say, gets no traceback, and the process ends."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "kljax", "derive"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
