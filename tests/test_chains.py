"""Kronecker, circulant and chain structures: equal to the dense formula, and never dense."""

from __future__ import annotations

import os
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.core import jaxprs_in_params

import chains
import kljax
import truth
from cases import rng_for
from chains import D, K, T, dense, dense_terms, draw
from kljax import markov
from truth import Spread

pytestmark = pytest.mark.light

FULL = bool(os.environ.get("KLJAX_FULL"))

# What the stored vectors do not have; the rest with KLJAX_FULL=1.
PAIRS = [
    ("matrix by factors", "matrix by factors"),
    ("matrix by factors", "matrix"),
    ("circulant", "circulant by eigenvalues"),
    ("chain by factors", "chain by factors"),
    ("blocks", "chain by factors"),
    ("posterior", "chain"),
]
if FULL:
    PAIRS += [(kind, kind) for kind in ("circulant", "blocks", "joint", "observations")]
    PAIRS += [("chain", "chain by factors"), ("chain", "blocks")]


def _name(pair: Any) -> str:
    return " ‖ ".join(pair)


# ---- equal to the dense formula -------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=_name)
def test_equals_the_dense_formula(pair, x64):
    q, p = draw(pair[0], "q"), draw(pair[1], "p")
    terms, want = kljax.kl_terms(q, p), dense_terms(q, p)
    for key, value in want.items():
        np.testing.assert_allclose(getattr(terms, key), value, rtol=1e-9, err_msg=key)
    if FULL or "circulant" in pair:
        entropy = np.linalg.slogdet(2 * np.pi * np.e * dense(q)[1])[1] / 2
        cross_entropy = kljax.cross_entropy(q, p)
        np.testing.assert_allclose(cross_entropy, entropy + want["total"], rtol=1e-9)
    if hasattr(terms, "per_step"):
        parts = np.sum(terms.per_step) + np.sum(getattr(terms, "per_emission", 0))
        np.testing.assert_allclose(parts, want["total"], rtol=1e-9)
        assert terms.per_step.min() >= 0


SAMPLES = 10_000
EVENTS = {
    "matrix": (3, 4),
    "circulant": (7,),
    "circulant by eigenvalues": (7,),
    "chain by factors": (T, D),
    "blocks": (T, D),
    "joint": (T, D + K),
    "observations": (T, K),
    "posterior": (T, D),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_density_entropy_moments_and_samples(kind, x64):
    q, event = draw(kind, "distribution"), EVENTS[kind]
    mean, covariance = dense(q)
    x = rng_for(kind).normal(size=(2, *event))

    @jax.jit
    def ask(q, x):
        asked = kljax.entropy, kljax.mean, kljax.variance, kljax.covariance
        drawn = kljax.sample(q, jax.random.key(5), SAMPLES)
        return kljax.log_prob(q, x), drawn, *(function(q) for function in asked)

    log_prob, drawn, entropy, *moments = jax.tree.map(np.asarray, ask(q, x))
    law = scipy.stats.multivariate_normal(mean, covariance)  # pyright: ignore
    np.testing.assert_allclose(log_prob, law.logpdf(x.reshape(2, -1)), rtol=1e-9)
    np.testing.assert_allclose(entropy, law.entropy(), rtol=1e-9)
    want = mean.reshape(event), np.diag(covariance).reshape(event), covariance
    for got, exact in zip(moments, want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12)
    # Whitened samples: their means and products have known variances.
    assert drawn.shape == (SAMPLES, *event)
    z = np.linalg.solve(np.linalg.cholesky(covariance), (drawn.reshape(SAMPLES, -1) - mean).T)
    limit = 6.1 / np.sqrt(SAMPLES)
    assert np.max(np.abs(z.mean(1))) < limit
    second = z @ z.T / SAMPLES - np.eye(len(mean))
    assert np.max(np.abs(second)) < limit * np.sqrt(2)


# ---- independent truths ---------------------------------------------------------------------


def test_time_runs_both_ways(x64):
    """A path read backwards has the same divergence, by other conditional laws."""
    q, p = draw("blocks", "q"), draw("blocks", "p")

    def backwards(x):
        lower = jnp.swapaxes(x.precision_lower_blocks[::-1], -1, -2)
        return kljax.BlockTridiagonalNormal(
            x.loc[::-1], x.precision_diagonal_blocks[::-1], lower
        )

    forward, backward = (
        kljax.kl_terms(*pair) for pair in ((q, p), (backwards(q), backwards(p)))
    )
    np.testing.assert_allclose(forward.total, backward.total, rtol=1e-12)
    assert not np.allclose(forward.per_step, backward.per_step[::-1], rtol=1e-3)


def _with(x: Any, family: type, **changes: Any) -> Any:
    given = {key: value for key, value in vars(x).items() if value is not None}
    names = family.__dataclass_fields__
    return family(**{key: value for key, value in {**given, **changes}.items() if key in names})


def test_joint_is_more_than_its_parts(x64):
    """KL(observations) < KL(joint) = KL(states) + E_q KL(observations given states)."""
    q, p = draw("joint", "q"), draw("joint", "p")
    seen = kljax.kl_terms(*(_with(x, kljax.LinearGaussianObservations) for x in (q, p)))
    joint = kljax.kl_terms(q, p)
    assert 0 < seen.total < joint.total
    steps = kljax.kl_terms(*(_with(x, kljax.GaussMarkov) for x in (q, p))).per_step
    np.testing.assert_allclose(joint.per_step, steps, rtol=1e-12)
    total = np.sum(steps) + np.sum(joint.per_emission)
    np.testing.assert_allclose(total, joint.total, rtol=1e-12)


def test_the_bound_of_a_smoother_is_tight(x64):
    """E log p(y | x) - KL(posterior ‖ prior) = log p(y), the expectation in closed form."""
    posterior = draw("posterior", "elbo")
    y = posterior.observations
    kl = kljax.kl_terms(posterior, _with(posterior, kljax.GaussMarkov)).total
    evidence = kljax.log_prob(_with(posterior, kljax.LinearGaussianObservations), y)
    mean, covariance = dense(posterior)
    emit = np.kron(np.eye(T), posterior.emission_matrix)
    noise = np.kron(np.eye(T), posterior.emission_covariance)
    at_mean = emit @ mean + np.tile(posterior.emission_offset, T)
    expected = scipy.stats.multivariate_normal(at_mean, noise).logpdf(np.ravel(y))
    expected -= np.trace(np.linalg.solve(noise, emit @ covariance @ emit.T)) / 2
    np.testing.assert_allclose(expected - kl, evidence, rtol=1e-10)


def test_coordinates_of_hidden_states_are_not_observed(x64):
    """A change of coordinates of the states leaves the observations as they are."""
    q = draw("observations", "q")
    turn = np.eye(D) + 0.3 * rng_for("turn").normal(size=(D, D))
    back = np.linalg.inv(turn)
    p = _with(
        q,
        kljax.LinearGaussianObservations,
        initial_loc=turn @ q.initial_loc,
        initial_covariance=turn @ q.initial_covariance @ turn.T,
        transition_matrix=turn @ q.transition_matrix @ back,
        transition_offset=q.transition_offset @ turn.T,
        transition_covariance=turn @ q.transition_covariance @ turn.T,
        emission_matrix=q.emission_matrix @ back,
    )
    assert 0 <= kljax.kl_terms(q, p).total < 1e-12


def test_a_chain_and_its_precision_are_one_law(x64):
    chain = draw("chain by factors", "one law")
    mean, precision = chains.assemble(chains.parameters(chain))
    blocks = precision.reshape(T, D, T, D)
    same = kljax.BlockTridiagonalNormal(
        mean.reshape(T, D),
        np.stack([blocks[t, :, t] for t in range(T)]),
        np.stack([blocks[t + 1, :, t] for t in range(T - 1)]),
    )
    assert 0 <= kljax.kl_terms(same, chain).total < 1e-12


@pytest.mark.parametrize("separation", [1e-2, 1e-4, 1e-6])
def test_scale_between_rows_and_columns(separation):
    """(U, V) and (c U, V / c) are one law; a pair near each other across c keeps its digits."""
    rng = rng_for("scale", separation)
    rows, columns = chains._matrix(rng, 2), chains._matrix(rng, 3)
    c = 7.3
    near = [x + separation * _symmetric_noise(rng, len(x)) for x in (rows, columns)]
    loc = np.zeros((2, 3), np.float32)
    f32 = [_symmetric(x).astype(np.float32) for x in (rows, columns, c * near[0], near[1] / c)]
    q, p = kljax.MatrixNormal(loc, f32[2], f32[3]), kljax.MatrixNormal(loc, f32[0], f32[1])
    spreads = [
        Spread("covariance_matrix", np.kron(*(x.astype(np.float64) for x in pair)))
        for pair in (f32[2:], f32[:2])
    ]
    exact = truth.gaussian(np.zeros(6), spreads[0], np.zeros(6), spreads[1])
    value, (gradient, _) = _value_and_gradient(q, p)
    assert abs(float(value) / float(exact.kl) - 1) < 1e-5
    # Along (U, -V) the law stays as it is, so the gradient has no part there.
    along = np.sum(gradient.row_covariance * f32[2]) - np.sum(
        gradient.column_covariance * f32[3]
    )
    size = np.sum(np.abs(gradient.row_covariance * f32[2]))
    assert abs(along) < 1e-5 * size


def _symmetric(x: np.ndarray) -> np.ndarray:
    return np.tril(x) + np.tril(x, -1).T


def _symmetric_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.normal(size=(n, n))
    return (noise + noise.T) / 2


_value_and_gradient = jax.jit(jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1)))


# ---- never dense ----------------------------------------------------------------------------


def _large(kind: str) -> tuple[Any, int]:
    """Abstract parameters of a long event, and the entries of its dense covariance."""
    long, d, k = 500, 2, 2
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    chain = {
        "initial_loc": f32(d),
        "initial_covariance": f32(d, d),
        "transition_matrix": f32(long - 1, d, d),
        "transition_offset": f32(long - 1, d),
        "transition_covariance": f32(long - 1, d, d),
    }
    seen = {
        "emission_matrix": f32(k, d),
        "emission_offset": f32(k),
        "emission_covariance": f32(k, k),
    }
    blocks = {
        "loc": f32(long, d),
        "precision_diagonal_blocks": f32(long, d, d),
        "precision_lower_blocks": f32(long - 1, d, d),
    }
    match kind:
        case "matrix":
            rows = {"row_covariance": f32(30, 30), "column_covariance": f32(40, 40)}
            return kljax.MatrixNormal(loc=f32(30, 40), **rows), (30 * 40) ** 2
        case "circulant":
            return kljax.CirculantNormal(f32(1024), f32(1024)), 1024**2
        case "chain":
            return kljax.GaussMarkov(**chain), (long * d) ** 2
        case "blocks":
            return kljax.BlockTridiagonalNormal(**blocks), (long * d) ** 2
        case "posterior":
            model = kljax.LinearGaussianPosterior(**chain, **seen, observations=f32(long, k))
            return model, (long * d) ** 2
        case _:
            family = chains.MAKERS[kind][0]
            return family(**chain, **seen), (long * k) ** 2


def largest_array(jaxpr: Any) -> int:
    """The entries of the largest array of a program, inner programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [getattr(v.aval, "size", 0) for v in equation.outvars]
        for inner in jaxprs_in_params(equation.params):
            sizes.append(largest_array(inner))
    return max(sizes)


LARGE = ["matrix", "circulant", "chain", "blocks", "joint", "observations", "posterior"]


@pytest.mark.parametrize("kind", LARGE if FULL else LARGE[1:])
def test_no_dense_array(kind):
    """Neither in the value nor in the gradient; a tenth of a dense matrix would be seen."""
    q, entries = _large(kind)
    p = _large("chain")[0] if kind == "posterior" else q
    program = jax.make_jaxpr(jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1)))(q, p)
    assert 0 < largest_array(program.jaxpr) < entries / 10
    if kind == "chain" or FULL:
        compiled = _value_and_gradient.lower(q, p).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        memory = analysis.temp_size_in_bytes
        assert memory < 4 * entries / 2, memory / (4 * entries)


# ---- transformations ------------------------------------------------------------------------


def test_recursions_agree(x64):
    """One step after the other, and by composing neighbours; values and gradients."""
    chain = draw("chain", "recursion")
    noise = jnp.concatenate([chain.initial_covariance[None], chain.transition_covariance])
    start = markov.Moments(chain.initial_loc[:, None], noise[0])
    steps = markov.Affine(
        chain.transition_matrix, chain.transition_offset[..., None], noise[1:]
    )

    def both(recursion):
        def weighted(start, steps):
            out = recursion(start, steps)
            return jnp.sum(jnp.sin(out.loc)) + jnp.sum(out.covariance**2), out

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(start, steps)

    one, other = both(markov._sequential), both(markov._parallel)
    chex.assert_trees_all_close(one, other, rtol=1e-10)


@pytest.mark.parametrize("kind", ["matrix", "chain", "observations"] if FULL else ["chain"])
def test_second_order(kind, x64):
    """Forward over reverse, over a batch of q against one p: the slope of the gradient."""
    q, p = draw(kind, "q"), draw(kind, "p")
    step = jax.tree.map(lambda x: 0.1 * x, q)
    size = 1e-5
    three = jax.tree.map(lambda x, d: jnp.stack([x, x + size * d, x - size * d]), q, step)

    @jax.jit
    @jax.vmap
    def ask(q):
        return jax.jvp(lambda q: jax.grad(kljax.kl_divergence)(q, p), (q,), (step,))

    gradient, curved = ask(three)
    slope = jax.tree.map(lambda x: (x[1] - x[2]) / (2 * size), gradient)
    curved = jax.tree.map(lambda x: x[0], curved)
    chex.assert_trees_all_close(curved, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LARGE[:-1] if FULL else ["circulant"])
def test_high_precision(kind):
    """float64 inside of float32, gradients too."""
    q, p = draw(kind, "q", dtype=np.float32), draw(kind, "p", dtype=np.float32)

    @jax.jit
    def ask(q, p):
        return jax.value_and_grad(lambda q: kljax.kl_divergence(q, p, precision="high"))(q)

    value, gradient = ask(q, p)
    with jax.enable_x64(True):
        q, p = jax.tree.map(lambda x: x.astype(jnp.float64), (q, p))
        want, slope = jax.jit(jax.value_and_grad(kljax.kl_divergence))(q, p)
    np.testing.assert_allclose(value, want, rtol=1e-7)
    chex.assert_trees_all_close(gradient, slope, rtol=2e-6, atol=2e-7)


# ---- what goes wrong ------------------------------------------------------------------------


def _with_indefinite_step(x: Any) -> Any:
    bad = np.asarray(x.transition_covariance).copy()
    bad[2] = -bad[2]
    return _with(x, type(x), transition_covariance=bad)


def test_an_invalid_step_is_nan_and_named():
    q = draw("chain", "q", dtype=np.float32)
    bad = _with_indefinite_step(q)
    with pytest.raises(ValueError, match=r"transition_covariance must .* at index \(2,\)"):
        kljax.check(bad)
    kljax.check(q)
    assert np.isnan(kljax.kl_divergence(q, bad))


def test_an_invalid_row_is_nan_and_named():
    loc, row = jnp.zeros(4), jnp.array([1.0, 0.3, 0.1, 0.2])
    with pytest.raises(ValueError, match="entry j equal to entry n - j"):
        kljax.check(kljax.CirculantNormal(loc, row))
    good = kljax.CirculantNormal(loc, jnp.array([1.0, 0.3, 0.1, 0.3]))
    kljax.check(good)
    bad = kljax.CirculantNormal(loc, jnp.array([0.1, 1.0, 0.1, 1.0]))
    for invalid in (kljax.CirculantNormal(loc, row), bad):
        assert np.isnan(kljax.kl_divergence(invalid, good))
        assert np.isnan(kljax.kl_divergence(good, invalid))
        assert np.isnan(kljax.kl_divergence(invalid, invalid))


def test_sizes_that_do_not_fit():
    chain, blocks = (draw(kind, "q", dtype=np.float32) for kind in ("chain", "blocks"))
    longer = _with(chain, kljax.GaussMarkov, transition_offset=jnp.zeros((T, D)))
    with pytest.raises(ValueError, match="event sizes must be equal"):
        kljax.kl_divergence(chain, longer)
    shorter = _with(
        blocks,
        kljax.BlockTridiagonalNormal,
        precision_lower_blocks=blocks.precision_lower_blocks[:2],
    )
    with pytest.raises(ValueError, match="T blocks on the diagonal need T - 1 below"):
        kljax.kl_divergence(shorter, shorter)
    with pytest.raises(ValueError, match="one step more than transitions"):
        kljax.log_prob(chain, jnp.zeros((T - 1, D)))
    with pytest.raises(ValueError, match=r"n // 2 \+ 1 = 4"):
        kljax.variance(kljax.CirculantNormal(jnp.zeros(7), covariance_rfft=jnp.ones(7)))
    with pytest.raises(ValueError, match="has no transition_matrix; give one"):
        kljax.kl_divergence(_with(chain, kljax.GaussMarkov, transition_matrix=None), chain)
    both = _with(chain, kljax.GaussMarkov, initial_scale_tril=jnp.eye(D))
    with pytest.raises(ValueError, match="exactly one of initial_covariance, initial_scale"):
        kljax.kl_divergence(both, chain)


# ---- factors --------------------------------------------------------------------------------


def test_no_gradient_above_the_diagonal_of_a_factor():
    """A step along it would make the factor invalid."""
    q, p = (draw("chain by factors", name, dtype=np.float32) for name in "qp")

    def uses(q: Any, p: Any) -> Any:
        drawn = jnp.sum(kljax.sample(q, jax.random.key(0)) ** 2)
        return kljax.kl_divergence(q, p) + drawn + jnp.sum(kljax.covariance(q) ** 2)

    for gradient in jax.jit(jax.grad(uses, (0, 1)))(q, p):
        for factor in (gradient.initial_scale_tril, gradient.transition_scale_tril):
            assert np.any(factor)
            assert not np.any(np.triu(factor, 1))


@pytest.mark.parametrize("family", ["LinearGaussianObservations", "LinearGaussianPosterior"])
@pytest.mark.parametrize(
    "name", ["initial_covariance", "transition_covariance", "emission_covariance"]
)
def test_a_covariance_that_only_its_sum_makes_positive_is_nan(family, name):
    given = {
        "initial_loc": jnp.zeros(1),
        "initial_covariance": jnp.eye(1),
        "transition_matrix": jnp.ones((1, 1, 1)),
        "transition_offset": jnp.zeros((1, 1)),
        "transition_covariance": jnp.ones((1, 1, 1)),
        "emission_matrix": jnp.eye(1),
        "emission_offset": jnp.zeros(1),
        "emission_covariance": 2 * jnp.eye(1),
    }
    if family == "LinearGaussianPosterior":
        given["observations"] = jnp.ones((2, 1))
    make = getattr(kljax, family)
    assert np.isfinite(kljax.entropy(make(**given)))
    bad = make(**(given | {name: -0.5 * given[name]}))
    assert np.isnan(kljax.entropy(bad))
    assert np.isnan(kljax.kl_divergence(bad, kljax.standard_normal(2)))


def test_blocks_that_form_no_precision_are_named():
    x = draw("blocks", "q", dtype=np.float32)
    kljax.check(x)
    bad = kljax.BlockTridiagonalNormal(
        x.loc, x.precision_diagonal_blocks, 100 * x.precision_lower_blocks
    )
    assert np.isnan(kljax.entropy(bad))
    with pytest.raises(ValueError, match="form a positive definite precision matrix"):
        kljax.check(bad)
    both = jax.tree.map(lambda *x: jnp.stack(x), x, bad)
    with pytest.raises(ValueError, match=r"at index \(1,\)"):
        kljax.check(both)
