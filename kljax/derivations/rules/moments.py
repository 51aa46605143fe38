"""True of expectations under the law at hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kljax.derivations.rules import draws
from kljax.derivations.rules.rule import Rule


def _variance(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    return np.sum(w * (x - loc) ** 2), scale**2


variance = Rule(
    "second central moment",
    "E(x − μ)² = σ² under a law with mean μ and standard deviation σ.",
    "moment",
    "definition of the variance",
    _variance,
)


def _centered(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, _, x, w = draws.normal_moments(rng)
    return np.sum(w * (x - loc)), 0.0


centered = Rule(
    "centered moments",
    "E(x − μ) = 0 and E(x − μ)² = σ² under a law with mean μ and standard deviation σ.",
    "moment",
    "definition of mean and variance",
    _centered,
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


def _covariance(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = draws.gaussian_nodes(rng)
    return np.einsum("n,ni,nj->ij", w, x - mu, x - mu), s


covariance = Rule(
    "definition of the covariance",
    "E[(x − μ)(x − μ)ᵀ] = S under a law with mean μ and covariance S, and tr(S⁻¹S) = k.",
    "moment",
    "definition of the covariance matrix",
    _covariance,
)


def _spread(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = draws.gaussian_nodes(rng)
    nu = rng.normal(size=2)
    return np.einsum("n,ni,nj->ij", w, x - nu, x - nu), s + np.outer(mu - nu, mu - nu)


spread_about_another_point = Rule(
    "spread about another point",
    "E[(x − ν)(x − ν)ᵀ] = S + (μ − ν)(μ − ν)ᵀ: covariance plus squared shift.",
    "moment",
    "Huygens' theorem on the second moment",
    _spread,
)


def _one_coordinate(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    nu, tau = rng.normal(), math.exp(rng.normal(0, 0.5))
    ratio = math.log(tau / scale) - ((x - loc) / scale) ** 2 / 2 + ((x - nu) / tau) ** 2 / 2
    closed = math.log(tau / scale) - 0.5 + (scale**2 + (loc - nu) ** 2) / (2 * tau**2)
    return np.sum(w * ratio), closed


one_coordinate = Rule(
    "the case of one number",
    "Under N(μ, σ²) the log-ratio of N(μ, σ²) and N(ν, τ²) has the mean "
    "log(τ/σ) − ½ + (σ² + (μ − ν)²)/(2τ²).",
    "moment",
    "the derivation `univariate`",
    _one_coordinate,
)


def _leibniz(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    xi = (x - loc) / scale
    path = draws.slope(lambda e: float(np.sum(w * np.sin(loc + e + scale * xi))))
    return path, np.sum(w * np.cos(x))


bonnet = Rule(
    "Bonnet's theorem",
    "The gradient of E f(x) by the mean of a normal law is E f′(x).",
    "moment",
    "Bonnet 1964; Rezende, Mohamed & Wierstra 2014",
    _leibniz,
)


def _price(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    xi = (x - loc) / scale
    path = draws.slope(
        lambda e: float(np.sum(w * np.sin(loc + math.sqrt(scale**2 + e * scale**2) * xi)))
    )
    return path, scale**2 * np.sum(-w * np.sin(x)) / 2


price = Rule(
    "Price's theorem",
    "The gradient of E f(x) by the variance of a normal law is E f″(x) / 2.",
    "moment",
    "Price 1958; Rezende, Mohamed & Wierstra 2014",
    _price,
)


def _score(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    xi = (x - loc) / scale
    path = draws.slope(lambda e: float(np.sum(w * np.sin(loc + e + scale * xi))))
    return path, np.sum(w * np.sin(x) * (x - loc)) / scale**2


score = Rule(
    "score function",
    "∇ E f = E[f ∇ log q]: the density moves instead of the points.",
    "moment",
    "Williams 1992",
    _score,
)


def _information(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    slope = (x - loc) / scale**2
    return np.sum(w * slope**2), 1 / scale**2


information = Rule(
    "information equality",
    "E[(∇ log p)²] = −E[∇² log p], since ∫ p = 1 for every parameter.",
    "moment",
    "Fisher 1925; Lehmann & Casella, Theory of Point Estimation, section 2.5",
    _information,
)


def _zero_score(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    return np.sum(w * (x - loc) / scale**2), 0.0


second_order_at_equality = Rule(
    "second derivative at q = p",
    "E[∇ log q] = 0, so what is left of ∇² KL at q = p is −E[∇² log p].",
    "moment",
    "Kullback 1959, chapter 2, section 6",
    _zero_score,
)


def _mass(rng: np.random.Generator) -> tuple[Any, Any]:
    q, p = (x / x.sum() for x in rng.uniform(0.1, 1, (2, 6)))
    r = q / p
    return np.sum(p * (r * np.log(r) + 1 - r)), np.sum(q * np.log(q / p))


equal_mass = Rule(
    "both densities have mass 1",
    "∫ p − ∫ q = 0 may be added: KL = ∫ (q log(q/p) + p − q), which is ∫ p φ(q/p).",
    "moment",
    "definition of a density",
    _mass,
)


def _affinity(rng: np.random.Generator) -> tuple[Any, Any]:
    s, t = np.exp(rng.normal(0, 0.5, 2))
    d = rng.normal()
    x = np.linspace(-40, 40, 8001)
    q = np.exp(-((x / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
    p = np.exp(-(((x - d) / t) ** 2) / 2) / (t * math.sqrt(2 * math.pi))
    overlap = np.sum(np.sqrt(q * p)) * (x[1] - x[0])
    closed = math.log((s**2 + t**2) / (2 * s * t)) + d**2 / (2 * (s**2 + t**2))
    return -2 * math.log(overlap), closed


affinity = Rule(
    "overlap of two normal densities",
    "−2 log ∫√(q p) = log (σ² + τ²)/(2στ) + (μ − ν)²/(2(σ² + τ²)).",
    "moment",
    "Bhattacharyya 1943",
    _affinity,
)


def _tower(rng: np.random.Generator) -> tuple[Any, Any]:
    joint, f = rng.uniform(size=(4, 3)), rng.normal(size=(4, 3))
    joint = joint / joint.sum()
    first = joint.sum(1)
    return np.sum(joint * f), np.sum(first * np.sum(joint / first[:, None] * f, axis=1))


tower = Rule(
    "expectation in two stages",
    "E f(x, y) is the expectation over x of the expectation over y given x.",
    "moment",
    "law of total expectation",
    _tower,
)


def _mixture(rng: np.random.Generator) -> tuple[Any, Any]:
    q, f = rng.uniform(size=(3, 5)), rng.normal(size=5)
    q = q / q.sum(1, keepdims=True)
    return np.mean(q @ f), q.mean(0) @ f


mixture = Rule(
    "expectation under a mixture",
    "The mean over n of the expectations under qₙ is the expectation under their mixture.",
    "moment",
    "linearity of the integral in the density",
    _mixture,
)


def _moments_of_a(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s = rng.normal(), math.exp(rng.normal(0, 0.5))
    first, second = mu / s**2, -1 / (2 * s**2)

    def log_partition(a: float, b: float) -> float:
        return -(a**2) / (4 * b) - math.log(-2 * b) / 2

    slope = [
        draws.slope(lambda e: log_partition(first + e * abs(second), second)) / abs(second),
        draws.slope(lambda e: log_partition(first, second * (1 - e))) / abs(second),
    ]
    return slope, [mu, mu**2 + s**2]


mean_parameters = Rule(
    "the gradient of the log-partition function",
    "E t(x) = ∇A(η): differentiate ∫ q = 1 by η.",
    "moment",
    "Wainwright & Jordan 2008, proposition 3.1",
    _moments_of_a,
)


def _fourth(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    return np.sum(w * (((x - loc) / scale) ** 2 - 1) ** 2), 2.0


fourth_moment = Rule(
    "fourth moment of a normal law",
    "E((x − μ)/σ)⁴ = 3, so E(((x − μ)/σ)² − 1)² = 2.",
    "moment",
    "moments of the normal distribution",
    _fourth,
)


def _information_of_a_vector(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = draws.gaussian_nodes(rng)
    v, change = rng.normal(size=2), draws.spd(rng, 2)
    inverse = np.linalg.inv(s)
    delta = (x - mu) @ inverse
    slope = delta @ v + np.einsum("ni,ij,nj->n", delta, change, delta) / 2
    slope = slope - np.trace(inverse @ change) / 2
    relative = inverse @ change
    return np.sum(w * slope**2), v @ inverse @ v + np.trace(relative @ relative) / 2


gaussian_information = Rule(
    "Fisher information of a normal law",
    "Along a change v of the mean and V of the covariance: vᵀT⁻¹v + tr(T⁻¹V T⁻¹V)/2.",
    "moment",
    "Malagò & Pistone 2015",
    _information_of_a_vector,
)


def _full(rng: np.random.Generator) -> tuple[Any, Any]:
    mu, s, x, w = draws.gaussian_nodes(rng)
    nu, t = rng.normal(size=2), draws.spd(rng, 2)

    def log_density(m: np.ndarray, c: np.ndarray) -> np.ndarray:
        delta = x - m
        square = np.einsum("ni,ij,nj->n", delta, np.linalg.inv(c), delta)
        return -(square + np.linalg.slogdet(c)[1]) / 2

    trace = np.trace(np.linalg.solve(t, s + np.outer(mu - nu, mu - nu)))
    log_det = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
    return np.sum(w * (log_density(mu, s) - log_density(nu, t))), (trace - 2 + log_det) / 2


full_formula = Rule(
    "the case of a full covariance",
    "Under N(μ, S) the log-ratio of N(μ, S) and N(ν, T) has the mean "
    "(tr(T⁻¹S) + (μ − ν)ᵀT⁻¹(μ − ν) − k + log |T| − log |S|)/2.",
    "moment",
    "the derivation `full`",
    _full,
)


def _rotation(rng: np.random.Generator) -> tuple[Any, Any]:
    s = draws.spd(rng, 2)
    factor = np.linalg.cholesky(draws.spd(rng, 2))
    inverse = np.linalg.inv(factor)
    white = inverse @ s @ inverse.T
    return [np.trace(white), np.linalg.slogdet(white)[1]], [
        np.trace(np.linalg.solve(factor @ factor.T, s)),
        np.linalg.slogdet(s)[1] - np.linalg.slogdet(factor @ factor.T)[1],
    ]


whitening = Rule(
    "whitening",
    "x ↦ K⁻¹(x − ν) with T = K Kᵀ turns p into N(0, I).",
    "moment",
    "the derivation `invariance`",
    _rotation,
)


def _mean_of_closed_forms(rng: np.random.Generator) -> tuple[Any, Any]:
    loc, scale, x, w = draws.normal_moments(rng)
    ratio = -(((x - loc) / scale) ** 2) / 2 - math.log(scale) + x**2 / 2
    return np.sum(w * ratio), (scale**2 + loc**2 - 1 - 2 * math.log(scale)) / 2


univariate_mean = Rule(
    "closed form of every divergence",
    "KL(N(μ, σ²)‖N(0, 1)) = (σ² + μ² − 1 − 2 log σ)/2.",
    "moment",
    "the derivation `univariate`",
    _mean_of_closed_forms,
)
