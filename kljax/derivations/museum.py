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
        formula: parameters to the wrong divergence.
    """

    name: str
    where: str
    formula: Callable[[Any], Any]


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


MISTAKES = (
    Mistake(
        "−1/2 forgotten",
        "stats.stackexchange.com, question 7440",
        lambda t: _sum(t, lambda v: (v.ratio - log(v.ratio) + v.square) / 2),
    ),
    Mistake(
        "E x² = σ² − μ²",
        "cs.stackexchange.com, question 122082",
        lambda t: _sum(t, lambda v: (v.ratio - 1 - log(v.ratio) - v.square) / 2),
    ),
    Mistake(
        "k in front of the log-determinant",
        "stats.stackexchange.com, question 60680",
        lambda t: _sum(
            t, lambda v: (v.ratio - 1 - dimension(t.mu) * log(v.ratio) + v.square) / 2
        ),
    ),
    Mistake(
        "standard deviation read as variance",
        "stats.stackexchange.com, question 318184",
        lambda t: _sum(
            t, lambda v: (v.s / v.r - 1 - log(v.s / v.r) + (v.m - v.n) ** 2 / v.r) / 2
        ),
    ),
    Mistake(
        "log 2π in place of log σ",
        "Mocha.jl, issue 117",
        lambda t: _sum(t, lambda v: (v.ratio - 1 - float(np.log(2 * np.pi)) + v.square) / 2),
    ),
    Mistake(
        "−1 missing",
        "pml2-book, issue 297",
        lambda t: _sum(t, lambda v: (v.ratio + v.square) / 2 - log(v.s / v.r)),
    ),
    Mistake(
        "logarithm around everything",
        "udlbook, issue 184",
        lambda t: _sum(t, lambda v: log((1 + v.ratio + v.square) / 2)),
    ),
    Mistake(
        "log-variance used as log of the standard deviation",
        "BayesianCompression, issue 1",
        lambda t: _sum(t, lambda v: (v.ratio**2 - 1 - log(v.ratio**2) + v.square / v.r**2) / 2),
    ),
    Mistake(
        "(log σ)² and a sign",
        "FluxML model-zoo, issue 147",
        lambda t: _sum(t, lambda v: (v.ratio + log(v.s / v.r) ** 2 - 1 + v.square) / 2),
    ),
    Mistake(
        "mean over the latents",
        "keras, issue 6015",
        lambda t: right(t) / dimension(t.mu),
    ),
    Mistake(
        "variance ratio squared in the trace",
        "trpo, issue 25 (a proposed correction)",
        lambda t: _sum(t, lambda v: (v.ratio**2 - 1 - log(v.ratio) + v.square) / 2),
    ),
    Mistake("sign", "PyTorch-VAE, issue 68", lambda t: -right(t)),
    Mistake(
        "q and p swapped",
        "common",
        lambda t: _sum(
            t,
            lambda v: (1 / v.ratio - 1 + log(v.ratio) + (v.m - v.n) ** 2 / v.s**2) / 2,
        ),
    ),
    Mistake("1/2 dropped", "common", lambda t: 2 * right(t)),
    Mistake(
        "1/2 on the first term only",
        "common",
        lambda t: _sum(t, lambda v: v.ratio / 2 - 1 - log(v.ratio) + v.square),
    ),
    Mistake(
        "epsilon inside the logarithm",
        "variational dropout code: log(σ² + 1e-8)",
        lambda t: _sum(
            t,
            lambda v: (v.ratio - 1 - log(v.s**2 + 1e-8) + log(v.r**2 + 1e-8) + v.square) / 2,
        ),
    ),
    Mistake(
        "log-variance clipped to [−1, 1]",
        "common",
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
        lambda t: _sum(t, lambda v: FLOOR((v.ratio - 1 - log(v.ratio) + v.square) / 2)),
    ),
    Mistake(
        "stop_gradient on the variance",
        "common",
        lambda t: _sum(
            t,
            lambda v: (stop_gradient(v.s) ** 2 / v.r**2 - 1 - log(v.ratio) + v.square) / 2,
        ),
    ),
)


def visit(points: int = 64) -> tuple[Sighting, ...]:
    """Every mistake, and the checks that tell it from the divergence."""
    chosen = parameters.points(PARAMETERS, {"mu": "nu", "sigma": "tau"}, points, far_factor=4.0)
    generic = np.array([not name.startswith("q") for name in chosen.names])
    equal = np.array([name == "q = p" for name in chosen.names])
    symbols = {key: symbol(p.symbol) for key, p in PARAMETERS.items()}
    t = SimpleNamespace(**symbols)
    reading = Reading(_series(symbols, chosen.values), CUBATURE)
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
