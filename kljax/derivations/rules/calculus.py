"""Derivatives, and what the library evaluates."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

import kljax
from kljax.derivations.rules import draws
from kljax.derivations.rules.rule import Rule


def _shipped(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    nu, tau = rng.normal(), math.exp(rng.normal(0, 0.5))
    log_ratio = math.log(tau / scale) + ((x - nu) / tau) ** 2 / 2 - ((x - loc) / scale) ** 2 / 2
    with jax.enable_x64(True):
        q, p = kljax.Normal(loc, scale), kljax.Normal(nu, tau)
        return float(kljax.kl_divergence(q, p)), np.sum(w * log_ratio)


shipped = Rule(
    "what the library evaluates",
    "The function that users call is the last line of the derivation.",
    "library",
    "kljax",
    _shipped,
)


def _quadratic(rng: np.random.Generator) -> tuple[Any, Any]:
    m, a, v = draws.spd(rng), rng.normal(size=3), rng.normal(size=3)
    return draws.slope(lambda s: float((a + s * v) @ m @ (a + s * v)) / 2), (m @ a) @ v


quadratic_form = Rule(
    "gradient of a quadratic form",
    "∇ of aᵀM a / 2 by a is M a for symmetric M.",
    "calculus",
    "Petersen & Pedersen, Matrix Cookbook, section 2.4",
    _quadratic,
)


def _log_det_trace(rng: np.random.Generator) -> tuple[Any, Any]:
    s, v, m = draws.spd(rng), draws.spd(rng), draws.spd(rng)
    got = [
        draws.slope(lambda e: np.linalg.slogdet(s + e * v)[1]),
        draws.slope(lambda e: np.trace(m @ (s + e * v))),
    ]
    return got, [np.trace(np.linalg.solve(s, v)), np.trace(m @ v)]


log_det_gradient = Rule(
    "differentials of trace and log-determinant",
    "d tr(M S) = tr(M dS) and d log |S| = tr(S⁻¹ dS).",
    "calculus",
    "Magnus & Neudecker, Matrix Differential Calculus, chapter 8",
    _log_det_trace,
)


def _inverse(rng: np.random.Generator) -> tuple[Any, Any]:
    s, v, m = draws.spd(rng), draws.spd(rng), draws.spd(rng)
    inverse = np.linalg.inv(s)
    got = draws.slope(lambda e: np.trace(m @ np.linalg.inv(s + e * v)))
    return got, -np.trace(m @ inverse @ v @ inverse)


inverse_gradient = Rule(
    "differential of the inverse",
    "d T⁻¹ = −T⁻¹ dT T⁻¹.",
    "calculus",
    "Magnus & Neudecker, Matrix Differential Calculus, chapter 8",
    _inverse,
)


def _factor_gradient(rng: np.random.Generator) -> tuple[Any, Any]:
    low, m = np.linalg.cholesky(draws.spd(rng)), draws.spd(rng)
    v = np.tril(rng.normal(size=(3, 3)))

    def f(e: float) -> float:
        factor = low + e * v
        return np.trace(m @ factor @ factor.T) / 2 - np.sum(np.log(np.diag(factor)))

    return draws.slope(f), np.sum((m @ low) * v) - np.sum(np.diag(v) / np.diag(low))


factor_gradient = Rule(
    "gradient by a Cholesky factor",
    "With S = L Lᵀ: ∇ of tr(M S)/2 is the lower triangle of M L, ∇ of log |L| is 1/L_ii on the "
    "diagonal.",
    "calculus",
    "Magnus & Neudecker, Matrix Differential Calculus, chapter 8",
    _factor_gradient,
)


def _scalar_derivatives(rng: np.random.Generator) -> tuple[Any, Any]:
    a = rng.normal()
    return draws.slope(lambda e: math.exp(a + e) - (a + e)), math.exp(a) - 1


scalar_derivative = Rule(
    "derivatives of exp, log and powers",
    "(eˡ)′ = eˡ, (log σ)′ = 1/σ, (σ²)′ = 2σ.",
    "calculus",
    "elementary calculus",
    _scalar_derivatives,
)
