"""Every closed form, in every parametrization, against every check."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import kljax
from cases import PAIRS, pair_name, rng_for
from checks import (
    check_definition,
    check_equal,
    check_gradient,
    check_nonnegative,
    check_sampled,
    check_terms,
    check_traced,
)

SAME = [pair for pair in PAIRS if pair[0] == pair[1]]
SAMPLED = [
    pair
    for pair in PAIRS
    if (pair[0] == pair[1] and pair[0].field in ("scale", "scale_tril", "precision_matrix"))
    or {x.field for x in pair} == {"scale_tril", "log_variance"}
]


@pytest.mark.light
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_value_terms_and_gradient_are_those_of_the_definition(pair):
    check_definition(pair)
    check_terms(pair)
    check_gradient(pair)
    check_traced(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_never_negative(pair):
    check_nonnegative(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_exactly_zero_at_equality(pair):
    check_equal(pair)


@pytest.mark.parametrize("pair", SAMPLED, ids=pair_name)
def test_agrees_with_samples(pair):
    check_sampled(pair)


@pytest.mark.parametrize("size", [1, 20, 32, 50, 80, 97, 100, 112, 128, 192, 1000])
def test_every_coordinate_counts_once(size):
    """However many strips and blocks the coordinates are added up in."""
    rng = rng_for("coordinates", size)
    q, p = (
        kljax.MultivariateNormalDiag(
            jnp.asarray(rng.normal(size=(3, size)), jnp.float32),
            log_variance=jnp.asarray(rng.normal(size=(3, size)), jnp.float32),
        )
        for _ in "qp"
    )
    unit = kljax.standard_normal(size)
    for other in (p, unit):
        each = kljax.kl_divergence(*(_as_numbers(x) for x in (q, other)))
        total = np.asarray(each, np.float64).sum(-1)
        together, terms = kljax.kl_divergence(q, other), kljax.kl_terms(q, other)
        np.testing.assert_allclose(together, total, rtol=1e-6)
        np.testing.assert_allclose(terms.total, total, rtol=1e-6)


def _as_numbers(x):
    """The coordinates as numbers of their own."""
    variance = x.log_variance if x.log_variance is not None else np.zeros_like(x.loc)
    return kljax.Normal(x.loc, log_variance=variance)


@pytest.mark.parametrize("size", [2, 17])
@pytest.mark.parametrize("ratio", [1 / 3, 3.0])
def test_largest_factors_are_divided_by(size, ratio):
    # 1 / P_ii is subnormal here, so a product with it would be 0.
    largest = 1e38 * np.eye(size)
    q, p = (
        kljax.MultivariateNormal(jnp.zeros(size), jnp.asarray(x, jnp.float32))
        for x in ((ratio * largest, largest) if ratio > 1 else (largest, largest / ratio))
    )
    expected = size * ((ratio**2 - 1) / 2 - math.log(ratio))
    np.testing.assert_allclose(kljax.kl_divergence(q, p), expected, rtol=1e-5)


@pytest.mark.light
@pytest.mark.parametrize("size", [6, 9, 16, 20, 64, 260])
def test_factors_of_every_arrangement(size):
    """Values and gradients by the textbook's formulas in float64."""
    rng = rng_for("arrangement", size)
    q, p = (
        np.diag(rng.uniform(0.8, 1.2, size)) + np.tril(rng.normal(size=(size, size)), -1) / size
        for _ in range(2)
    )
    q, p, delta = (np.float64(np.float32(x)) for x in (q, p, rng.normal(size=size)))

    def kl(q, p, delta):
        prior = kljax.MultivariateNormal(jnp.zeros(size), scale_tril=p)
        return kljax.kl_divergence(kljax.MultivariateNormal(delta, scale_tril=q), prior)

    value, slopes = jax.jit(jax.value_and_grad(kl, (0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in (q, p, delta))
    )
    precision = np.linalg.inv(p @ p.T)
    trace, square = np.trace(precision @ q @ q.T), delta @ precision @ delta
    log_ratio = 2 * np.sum(np.log(np.diagonal(p) / np.diagonal(q)))
    moment = q @ q.T + np.outer(delta, delta)
    want = (
        np.tril(precision @ q) - np.diag(1 / np.diagonal(q)),
        np.diag(1 / np.diagonal(p)) - np.tril(precision @ moment @ precision @ p),
        precision @ delta,
    )
    np.testing.assert_allclose(value, (trace - size + log_ratio + square) / 2, rtol=2e-6)
    for got, expected in zip(slopes, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    stacked = jax.vmap(kl)(*(jnp.float32(np.stack([x, x])) for x in (q, p, delta)))
    np.testing.assert_allclose(stacked, value, rtol=1e-6)
    if size > 16:
        return

    def parts(q, p, delta):
        prior = kljax.MultivariateNormal(jnp.zeros(size), scale_tril=p)
        terms = kljax.kl_terms(kljax.MultivariateNormal(delta, scale_tril=q), prior)
        return jnp.stack([terms.dispersion, terms.location])

    rows = jax.jit(jax.jacrev(parts, (0, 1, 2)))(*map(jnp.float32, (q, p, delta)))
    for got, expected in zip(rows, want, strict=True):
        tolerance = 4e-6 * np.abs(expected).max()
        np.testing.assert_allclose(got.sum(0), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [8, 9, pytest.param(100, marks=pytest.mark.light)])
def test_covariances_near_and_far_in_one_batch(size):
    """The eigenvalues of B^-1 (A - B), in float64, know both to every digit that counts."""
    rng, separations = rng_for("near and far", size), (1e-4, 1e-2, 0.1, 0.3, 3.0)
    factor = np.eye(size) + np.tril(rng.normal(size=(size, size)), -1) / size
    noise = (
        np.diag(rng.uniform(0.5, 1, size)) + np.tril(rng.normal(size=(size, size)), -1) / size
    )
    moved = [factor @ (np.eye(size) + x * noise) for x in separations]
    a, b = (np.float32(m @ np.swapaxes(m, -1, -2)) for m in (np.stack(moved), factor))
    q = kljax.MultivariateNormal(jnp.zeros(size), covariance_matrix=jnp.asarray(a))
    p = kljax.MultivariateNormal(jnp.zeros(size), covariance_matrix=jnp.asarray(b))
    difference = np.float64(a) - np.float64(b)
    values = [scipy.linalg.eigvalsh(x, np.float64(b)) for x in difference]
    want = [np.sum(x - np.log1p(x)) / 2 for x in values]
    tolerance = 8 * 2.0**-24 * max(np.linalg.cond(x) for x in (*np.float64(a), np.float64(b)))
    assert tolerance < 1e-3
    np.testing.assert_allclose(kljax.kl_divergence(q, p), want, rtol=tolerance)


_KNOWN = {
    "numbers": kljax.MultivariateNormalDiag(np.float32([0.5, -1]), np.ones(2, np.float32)),
    "standard_normal": kljax.standard_normal(2),
    "log_variance": kljax.MultivariateNormalDiag(
        jnp.array([2.0, 1.0]), log_variance=np.zeros(2, np.float32)
    ),
}


@pytest.mark.light
@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("standard_normal", "scale_diag"),
        ("standard_normal", "log_variance"),
        ("numbers", "variance"),
        ("log_variance", "scale_diag"),
    ],
)
def test_a_known_unit_covariance_is_the_traced_one(name, spread):
    p = _KNOWN[name]
    traced = jax.tree.map(jnp.asarray, p)
    loc, value = jnp.array([[0.3, -2.0], [40.0, 0.5]]), jnp.array([[0.5, 1.0], [1.001, 3.0]])

    def kl(p):
        return lambda loc, value: kljax.kl_divergence(
            kljax.MultivariateNormalDiag(loc, **{spread: value}), p
        )

    np.testing.assert_allclose(kl(p)(loc, value), kl(traced)(loc, value), rtol=5e-7)
    totals = [lambda *a, f=f: jnp.sum(f(*a)) for f in (kl(p), kl(traced))]
    first = [jax.grad(f, (0, 1)) for f in totals]
    second = [jax.jacfwd(f, (0, 1)) for f in first]
    for got, want in (first, second):
        _assert_close(jax.jit(got)(loc, value), jax.jit(want)(loc, value))
    assert _loops(kl(p), loc, value) == 0
    same = (name if name == "log_variance" else "scale_diag") == spread
    assert (_loops(kl(traced), loc, value) == 0) == same


def _assert_close(got, want) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


def _loops(function, *values) -> int:
    """How many there are: a conversion to logarithms of twice the digits is one."""
    return str(jax.make_jaxpr(function)(*values)).count("scan[")


def test_a_known_unit_covariance_is_checked_like_any_other():
    p = kljax.standard_normal(2)
    bad = kljax.MultivariateNormalDiag(jnp.zeros(2), jnp.array([1.0, -1.0]))
    slope = jax.grad(kljax.kl_divergence)(bad, p)
    assert np.isnan(kljax.kl_divergence(bad, p))
    assert all(np.isnan(x).all() for x in jax.tree.leaves(slope))
    with pytest.raises(ValueError, match=r"p\.loc has event size 2 .* q\.loc has event size 3"):
        kljax.kl_divergence(kljax.standard_normal(3), p)
    both = kljax.MultivariateNormalDiag(np.zeros(2), np.ones(2), variance=np.ones(2))
    with pytest.raises(ValueError, match="got scale_diag and variance"):
        kljax.kl_divergence(p, both)
    with pytest.raises(TypeError, match=r"p\.scale has dtype bool"):
        kljax.kl_divergence(kljax.Normal(0.0, 1.0), kljax.Normal(0.0, True))
    with pytest.raises(TypeError, match=r"p\.loc has dtype complex64"):
        kljax.kl_divergence(kljax.Normal(0.0, 1.0), kljax.Normal(1j, np.float32(1)))
    with pytest.raises(ValueError, match="p has no loc"):
        kljax.kl_divergence(p, kljax.MultivariateNormalDiag(None, np.ones(2)))


def test_a_known_unit_covariance_does_not_change_the_dtype(x64):
    q = kljax.Normal(jnp.float32(0.5), log_variance=jnp.float32(0.25))
    for p in (
        kljax.Normal(0.0, 1.0),
        kljax.Normal(0.0, 1),
        kljax.Normal(0, 1),
        kljax.Normal(0.0, np.float64(1)),
        kljax.Normal(0.0, np.float32(1)),
        kljax.Normal(np.float32(0), np.float64(1)),
    ):
        traced = jax.eval_shape(kljax.kl_divergence, q, jax.tree.map(jnp.asarray, p))
        assert kljax.kl_divergence(q, p).dtype == traced.dtype, p


@pytest.mark.parametrize(
    "p",
    [
        kljax.Normal(0.0, 2.0),
        kljax.Normal(0.0, log_variance=1.0),
        kljax.Normal(0.0, np.ones(3)),
        kljax.Normal(jnp.zeros(()), jnp.ones(())),
    ],
    ids=["not one", "log of e", "own batch", "a JAX array"],
)
def test_what_is_not_known_to_be_a_unit_covariance(p):
    q = kljax.Normal(0.5, log_variance=0.25)
    scale = np.asarray(p.scale if p.scale is not None else math.exp(0.5))
    want = 0.5 * ((math.exp(0.25) + 0.25) / scale**2 - 1 - 0.25 + 2 * np.log(scale))
    np.testing.assert_allclose(kljax.kl_divergence(q, p), want, rtol=1e-6)
