"""Mistakes that people made in public, each with the checks that see it.

All are formulas of the divergence of two laws with independent coordinates, evaluated at the
same points as the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from kljax.derivations import parameters
from kljax.derivations.expectation import CUBATURE, Reading
from kljax.derivations.expression import (
    Expr,
    dimension,
    exp,
    log,
    stop_gradient,
    sum_over,
    symbol,
)
from kljax.derivations.mutants import CLAMP_ONE, FLOOR
from kljax.derivations.series import Series
from kljax.derivations.verify import TOLERANCE

PARAMETERS = {
    "mu": parameters.vector("μ", "means of q"),
    "sigma": parameters.positive_vector("σ", "standard deviations of q"),
    "nu": parameters.vector("ν", "means of p"),
    "tau": parameters.positive_vector("τ", "standard deviations of p"),
}
CHECKS = ("value", "gradient", "Hessian")
# What people check instead.
WEAK_CHECKS = ("0 at q = p", "never negative", "within 10 %")


class Mistake(NamedTuple):
    """A wrong formula.

    Attributes:
        name: what was done.
        where: where it was seen, or "common" where no single place is to be named.
        effect: what it does to who trains with it, read off the formula.
        formula: parameters to the wrong divergence.
    """

    name: str
    where: str
    effect: str
    formula: Callable[[Any], Any]

    def line(self) -> Expr:
        """The formula as a tree."""
        return self.formula(_symbols())


class Sighting(NamedTuple):
    """A mistake and who sees it."""

    mistake: Mistake
    seen_by: frozenset[str]


def right(t: Any) -> Any:
    """The divergence."""
    return _sum(t, lambda v: (v.ratio - 1 - log(v.ratio) + v.square) / 2)


def _sum(t: Any, term: Callable[[SimpleNamespace], Any]) -> Any:
    def at(i: Any) -> Any:
        m, s, n, r = t.mu[i], t.sigma[i], t.nu[i], t.tau[i]
        ratio, square = s**2 / r**2, (m - n) ** 2 / r**2
        return term(SimpleNamespace(m=m, s=s, n=n, r=r, ratio=ratio, square=square))

    return sum_over(t.mu, at)


RIGHT = Mistake("none", "", "", right)
MISTAKES = (
    Mistake(
        "−1/2 forgotten",
        "stats.stackexchange.com, question 7440",
        (
            "A constant of 1/2 for every coordinate: gradients are right, the number is not 0 "
            "at q = p, and a reported ELBO is too low."
        ),
        lambda t: _sum(t, lambda v: (v.ratio - log(v.ratio) + v.square) / 2),
    ),
    Mistake(
        "E x² = σ² − μ²",
        "cs.stackexchange.com, question 122082",
        "The mean of q is pushed away from that of p, ever faster: there is no minimum.",
        lambda t: _sum(t, lambda v: (v.ratio - 1 - log(v.ratio) - v.square) / 2),
    ),
    Mistake(
        "k in front of the log-determinant",
        "stats.stackexchange.com, question 60680",
        (
            "The log-determinant pushes k times too hard: q comes to rest at k times the "
            "variance of p."
        ),
        lambda t: _sum(
            t, lambda v: (v.ratio - 1 - dimension(t.mu) * log(v.ratio) + v.square) / 2
        ),
    ),
    Mistake(
        "standard deviation read as variance",
        "stats.stackexchange.com, question 318184",
        (
            "The minimum is still at q = p, but near it the pull on log σ is a quarter of the "
            "right one, and the pull on the mean is τ times the right one."
        ),
        lambda t: _sum(
            t, lambda v: (v.s / v.r - 1 - log(v.s / v.r) + (v.m - v.n) ** 2 / v.r) / 2
        ),
    ),
    Mistake(
        "log 2π in place of log σ",
        "Mocha.jl, issue 117",
        "Nothing pushes the variance of q up any more: it shrinks to 0.",
        lambda t: _sum(t, lambda v: (v.ratio - 1 - float(np.log(2 * np.pi)) + v.square) / 2),
    ),
    Mistake(
        "−1 missing",
        "pml2-book, issue 297",
        (
            "A constant of 1/2 for every coordinate once more: gradients are right, the "
            "number is not 0 at q = p."
        ),
        lambda t: _sum(t, lambda v: (v.ratio + v.square) / 2 - log(v.s / v.r)),
    ),
    Mistake(
        "logarithm around everything",
        "udlbook, issue 184",
        (
            "Nothing pushes the variance of q up: it shrinks to 0, and the pull on a mean "
            "fades the farther away it is."
        ),
        lambda t: _sum(t, lambda v: log((1 + v.ratio + v.square) / 2)),
    ),
    Mistake(
        "log-variance used as log of the standard deviation",
        "BayesianCompression, issue 1",
        (
            "The minimum is still at q = p, but near it a log-variance is pulled four times "
            "too hard, and the mean with 1/τ⁴ in place of 1/τ²."
        ),
        lambda t: _sum(t, lambda v: (v.ratio**2 - 1 - log(v.ratio**2) + v.square / v.r**2) / 2),
    ),
    Mistake(
        "(log σ)² and a sign",
        "FluxML model-zoo, issue 147",
        "Pull and push balance at σ ≈ 0.65 τ: every q comes out too narrow.",
        lambda t: _sum(t, lambda v: (v.ratio + log(v.s / v.r) ** 2 - 1 + v.square) / 2),
    ),
    Mistake(
        "mean over the latents",
        "keras, issue 6015",
        (
            "The term weighs k times too little against the reconstruction: a β-VAE with β = "
            "1/k that nobody asked for."
        ),
        lambda t: right(t) / dimension(t.mu),
    ),
    Mistake(
        "variance ratio squared in the trace",
        "trpo, issue 25 (a proposed correction)",
        "The trace pulls too hard: q comes to rest at 0.71 times the variance of p.",
        lambda t: _sum(t, lambda v: (v.ratio**2 - 1 - log(v.ratio) + v.square) / 2),
    ),
    Mistake(
        "sign",
        "PyTorch-VAE, issue 68",
        "Minimizing it drives q away from p, and the loss has no lower bound.",
        lambda t: -right(t),
    ),
    Mistake(
        "q and p swapped",
        "common",
        (
            "The divergence in the other direction. The minimum is the same where q can be p; "
            "where it cannot, q covers all of p in place of staying inside it."
        ),
        lambda t: _sum(
            t,
            lambda v: (1 / v.ratio - 1 + log(v.ratio) + (v.m - v.n) ** 2 / v.s**2) / 2,
        ),
    ),
    Mistake(
        "1/2 dropped",
        "common",
        "The term weighs twice: a β-VAE with β = 2.",
        lambda t: 2 * right(t),
    ),
    Mistake(
        "1/2 on the first term only",
        "common",
        "q comes to rest at twice the variance of p, and the mean is pulled twice as hard.",
        lambda t: _sum(t, lambda v: v.ratio / 2 - 1 - log(v.ratio) + v.square),
    ),
    Mistake(
        "epsilon inside the logarithm",
        "variational dropout code: log(σ² + 1e-8)",
        (
            "Below σ² = 1e-8 nothing pushes the variance up, where it is needed most; "
            "everywhere else no test of a few per cent sees it."
        ),
        lambda t: _sum(
            t,
            lambda v: (v.ratio - 1 - log(v.s**2 + 1e-8) + log(v.r**2 + 1e-8) + v.square) / 2,
        ),
    ),
    Mistake(
        "log-variance clipped to [−1, 1]",
        "common",
        "A log-variance outside of the interval has no gradient and stays where it is.",
        lambda t: _sum(
            t,
            lambda v: (
                (
                    exp(CLAMP_ONE(log(v.s**2))) / v.r**2
                    - 1
                    - CLAMP_ONE(log(v.s**2))
                    + log(v.r**2)
                    + v.square
                )
                / 2
            ),
        ),
    ),
    Mistake(
        "free bits left inside",
        "common",
        (
            "A coordinate below the floor has no gradient, and the number that is reported is "
            "at least the floor for each."
        ),
        lambda t: _sum(t, lambda v: FLOOR((v.ratio - 1 - log(v.ratio) + v.square) / 2)),
    ),
    Mistake(
        "stop_gradient on the variance",
        "common",
        (
            "The value is right everywhere. The trace pulls no more, the log-determinant "
            "pushes on: the variance grows without limit."
        ),
        lambda t: _sum(
            t,
            lambda v: (stop_gradient(v.s) ** 2 / v.r**2 - 1 - log(v.ratio) + v.square) / 2,
        ),
    ),
)


def get(name: str) -> Mistake:
    """A mistake by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    for mistake in MISTAKES:
        if mistake.name == name:
            return mistake
    raise ValueError(f"the museum has no mistake {name!r}.")


def visit(points: int = 64) -> tuple[Sighting, ...]:
    """Every mistake, and the checks that tell it from the divergence."""
    chosen = parameters.points(PARAMETERS, {"mu": "nu", "sigma": "tau"}, points, far_factor=4.0)
    generic = np.array([not name.startswith("q") for name in chosen.names])
    equal = np.array([name == "q = p" for name in chosen.names])
    t = _symbols()
    reading = Reading(_series(vars(t), chosen.values), CUBATURE)
    want = _parts(reading, right(t))
    out = []
    for mistake in MISTAKES:
        got = _parts(reading, mistake.formula(t))
        seen = {
            check
            for check, parts in zip(CHECKS, ((0,), (1, 2), (3,)), strict=True)
            if _differ(got, want, parts, TOLERANCE[check])
        }
        if np.any(np.abs(got[0][equal]) > 1e-9):
            seen.add("0 at q = p")
        if np.any(got[0] < -1e-9):
            seen.add("never negative")
        far_off = np.abs(got[0] - want[0]) / (1 + np.abs(want[0])) > 0.1
        if np.any(far_off[generic]):
            seen.add("within 10 %")
        out.append(Sighting(mistake, frozenset(seen)))
    return tuple(out)


def _symbols() -> SimpleNamespace:
    return SimpleNamespace(**{key: symbol(p.symbol) for key, p in PARAMETERS.items()})


def _series(symbols: dict[str, Any], theta: np.ndarray) -> dict[Any, Series]:
    rng = np.random.default_rng(7)
    parts = np.zeros((4, theta.shape[1], len(theta)))
    parts[0] = theta.T
    parts[1], parts[2] = rng.normal(size=(2, theta.shape[1], len(theta)))
    where = parameters.slices(PARAMETERS)
    return {
        symbols[key]: p.constrain(Series(parts, 0)[where[key]]) for key, p in PARAMETERS.items()
    }


def _parts(reading: Reading, tree: Expr) -> np.ndarray:
    return reading(tree).parts


def _differ(got: np.ndarray, want: np.ndarray, parts: tuple[int, ...], limit: float) -> bool:
    scale = np.maximum(1, np.abs(want))
    return any(np.any(~(np.abs(got - want)[n] / scale[n] <= limit)) for n in parts)
