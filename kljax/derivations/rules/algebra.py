"""True at every single point, so under any expectation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.stats

from kljax.derivations.rules import draws
from kljax.derivations.rules.rule import Rule


def _expectation(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
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
    x, w = draws.points(rng)
    a, b, c = rng.normal(size=3)
    return np.sum(w * (a * x**2 + b * x + c)), a * np.sum(w * x**2) + b * np.sum(w * x) + c


linearity = Rule(
    "linearity of the expectation",
    "E[a f + b g + c] = a E[f] + b E[g] + c for constants a, b, c.",
    "algebra",
    "linearity of the integral",
    _linearity,
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


def _trace_trick(rng: np.random.Generator) -> tuple[Any, Any]:
    a, x = draws.spd(rng), rng.normal(size=3)
    return x @ a @ x, np.trace(a @ np.outer(x, x))


trace_trick = Rule(
    "trace trick",
    "A number is its own trace and tr(AB) = tr(BA), so aᵀMa = tr(M a aᵀ).",
    "algebra",
    "Petersen & Pedersen, Matrix Cookbook, section 1.1",
    _trace_trick,
)


def _trace_linear(rng: np.random.Generator) -> tuple[Any, Any]:
    x, w = draws.points(rng)
    m = draws.spd(rng)
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


def _factors(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = draws.spd(rng), draws.spd(rng)
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


def _square_sum(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = rng.uniform(0.2, 3, 2)
    d = rng.normal()
    left = math.log(t / s) - 0.5 + (s**2 + d**2) / (2 * t**2)
    return left, (s**2 / t**2 - 1 - math.log(s**2 / t**2) + d**2 / t**2) / 2


one_half_outside = Rule(
    "one half outside",
    "log(τ/σ) = −½ log(σ²/τ²), and one half is a common factor.",
    "algebra",
    "functional equation of the logarithm",
    _square_sum,
)


def _diagonal_matrices(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = rng.uniform(0.2, 3, (2, 4))
    trace = np.trace(np.linalg.inv(np.diag(t)) @ np.diag(s))
    return [trace, np.linalg.slogdet(np.diag(s))[1]], [np.sum(s / t), np.sum(np.log(s))]


diagonal_matrices = Rule(
    "diagonal matrices",
    "Trace and log-determinant of diagonal matrices are sums over their entries.",
    "algebra",
    "Golub & Van Loan, Matrix Computations, section 2.1",
    _diagonal_matrices,
)


def _affine(rng: np.random.Generator) -> tuple[Any, Any]:
    a, s, x = rng.normal(size=(3, 3)) + 2 * np.eye(3), draws.spd(rng), rng.normal(size=3)
    moved = a @ s @ a.T
    square = (a @ x) @ np.linalg.solve(moved, a @ x)
    log_det = np.linalg.slogdet(moved)[1]
    want = np.linalg.slogdet(s)[1] + 2 * np.linalg.slogdet(a)[1]
    return [square, log_det], [x @ np.linalg.solve(s, x), want]


affine = Rule(
    "change of coordinates",
    "x ↦ A x + b turns N(μ, S) into N(A μ + b, A S Aᵀ); Aᵀ(A T Aᵀ)⁻¹A = T⁻¹, and log |A| is "
    "added to both log-determinants.",
    "algebra",
    "Petersen & Pedersen, Matrix Cookbook, section 8.1",
    _affine,
)


def _spectral(rng: np.random.Generator) -> tuple[Any, Any]:
    m = draws.spd(rng)
    values = np.linalg.eigvalsh(m)
    return [np.trace(m), np.linalg.slogdet(m)[1]], [np.sum(values), np.sum(np.log(values))]


spectral = Rule(
    "spectral theorem",
    "A symmetric matrix is diagonal in the basis of its eigenvectors.",
    "algebra",
    "Golub & Van Loan, Matrix Computations, section 8.1",
    _spectral,
)


def _conditional(rng: np.random.Generator) -> tuple[Any, Any]:
    s, x, y = draws.spd(rng, 2), rng.normal(), rng.normal()
    v = np.array([x, y])
    joint = -(v @ np.linalg.solve(s, v) + np.linalg.slogdet(s)[1]) / 2
    rest = s[1, 1] - s[0, 1] ** 2 / s[0, 0]
    mean = s[0, 1] / s[0, 0] * x
    split = -(x**2 / s[0, 0] + math.log(s[0, 0]) + (y - mean) ** 2 / rest + math.log(rest)) / 2
    return joint, split


conditional = Rule(
    "a joint density is marginal times conditional",
    "Of a normal law: y given x has mean μ₂ + S₂₁(x − μ₁)/S₁₁ and variance S₂₂ − S₂₁²/S₁₁.",
    "algebra",
    "Petersen & Pedersen, Matrix Cookbook, section 8.1",
    _conditional,
)


def _bayes(rng: np.random.Generator) -> tuple[Any, Any]:
    w, s, z, x = rng.normal(), math.exp(rng.normal(0, 0.3)), rng.normal(), rng.normal()

    def log_normal(v: float, loc: float, variance: float) -> float:
        return -((v - loc) ** 2) / (2 * variance) - math.log(variance) / 2

    spread = 1 / (1 + w * w / s**2)
    posterior = log_normal(z, spread * w * x / s**2, spread)
    joint = log_normal(x, w * z, s**2) + log_normal(z, 0, 1)
    return log_normal(x, 0, w * w + s**2), joint - posterior


bayes = Rule(
    "Bayes' rule",
    "p(x) = p(x|z) p(z) / p(z|x) for every single z; the posterior of a linear model is normal "
    "with precision I + WᵀW/σ².",
    "algebra",
    "Bishop, Pattern Recognition and Machine Learning, section 2.3.3",
    _bayes,
)


def _insert(rng: np.random.Generator) -> tuple[Any, Any]:
    a, b, c = rng.normal(size=3)
    return a - b, (a - c) + (c - b)


insert = Rule(
    "a zero is inserted",
    "a − b = (a − c) + (c − b).",
    "algebra",
    "elementary algebra",
    _insert,
)


def _exponential_family(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x = rng.normal(), math.exp(rng.normal(0, 0.5)), rng.normal()
    first, second = mu / s**2, -1 / (2 * s**2)
    log_partition = -(first**2) / (4 * second) - math.log(-2 * second) / 2
    density = -((x - mu) ** 2) / (2 * s**2) - math.log(s)
    return density, first * x + second * x**2 - log_partition


exponential_family = Rule(
    "natural parameters",
    "log q(x) = ⟨η, t(x)⟩ − A(η) + c with t(x) = (x, x²), η = (μ/σ², −1/(2σ²)).",
    "algebra",
    "Wainwright & Jordan 2008, section 3",
    _exponential_family,
)


def _density(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x = rng.normal(), math.exp(rng.normal(0, 0.5)), rng.normal()
    log_density = -(math.log(2 * math.pi) + math.log(scale**2) + ((x - loc) / scale) ** 2) / 2
    return scipy.stats.norm.logpdf(x, loc, scale), log_density


normal_density = Rule(
    "density of the normal law",
    "log N(x; μ, S) = −(k log 2π + log |S| + (x − μ)ᵀS⁻¹(x − μ))/2.",
    "algebra",
    "definition of the normal law; its test asks SciPy",
    _density,
)


def _square_root(rng: np.random.Generator) -> tuple[Any, Any]:
    a = rng.normal()
    return a, -2 * math.log(math.sqrt(math.exp(-a)))


root = Rule(
    "logarithm of a root",
    "u = −2 log e^(−u/2): the logarithm of a power is a multiple of the logarithm.",
    "algebra",
    "functional equation of the logarithm",
    _square_root,
)
