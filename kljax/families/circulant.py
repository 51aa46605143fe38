"""Circulant covariances, which the Fourier transform makes diagonal: everything in O(n log n).

    lambda_j = sum_k row_k cos(2 pi j k / n),   F(x)_j = sum_k x_k e^(-2 pi i j k / n)

    KL = sum_j h(lambda_q,j / lambda_p,j - 1) / 2 + |F(m_q - m_p)_j|^2 / (2 n lambda_p,j),
    h(u) = u - log(1 + u).

The transform of the difference of two rows is the difference of their eigenvalues, accurate
also where q is almost p.
"""

from __future__ import annotations

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import constraints, coordinates, dense, distribution, doubled, linalg, special
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.doubled import Doubled
from kljax.families.gaussian import GaussianTerms
from kljax.families.gaussian_mixes import DenseGaussian, register_dense
from kljax.structure import Variance


@record
class CirculantNormal:
    """The normal distribution of a vector with a circulant covariance matrix.

    Cov(x_i, x_j) = row[(j - i) mod n]: a stationary process on a circle of n points, and for
    large n the part of a stationary process on a line that is seen in n points. There KL / n
    tends to the divergence rate, the integral of
    h(f_q(w) / f_p(w) - 1) / (4 pi) over w from -pi to pi of the spectral densities f, plus
    (m_q - m_p)^2 / (2 f_p(0)) for constant means, f the Fourier series of the covariances.

    Attributes:
        loc: mean, shape (..., n).
        covariance_row: first row of the covariance matrix, row[j] = row[n - j], shape (..., n).
        covariance_rfft: the eigenvalues > 0 of frequencies 0, ..., n // 2, which are
            `jnp.fft.rfft(covariance_row).real`, instead of it, shape (..., n // 2 + 1).

    Source: Gray, Toeplitz and Circulant Matrices, 2006.
    """

    loc: Parameter = param("n")
    covariance_row: Parameter = param(
        "n", constraint="circulant", one_of="spread", default=None
    )
    covariance_rfft: Parameter = param(
        "frequencies", constraint="positive", one_of="spread", default=None, kw_only=True
    )


def _row(x: CirculantNormal) -> Array:
    """The first row, with exactly equal entries at j and n - j."""
    return 0.5 * x.covariance_row + 0.5 * constraints.reflect(x.covariance_row)


def _eigenvalues(x: CirculantNormal) -> Array:
    """Of frequencies 0 to n // 2; nan where one is not positive."""
    size = len(x.loc)
    if x.covariance_rfft is None:
        values = jnp.fft.rfft(_row(x)).real
        return values * jnp.where(jnp.all(values > 0), 1.0, jnp.nan).astype(values.dtype)
    if len(x.covariance_rfft) != size // 2 + 1:
        raise ValueError(
            f"covariance_rfft has {len(x.covariance_rfft)} frequencies but loc has {size} "
            f"coordinates; give n // 2 + 1 = {size // 2 + 1} of them."
        )
    return x.covariance_rfft


def _counts(size: int) -> np.ndarray:
    """How many of the n frequencies each one of the half transform stands for."""
    counts = np.full(size // 2 + 1, 2.0, np.float32)
    counts[0] = 1
    if size % 2 == 0:
        counts[-1] = 1
    return counts


def _total(x: CirculantNormal, per_frequency: Array) -> Array:
    """The sum over all n frequencies."""
    return jnp.sum(_counts(len(x.loc)).astype(per_frequency.dtype) * per_frequency)


def _dispersion(q: CirculantNormal, p: CirculantNormal) -> Array:
    of_q, of_p = _eigenvalues(q), _eigenvalues(p)
    if q.covariance_rfft is None and p.covariance_rfft is None:
        difference = jnp.fft.rfft(_row(q) - _row(p)).real
    else:
        difference = of_q - of_p
    return _total(q, _gap(of_q, of_p, difference))


@jax.custom_jvp
def _gap(q: Array, p: Array, difference: Array) -> Array:
    """(q / p - 1 - log(q / p)) / 2 of variances whose difference q - p is known better."""
    u = difference / p
    near = jnp.abs(u) < 0.5
    close = 0.5 * special.x_minus_log1p(jnp.where(near, u, 0))
    return jnp.where(near, close, coordinates.dispersion(Variance(q), Variance(p)))


@_gap.defjvp
def _gap_jvp(primals, tangents):
    (q, p, difference), (dq, dp, _) = primals, tangents
    # With u = (q - p) / p, whose own tangent a second derivative takes.
    u = special.divide(difference, p)
    change = special.divide(dq, q) - special.divide(dp, p)
    return _gap(q, p, difference), 0.5 * u * change


def _location(p: CirculantNormal, delta: Array) -> Array:
    """Each frequency by itself, divided before it is squared."""
    x = jnp.fft.rfft(delta) / math.sqrt(len(p.loc))
    variance = Variance(_eigenvalues(p))
    real, imaginary = (coordinates.location(part, variance) for part in (x.real, x.imag))
    return _total(p, real + imaginary)


def _kl(q: CirculantNormal, p: CirculantNormal) -> Array:
    """KL = sum_j h(lambda_q / lambda_p - 1) / 2 + |F(m_q - m_p)|^2 / (2 n lambda_p)."""
    return _dispersion(q, p) + _location(p, q.loc - p.loc)


def _terms(q: CirculantNormal, p: CirculantNormal) -> GaussianTerms:
    of_q, of_p = Variance(_eigenvalues(q)), Variance(_eigenvalues(p))
    trace = _total(q, coordinates.variance_ratio(of_q, of_p))
    location = _location(p, q.loc - p.loc)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, q.loc.size),
        log_det=_total(q, coordinates.log_variance_ratio(of_p, of_q)),
        dispersion=_dispersion(q, p),
        location=location,
    )


def _half_log_normalizer(x: CirculantNormal) -> Array:
    """(n log 2 pi + sum_j log lambda_j) / 2."""
    return 0.5 * (x.loc.size * special.LOG_2PI + _total(x, special.log(_eigenvalues(x))))


def _cross_entropy(q: CirculantNormal, p: CirculantNormal) -> Array:
    terms = _terms(q, p)
    return _half_log_normalizer(p) + (0.5 * terms.trace + terms.location)


def _log_prob(x: CirculantNormal, point: Array) -> Array:
    return -(_half_log_normalizer(x) + _location(x, point - x.loc))


def _sample(x: CirculantNormal, key: Array) -> Array:
    """Loc + the circulant square root of the covariance times noise."""
    noise = jax.random.normal(key, x.loc.shape, x.loc.dtype)
    colored = jnp.fft.rfft(noise) * jnp.sqrt(_eigenvalues(x))
    return x.loc + jnp.fft.irfft(colored, len(x.loc))


def _entropy(x: CirculantNormal) -> Array:
    return 0.5 * x.loc.size + _half_log_normalizer(x)


def _first_row(x: CirculantNormal) -> Array:
    if x.covariance_rfft is None:
        return _row(x)
    return jnp.fft.irfft(_eigenvalues(x), len(x.loc))


def _variance(x: CirculantNormal) -> Array:
    return jnp.broadcast_to(_first_row(x)[0], x.loc.shape)


def _matrix(row: Array) -> Array:
    """The circulant matrix of a first row."""
    size = len(row)
    lag = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
    return row[lag]


def _covariance(x: CirculantNormal) -> Array:
    return _matrix(_first_row(x))


distribution.register_distribution(
    CirculantNormal,
    log_prob=_log_prob,
    sample=_sample,
    entropy=_entropy,
    mean=lambda x: x.loc,
    variance=_variance,
    covariance=_covariance,
)

register_kl(
    CirculantNormal,
    CirculantNormal,
    terms=_terms,
    cross_entropy=_cross_entropy,
    cost="O(n log n)",
)(_kl)


# ---- as a matrix, to twice the digits -------------------------------------------------------

_PI = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


@functools.cache
def _cosines(size: int) -> list[decimal.Decimal]:
    """cos(2 pi i / n) for i < n, to 50 digits, by its series."""
    with decimal.localcontext(prec=55):
        found = []
        for i in range(size):
            square, term, total = (
                (2 * _PI * i / size) ** 2,
                decimal.Decimal(1),
                decimal.Decimal(0),
            )
            for j in range(1, 40):
                total += term
                term *= -square / (2 * j * (2 * j - 1))
            found.append(total)
        return found


def _from_eigenvalues(eigenvalues: Array, size: int) -> Doubled:
    """row_j = sum_k counts_k lambda_k cos(2 pi j k / n) / n as a column."""
    index = np.arange(size)[:, None] * np.arange(len(eigenvalues))[None, :] % size
    high = np.array([float(c) for c in _cosines(size)], eigenvalues.dtype)
    rest = (c - decimal.Decimal(float(h)) for c, h in zip(_cosines(size), high, strict=True))
    low = np.array([float(r) for r in rest], eigenvalues.dtype)
    weights = (eigenvalues * _counts(size).astype(eigenvalues.dtype))[:, None]
    # Their product with weights, then over n, where neither is rounded.
    total = doubled.matmul(jnp.asarray(high[index]), weights)
    total = doubled.add(total, doubled.exactly(linalg.matmul(jnp.asarray(low[index]), weights)))
    quotient = doubled.divide(total.high, doubled.exactly(jnp.full_like(total.high, size)))
    return Doubled(quotient.high, quotient.low + total.low / size)


def _dense(x: CirculantNormal) -> DenseGaussian:
    if x.covariance_rfft is None:
        return DenseGaussian(doubled.exactly(x.loc), dense.exactly(_covariance(x)))
    size = len(x.loc)
    exact = _from_eigenvalues(lax.stop_gradient(_eigenvalues(x)), size)
    exact = Doubled(*(_matrix(part[:, 0]) for part in exact))
    return DenseGaussian(doubled.exactly(x.loc), dense.with_low_part(_covariance(x), exact))


register_dense(CirculantNormal, _dense)
