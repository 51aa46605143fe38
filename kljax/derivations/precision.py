"""How many digits a line loses in float32 where q is almost p.

All lines of a derivation are equal in mathematics; as programs they are not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from kljax.derivations import parameters
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import CUBATURE, Reading
from kljax.derivations.expression import Symbol
from kljax.derivations.series import Series
from kljax.derivations.verify import Trees, constrained, has_expectation

SEPARATIONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# A float32 has 24 bits.
DIGITS = 24 * np.log10(2)


class Loss(NamedTuple):
    """What a line loses.

    Attributes:
        step: the line's number.
        digits: decimal digits lost, for every separation, at most `DIGITS`.
        negative: whether it is negative anywhere.
    """

    step: int
    digits: tuple[float, ...]
    negative: bool


def digits_lost(derivation: Derivation, *, points: int = 200) -> tuple[Loss, ...]:
    """Evaluates every line without an expectation in float32, against the library in float64.

    Args:
        derivation: one whose first line by the library takes the parameters as they are.
        points: how many pairs, at each separation.

    Returns:
        The largest loss of every such line.

    Raises:
        ValueError: if no line of the derivation is a function of the library.
    """
    shipped = [step.number for step in derivation.steps if step.shipped]
    if not shipped:
        raise ValueError(f"the derivation {derivation.name!r} has no line of the library.")
    with jax.enable_x64(True), np.errstate(all="ignore"):
        trees = Trees(derivation)
        numbers = [n for n, tree in enumerate(trees.lines) if not has_expectation(tree)]
        digits: dict[int, list[float]] = {n: [] for n in numbers}
        negative = dict.fromkeys(numbers, False)
        for separation in SEPARATIONS:
            values = _inputs(trees, _near(derivation, separation, points))
            wide = {s: Series(x.parts.astype(np.float64), 0) for s, x in values.items()}
            truth = Reading(wide, CUBATURE)(trees.lines[shipped[0]]).parts[0]
            reading = Reading(values, CUBATURE)
            for n in numbers:
                got = reading(trees.lines[n]).parts[0]
                error = np.nan_to_num(np.abs(got - truth) / np.abs(truth), nan=np.inf)
                lost = np.log10(max(1.0, float(error.max()) * 2.0**24))
                digits[n].append(float(min(DIGITS, lost)))
                negative[n] |= bool(np.any(got < 0))
    return tuple(Loss(n, tuple(digits[n]), negative[n]) for n in numbers)


def _near(derivation: Derivation, separation: float, points: int) -> np.ndarray:
    """Unconstrained numbers of pairs that far apart."""
    rng = np.random.default_rng([29, int(1 / separation)])
    where = parameters.slices(derivation.parameters)
    theta = rng.normal(0, 0.5, (points, sum(p.size for p in derivation.parameters.values())))
    for left, right in derivation.partners.items():
        change = rng.uniform(0.3, 1, theta[:, where[left]].shape)
        theta[:, where[left]] = theta[:, where[right]] + separation * change
    return theta


def _inputs(trees: Trees, theta: np.ndarray) -> dict[Symbol, Series]:
    """The parameters, rounded to float32: exactly what a program is given."""
    t = constrained(trees.derivation, Series(theta.T[None], 0))
    return {
        s: Series(getattr(t, key).parts.astype(np.float32), 0)
        for key, s in trees.symbols.items()
    }
