"""Matrices and paths beside vectors and each other: read row by row, compared densely."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import chains
import kljax
from cases import rng_for
from chains import dense, draw

pytestmark = pytest.mark.light

KINDS = ["matrix", "chain", "blocks", "joint", "observations", "posterior"]
# What is computed before it is compared is given to twice the digits, too.
COMPUTED = ["matrix", "chain", "observations", "posterior", "circulant by eigenvalues"]
U = 2.0**-24


@pytest.fixture(autouse=True)
def _short_paths(monkeypatch):
    """Three states of two numbers, one number seen of each: small matrices compile fast."""
    for name, size in {"T": 3, "D": 2, "K": 1}.items():
        monkeypatch.setattr(chains, name, size)


def _vector(mean, covariance, dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        mean, covariance = (jnp.asarray(x, dtype) for x in (mean, covariance))
        return kljax.MultivariateNormal(mean, covariance_matrix=covariance)


def _near(x, separation, dtype):
    """A multivariate normal that differs from the law of x by about the separation."""
    mean, covariance = dense(x)
    rng = rng_for("near", type(x).__name__, separation)
    root = np.linalg.cholesky(covariance)
    change = separation * rng.normal(size=covariance.shape)
    moved = root @ (np.eye(len(root)) + change + change.T) @ root.T
    return _vector(mean + separation * root @ rng.normal(size=len(root)), moved, dtype)


def _law(x):
    if isinstance(x, kljax.MultivariateNormal):
        return tuple(np.asarray(v, np.float64) for v in (x.loc, x.covariance_matrix))
    return dense(x)


def _textbook(q, p):
    """The four terms, to 40 digits from both laws."""
    with mpmath.workdps(40):
        (m, s), (n, t) = (tuple(mpmath.matrix(x.tolist()) for x in _law(y)) for y in (q, p))
        inverse, delta = t**-1, m - n
        product = inverse * s
        return {
            "trace": float(sum(product[i, i] for i in range(s.rows))),
            "mahalanobis": float((delta.T * inverse * delta)[0]),
            "log_det": float(mpmath.log(mpmath.det(t)) - mpmath.log(mpmath.det(s))),
            "dimension": float(s.rows),
            "total": float(
                sum(product[i, i] - 1 for i in range(s.rows))
                + (delta.T * inverse * delta)[0]
                + mpmath.log(mpmath.det(t))
                - mpmath.log(mpmath.det(s))
            )
            / 2,
        }


def _check(q, p):
    got, want = kljax.kl_terms(q, p), _textbook(q, p)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_beside_a_matrix_or_a_path(kind, x64):
    _check(_vector(*dense(draw(kind, "q"))), draw(kind, "p"))


@pytest.mark.parametrize(
    "pair",
    [("chain", "matrix"), ("posterior", "blocks")],
    ids="-".join,
)
def test_two_families_with_events_of_one_shape(pair, x64):
    q, p = (draw(kind, name) for kind, name in zip(pair, "qp", strict=True))
    if pair[1] == "matrix":
        rng = rng_for("rows and columns")
        rows, columns = chains._matrix(rng, chains.T), chains._matrix(rng, chains.D)
        p = kljax.MatrixNormal(jnp.ones((chains.T, chains.D)), rows, columns)
    _check(q, p)


@pytest.mark.parametrize("kind", COMPUTED)
def test_near_pairs_keep_their_digits_and_gradients(kind):
    q = draw(kind, "near", dtype=np.float32)
    p = _near(q, 1e-5, np.float32)
    condition = np.linalg.cond(_law(p)[1])
    both = jax.jit(jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1)))
    value, (by_q, _) = both(q, p)
    want = _textbook(q, p)["total"]
    assert abs(value / want - 1) <= 32 * U * condition
    # One direction of the gradient, against the difference of two values to 40 digits.
    rng = rng_for("direction", kind)
    direction = jax.tree.map(lambda x: np.float32(1e-2) * _symmetric(rng, x), q)

    def moved(step):
        at = jax.tree.map(lambda x, v: np.asarray(x, np.float64) + step * v, q, direction)
        return _textbook(at, p)["total"]

    # So near, the value is almost a parabola, of which a central difference is the slope.
    step = 1e-3
    slope = (moved(step) - moved(-step)) / (2 * step)
    products = jax.tree.map(lambda g, v: np.sum(np.asarray(g, np.float64) * v), by_q, direction)
    sizes = jax.tree.map(lambda g, v: np.sum(np.abs(np.asarray(g) * v)), by_q, direction)
    error = abs(sum(jax.tree.leaves(products)) - slope)
    assert error <= 32 * U * condition * sum(jax.tree.leaves(sizes)) + 1e-4 * abs(slope)


def _symmetric(rng, x):
    change = rng.normal(size=x.shape)
    if x.ndim >= 2 and x.shape[-1] == x.shape[-2]:
        # Of a covariance only the symmetric part counts.
        change = (change + np.swapaxes(change, -1, -2)) / 2
    return change


def test_equal_posteriors_have_no_divergence():
    q = draw("posterior", "same", dtype=np.float32)
    value, gradient = jax.value_and_grad(kljax.kl_divergence)(q, q)
    assert value == 0
    assert all(not np.any(x) for x in jax.tree.leaves(gradient))


def test_batches_and_invalid_values():
    q = draw("chain", "batch", dtype=np.float32)
    p = _near(q, 0.1, np.float32)
    few = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x, x]), q)
    bad = few.transition_covariance.at[2, 0].multiply(-1)
    few = kljax.GaussMarkov(**(vars(few) | {"transition_covariance": bad}))
    got = kljax.kl_divergence(few, p)
    one = kljax.kl_divergence(jax.tree.map(lambda x: x[0], few), p)
    np.testing.assert_allclose(got[0], one, rtol=1e-5)
    assert np.isfinite(got[1])
    assert np.isnan(got[2])


def test_events_that_do_not_fit():
    matrix = draw("matrix", "q", dtype=np.float32)
    rows, columns = matrix.row_covariance, matrix.column_covariance
    turned = kljax.GaussMarkov(
        jnp.zeros(3),
        rows,
        jnp.zeros((3, 3, 3)),
        jnp.zeros((3, 3)),
        jnp.broadcast_to(rows, (3, 3, 3)),
    )
    with pytest.raises(
        ValueError, match=r"q has events of shape \(3, 4\) and p of shape \(4, 3"
    ):
        kljax.kl_divergence(matrix, turned)
    with pytest.raises(ValueError, match="its rows one after the other"):
        kljax.kl_divergence(kljax.standard_normal(11), matrix)
    wrong = kljax.MatrixNormal(matrix.loc, rows, columns[:3, :3])
    with pytest.raises(ValueError, match=r"q\.column_covariance has event size 3"):
        kljax.kl_divergence(wrong, kljax.standard_normal(12))


def test_sizes_of_hidden_states_may_differ():
    seen = draw("observations", "q", dtype=np.float32)
    first, *_ = jax.tree.leaves(seen)
    one = kljax.GaussMarkov(
        jnp.zeros(1),
        jnp.eye(1),
        jnp.zeros((2, 1, 1)),
        jnp.zeros((2, 1)),
        jnp.ones((2, 1, 1)),
    )
    assert first.shape != one.initial_loc.shape
    np.testing.assert_allclose(
        kljax.kl_divergence(seen, one), _textbook(seen, one)["total"], rtol=1e-4
    )
