"""The Gaussian KL, its terms and gradients to 60 digits, with textbook formulas.

Inputs are floats taken exactly as given. A spread is a pair (kind, value), kind one of scale,
variance, log_variance (vectors) or scale_tril, covariance_matrix, precision_matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np

DIGITS = 60
mpmath.mp.dps = DIGITS

DIAGONAL_KINDS = ("scale", "variance", "log_variance")


class Spread(NamedTuple):
    kind: str
    value: Any


class Truth(NamedTuple):
    """Values, and per gradient the entries of the dispersion and of the location part."""

    trace: Any
    mahalanobis: Any
    log_det: Any
    dispersion: Any
    location: Any
    grad_loc: np.ndarray
    grad_q: np.ndarray
    grad_p_dispersion: np.ndarray
    grad_p_location: np.ndarray

    @property
    def kl(self):
        return self.dispersion + self.location


def exact(x) -> np.ndarray:
    """An array of mpf, every float (or decimal string) taken exactly."""
    array = np.asarray(x)
    out = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        text = isinstance(value, str)
        out[index] = mpmath.mpf(str(value)) if text else mpmath.mpf(float(value))
    return out


def _eye(n: int) -> np.ndarray:
    return exact(np.eye(n))


def cholesky(a: np.ndarray) -> np.ndarray:
    n = len(a)
    factor = exact(np.zeros((n, n)))
    for j in range(n):
        rest = a[j:, j] - factor[j:, :j] @ factor[j, :j] if j else a[j:, j]
        factor[j, j] = mpmath.sqrt(rest[0])
        factor[j + 1 :, j] = rest[1:] / factor[j, j]
    return factor


def _inverse_lower(factor: np.ndarray) -> np.ndarray:
    n = len(factor)
    out = _eye(n)
    for i in range(n):
        if i:
            out[i] = out[i] - factor[i, :i] @ out[:i]
        out[i] = out[i] / factor[i, i]
    return out


def _inverse_and_log_det(s: np.ndarray):
    factor = cholesky(s)
    inverse = _inverse_lower(factor)
    log_det = 2 * mpmath.fsum(mpmath.log(factor[i, i]) for i in range(len(s)))
    return inverse.T @ inverse, log_det


def _matrix(spread: Spread) -> tuple[np.ndarray, np.ndarray, Any]:
    """Covariance, precision and log-determinant."""
    value = exact(spread.value)
    match spread.kind:
        case "scale_tril":
            inverse = _inverse_lower(value)
            log_det = 2 * mpmath.fsum(mpmath.log(x) for x in np.diag(value))
            return value @ value.T, inverse.T @ inverse, log_det
        case "covariance_matrix":
            precision, log_det = _inverse_and_log_det(value)
            return value, precision, log_det
        case "precision_matrix":
            covariance, log_det = _inverse_and_log_det(value)
            return covariance, value, -log_det
        case kind:
            v = _variance(kind, value)
            log_det = mpmath.fsum(mpmath.log(x) for x in v)
            return np.diag(v), np.diag(1 / v), log_det


def _variance(kind: str, value: np.ndarray) -> np.ndarray:
    match kind:
        case "scale":
            return value * value
        case "variance":
            return value
        case "log_variance":
            return np.array([mpmath.exp(x) for x in value], object)
        case _:
            raise ValueError(kind)


def _to_parameter(spread: Spread, covariance, by_covariance) -> np.ndarray:
    """The gradient by the given numbers, from the symmetric gradient by the covariance."""
    value = exact(spread.value)
    diagonal = np.diag(by_covariance)
    match spread.kind:
        case "scale_tril":
            full = 2 * by_covariance @ value
            return np.where(np.tri(len(value), dtype=bool), full, 0 * full)
        case "covariance_matrix":
            return by_covariance
        case "precision_matrix":
            return -covariance @ by_covariance @ covariance
        case "scale":
            return 2 * value * diagonal
        case "variance":
            return diagonal
        case _:
            return diagonal * np.diag(covariance)


def gaussian(q_loc, q: Spread, p_loc, p: Spread) -> Truth:
    """KL(q ‖ p) of one event with vector locations."""
    delta = exact(q_loc) - exact(p_loc)
    if q.kind in DIAGONAL_KINDS and p.kind in DIAGONAL_KINDS:
        return _diagonal(delta, q, p)
    s_q, inverse_q, log_det_q = _matrix(q)
    s_p, inverse_p, log_det_p = _matrix(p)
    trace = np.sum(inverse_p * s_q.T)
    slope = inverse_p @ delta
    mahalanobis = delta @ slope
    log_det = log_det_p - log_det_q
    half = mpmath.mpf(1) / 2
    by_q = half * (inverse_p - inverse_q)
    by_p = half * (inverse_p - inverse_p @ s_q @ inverse_p)
    by_p_location = -half * np.outer(slope, slope)
    return Truth(
        trace,
        mahalanobis,
        log_det,
        half * (trace - len(delta) + log_det),
        half * mahalanobis,
        slope,
        _to_parameter(q, s_q, by_q),
        _to_parameter(p, s_p, by_p),
        _to_parameter(p, s_p, by_p_location),
    )


def _diagonal(delta, q: Spread, p: Spread) -> Truth:
    v_q, v_p = _variance(q.kind, exact(q.value)), _variance(p.kind, exact(p.value))
    ratio = v_q / v_p
    trace = mpmath.fsum(ratio)
    log_det = mpmath.fsum(mpmath.log(x) for x in 1 / ratio)
    mahalanobis = mpmath.fsum(delta * delta / v_p)
    half = mpmath.mpf(1) / 2

    def by_parameter(spread: Spread, by_log_variance, v):
        value = exact(spread.value)
        match spread.kind:
            case "scale":
                return 2 * by_log_variance / value
            case "variance":
                return by_log_variance / v
            case _:
                return by_log_variance

    return Truth(
        trace,
        mahalanobis,
        log_det,
        half * (trace - len(delta) + log_det),
        half * mahalanobis,
        delta / v_p,
        by_parameter(q, half * (ratio - 1), v_q),
        by_parameter(p, half * (1 - ratio), v_p),
        by_parameter(p, -half * delta * delta / v_p, v_p),
    )
