"""The rules that allow a step, each with its statement, its source and a test of its own.

A rule's test evaluates both sides of the rule on random numbers that no derivation uses, so
that a false rule is found before any step that cites it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import kljax


class Rule(NamedTuple):
    """What allows a step.

    Attributes:
        name: a few words.
        statement: one sentence.
        kind: `definition`, `algebra` (true at every single point, so under any
            expectation), `moment` (true of expectations under this law only), `calculus`
            or `bound` (an inequality).
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
            gap = right - left if self.kind == "bound" else np.abs(left - right)
            worst = max(worst, float(np.max(gap / np.maximum(1, np.abs(left)))))
        return worst


def _normal_moments(rng: np.random.Generator) -> tuple[float, float, np.ndarray, np.ndarray]:
    """A normal law with 20 Gauss-Hermite nodes."""
    loc, scale = rng.normal(), math.exp(rng.normal(0, 0.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return loc, scale, loc + scale * nodes, weights / weights.sum()


def _spd(rng: np.random.Generator, d: int = 3) -> np.ndarray:
    a = rng.normal(size=(d, d))
    return a @ a.T + np.eye(d)


def _points(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points with weights that add up to 1: any expectation."""
    weights = rng.uniform(size=7)
    return rng.normal(size=7), weights / weights.sum()


def _definition(rng: np.random.Generator) -> tuple[Any, Any]:
    q, p = (x / x.sum() for x in (rng.uniform(0.1, 1, 5), rng.uniform(0.1, 1, 5)))
    return np.sum(q * np.log(q / p)), np.sum(q * np.log(q)) - np.sum(q * np.log(p))


definition = Rule(
    "definition",
    "KL(q‖p) is the expectation under q of log q − log p, in nats.",
    "definition",
    "Kullback & Leibler 1951",
    _definition,
)


def _expectation(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = _normal_moments(rng)
    grid = np.linspace(loc - 12 * scale, loc + 12 * scale, 4001)
    density = np.exp(-(((grid - loc) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))
    return np.sum(density * grid**4) * (grid[1] - grid[0]), np.sum(w * x**4)


expectation = Rule(
    "integral against a density",
    "An integral of q times a function is the expectation of the same function under q.",
    "algebra",
    "definition of the expectation",
    _expectation,
)


def _log_ratio(rng: np.random.Generator) -> tuple[Any, Any]:
    a, b, u, v = rng.uniform(0.1, 3, 4)
    return math.log(a * math.exp(-u) / (b * math.exp(-v))), math.log(a / b) - u + v


log_ratio = Rule(
    "logarithm of a ratio of exponentials",
    "log of a e⁻ᵘ over b e⁻ᵛ is log(a/b) − u + v; what both densities share cancels.",
    "algebra",
    "functional equation of the logarithm",
    _log_ratio,
)


def _linearity(rng: np.random.Generator) -> tuple[Any, Any]:
    x, w = _points(rng)
    a, b, c = rng.normal(size=3)
    return np.sum(w * (a * x**2 + b * x + c)), a * np.sum(w * x**2) + b * np.sum(w * x) + c


linearity = Rule(
    "linearity of the expectation",
    "E[a f + b g + c] = a E[f] + b E[g] + c for constants a, b, c.",
    "algebra",
    "linearity of the integral",
    _linearity,
)


def _variance(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = _normal_moments(rng)
    return np.sum(w * (x - loc) ** 2), scale**2


variance = Rule(
    "second central moment",
    "E(x − μ)² = σ² under a law with mean μ and standard deviation σ.",
    "moment",
    "definition of the variance",
    _variance,
)


def _centered(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, _, x, w = _normal_moments(rng)
    return np.sum(w * (x - loc)), 0.0


centered = Rule(
    "centered moments",
    "E(x − μ) = 0 and E(x − μ)² = σ² under a law with mean μ and standard deviation σ.",
    "moment",
    "definition of mean and variance",
    _centered,
)


def _expand(rng: np.random.Generator) -> tuple[Any, Any]:
    x, mu, nu = rng.normal(size=3)
    d = mu - nu
    return (x - nu) ** 2, (x - mu) ** 2 + 2 * d * (x - mu) + d**2


expand_square = Rule(
    "expansion of a square about another point",
    "(x − ν)² = (x − μ)² + 2(μ − ν)(x − μ) + (μ − ν)².",
    "algebra",
    "binomial formula",
    _expand,
)


def _rearrange(rng: np.random.Generator) -> tuple[Any, Any]:
    a, b, c = rng.uniform(0.5, 2, 3)
    return (a + b) / c - math.log(a / c) - 1, a / c + b / c - math.log(a) + math.log(c) - 1


rearrange = Rule(
    "rearrangement",
    "The field's axioms and the functional equation of the logarithm.",
    "algebra",
    "elementary algebra",
    _rearrange,
)


def _by_log_ratio(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = rng.uniform(0.2, 3, 2)
    rho = 2 * math.log(s / t)
    return (s / t) ** 2 - 1 - 2 * math.log(s / t), math.expm1(rho) - rho


by_log_ratio = Rule(
    "substitution of the logarithm of the variance ratio",
    "With ρ = log σ²/τ²: σ²/τ² − 1 − log σ²/τ² = e^ρ − 1 − ρ.",
    "algebra",
    "elementary algebra",
    _by_log_ratio,
)


def _product(rng: np.random.Generator) -> tuple[Any, Any]:
    a = rng.uniform(0.1, 3, 4)
    return math.log(np.prod(a)), np.sum(np.log(a))


log_product = Rule(
    "logarithm of a product",
    "The logarithm of a product is the sum of the logarithms.",
    "algebra",
    "functional equation of the logarithm",
    _product,
)


def _marginal(rng: np.random.Generator) -> tuple[Any, Any]:
    u, v = (x / x.sum() for x in (rng.uniform(size=4), rng.uniform(size=5)))
    f = rng.normal(size=4)
    joint = np.outer(u, v)
    return np.sum(joint * f[:, None]), np.sum(u * f)


marginal = Rule(
    "marginalization",
    "The expectation of a function of one coordinate needs the law of that coordinate only.",
    "moment",
    "Fubini's theorem",
    _marginal,
)


def _trace_trick(rng: np.random.Generator) -> tuple[Any, Any]:
    a, x = _spd(rng), rng.normal(size=3)
    return x @ a @ x, np.trace(a @ np.outer(x, x))


trace_trick = Rule(
    "trace trick",
    "A number is its own trace and tr(AB) = tr(BA), so aᵀMa = tr(M a aᵀ).",
    "algebra",
    "Petersen & Pedersen, Matrix Cookbook, section 1.1",
    _trace_trick,
)


def _trace_linear(rng: np.random.Generator) -> tuple[Any, Any]:
    x, w = _points(rng)
    m = _spd(rng)
    outer = np.array([np.outer([1, a, a * a], [1, a, a * a]) for a in x])
    return np.sum(w * np.trace(m @ outer, axis1=1, axis2=2)), np.trace(
        m @ np.tensordot(w, outer, 1)
    )


trace_is_linear = Rule(
    "the trace is linear",
    "So the expectation passes through it: E tr(M X) = tr(M E[X]).",
    "algebra",
    "linearity of the trace",
    _trace_linear,
)


def _gaussian_nodes(rng: np.random.Generator) -> tuple[Any, ...]:
    mu, s = rng.normal(size=2), _spd(rng, 2)
    line, weight = np.polynomial.hermite_e.hermegauss(6)
    grid = np.array([(a, b) for a in line for b in line])
    weights = np.array([a * b for a in weight for b in weight])
    return mu, s, mu + grid @ np.linalg.cholesky(s).T, weights / weights.sum()


def _covariance(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = _gaussian_nodes(rng)
    return np.einsum("n,ni,nj->ij", w, x - mu, x - mu), s


covariance = Rule(
    "definition of the covariance",
    "E[(x − μ)(x − μ)ᵀ] = S under a law with mean μ and covariance S, and tr(S⁻¹S) = k.",
    "moment",
    "definition of the covariance matrix",
    _covariance,
)


def _spread(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = _gaussian_nodes(rng)
    nu = rng.normal(size=2)
    return np.einsum("n,ni,nj->ij", w, x - nu, x - nu), s + np.outer(mu - nu, mu - nu)


spread_about_another_point = Rule(
    "spread about another point",
    "E[(x − ν)(x − ν)ᵀ] = S + (μ − ν)(μ − ν)ᵀ: covariance plus squared shift.",
    "moment",
    "Huygens' theorem on the second moment",
    _spread,
)


def _factors(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = _spd(rng), _spd(rng)
    ls, lt = np.linalg.cholesky(s), np.linalg.cholesky(t)
    m = np.linalg.solve(lt, ls)
    trace, log_det = np.trace(np.linalg.solve(t, s)), np.linalg.slogdet(t)[1]
    gap = log_det - np.linalg.slogdet(s)[1]
    return [trace, gap], [np.sum(m * m), -2 * np.sum(np.log(np.diag(m)))]


factors = Rule(
    "Cholesky factors",
    "With S = L Lᵀ, T = K Kᵀ and M = K⁻¹L: tr(T⁻¹S) = ‖M‖² and log |S|/|T| = 2 Σ log M_ii.",
    "algebra",
    "Golub & Van Loan, Matrix Computations, section 4.2",
    _factors,
)


def _shipped(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = _normal_moments(rng)
    nu, tau = rng.normal(), math.exp(rng.normal(0, 0.5))
    log_ratio = math.log(tau / scale) + ((x - nu) / tau) ** 2 / 2 - ((x - loc) / scale) ** 2 / 2
    with jax.enable_x64(True):
        q, p = kljax.Normal(loc, scale), kljax.Normal(nu, tau)
        return float(kljax.kl_divergence(q, p)), np.sum(w * log_ratio)


shipped = Rule(
    "what the library evaluates",
    "The function that users call is the last line of the derivation.",
    "algebra",
    "kljax",
    _shipped,
)


def _substitute(rng: np.random.Generator) -> tuple[Any, Any]:
    v = rng.uniform(0.1, 5)
    log_v = math.log(v)
    return v - 1 - math.log(v), math.exp(log_v) - 1 - log_v


log_variance = Rule(
    "substitution of the log-variance",
    "With l = log σ²: σ² = eˡ, and no constraint on l is left.",
    "algebra",
    "Kingma & Welling 2014, appendix B",
    _substitute,
)


def _special_case(rng: np.random.Generator) -> tuple[Any, Any]:
    s, mu = rng.uniform(0.2, 3), rng.normal()
    nu, tau = 0.0, 1.0
    general = math.log(tau / s) - 0.5 + (s**2 + (mu - nu) ** 2) / (2 * tau**2)
    return general, (s**2 + mu**2 - 1 - math.log(s**2)) / 2


special_case = Rule(
    "special case",
    "A formula that holds for all parameters holds for these.",
    "algebra",
    "elementary logic",
    _special_case,
)
