"""Inequalities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kljax.derivations.rules import draws
from kljax.derivations.rules.rule import Rule


def _phi(rng: np.random.Generator) -> tuple[Any, Any]:
    r = math.exp(rng.normal(0, 2))
    return r * math.log(r) + 1 - r, 0.0


phi_nonnegative = Rule(
    "φ(r) = r log r + 1 − r is never negative",
    "φ(1) = 0, φ′(1) = 0 and φ″(r) = 1/r > 0, so φ lies above its tangent at 1.",
    "pointwise bound",
    "Gibbs' inequality",
    _phi,
)


def _jensen(rng: np.random.Generator) -> tuple[Any, Any]:
    x, w = draws.points(rng)
    return -np.sum(w * np.log(np.exp(x))), -math.log(np.sum(w * np.exp(x)))


jensen = Rule(
    "Jensen's inequality",
    "E[−log f] ≥ −log E[f].",
    "bound",
    "Jensen 1906",
    _jensen,
)


def _means(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = np.exp(rng.normal(0, 1, 2))
    return s**2 + t**2, 2 * s * t


two_means = Rule(
    "arithmetic and geometric mean",
    "σ² + τ² ≥ 2στ, with equality only where σ = τ; a square is 0 only at 0.",
    "bound",
    "elementary algebra",
    _means,
)


def _processing(rng: np.random.Generator) -> tuple[Any, Any]:
    q, p = (x / x.sum() for x in rng.uniform(0.1, 1, (2, 4, 3)))
    joint = np.sum(q * np.log(q / p))
    qx, px = q.sum(1), p.sum(1)
    return joint, np.sum(qx * np.log(qx / px))


data_processing = Rule(
    "a divergence is not negative",
    "What was just shown of every divergence: dropping one makes the sum no larger.",
    "bound",
    "Cover & Thomas, Elements of Information Theory, section 2.5",
    _processing,
)
