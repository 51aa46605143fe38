"""Measures how many ulp the library is off, and prints the table: python tests/accuracy.py.

Inputs are exactly the float32 numbers given; the truth has 120 digits (tests/truth.py).

- Normal and diagonal: the error of the value in ulp of the value, of a gradient entry in ulp
  of the sum of the absolute dispersion and location parts.
- Full covariance: relative errors (gradients in the Frobenius norm) in units of u cond, with
  u = 2^-24 and cond the 2-norm condition of what p was given by.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import truth
from truth import Spread

import kljax

ACHIEVED = Path(__file__).parent / "reference" / "achieved_ulp.json"
UNIT = 2.0**-24
SEPARATIONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


class Case(NamedTuple):
    """One pair of Gaussians in float32."""

    q_loc: np.ndarray
    q: Spread
    p_loc: np.ndarray
    p: Spread


class Errors(NamedTuple):
    """The largest error of value and gradient, and what must never happen."""

    value: float
    gradient: float
    violations: int


# ---- cases --------------------------------------------------------------------------------


def _f32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def _spread_from_log_scale(kind: str, log_scale: np.ndarray) -> np.ndarray:
    factor = {"scale": 1.0, "variance": 2.0}
    if kind == "log_variance":
        return _f32(2 * log_scale)
    return _f32(np.exp(factor[kind] * log_scale))


def diagonal_cases(
    kinds: tuple[str, str], regime: str, size: int, count: int, seed: int
) -> Iterator[Case]:
    """Pairs of one regime: a separation such as "1e-3", or a named hard region."""
    rng = np.random.default_rng([seed, *regime.encode(), *kinds[0].encode()])
    for index in range(count):
        log_p = rng.normal(0, 1, size)
        loc_p = rng.normal(0, 1, size)
        match regime:
            case "generic":
                log_q, loc_q = rng.normal(0, 1, size), rng.normal(0, 1, size)
            case "offset 1e3":
                loc_p = 1e3 + loc_p
                log_q = log_p + rng.normal(0, 1e-2, size)
                loc_q = loc_p + np.exp(log_p) * rng.normal(0, 1e-2, size)
            case "ratio 1e30":
                half = rng.uniform(5, 15, size) * np.log(10)
                sign = rng.choice([-1, 1], size)
                log_p, log_q = -sign * half, sign * half
                loc_q = loc_p + np.exp(log_p) * rng.normal(0, 1, size)
            case _:
                separation = float(regime)
                # Mean only, scale only, both. Converting a parametrization would leave
                # equal spreads equal up to rounding only: there both always differ.
                choices = ((1, 0), (0, 1), (1, 1)) if kinds[0] == kinds[1] else ((1, 1),)
                shift, stretch = choices[index % len(choices)]
                log_q = log_p + stretch * separation * _away_from_zero(rng, size)
                step = shift * separation * _away_from_zero(rng, size)
                loc_q = loc_p + np.exp(log_p) * step
        yield Case(
            _f32(loc_q),
            Spread(kinds[0], _spread_from_log_scale(kinds[0], log_q)),
            _f32(loc_p),
            Spread(kinds[1], _spread_from_log_scale(kinds[1], log_p)),
        )


def _away_from_zero(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.choice([-1, 1], size) * rng.uniform(0.2, 2, size)


def _factor(rng: np.random.Generator, size: int, condition: float) -> np.ndarray:
    """A lower triangular factor of the given 2-norm condition."""
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    singular = np.geomspace(1, 1 / condition, size) if size > 1 else np.ones(1)
    lower = np.linalg.qr((basis * singular).T)[1].T
    return lower * np.sign(np.diag(lower))


def matrix_cases(
    kinds: tuple[str, str],
    regime: str,
    size: int,
    count: int,
    condition: float,
    seed: int,
) -> Iterator[Case]:
    """Pairs with a p of the given condition (of the factor or of the matrix given)."""
    rng = np.random.default_rng(
        [
            seed,
            *regime.encode(),
            *"".join(kinds).encode(),
            size,
            int(np.log10(condition)),
        ]
    )
    root = condition if set(kinds) == {"scale_tril"} else np.sqrt(condition)
    diagonal = any(kind in truth.DIAGONAL_KINDS for kind in kinds)
    for _ in range(count):
        factor_p = _factor(rng, size, root)
        if regime == "far":
            factor_q, step = _factor(rng, size, root), rng.normal(size=size)
        else:
            if diagonal:
                factor_p = np.diag(np.geomspace(1, 1 / root, size))
            separation = float(regime)
            noise = np.tril(rng.normal(size=(size, size)))
            factor_q = factor_p @ (np.eye(size) + separation * noise)
            step = separation * rng.normal(size=size)
        loc_p = rng.normal(size=size)
        loc_q = loc_p + factor_p @ step
        yield Case(
            _f32(loc_q),
            _matrix_spread(kinds[0], factor_q),
            _f32(loc_p),
            _matrix_spread(kinds[1], factor_p),
        )


def _matrix_spread(kind: str, factor: np.ndarray) -> Spread:
    covariance = factor @ factor.T
    match kind:
        case "scale_tril":
            return Spread(kind, _f32(factor))
        case "covariance_matrix":
            matrix = _f32(covariance)
        case "precision_matrix":
            matrix = _f32(np.linalg.inv(covariance))
        case _:
            return Spread(
                kind,
                _spread_from_log_scale(kind, 0.5 * np.log(np.diag(covariance))),
            )
    return Spread(kind, np.tril(matrix) + np.tril(matrix, -1).T)


# ---- measuring ----------------------------------------------------------------------------

_FIELD = {"scale": "scale_diag"}


def distribution(loc, spread: Spread, *, scalar: bool = False) -> Any:
    """The record of a loc and a spread."""
    if spread.kind in ("scale_tril", "covariance_matrix", "precision_matrix"):
        return kljax.MultivariateNormal(loc, **{spread.kind: spread.value})
    if scalar:
        return kljax.Normal(loc, **{spread.kind: spread.value})
    field = _FIELD.get(spread.kind, spread.kind)
    return kljax.MultivariateNormalDiag(loc, **{field: spread.value})


def ulp(x) -> np.ndarray:
    """The spacing of normal float32 numbers at |x|."""
    size = np.maximum(np.abs(np.asarray(x, np.float64)), 2.0**-126)
    return 2.0 ** (np.floor(np.log2(size)) - 23)


def _stack(cases: list[Case]) -> tuple[Any, Any]:
    """All cases as one batch of q and of p."""
    q_loc, p_loc = (np.stack([c[i] for c in cases]) for i in (0, 2))
    q, p = (Spread(cases[0][i].kind, np.stack([c[i].value for c in cases])) for i in (1, 3))
    return (
        jax.tree.map(jnp.asarray, distribution(q_loc, q)),
        jax.tree.map(jnp.asarray, distribution(p_loc, p)),
    )


def evaluate(cases: list[Case], *, jit: bool, precision: str = "default"):
    """Values and gradients of all cases: (kl, loc, q spread, p loc, p spread)."""
    q, p = _stack(cases)

    def total(q, p):
        kl = kljax.kl_divergence(q, p, precision=precision)
        return jnp.sum(kl), kl

    function = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    if jit:
        (_, kl), (grad_q, grad_p) = jax.jit(function)(q, p)
    else:
        with jax.disable_jit():
            (_, kl), (grad_q, grad_p) = function(q, p)
    spread_q = next(x for x in jax.tree.leaves(grad_q)[1:])
    spread_p = next(x for x in jax.tree.leaves(grad_p)[1:])
    return tuple(
        np.asarray(x, np.float64) for x in (kl, grad_q.loc, spread_q, grad_p.loc, spread_p)
    )


LARGEST, SMALLEST = float(np.finfo(np.float32).max), 2.0**-126


def _in_range(x) -> np.ndarray:
    size = np.abs(np.asarray(x, np.float64))
    return (size >= SMALLEST) & (size <= LARGEST)


def _float(x) -> np.ndarray:
    return np.asarray(x, object).astype(np.float64)


def _difference(got, want) -> np.ndarray:
    """|got - want| without rounding the truth first."""
    exact = truth.exact(np.nan_to_num(got, nan=1e300, posinf=1e300, neginf=-1e300))
    return np.abs(_float(exact - want))


def _entry_errors(got, parts: list[np.ndarray]) -> tuple[float, int]:
    """Largest error in ulp of the sum of absolute parts; entries not finite although true."""
    want = sum(parts[1:], start=parts[0])
    size = sum((np.abs(_float(x)) for x in parts), start=np.zeros(np.shape(got)))
    counted = size <= LARGEST
    bad = int(np.sum(~np.isfinite(got) & counted))
    errors = _difference(got, want) / ulp(size)
    counted = counted & np.isfinite(got) & (size >= SMALLEST)
    return float(np.max(errors, initial=0, where=counted)), bad


def measure_diagonal(cases: list[Case], *, jit: bool) -> Errors:
    got = evaluate(cases, jit=jit)
    value, gradient, violations = 0.0, 0.0, 0
    for index, case in enumerate(cases):
        want = truth.gaussian(*case)
        kl = got[0][index]
        if _in_range(want.kl):
            value = max(value, float(_difference(kl, want.kl) / ulp(want.kl)))
            violations += not (np.isfinite(kl) and kl > 0)
        violations += bool(kl < 0)
        for slot, parts in (
            (1, [want.grad_loc]),
            (2, [want.grad_q]),
            (3, [-want.grad_loc]),
            (4, [want.grad_p_dispersion, want.grad_p_location]),
        ):
            error, bad = _entry_errors(got[slot][index], parts)
            gradient, violations = max(gradient, error), violations + bad
    return Errors(value, gradient, violations)


def condition_of(spread: Spread) -> float:
    if spread.kind in truth.DIAGONAL_KINDS:
        return 1.0
    return float(np.linalg.cond(spread.value.astype(np.float64)))


def _norm(x) -> float:
    return float(np.sqrt(np.sum(_float(x) ** 2)))


def measure_matrix(
    cases: list[Case], *, jit: bool, precision: str = "default", unit: str = "condition"
) -> Errors:
    """Errors in units of u cond, or in ulp where `unit` is "ulp"."""
    got = evaluate(cases, jit=jit, precision=precision)
    value, gradient, violations = 0.0, 0.0, 0
    for index, case in enumerate(cases):
        want = truth.gaussian(*case)
        scale = UNIT * max(condition_of(case.q), condition_of(case.p))
        kl = got[0][index]
        error = float(_difference(kl, want.kl))
        if unit == "ulp":
            value = max(value, error / float(ulp(want.kl)))
            scale = 2 * UNIT
        else:
            value = max(value, error / (float(want.kl) * scale))
        violations += not (np.isfinite(kl) and kl > 0)
        for slot, parts in (
            (1, [want.grad_loc]),
            (2, [want.grad_q]),
            (3, [-want.grad_loc]),
            (4, [want.grad_p_dispersion, want.grad_p_location]),
        ):
            entry = got[slot][index]
            violations += int(np.sum(~np.isfinite(entry)))
            error = _norm(_difference(entry, sum(parts[1:], start=parts[0])))
            size = sum(_norm(part) for part in parts)
            gradient = max(gradient, error / (size * scale) if size else error)
    return Errors(value, gradient, violations)
