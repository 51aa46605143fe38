"""Structured Gaussians: every ordered mix, never negative, 0 at q = p, and no d x d array."""

from __future__ import annotations

import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats

import kljax
from cases import rng_for

F = np.float32
BLOCKS, SIZE = 2, 2
D = BLOCKS * SIZE
FAMILIES = (
    kljax.MultivariateNormalDiag,
    kljax.MultivariateNormal,
    kljax.IsotropicNormal,
    kljax.LowRankMultivariateNormal,
    kljax.BlockDiagonalNormal,
)
PAIRS = list(itertools.product(FAMILIES, FAMILIES))
NEW_PAIRS = [pair for pair in PAIRS if set(pair) - set(FAMILIES[:2])]
# Those with a path of their own, for which the cost in d matters.
STRUCTURED = [
    (q, p)
    for q, p in NEW_PAIRS
    if kljax.MultivariateNormal not in (q, p)
    and {q, p} != {kljax.LowRankMultivariateNormal, kljax.BlockDiagonalNormal}
]
IDS = {"ids": lambda x: x.__name__ if isinstance(x, type) else str(x)}


def draw(family: type, rng: np.random.Generator, d: int = D, r: int = 1, b: int = SIZE) -> Any:
    """One distribution in float64."""
    loc, scale = rng.normal(size=d), np.exp(rng.normal(0, 0.5, d))
    match family.__name__:
        case "MultivariateNormalDiag":
            fields = {"scale_diag": scale}
        case "IsotropicNormal":
            fields = {"scale": scale[0]}
        case "LowRankMultivariateNormal":
            fields = {"cov_factor": rng.normal(size=(d, r)), "cov_diag": scale**2}
        case "BlockDiagonalNormal":
            fields = {"block_scale_tril": _tril(rng, (d // b, b, b))}
        case _:
            fields = {"scale_tril": _tril(rng, (d, d))}
    return family(loc, **fields)


def _tril(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    eye = np.broadcast_to(np.eye(shape[-1]), shape)
    return np.tril(rng.normal(0, 0.4, shape), -1) + eye * np.exp(rng.normal(0, 0.4, shape))


def matrix(x: Any) -> np.ndarray:
    """The covariance in float64, by numpy alone."""
    d = len(x.loc)
    match type(x).__name__:
        case "MultivariateNormalDiag":
            return np.diag(np.asarray(x.scale_diag, np.float64) ** 2)
        case "IsotropicNormal":
            return float(x.scale) ** 2 * np.eye(d)
        case "LowRankMultivariateNormal":
            w = np.asarray(x.cov_factor, np.float64)
            return w @ w.T + np.diag(np.asarray(x.cov_diag, np.float64))
        case "BlockDiagonalNormal":
            blocks = np.asarray(x.block_scale_tril, np.float64)
            n, b, _ = blocks.shape
            out = np.zeros((n, b, n, b))
            for i, block in enumerate(blocks):
                out[i, :, i, :] = block @ block.T
            return out.reshape(d, d)
        case _:
            factor = np.asarray(x.scale_tril, np.float64)
            return factor @ factor.T


def textbook(q: Any, p: Any) -> dict[str, float]:
    """The terms in float64, far enough apart for the textbook."""
    s_q, s_p = matrix(q), matrix(p)
    inverse = np.linalg.inv(s_p)
    delta = np.asarray(q.loc, np.float64) - np.asarray(p.loc, np.float64)
    return {
        "trace": np.trace(inverse @ s_q),
        "mahalanobis": delta @ inverse @ delta,
        "dimension": len(delta),
        "log_det": np.linalg.slogdet(s_p)[1] - np.linalg.slogdet(s_q)[1],
    }


def to_dtype(x: Any, dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), x)


_value_and_grad = jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))


# ---- the numbers ----------------------------------------------------------------------------


@pytest.mark.light
@pytest.mark.parametrize(("q_family", "p_family"), NEW_PAIRS, **IDS)
def test_every_mix_is_the_textbook_in_float64(q_family, p_family, x64):
    """Op by op, so that every operation is compiled once for all pairs."""
    rng = rng_for("mix", q_family, p_family)
    q, p = (to_dtype(draw(family, rng), jnp.float64) for family in (q_family, p_family))
    with jax.disable_jit():
        kl, (by_q, by_p) = _value_and_grad(q, p)
        terms = kljax.kl_terms(q, p)
        cross_entropy = kljax.cross_entropy(q, p)
    want = textbook(q, p)
    for name, value in want.items():
        np.testing.assert_allclose(getattr(terms, name), value, rtol=1e-9, atol=1e-11)
    trace, mahalanobis, dimension, log_det = want.values()
    np.testing.assert_allclose(kl, (trace + mahalanobis - dimension + log_det) / 2, rtol=1e-9)
    normalizer = D * np.log(2 * np.pi) + np.linalg.slogdet(matrix(p))[1]
    np.testing.assert_allclose(cross_entropy, (normalizer + trace + mahalanobis) / 2, rtol=1e-9)
    assert terms.dispersion >= 0
    assert terms.location >= 0
    _check_gradients(q, p, by_q, by_p)


def _check_gradients(q: Any, p: Any, by_q: Any, by_p: Any) -> None:
    """By central differences of the textbook along a random direction."""
    rng = rng_for("direction", type(q), type(p))
    for index, gradient in enumerate((by_q, by_p)):
        moved = (q, p)[index]
        direction = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape)), moved)
        if hasattr(direction, "scale_tril") or hasattr(direction, "block_scale_tril"):
            direction = jax.tree.map(lambda x: np.tril(x) if x.ndim > 1 else x, direction)

        def along(step, moved=moved, direction=direction, index=index):
            shifted = jax.tree.map(lambda x, v: np.asarray(x) + step * v, moved, direction)
            t = textbook(*((shifted, p) if index == 0 else (q, shifted)))
            return (t["trace"] + t["mahalanobis"] + t["log_det"]) / 2

        want = (along(1e-5) - along(-1e-5)) / 2e-5
        products = jax.tree.map(lambda a, b: np.sum(np.asarray(a) * b), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), want, rtol=1e-6, atol=1e-7)


def test_every_mix_is_registered_and_says_its_cost():
    forms = {(form.q, form.p): form for form in kljax.closed_forms()}
    for pair in NEW_PAIRS:
        form = forms[pair]
        assert form.terms is not None
        dense = "dense" in form.cost
        assert dense == (pair not in STRUCTURED and len({*pair} - _COMPARED_WITH_FULL) > 0)


# These have rules for a full covariance matrix.
_COMPARED_WITH_FULL = {
    kljax.MultivariateNormal,
    kljax.MultivariateNormalDiag,
    kljax.IsotropicNormal,
}


@pytest.mark.light
@pytest.mark.parametrize("family", FAMILIES[2:], **IDS)
def test_one_distribution_is_the_multivariate_normal(family, x64):
    x = to_dtype(draw(family, rng_for("single", family)), jnp.float64)
    covariance = matrix(x)
    same = scipy.stats.multivariate_normal(np.asarray(x.loc), covariance)
    points = rng_for("points", family).normal(size=(5, D))
    np.testing.assert_allclose(kljax.log_prob(x, points), same.logpdf(points), rtol=1e-10)
    np.testing.assert_allclose(kljax.entropy(x), same.entropy(), rtol=1e-10)
    np.testing.assert_allclose(kljax.mean(x), x.loc)
    np.testing.assert_allclose(kljax.covariance(x), covariance, rtol=1e-12)
    np.testing.assert_allclose(kljax.variance(x), np.diag(covariance), rtol=1e-12)
    count = 20_000
    draws = np.asarray(kljax.sample(x, jax.random.key(3), count))
    # Whitened, every entry of the sample covariance has an error of at most sqrt(2 / count).
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - np.asarray(x.loc)).T)
    error = np.max(np.abs(white @ white.T / count - np.eye(D)))
    assert error < 6.1 * np.sqrt(2 / count)
    assert np.max(np.abs(white.mean(axis=1))) < 6.1 / np.sqrt(count)


# ---- near, equal, and hard ------------------------------------------------------------------


COORDINATES, RANK = 12, 3
_batched = jax.jit(jax.vmap(_value_and_grad))


def _low_rank(*rows: tuple[Any, Any, Any]) -> Any:
    """A batch of low-rank distributions, from their parameters."""
    fields = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True))
    return kljax.LowRankMultivariateNormal(*fields)


def test_low_rank_near_equal_and_described_in_another_way():
    """One program for all: a factor of 1e3 is a covariance 1e6 times the diagonal."""
    rng = rng_for("low rank")
    q, p, want = [], [], []
    for factor, separation in itertools.product((1, 1e3), (0.1, 1e-3, 1e-6, 0)):
        loc, diagonal = rng.normal(size=COORDINATES), np.exp(rng.normal(size=COORDINATES))
        w = factor * rng.normal(size=(COORDINATES, RANK))
        p.append(tuple(np.float32(x) for x in (loc, w, diagonal)))
        noise = [np.float32(1 + separation * rng.normal(size=x.shape)) for x in p[-1]]
        q.append(tuple(x * n for x, n in zip(p[-1], noise, strict=True)))
        want.append(exact(q[-1], p[-1]) if separation else 0.0)
    near = len(q)
    for change in (lambda w: -w, lambda w: w[:, ::-1], lambda w: w * np.float32([[1, -1, 1]])):
        for loc, w, diagonal in p[:near]:
            q.append((loc, change(w), diagonal))
            p.append((loc, w, diagonal))
    # A column that stands for a part of the diagonal.
    axis = np.zeros((COORDINATES, RANK), np.float32)
    axis[4, 0] = 0.5
    part, one = (np.float32(np.ones(COORDINATES) - x) for x in (axis[:, 0] ** 2, 0))
    for left, right in (((axis, part), (0 * axis, one)), ((0 * axis, one), (axis, part))):
        q.append((loc, *left))
        p.append((loc, *right))

    kl, gradient = _batched(_low_rank(*q), _low_rank(*p))
    kl = np.asarray(kl, np.float64)
    assert np.all(kl >= 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
    np.testing.assert_allclose(kl[:near], want, rtol=2e-5)
    for i in range(near):
        if want[i] == 0:
            assert kl[i] == 0
            for x in jax.tree.leaves(gradient):
                np.testing.assert_array_equal(np.asarray(x[i]), 0)
    # The square of roundoff on the scale of the factor, but for the two columns at the end.
    largest = np.array([np.max(np.abs(w)) for _, w, _ in q])[near:-2]
    assert np.all(kl[near:-2] <= 1e-12 * (1 + largest) ** 2), kl[near:-2]
    assert np.all(kl[-2:] <= 2.0**-24), kl[-2:]


def test_a_diagonal_and_factors_that_span_the_whole_space():
    """There nothing is left outside of the span, not even rounding."""
    one = np.ones(1, np.float32)
    q = _low_rank((0 * one, 3 * one[:, None], one), (0 * one, 0 * one[:, None], 10 * one))
    p = _low_rank((0 * one, 0 * one[:, None], 10 * one), (0 * one, 3 * one[:, None], one))
    assert np.all(np.abs(kljax.kl_divergence(q, p)) < 1e-13)


def test_a_batch_asks_once_whether_a_pair_needs_the_basis():
    """Under two `vmap`s the costly branch is still one that may be left out."""
    rng = rng_for("asked once")
    x = to_dtype(draw(kljax.LowRankMultivariateNormal, rng))
    batch = jax.tree.map(lambda leaf: jnp.stack([jnp.stack([leaf] * 3)] * 2), x)
    per_pair = jax.vmap(jax.vmap(lambda q, p: kljax.kl_divergence(q, p)))
    closed = jax.make_jaxpr(per_pair)(batch, batch)
    asked = [e.invars[0].aval for e in _equations(closed.jaxpr) if e.primitive.name == "cond"]
    assert [aval.shape for aval in asked] == [()]


def exact(q: tuple, p: tuple) -> float:
    """KL of two low-rank distributions to 50 digits, from (loc, factor, diagonal)."""

    def covariance(w: np.ndarray, diagonal: np.ndarray) -> Any:
        w = mpmath.matrix(np.float64(w).tolist())
        return w * w.T + mpmath.diag(np.float64(diagonal).tolist())

    with mpmath.workdps(50):
        s_q, s_p = covariance(*q[1:]), covariance(*p[1:])
        inverse, d = s_p**-1, s_q.rows
        delta = mpmath.matrix((np.float64(q[0]) - np.float64(p[0])).tolist())
        product = inverse * s_q
        trace = sum(product[i, i] for i in range(d))
        factors = mpmath.cholesky(s_p), mpmath.cholesky(s_q)
        log_det = 2 * sum(mpmath.log(factors[0][i, i] / factors[1][i, i]) for i in range(d))
        return float((trace - d + log_det + (delta.T * inverse * delta)[0]) / 2)


@pytest.mark.parametrize(("q_family", "p_family"), NEW_PAIRS, **IDS)
def test_near_mixes_are_not_negative(q_family, p_family):
    """Both describe almost N(0, I); a dense mix forms its difference to twice the digits."""
    with jax.disable_jit():
        for separation in (1e-2, 1e-5):
            q, p = (
                _near_standard(f, separation * i) for i, f in enumerate((q_family, p_family))
            )
            kl, want = float(kljax.kl_divergence(q, p)), _near_truth(q, p)
            assert kl >= 0
            np.testing.assert_allclose(kl, want, rtol=2e-3, atol=1e-13)


def _near_standard(family: type, separation: float) -> Any:
    rng = rng_for("near", family)
    x = draw(family, rng)
    spread = [name for name in vars(x) if getattr(x, name) is not None and name != "loc"]
    eye = {
        "scale_diag": np.ones(D),
        "scale": np.ones(()),
        "scale_tril": np.eye(D),
        "block_scale_tril": np.stack([np.eye(SIZE)] * BLOCKS),
        "cov_factor": np.zeros((D, 1)),
        "cov_diag": np.ones(D),
    }
    moved = {n: eye[n] + separation * np.asarray(getattr(x, n)) for n in spread}
    return to_dtype(family(separation * x.loc, **moved))


def _near_truth(q: Any, p: Any) -> float:
    """In float64 by the eigenvalues of S_p^-1/2 (S_q - S_p) S_p^-1/2."""
    s_q, s_p = matrix(q), matrix(p)
    inverse = np.linalg.inv(np.linalg.cholesky(s_p))
    values = np.linalg.eigvalsh(inverse @ (s_q - s_p) @ inverse.T)
    near = np.abs(values) < 1e-2
    series = sum((-1.0) ** n * values**n / n for n in range(2, 9))
    gaps = np.where(near, series, values - np.log1p(np.where(near, 0, values)))
    delta = inverse @ (np.asarray(q.loc, np.float64) - np.asarray(p.loc, np.float64))
    return float((np.sum(gaps) + np.sum(delta**2)) / 2)


@pytest.mark.light
def test_different_ranks_and_blocks():
    with jax.disable_jit():
        _check_different_ranks_and_blocks(rng_for("ranks"))


def _check_different_ranks_and_blocks(rng: np.random.Generator) -> None:
    q = to_dtype(draw(kljax.LowRankMultivariateNormal, rng, r=3))
    p = to_dtype(draw(kljax.LowRankMultivariateNormal, rng, r=0))
    diagonal = kljax.MultivariateNormalDiag(p.loc, variance=p.cov_diag)
    np.testing.assert_allclose(
        kljax.kl_divergence(q, p), kljax.kl_divergence(q, diagonal), rtol=1e-6
    )
    q = to_dtype(draw(kljax.BlockDiagonalNormal, rng))
    p = to_dtype(draw(kljax.BlockDiagonalNormal, rng, b=4))
    full = kljax.MultivariateNormal(p.loc, p.block_scale_tril[0])
    np.testing.assert_allclose(
        kljax.kl_divergence(q, p), kljax.kl_divergence(q, full), rtol=1e-5
    )


_LONG = pytest.mark.skipif(
    not os.environ.get("KLJAX_FULL"), reason="compiles long: KLJAX_FULL=1 runs it"
)

# ---- one door -------------------------------------------------------------------------------


@_LONG
def test_low_rank_in_high_precision_and_forward():
    q, p = (to_dtype(draw(kljax.LowRankMultivariateNormal, rng_for(s), d=5, r=2)) for s in "qp")
    kl, gradient = jax.jit(_value_and_grad)(q, p)
    high = kljax.kl_divergence(q, p, precision="high")
    np.testing.assert_allclose(high, kl, rtol=3e-6)
    _, slope = jax.jvp(kljax.kl_divergence, (q, p), (q, p))
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, (q, p))
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-5)


@_LONG
def test_second_order_is_the_slope_of_the_gradient(x64):
    q, p = (
        to_dtype(draw(kljax.LowRankMultivariateNormal, rng_for(s), d=4, r=1), jnp.float64)
        for s in "qp"
    )
    gradient = jax.jit(jax.grad(kljax.kl_divergence, argnums=(0, 1)))
    rng = rng_for("second")
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), (q, p))
    _, got = jax.jvp(gradient, (q, p), direction)

    def shifted(step: float) -> Any:
        return gradient(*jax.tree.map(lambda x, v: x + step * v, (q, p), direction))

    want = jax.tree.map(lambda a, b: (a - b) / 2e-5, shifted(1e-5), shifted(-1e-5))
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (
            kljax.LowRankMultivariateNormal(jnp.zeros(3), jnp.ones((3, 1)), -jnp.ones(3)),
            "cov_diag must be positive",
        ),
        (
            kljax.LowRankMultivariateNormal(jnp.zeros(3), jnp.ones((2, 1)), jnp.ones(3)),
            "event sizes must be equal",
        ),
        (
            kljax.BlockDiagonalNormal(jnp.zeros(5), jnp.stack([jnp.eye(2)] * 2)),
            "2 blocks of 2 rows, 4 coordinates in all, but .*loc has 5",
        ),
        (
            kljax.BlockDiagonalNormal(jnp.zeros(4), jnp.ones((2, 2, 2))),
            "block_scale_tril must be finite and lower triangular",
        ),
        (
            kljax.BlockDiagonalNormal(jnp.zeros(4), jnp.ones((2, 2, 1))),
            "must form a square matrix",
        ),
        (kljax.IsotropicNormal(jnp.zeros(3)), "exactly one of scale, log_variance, variance"),
    ],
)
def test_check_says_what_is_wrong(x, sentence):
    with pytest.raises(ValueError, match=sentence):
        kljax.check(x)


@pytest.mark.light
def test_invalid_values_are_nan():
    with jax.disable_jit():
        ones = jnp.ones(D)
        bad = kljax.LowRankMultivariateNormal(0 * ones, jnp.ones((D, 1)), -ones)
        blocks = kljax.BlockDiagonalNormal(0 * ones, jnp.stack([jnp.eye(2), -jnp.eye(2)]))
        for x in (bad, blocks, kljax.IsotropicNormal(0 * ones, -1.0)):
            for value in (kljax.kl_divergence(x, kljax.standard_normal(D)), kljax.entropy(x)):
                assert np.isnan(value)


# ---- never densified ------------------------------------------------------------------------

LARGE, LARGE_RANK, LARGE_BLOCK = 512, 4, 4


def _equations(jaxpr: Any) -> Any:
    """Every equation of a program, with those of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _arrays(jaxpr: Any) -> Any:
    """Every array of a program."""
    for equation in _equations(jaxpr):
        yield from (variable.aval for variable in equation.outvars)


@pytest.mark.parametrize(("q_family", "p_family"), STRUCTURED, **IDS)
def test_no_dense_array(q_family, p_family):
    """Neither in the program of value and gradient nor in what XLA makes of it."""
    rng = rng_for("large")
    q, p = (
        to_dtype(draw(family, rng, d=LARGE, r=LARGE_RANK, b=LARGE_BLOCK))
        for family in (q_family, p_family)
    )
    closed = jax.make_jaxpr(_value_and_grad)(q, p)
    largest = max(np.prod(aval.shape) for aval in _arrays(closed.jaxpr))
    assert largest < LARGE * LARGE / 8, largest
    if q_family is p_family:
        compiled = jax.jit(_value_and_grad).lower(q, p).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < LARGE * LARGE * 4 / 2


def test_a_dense_mix_is_seen_by_the_walk():
    q = to_dtype(draw(kljax.LowRankMultivariateNormal, rng_for("seen"), d=64))
    p = to_dtype(draw(kljax.BlockDiagonalNormal, rng_for("seen"), d=64))
    closed = jax.make_jaxpr(kljax.kl_divergence)(q, p)
    assert max(np.prod(aval.shape) for aval in _arrays(closed.jaxpr)) >= 64 * 64


@pytest.mark.parametrize(
    ("shift", "variance", "truth"), [(1e-20, 1e-30, 2e-10), (3e19, 1e36, 1800.0)]
)
def test_circulant_means_of_any_size_are_compared(shift, variance, truth):
    def circulant(loc):
        return kljax.CirculantNormal(
            jnp.full(4, loc, jnp.float32), covariance_rfft=jnp.full(3, variance, jnp.float32)
        )

    value, gradient = jax.value_and_grad(kljax.kl_divergence)(circulant(shift), circulant(0.0))
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    np.testing.assert_allclose(gradient.loc, np.full(4, 0.5 * truth / shift), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-18, 1e-6, 1e6, 1e18])
def test_variances_far_from_one_lose_no_digits(size):
    """The logarithm of their quotient is not a difference of logarithms."""

    def matrix(variance):
        one = np.ones((1, 1), np.float32)
        return kljax.MatrixNormal(0 * one, variance * one, one)

    def chain(variance):
        zero = np.zeros((1, 1), np.float32)
        precision = np.full((1, 1, 1), 1 / variance, np.float32)
        return kljax.BlockTridiagonalNormal(zero, precision, np.zeros((0, 1, 1), np.float32))

    ratio = 1.5
    truth = 0.5 * (ratio - 1 - np.log(ratio))
    for family in (matrix, chain):
        value = kljax.kl_divergence(family(ratio * size), family(size))
        np.testing.assert_allclose(value, truth, rtol=30 * 2.0**-24)
