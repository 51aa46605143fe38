"""The KL of sparse Gaussian processes against the sum over outputs, in NumPy and float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax
from cases import rng_for

pytestmark = pytest.mark.light

POINTS, OUTPUTS = 4, 3


def _kernel(rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(POINTS, 1))
    return np.exp(-0.5 * (x - x.T) ** 2) + 0.1 * np.eye(POINTS)


def _want(q_mu, covariances, kernels) -> float:
    total = 0.0
    for mu, s, k in zip(q_mu.T, covariances, kernels, strict=True):
        inverse = np.linalg.inv(k)
        log_det = np.linalg.slogdet(k)[1] - np.linalg.slogdet(s)[1]
        total += (np.trace(inverse @ s) + mu @ inverse @ mu - len(mu) + log_det) / 2
    return total


@pytest.mark.parametrize("diagonal", [False, True], ids=["factors", "deviations"])
def test_against_the_sum_over_outputs(diagonal, x64):
    rng = rng_for("gaussian process", diagonal)
    q_mu = rng.normal(size=(POINTS, OUTPUTS))
    if diagonal:
        q_sqrt = np.exp(rng.normal(size=(POINTS, OUTPUTS)))
        covariances = [np.diag(s**2) for s in q_sqrt.T]
    else:
        eye = np.eye(POINTS)
        q_sqrt = 0.3 * rng.normal(size=(OUTPUTS, POINTS, POINTS)) + eye
        covariances = [np.tril(s) @ np.tril(s).T for s in q_sqrt]
    shared, each = _kernel(rng), np.stack([_kernel(rng) for _ in range(OUTPUTS)])
    same = [shared] * OUTPUTS
    factor = np.linalg.cholesky(shared)
    with jax.disable_jit():
        kl = kljax.gaussian_process_kl
        got = {
            "shared": (kl(q_mu, q_sqrt, shared), _want(q_mu, covariances, same)),
            "factor": (kl(q_mu, q_sqrt, kernel_tril=factor), _want(q_mu, covariances, same)),
            "each": (kl(q_mu, q_sqrt, each), _want(q_mu, covariances, each)),
            "whitened": (
                kl(q_mu, q_sqrt),
                _want(q_mu, covariances, [np.eye(POINTS)] * OUTPUTS),
            ),
        }
    for name, (value, want) in got.items():
        np.testing.assert_allclose(value, want, rtol=1e-9, err_msg=name)


def test_whitening_changes_nothing(x64):
    """U = C v: the divergence of v from N(0, I) is that of u from N(0, C C^T)."""
    rng = rng_for("whitening")
    factor = np.linalg.cholesky(_kernel(rng))
    q_mu = rng.normal(size=(POINTS, OUTPUTS))
    q_sqrt = np.tril(0.2 * rng.normal(size=(OUTPUTS, POINTS, POINTS))) + np.eye(POINTS)
    with jax.disable_jit():
        whitened = kljax.gaussian_process_kl(q_mu, q_sqrt)
        direct = kljax.gaussian_process_kl(factor @ q_mu, factor @ q_sqrt, factor @ factor.T)
    np.testing.assert_allclose(whitened, direct, rtol=1e-9)


def test_the_kernel_is_factorized_once():
    """However many outputs share it: its pivots have no axis of outputs."""
    points = 24
    q_mu, q_sqrt = jnp.zeros((points, OUTPUTS)), jnp.ones((points, OUTPUTS))
    shared, each = jnp.eye(points), jnp.stack([jnp.eye(points)] * OUTPUTS)
    for kernel, once in ((shared, True), (each, False)):
        closed = jax.make_jaxpr(kljax.gaussian_process_kl)(q_mu, q_sqrt, kernel)
        assert ((1, 1) in _square_roots(closed.jaxpr)) == once


def _square_roots(jaxpr) -> list[tuple[int, ...]]:
    """Shapes of what a square root is taken of: the pivots of a factorization."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "rsqrt":
            found.append(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _square_roots(inner)
    return found


def test_equal_is_zero_with_gradient_zero():
    factor = jnp.asarray(np.linalg.cholesky(_kernel(rng_for("equal"))), jnp.float32)
    q_mu, q_sqrt = jnp.zeros((POINTS, OUTPUTS)), jnp.stack([factor] * OUTPUTS)

    def kl(q_mu, q_sqrt, factor):
        return kljax.gaussian_process_kl(q_mu, q_sqrt, kernel_tril=factor)

    value, gradient = jax.value_and_grad(kl, argnums=(0, 1, 2))(q_mu, q_sqrt, factor)
    assert value == 0
    for x in gradient:
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.zeros(4), np.ones((4, 1))), "q_mu has shape .4,.; it needs two axes"),
        ((np.zeros((4, 2)), np.ones((3, 4, 4))), "q_sqrt has shape .3, 4, 4.; with q_mu"),
        ((np.zeros((4, 2)), np.ones((4, 2)), np.eye(3)), "kernel_matrix has shape .3, 3."),
    ],
)
def test_shapes_are_checked(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        kljax.gaussian_process_kl(*arguments)


def test_one_kernel():
    with pytest.raises(ValueError, match="give one of them"):
        kljax.gaussian_process_kl(
            np.zeros((4, 1)), np.ones((4, 1)), np.eye(4), kernel_tril=np.eye(4)
        )
