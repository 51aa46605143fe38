"""What the derivations stand on, held against numbers that this library did not make.

density    log-densities against SciPy's
mass       every density integrates to 1
digits     the definition against the textbook formula in 50 digits
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from kljax.derivations import expectation

TOLERANCE = 1e-12


class Anchor(NamedTuple):
    """A comparison with the outside.

    Attributes:
        name: what is compared with what.
        error: the largest relative error.
    """

    name: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCE


def check() -> tuple[Anchor, ...]:
    """Every anchor; each has `ok`."""
    rng = np.random.default_rng(41)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return (
            Anchor("log-density of a number and SciPy's", _normal_density(rng)),
            Anchor("log-density of a vector and SciPy's", _gaussian_density(rng)),
            Anchor("log-density of an exponential law and SciPy's", _exponential_density(rng)),
            Anchor("mass of a density of a number and 1", _normal_mass(rng)),
            Anchor("mass of a density of a vector and 1", _gaussian_mass(rng)),
            Anchor("definition and 50 digits, of a number", _univariate_digits(rng)),
            Anchor("definition and 50 digits, of a vector", _full_digits(rng)),
        )


def _relative(got: object, want: object) -> float:
    got, want = np.asarray(got, float), np.asarray(want, float)
    return float(np.max(np.abs(got - want) / np.maximum(1, np.abs(want))))


def _spd(rng: np.random.Generator) -> np.ndarray:
    a = rng.normal(size=(2, 2))
    return a @ a.T + 0.5 * np.eye(2)


def _normal_density(rng: np.random.Generator) -> float:
    loc, scale, x = rng.normal(), math.exp(rng.normal()), rng.normal(size=20)
    ours = expectation.normal(loc, scale).log_density(x)
    by_variance = expectation.normal_by_variance(loc, scale**2).log_density(x)
    theirs = scipy.stats.norm.logpdf(x, loc, scale)
    return max(_relative(ours, theirs), _relative(by_variance, theirs))


def _gaussian_density(rng: np.random.Generator) -> float:
    loc, spread, x = rng.normal(size=2), _spd(rng), rng.normal(size=(20, 2))
    law = expectation.gaussian(jnp.asarray(loc), jnp.asarray(spread))
    scale = np.sqrt(np.diag(spread))
    apart = expectation.independent(jnp.asarray(loc), jnp.asarray(scale))
    # SciPy names no type for a matrix here.
    theirs = scipy.stats.multivariate_normal.logpdf(x, loc, spread)  # pyright: ignore
    theirs_apart = scipy.stats.norm.logpdf(x, loc, scale).sum(1)
    return max(
        _relative(jax.vmap(law.log_density)(jnp.asarray(x)), theirs),
        _relative(jax.vmap(apart.log_density)(jnp.asarray(x)), theirs_apart),
    )


def _exponential_density(rng: np.random.Generator) -> float:
    rate, x = math.exp(rng.normal()), rng.exponential(size=20)
    ours = expectation.exponential(rate).log_density(x)
    return _relative(ours, scipy.stats.expon.logpdf(x, scale=1 / rate))


def _normal_mass(rng: np.random.Generator) -> float:
    loc, scale = rng.normal(), math.exp(rng.normal(0, 0.3))
    law = expectation.normal(loc, scale)
    x = np.linspace(loc - 12 * scale, loc + 12 * scale, 400)
    return _relative(np.sum(np.exp(law.log_density(x))) * (x[1] - x[0]), 1)


def _gaussian_mass(rng: np.random.Generator) -> float:
    loc, spread = rng.normal(size=2), _spd(rng)
    law = expectation.gaussian(jnp.asarray(loc), jnp.asarray(spread))
    line = np.linspace(-10, 10, 81)
    step = line[1] - line[0]
    root = np.linalg.cholesky(spread)
    points = loc + np.array([(a, b) for a in line for b in line]) @ root.T
    density = np.exp(np.asarray(jax.vmap(law.log_density)(jnp.asarray(points))))
    return _relative(density.sum() * step**2 * np.linalg.det(root), 1)


# ---- 50 digits ------------------------------------------------------------------------------


def _univariate_digits(rng: np.random.Generator) -> float:
    mu, nu = rng.normal(size=(2, 10))
    sigma, tau = np.exp(rng.normal(0, 0.5, (2, 10)))

    def definition(mu: Any, sigma: Any, nu: Any, tau: Any) -> Any:
        return _definition(expectation.normal(mu, sigma), expectation.normal(nu, tau))

    got = jax.vmap(definition)(mu, sigma, nu, tau)
    exact = []
    for row in zip(mu, sigma, nu, tau, strict=True):
        with localcontext() as context:
            context.prec = 50
            m, s, n, t = (Decimal(float(v)) for v in row)
            kl = (t / s).ln() + (s * s + (m - n) ** 2) / (2 * t * t) - Decimal("0.5")
        exact.append(float(kl))
    return _relative(got, exact)


def _full_digits(rng: np.random.Generator) -> float:
    mu, nu = rng.normal(size=(2, 5, 2))
    S, T = (np.array([_spd(rng) for _ in range(5)]) for _ in range(2))

    def definition(mu: Any, S: Any, nu: Any, T: Any) -> Any:
        return _definition(expectation.gaussian(mu, S), expectation.gaussian(nu, T))

    exact = [float(_exact(*row)) for row in zip(mu, S, nu, T, strict=True)]
    return _relative(jax.vmap(definition)(mu, S, nu, T), exact)


def _definition(q: expectation.Law, p: expectation.Law) -> Any:
    mean = expectation.Numeric(q, expectation.CUBATURE)
    return mean(lambda x: q.log_density(x) - p.log_density(x))


def _exact(mu: np.ndarray, S: np.ndarray, nu: np.ndarray, T: np.ndarray) -> Decimal:
    """KL of two normal laws in the plane, by the textbook formula in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        (a, b), (_, c) = ([Decimal(float(v)) for v in row] for row in S)
        (d, e), (_, f) = ([Decimal(float(v)) for v in row] for row in T)
        x = Decimal(float(mu[0])) - Decimal(float(nu[0]))
        y = Decimal(float(mu[1])) - Decimal(float(nu[1]))
        det_s, det_t = a * c - b * b, d * f - e * e
        trace = (f * a - 2 * e * b + d * c) / det_t
        square = (f * x * x - 2 * e * x * y + d * y * y) / det_t
        return (trace + square - 2 + (det_t / det_s).ln()) / 2
