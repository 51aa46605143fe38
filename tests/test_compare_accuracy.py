"""The comparison of accuracy sees what is wrong and says which peers it skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import compare_accuracy
from compare_accuracy import JOBS, Row

NORMAL, VAE, _, SCALE_TRIL, COVARIANCE = JOBS
# A few roundings; for the factors a few times their condition.
LARGEST_ERROR = {NORMAL.name: 5e-7, VAE.name: 5e-7, SCALE_TRIL.name: 3e-5}
# Hidden even where they are installed: importing them takes longer than the test.
PEERS = ("numpyro", "torch")


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_peers")
def test_kljax_is_right_where_the_textbook_is_not(monkeypatch, capsys):
    monkeypatch.setattr(compare_accuracy, "JOBS", (NORMAL, VAE, SCALE_TRIL))
    rows = compare_accuracy.main(["--cases", "6"])

    ours = [row for row in rows if row.library.startswith("kljax")]
    assert len(ours) == 2 * 3 * len(compare_accuracy.SEPARATIONS)
    for row in ours:
        assert (row.negative, row.zero, row.nan, row.inf) == (0, 0, 0, 0), row
        assert max(row.value, row.gradient) < LARGEST_ERROR[row.job], row

    textbook = {(row.job, row.separation): row for row in rows if row.library == "textbook"}
    assert textbook[VAE.name, "1e-5"].value > 0.1
    assert textbook[VAE.name, "1e-7"].zero == 6
    assert textbook[VAE.name, "far"].value < 1e-6
    assert textbook[SCALE_TRIL.name, "far"].gradient < 1e-3
    _check_text(capsys.readouterr().out)


def _check_text(text: str) -> None:
    for name in PEERS:
        assert f"{name} is not installed: skipped." in text
    for job in (NORMAL, VAE, SCALE_TRIL):
        assert job.name in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_markdown_tables_have_a_column_for_every_library(capsys):
    good = Row(VAE.name, "1e-5", "kljax", 3e-8, 1.2, 0, 0, 0, 0, 4e-8)
    bad = Row(VAE.name, "1e-5", "textbook", np.inf, np.inf, 3, 2, 1, 0, np.inf)
    compare_accuracy.print_markdown([good, bad])
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("| q, p | separation | kljax | textbook |") == 2
    cells = "| 3.0e-08 / 1.2 | inf / inf, 3 negative, 2 zero, 1 nan |"
    assert f"| {VAE.name} | 1e-5 {cells}" in lines
    assert f"| {VAE.name} | 1e-5 | 4.0e-08 | inf |" in lines


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_cases_are_repeatable_and_differ(job):
    first, second = (compare_accuracy.job_cases(job, "1e-7", 5) for _ in range(2))
    assert len(first) == 5
    for (left, want), (right, _) in zip(first, second, strict=True):
        assert want.kl > 0
        for x, y in ((left.q_loc, right.q_loc), (left.p.value, right.p.value)):
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(wrong):
    ((case, want),) = compare_accuracy.job_cases(COVARIANCE, "far", 1)
    gradients = [np.full_like(x, wrong) for x in (case.q_loc, case.q.value)]
    assert compare_accuracy.value_error(wrong, want) == np.inf
    error = compare_accuracy.gradient_error("covariance_matrix", gradients, want)
    assert error == np.inf


def test_refuses_to_measure_nothing(capsys):
    with pytest.raises(SystemExit):
        compare_accuracy.main(["--cases", "0"])
    assert "at least 1" in capsys.readouterr().err
