"""Batches of Gaussians some of whose pairs are near, and what is true of a pair."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import kljax
import truth
from truth import Spread

D = 5
# Row i of p is row i of q moved by this much: ever nearer pairs.
SEPARATIONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 0.0)


def _tril(rng, n, condition=1.0):
    below = np.tril(rng.standard_normal((n, D, D)), -1) * 0.4
    on = np.exp(0.3 * rng.standard_normal((n, D))) * np.geomspace(1, 1 / condition, D)
    return below + on[..., None] * np.eye(D)


def _value(kind, rng, n):
    if kind == "log_variance":
        return rng.standard_normal((n, D))
    if kind in ("scale", "variance"):
        return np.exp(rng.standard_normal((n, D)))
    factor = _tril(rng, n, 30.0)
    return factor if kind == "scale_tril" else factor @ factor.swapaxes(1, 2)


def _moved(kind, value, by, rng):
    change = by[:, None, None] if value.ndim == 3 else by[:, None]
    noise = rng.uniform(-1, 1, value.shape)
    if kind in ("covariance_matrix", "precision_matrix"):
        noise = 0.1 * (noise + noise.swapaxes(1, 2)) / 2
        on = np.sqrt(np.einsum("nii->ni", value))
        return value + change * noise * on[:, :, None] * on[:, None, :] / 30
    return value + change * noise * (1 if kind == "log_variance" else value)


def distribution(kind, loc, value):
    loc, value = (jnp.asarray(x, jnp.float32) for x in (loc, value))
    name = "scale_diag" if kind == "scale" else kind
    diagonal = value.ndim == loc.ndim
    cls = kljax.MultivariateNormalDiag if diagonal else kljax.MultivariateNormal
    return cls(loc, **{name: value})


def pair(kind_q, kind_p, seed=0, n=11):
    """A batch, and another one some of whose members are near those of the first."""
    rng = np.random.default_rng(seed)
    loc = 100 + rng.standard_normal((n, D))
    q = distribution(kind_q, loc, _value(kind_q, rng, n))
    m = len(SEPARATIONS)
    if kind_q != kind_p:
        return q, distribution(
            kind_p, 100 + rng.standard_normal((m, D)), _value(kind_p, rng, m)
        )
    by = np.array(SEPARATIONS)
    value = np.float64(jax.tree.leaves(q)[1])[:m]
    loc = np.float64(q.loc)[:m] + by[:, None] * rng.uniform(-1, 1, (m, D))
    return q, distribution(kind_p, loc, _moved(kind_p, value, by, rng))


def exact(q, p, i, j):
    """KL(q_i ‖ p_j) and its gradients to 60 digits."""

    def spread(x, at):
        ((name, value),) = ((k, v) for k, v in vars(x).items() if k != "loc" and v is not None)
        return Spread("scale" if name == "scale_diag" else name, np.asarray(value)[at])

    return truth.gaussian(
        np.asarray(q.loc)[i], spread(q, i), np.asarray(p.loc)[j], spread(p, j)
    )


def by_rule(q, p):
    """Every pair by the rule itself."""
    return kljax.kl_divergence(
        jax.tree.map(lambda a: a[:, None], q), jax.tree.map(lambda a: a[None, :], p)
    )


@kljax.record
class Exponential:
    """A family without a product of moments, whose programs are small."""

    rate: jax.Array = kljax.param(constraint="positive")


@kljax.register_kl(Exponential, Exponential)
def _kl(q, p):
    """e^t - 1 - t for t = log(rate_p / rate_q)."""
    return kljax.special.expm1_minus_x(jnp.log(p.rate / q.rate))


def exponentials():
    rng = np.random.default_rng(0)
    return tuple(Exponential(jnp.float32(np.exp(rng.standard_normal(n)))) for n in (40, 33))


def assert_equal_trees(got, want):
    """To a few roundings of the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)))
