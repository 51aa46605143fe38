"""A derivation as a test: one line of pytest."""

from __future__ import annotations

from kljax.derivations import render
from kljax.derivations.derivation import Derivation
from kljax.derivations.kill import kill_table
from kljax.derivations.verify import verify


def check(derivation: Derivation) -> None:
    """Checks every line of a derivation, then alters every line and sees whether that shows.

    def test_my_formula():
        kljax.derivations.check(derivation)

    Args:
        derivation: what to check.

    Raises:
        AssertionError: if a line does not follow, or if an altered line passes all checks and
            is not listed in `derivation.same` with the proof that it is the same formula. The
            message says which line, by how much, and what it may have meant.
        ValueError: if the derivation has no steps, a step changes the shape, or a line is not
            finite.
    """
    report = verify(derivation)
    if not report.ok:
        raise AssertionError("\n" + render.failures(report))
    table = kill_table(derivation)
    if table.survivors:
        raise AssertionError("\n" + render.survivors(table))
