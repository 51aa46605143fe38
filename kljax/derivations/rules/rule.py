"""What allows a step: a statement, its source and a test of its own.

A rule's test evaluates both sides of the rule on random numbers that no derivation uses, so
that a false rule is found before any step that cites it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """What allows a step.

    Attributes:
        name: a few words.
        statement: one sentence.
        kind: `definition`, `algebra` (true at every single point, so under any
            expectation), `library`, `moment` (true of expectations under this law only),
            `calculus`
            `bound` (an inequality) or `pointwise bound` (of what is under an expectation).
        source: where it can be read up.
        sides: random generator to two numbers or arrays that the rule says are equal (for
            a bound: the first at least the second).
    """

    name: str
    statement: str
    kind: str
    source: str
    sides: Callable[[np.random.Generator], tuple[Any, Any]]

    @property
    def pointwise(self) -> bool:
        return self.kind == "algebra"

    def error(self, draws: int = 50) -> float:
        """The largest violation over random instances, relative to the size of the sides."""
        rng = np.random.default_rng(list(self.name.encode()))
        worst = 0.0
        for _ in range(draws):
            left, right = (np.asarray(side, float) for side in self.sides(rng))
            gap = right - left if "bound" in self.kind else np.abs(left - right)
            worst = max(worst, float(np.max(gap / np.maximum(1, np.abs(left)))))
        return worst
