"""All pairs and the nearest ones: right to the last digits, exactly 0, in bounded memory."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import kljax
import truth
from kljax import batch
from kljax.batch import matrix, moments
from truth import Spread

D = 5
# Rows i of p are rows of q moved by this much, so that i and i + 3 are ever nearer pairs.
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


def _distribution(kind, loc, value):
    loc, value = (jnp.asarray(x, jnp.float32) for x in (loc, value))
    name = "scale_diag" if kind == "scale" else kind
    diagonal = value.ndim == loc.ndim
    cls = kljax.MultivariateNormalDiag if diagonal else kljax.MultivariateNormal
    return cls(loc, **{name: value})


def _pair(kind_q, kind_p, seed=0, n=11):
    """A batch, and another one some of whose members are near those of the first."""
    rng = np.random.default_rng(seed)
    loc = 100 + rng.standard_normal((n, D))
    q = _distribution(kind_q, loc, _value(kind_q, rng, n))
    m = len(SEPARATIONS)
    if kind_q != kind_p:
        return q, _distribution(kind_p, 100 + rng.standard_normal((m, D)), _value(kind_p, rng, m))
    by = np.array(SEPARATIONS)
    value = _value(kind_q, np.random.default_rng(seed), 0)
    value = np.float64(jax.tree.leaves(q)[1])[:m]
    loc = np.float64(q.loc)[:m] + by[:, None] * rng.uniform(-1, 1, (m, D))
    return q, _distribution(kind_p, loc, _moved(kind_p, value, by, rng))


def _truth(q, p, i, j):
    def spread(x, at):
        ((name, value),) = ((k, v) for k, v in vars(x).items() if k != "loc" and v is not None)
        return Spread("scale" if name == "scale_diag" else name, np.asarray(value)[at])

    return float(
        truth.gaussian(
            np.asarray(q.loc)[i], spread(q, i), np.asarray(p.loc)[j], spread(p, j)
        ).kl
    )


def _all(q, p):
    """Every pair by the rule itself."""
    return kljax.kl_divergence(
        jax.tree.map(lambda a: a[:, None], q), jax.tree.map(lambda a: a[None, :], p)
    )


# Units of roundoff allowed where the rule computes: those of the rule, with its condition.
KINDS = [
    ("scale", "scale", 8),
    ("scale_tril", "scale_tril", 300),
    ("log_variance", "covariance_matrix", 30_000),
]
if os.environ.get("KLJAX_FULL"):
    KINDS += [
        ("log_variance", "log_variance", 8),
        ("scale", "variance", 8),
        ("covariance_matrix", "covariance_matrix", 30_000),
        ("precision_matrix", "scale_tril", 30_000),
    ]


@jax.jit
def _judged(q, p):
    """The product of moments, which entries are in doubt, and the bound."""
    sides = moments.sides(q, p)
    value, doubtful = moments.product(*sides, 2.0**-24)
    with jax.enable_x64(True):
        doubled = moments._outer(sides[0].features, sides[1].features)
        bound = moments._bound(*sides, doubled + sides[1].constant[None, :])
    return value, doubtful, bound


@pytest.mark.parametrize(("kind_q", "kind_p", "units"), KINDS, ids=lambda x: str(x))
def test_pairwise_is_right(kind_q, kind_p, units):
    q, p = _pair(kind_q, kind_p)
    got = batch.pairwise(q, p)
    same = kind_q == kind_p
    doubtful = np.asarray(_judged(q, p)[1])
    rng = np.random.default_rng(1)
    chosen = {(i, i) for i in range(len(SEPARATIONS))}
    chosen |= set(zip(*(rng.integers(0, 8, 12) for _ in range(2)), strict=True))
    for i, j in chosen:
        want = abs(_truth(q, p, i, j))
        error = max(0.0, abs(float(got[i, j]) - want) - 1e-40)
        allowed = units if doubtful[i, j] else 1.01
        # Beside a doubtful pair the whole tile is computed by the rule.
        allowed = max(allowed, units) if doubtful.any() else allowed
        assert error <= allowed * 2.0**-23 * want, (i, j, error / want)
    assert np.all(got >= 0)
    if same:
        assert doubtful[7, 7]
        assert got[7, 7] == 0
        assert not doubtful.all()
        itself = batch.pairwise(q, q)
        np.testing.assert_array_equal(np.diagonal(itself), 0)
        assert np.count_nonzero(itself) == itself.size - len(itself)


@pytest.mark.parametrize("kind", ["scale", "precision_matrix"])
def test_the_bound_holds(kind):
    """What float64 rounds away is below the bound, and the bound is not far above."""
    q, p = _pair(kind, kind, seed=3)
    value, _, bound = (np.asarray(x) for x in _judged(q, p))
    ratios = []
    with mpmath.workdps(50):
        for i in range(8):
            want = _truth(q, p, i, i)
            ratios.append(abs(float(value[i, i]) - want) / bound[i, i])
    assert max(ratios) <= 1
    assert max(ratios) > 1e-9


def test_without_the_bound_near_pairs_are_wrong(monkeypatch):
    """The accuracy test above can fail: the product alone is no digit of a near pair."""
    q, p = _pair("scale", "scale")
    monkeypatch.setattr(moments, "_bound", lambda q, p, doubled: 0 * doubled)
    jax.clear_caches()
    wrong = jax.jit(lambda q, p: batch.pairwise(q, p))(q, p)
    want = np.array([_truth(q, p, i, i) for i in (5, 6)])
    jax.clear_caches()
    assert max(abs(np.diagonal(wrong)[5:7] / want - 1)) > 1e-4


def test_a_number_and_a_family_without_a_product():
    rng = np.random.default_rng(0)
    q = kljax.Normal(jnp.float32(rng.standard_normal(40)), jnp.full(40, 1.5))
    p = kljax.Normal(jnp.float32(rng.standard_normal(33)), jnp.full(33, 1.1))
    got = batch.pairwise(q, p)
    assert got.shape == (40, 33)
    single = kljax.Normal(p.loc, 1.1)
    np.testing.assert_array_equal(batch.pairwise(q, single), got)
    np.testing.assert_allclose(got, _all(q, p), rtol=5e-7)

    @kljax.record
    class Exponential:
        rate: jax.Array = kljax.param(constraint="positive")

    @kljax.register_kl(Exponential, Exponential)
    def kl(q, p):
        """e^t - 1 - t for t = log(rate_p / rate_q)."""
        return kljax.special.expm1_minus_x(jnp.log(p.rate / q.rate))

    a, b = Exponential(jnp.exp(q.loc)), Exponential(jnp.exp(p.loc))
    for block_bytes in (1 << 26, 500):
        np.testing.assert_array_equal(batch.pairwise(a, b, block_bytes=block_bytes), _all(a, b))


def test_jeffreys():
    q, p = _pair("scale", "scale")
    got = batch.pairwise(q, p, symmetrized=True)
    np.testing.assert_allclose(got, batch.pairwise(q, p) + batch.pairwise(p, q).T, rtol=1e-7)
    itself = np.asarray(batch.pairwise(q, q, symmetrized=True))
    np.testing.assert_array_equal(itself, itself.T)


@pytest.mark.parametrize("kind", ["scale", "scale_tril"])
def test_derivatives_are_those_of_the_rule(kind):
    q, p = _pair(kind, kind)
    weights = jnp.float32(np.random.default_rng(2).standard_normal((11, 8)))

    def loss(function):
        return lambda q, p: jnp.sum(weights * function(q, p))

    small = lambda q, p: batch.pairwise(q, p, block_bytes=20_000)  # noqa: E731
    got = jax.jit(jax.grad(loss(small), argnums=(0, 1)))(q, p)
    want = jax.jit(jax.grad(loss(_all), argnums=(0, 1)))(q, p)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)))
    _, forward = jax.jvp(loss(small), (q, p), (q, p))
    _, expected = jax.jvp(loss(_all), (q, p), (q, p))
    np.testing.assert_allclose(forward, expected, rtol=1e-4)
    if kind == "scale":
        itself = jax.grad(lambda q: jnp.trace(batch.pairwise(q, jax.lax.stop_gradient(q))))(q)
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(itself))

        def second(function):
            gradient = jax.grad(lambda loc: jnp.sum(function(_at(q, loc), p) ** 2))
            return jax.jvp(gradient, (q.loc,), (jnp.ones_like(q.loc),))[1]

        np.testing.assert_allclose(second(small), second(_all), rtol=1e-4, atol=1e-3)


def _at(q, loc):
    return kljax.MultivariateNormalDiag(loc, q.scale_diag)


def test_it_composes_with_vmap():
    q, p = _pair("scale", "scale")
    stacked = jax.tree.map(lambda a: jnp.stack([a[:6], a[5:11]]), q)
    got = jax.vmap(batch.pairwise, (0, None))(stacked, p)
    whole = batch.pairwise(q, p)
    np.testing.assert_allclose(got[0], whole[:6], rtol=1e-6)
    np.testing.assert_allclose(got[1], whole[5:], rtol=1e-6)


def test_an_invalid_value_is_nan_in_its_row_or_column():
    q, p = _pair("scale", "scale")
    bad = kljax.MultivariateNormalDiag(q.loc, q.scale_diag.at[2, 3].set(-1.0))
    got = np.asarray(batch.pairwise(bad, p))
    np.testing.assert_array_equal(np.isnan(got), np.arange(11)[:, None] == np.full(8, 2))
    values, index = batch.top_k(p, bad, 11)
    assert np.all(np.isnan(values[:, -1]) & (index[:, -1] == 2))
    assert np.all(np.isfinite(values[:, :-1]))


@pytest.mark.parametrize("block_bytes", [1 << 26, 3000])
def test_top_k_is_the_sorted_matrix(block_bytes):
    q, p = _pair("scale", "scale")
    # Every p twice: ties, of which the lower index comes first.
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), p)
    full = np.asarray(batch.pairwise(q, twice))
    order = np.argsort(full, axis=1, kind="stable")[:, :5]
    values, index = batch.top_k(q, twice, 5, block_bytes=block_bytes)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(values, np.take_along_axis(full, order, 1), rtol=1e-6)
    assert index.dtype == jnp.int32


def test_top_k_has_the_derivative_of_what_it_found():
    q, p = _pair("scale", "scale")
    index = batch.top_k(q, p, 3)[1]

    def at(q, p):
        chosen = jax.tree.map(lambda a: a[index], p)
        return jnp.sum(kljax.kl_divergence(jax.tree.map(lambda a: a[:, None], q), chosen))

    got = jax.grad(lambda q, p: jnp.sum(batch.top_k(q, p, 3)[0]), argnums=(0, 1))(q, p)
    for a, b in zip(*map(jax.tree.leaves, (got, jax.grad(at, argnums=(0, 1))(q, p))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)))


def _diagonals(n, d):
    row = jax.ShapeDtypeStruct((n, d), jnp.float32)
    return kljax.MultivariateNormalDiag(row, row)


def test_memory_is_bounded():
    """Of the compiled programs; the arguments are 2.6 MB a side, all pairs are 1.6 GB."""
    n, d, block_bytes = 20_000, 32, 1 << 24
    q = _diagonals(n, d)
    features = 2 * n * (3 * d + 6) * 8
    nearest = matrix._top_k.lower(q, q, k=10, block_bytes=block_bytes).compile()
    used = nearest.memory_analysis().temp_size_in_bytes
    assert used < 2 * block_bytes + 2 * features
    small = _diagonals(2000, d)
    program = matrix._pairwise.lower(
        small, small, symmetrized=False, block_bytes=1 << 20
    ).compile()
    used = program.memory_analysis().temp_size_in_bytes
    assert used < 2 * (1 << 20) + 4 * 2000 * (3 * d + 6) * 8 + 2000 * 2000 * 4


def test_memory_of_a_gradient_is_bounded():
    n, d = 400, 64

    def loss(q, p):
        return jnp.sum(batch.pairwise(q, p, block_bytes=1 << 20))

    program = jax.jit(jax.grad(loss)).lower(_diagonals(n, d), _diagonals(n, d)).compile()
    used = program.memory_analysis().temp_size_in_bytes
    assert used < n * n * d * 4 / 4


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda q: batch.pairwise(q, 1.0), TypeError, "p is a float"),
        (lambda q: batch.pairwise(q, kljax.standard_normal(D)), ValueError, "batch shape ()"),
        (
            lambda q: batch.pairwise(q, kljax.MultivariateNormalDiag(q.loc[:, :3], q.loc[:, :3])),
            ValueError,
            "never broadcast",
        ),
        (lambda q: batch.pairwise(q, q, block_bytes=0), ValueError, "must be positive"),
        (lambda q: batch.top_k(q, q, 12), ValueError, "between 1 and the 11"),
        (lambda q: batch.evaluate(q, q, chunk_bytes=0), ValueError, "must be positive"),
        (
            lambda q: batch.evaluate(q, jax.tree.map(lambda a: a[:4], q)),
            ValueError,
            "q.loc has 11 entries and p.loc has 4",
        ),
        (
            lambda q: batch.evaluate(q, kljax.Normal(np.zeros(11), 1.0)),
            TypeError,
            "no closed form",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_sentences(call, kind, said):
    q, _ = _pair("scale", "scale")
    with pytest.raises(kind) as raised:
        call(q)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_empty_batches():
    q, p = _pair("scale", "scale")
    none = jax.tree.map(lambda a: a[:0], q)
    assert batch.pairwise(none, p).shape == (0, 8)
    assert batch.top_k(none, p, 2)[0].shape == (0, 2)
    assert batch.evaluate(none, none).shape == (0,)


def test_float64(x64):
    q, p = _pair("scale", "scale")
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (q, p))
    got = np.asarray(batch.pairwise(*wide))
    assert got.dtype == np.float64
    for i in range(8):
        assert abs(got[i, i] - _truth(q, p, i, i)) <= 1e-12 * _truth(q, p, i, i)
