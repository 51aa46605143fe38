"""All pairs and the nearest ones: right to the last digits, exactly 0, in bounded memory."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import batches
import kljax
from batches import by_rule
from kljax import batch
from kljax.batch import matrix, moments, nearest

# Units of roundoff allowed where the rule computes: those of the rule, with its condition.
KINDS = [
    ("scale", "scale", 8),
    ("scale_tril", "scale_tril", 300),
    ("log_variance", "covariance_matrix", 30_000),
]
FULL = bool(os.environ.get("KLJAX_FULL"))
if FULL:
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
    product = moments.product(*sides)
    return product.value, product.doubtful(2.0**-24), product.error


@pytest.mark.parametrize(("kind_q", "kind_p", "units"), KINDS, ids=lambda x: str(x))
def test_pairwise_is_right(kind_q, kind_p, units):
    q, p = batches.pair(kind_q, kind_p)
    got = batch.pairwise(q, p)
    same = kind_q == kind_p
    doubtful = np.asarray(_judged(q, p)[1])
    rng = np.random.default_rng(1)
    chosen = {(i, i) for i in range(len(batches.SEPARATIONS))}
    chosen |= set(zip(*(rng.integers(0, 8, 12) for _ in range(2)), strict=True))
    for i, j in chosen:
        want = abs(float(batches.exact(q, p, i, j).kl))
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
    q, p = batches.pair(kind, kind, seed=3)
    value, _, bound = (np.asarray(x) for x in _judged(q, p))
    ratios = []
    with mpmath.workdps(50):
        for i in range(8):
            want = float(batches.exact(q, p, i, i).kl)
            ratios.append(abs(float(value[i, i]) - want) / bound[i, i])
    assert max(ratios) <= 1
    assert max(ratios) > 1e-9


@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_condition_of_a_factor(size):
    """The squares of the sums of the rows of |L^-1| |L|, as in Skeel's condition."""
    rng = np.random.default_rng(7)
    below = np.tril(rng.standard_normal((3, size, size)), -1)
    on = np.exp(rng.standard_normal((3, size, 1))) * np.eye(size)
    p = kljax.MultivariateNormal(jnp.zeros((3, size)), jnp.float32(below + on))
    lower = np.float64(p.scale_tril)
    sums = np.sum(np.abs(np.linalg.inv(lower)) @ np.abs(lower), axis=2)
    want = np.sum(sums**2, axis=1)
    np.testing.assert_allclose(moments.sides(p, p)[1].condition, want, rtol=1e-12)


def test_without_the_bound_near_pairs_are_wrong():
    """The accuracy test above can fail: the product alone has few digits of a near pair."""
    q, p = batches.pair("scale", "scale")
    value, doubtful, _ = (np.asarray(x) for x in _judged(q, p))
    want = np.array([float(batches.exact(q, p, i, i).kl) for i in (5, 6)])
    assert np.max(np.abs(np.diagonal(value)[5:7] / want - 1)) > 1e-4
    assert doubtful[5, 5]
    assert doubtful[6, 6]


def test_numbers():
    rng = np.random.default_rng(0)
    q = kljax.Normal(jnp.float32(rng.standard_normal(40)), 1.5)
    p = kljax.Normal(jnp.float32(rng.standard_normal(33)), 1.1)
    got = batch.pairwise(q, p)
    assert got.shape == (40, 33)
    each = kljax.Normal(q.loc[:, None], 1.5), kljax.Normal(p.loc[None, :], 1.1)
    np.testing.assert_allclose(got, kljax.kl_divergence(*each), rtol=5e-7)


@pytest.mark.parametrize("block_bytes", [1 << 26, 500])
def test_a_family_without_a_product(block_bytes):
    q, p = batches.exponentials()
    got = batch.pairwise(q, p, block_bytes=block_bytes)
    np.testing.assert_array_equal(got, by_rule(q, p))
    both = batch.pairwise(q, p, symmetrized=True, block_bytes=block_bytes)
    np.testing.assert_array_equal(both, got + batch.pairwise(p, q).T)


def test_jeffreys():
    q, p = batches.pair("scale", "scale")
    got = batch.pairwise(q, p, symmetrized=True, block_bytes=1000)
    np.testing.assert_allclose(got, by_rule(q, p) + by_rule(p, q).T, rtol=1e-6)


def test_an_invalid_value_is_nan_in_its_row_or_column():
    q, p = batches.pair("scale", "scale")
    bad = kljax.MultivariateNormalDiag(q.loc, q.scale_diag.at[2, 3].set(-1.0))
    got = np.asarray(batch.pairwise(bad, p))
    np.testing.assert_array_equal(np.isnan(got), np.arange(11)[:, None] == np.full(8, 2))
    values, index = batch.top_k(p, bad, 11)
    assert np.all(np.isnan(values[:, -1]) & (index[:, -1] == 2))
    assert np.all(np.isfinite(values[:, :-1]))


@pytest.mark.parametrize(("block_bytes", "columns"), [(1 << 26, 2048), (3000, 6)])
def test_top_k_is_the_sorted_matrix(block_bytes, columns, monkeypatch):
    monkeypatch.setattr(nearest, "_COLUMNS", columns)
    q, p = batches.pair("scale", "scale")
    # Every p twice: ties, of which the lower index comes first.
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), p)
    full = np.asarray(batch.pairwise(q, twice))
    order = np.argsort(full, axis=1, kind="stable")[:, :5]
    values, index = batch.top_k(q, twice, 5, block_bytes=block_bytes)
    if columns > 2 * len(batches.SEPARATIONS):  # one block: the same program, so ties are exact
        np.testing.assert_array_equal(index, order)
    sorted_values = np.take_along_axis(full, order, 1)
    np.testing.assert_allclose(np.take_along_axis(full, index, 1), sorted_values, rtol=1e-6)
    np.testing.assert_allclose(values, sorted_values, rtol=1e-6)
    assert all(len(set(row)) == 5 for row in np.asarray(index).tolist())
    assert index.dtype == jnp.int32


def test_top_k_has_the_derivative_of_what_it_found():
    q, p = batches.exponentials()
    index = batch.top_k(q, p, 3)[1]

    def at(q, p):
        return jnp.sum(
            kljax.kl_divergence(
                batches.Exponential(q.rate[:, None]), batches.Exponential(p.rate[index])
            )
        )

    got = jax.jit(jax.grad(lambda q, p: jnp.sum(batch.top_k(q, p, 3)[0]), argnums=(0, 1)))(q, p)
    batches.assert_equal_trees(got, jax.grad(at, argnums=(0, 1))(q, p))


def test_memory_is_bounded():
    """Of the compiled program; the arguments are 2.6 MB a side, all pairs are 1.6 GB."""
    n, d, block_bytes = 20_000, 32, 1 << 24
    row = jax.ShapeDtypeStruct((n, d), jnp.float32)
    q = kljax.MultivariateNormalDiag(row, row)
    program = matrix._top_k.lower(q, q, k=10, block_bytes=block_bytes).compile()
    used = program.memory_analysis().temp_size_in_bytes
    sides = 2 * n * (3 * d + 6) * 8
    assert used < 2 * block_bytes + 2 * sides


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda q: batch.pairwise(q, 1.0), TypeError, "p is a float"),
        (
            lambda q: batch.pairwise(q, kljax.standard_normal(batches.D)),
            ValueError,
            "batch shape ()",
        ),
        (
            lambda q: batch.pairwise(
                q, kljax.MultivariateNormalDiag(q.loc[:, :3], q.loc[:, :3])
            ),
            ValueError,
            "never broadcast",
        ),
        (lambda q: batch.pairwise(q, q, block_bytes=0), ValueError, "must be positive"),
        (
            lambda q: batch.pairwise(q, q, block_bytes="1M"),
            TypeError,
            "block_bytes must be a whole number; got '1M'",
        ),
        (
            lambda q: batch.top_k(q, q, 1, block_bytes=float("nan")),
            TypeError,
            "block_bytes must be a whole number; got nan",
        ),
        (
            lambda q: batch.evaluate(q, q, chunk_bytes=None),
            TypeError,
            "chunk_bytes must be a whole number; got None",
        ),
        (
            lambda q: batch.evaluate(q, q, devices=1),
            TypeError,
            "devices must be some of jax.local_devices(); got 1",
        ),
        (
            lambda q: batch.evaluate(q, q, devices="cpu"),
            TypeError,
            "devices must be some of jax.local_devices(); got 'cpu'",
        ),
        (lambda q: batch.top_k(q, q, 12), ValueError, "between 1 and the 11"),
        (lambda q: batch.top_k(q, q, 1.5), TypeError, "k must be a whole number; got 1.5"),
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
    q, _ = batches.pair("scale", "scale")
    with pytest.raises(kind) as raised:
        call(q)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_empty_batches():
    q, p = batches.pair("scale", "scale")
    none = jax.tree.map(lambda a: a[:0], q)
    assert batch.pairwise(none, p).shape == (0, 8)
    assert batch.top_k(none, p, 2)[0].shape == (0, 2)
    assert batch.evaluate(none, none).shape == (0,)


def test_float64(x64):
    q, p = batches.pair("scale", "scale")
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (q, p))
    got = np.asarray(batch.pairwise(*wide))
    assert got.dtype == np.float64
    for i in range(8):
        assert abs(got[i, i] - float(batches.exact(q, p, i, i).kl)) <= 1e-12 * float(
            batches.exact(q, p, i, i).kl
        )
