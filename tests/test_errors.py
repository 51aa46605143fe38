"""Bad input: every case and the sentence that it gets; nan where only a value is wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import kljax
from kljax import MultivariateNormal, MultivariateNormalDiag, Normal
from kljax.constraints import CONSTRAINTS

ONES, EYE = jnp.ones(3), jnp.eye(3)
PRIOR = kljax.standard_normal(3)

# Structure, shapes and dtypes: the same sentence eager and under jit.
SENTENCES = {
    "event sizes differ": (
        lambda: (MultivariateNormalDiag(ONES[:2], ONES[:2]), PRIOR),
        ValueError,
        r"p\.loc has event size 3 .* but q\.loc has event size 2 .*never broadcast",
    ),
    "event size 1 is not broadcast": (
        lambda: (MultivariateNormalDiag(ONES[:1], ONES[:1]), PRIOR),
        ValueError,
        r"p\.loc has event size 3 .* but q\.loc has event size 1",
    ),
    "loc and scale of different size": (
        lambda: (MultivariateNormalDiag(ONES[:1], ONES), PRIOR),
        ValueError,
        r"q\.scale_diag has event size 3 .* but q\.loc has event size 1",
    ),
    "full against diagonal of different size": (
        lambda: (MultivariateNormal(ONES[:2], EYE[:2, :2]), PRIOR),
        ValueError,
        r"p\.loc has event size 3 .* but q\.loc has event size 2",
    ),
    "missing parametrization": (
        lambda: (MultivariateNormalDiag(ONES), PRIOR),
        ValueError,
        "Diag q needs exactly one of scale_diag, log_variance, variance; got none of them",
    ),
    "doubled parametrization": (
        lambda: (MultivariateNormalDiag(ONES, ONES, variance=ONES), PRIOR),
        ValueError,
        "needs exactly one of .*; got scale_diag and variance",
    ),
    "missing loc": (
        lambda: (Normal(None, 1.0), Normal(0.0, 1.0)),
        ValueError,
        "Normal q has no loc; give one",
    ),
    "not square": (
        lambda: (MultivariateNormal(ONES, jnp.ones((2, 3))), PRIOR),
        ValueError,
        r"q\.scale_tril has shape \(2, 3\); its last two axes must form a square matrix",
    ),
    "vector for a matrix": (
        lambda: (MultivariateNormal(ONES, covariance_matrix=ONES), PRIOR),
        ValueError,
        r"q\.covariance_matrix has shape \(3,\); it needs at least 2 axes, \(d, d\) last",
    ),
    "scalar for a vector": (
        lambda: (MultivariateNormalDiag(ONES, 1.0), PRIOR),
        ValueError,
        r"q\.scale_diag has shape \(\); it needs at least 1 axis, \(d,\) last",
    ),
    "batches do not broadcast": (
        lambda: (Normal(ONES, 1.0), Normal(jnp.ones(4), 1.0)),
        ValueError,
        r"batch shapes do not broadcast together: q\.loc \(3,\), .* p\.loc \(4,\)",
    ),
    "unknown pair": (
        lambda: (Normal(0.0, 1.0), PRIOR),
        TypeError,
        r"no closed form is registered for KL\(Normal ‖ MultivariateNormalDiag\); Normal has "
        r"one against Normal\. Add one with @kljax\.register_kl",
    ),
    "an array for a distribution": (
        lambda: (ONES, PRIOR),
        TypeError,
        r"kl_divergence needs two distributions, q first; q is an array of shape \(3,\)",
    ),
    "a class for a distribution": (
        lambda: (PRIOR, Normal),
        TypeError,
        r"p is the class Normal \(call it with its parameters\)",
    ),
    "bool": (
        lambda: (Normal(True, 1.0), Normal(0.0, 1.0)),
        TypeError,
        r"q\.loc has dtype bool; parameters are real numbers",
    ),
    "complex": (
        lambda: (Normal(1j, 1.0), Normal(0.0, 1.0)),
        TypeError,
        r"q\.loc has dtype complex64; parameters are real numbers",
    ),
    "text": (
        lambda: (Normal("0", 1.0), Normal(0.0, 1.0)),
        TypeError,
        r"q\.loc must be a number or an array of numbers; got a str",
    ),
}

# Values: nan from the divergence and its gradient, a sentence from check.
INVALID = {
    "negative scale": (Normal(0.0, -1.0), r"Normal\.scale must be positive and finite; got -1"),
    "zero scale": (Normal(0.0, 0.0), r"Normal\.scale must be positive"),
    "negative variance": (Normal(0.0, variance=-1.0), r"Normal\.variance must be positive"),
    "nan loc": (Normal(np.nan, 1.0), r"Normal\.loc must be finite; got nan"),
    "nan scale": (Normal(0.0, np.nan), r"Normal\.scale must be positive and finite; got nan"),
    "nan log-variance": (
        Normal(0.0, log_variance=np.nan),
        r"Normal\.log_variance must be finite",
    ),
    "not lower triangular": (
        MultivariateNormal(ONES, jnp.ones((3, 3))),
        r"MultivariateNormal\.scale_tril must be finite and lower triangular",
    ),
    "negative diagonal": (
        MultivariateNormal(ONES, -EYE),
        r"scale_tril must be .* positive diagonal",
    ),
    "not positive definite": (
        MultivariateNormal(ONES, covariance_matrix=jnp.diag(jnp.array([1.0, -1, 1]))),
        r"covariance_matrix must be finite, symmetric and positive definite",
    ),
    "singular": (
        MultivariateNormal(ONES, covariance_matrix=jnp.ones((3, 3))),
        r"covariance_matrix must be .* positive definite",
    ),
    "precision not positive definite": (
        MultivariateNormal(ONES, precision_matrix=-EYE),
        r"precision_matrix must be .* positive definite",
    ),
    "not symmetric": (
        MultivariateNormal(ONES, covariance_matrix=EYE + 0.1 * jnp.triu(jnp.ones((3, 3)), 1)),
        r"covariance_matrix must be finite, symmetric",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("function", [kljax.kl_divergence, kljax.kl_terms, kljax.cross_entropy])
def test_sentence(name, function):
    make, kind, pattern = SENTENCES[name]
    if "kl_divergence" in pattern:
        pattern = pattern.replace("kl_divergence", function.__name__)
    with pytest.raises(kind, match=pattern) as eager:
        function(*make())
    assert "\n" not in str(eager.value)
    with pytest.raises(kind, match=pattern):
        jax.jit(lambda: function(*make()))()


def _valid(like):
    """A valid distribution of the same structure, for which the same programs are right."""
    ((field, _),) = ((k, v) for k, v in vars(like).items() if k != "loc" and v is not None)
    if isinstance(like, Normal):
        return Normal(0.0, **{field: 1.0})
    return MultivariateNormal(ONES, **{field: EYE})


_value_and_gradients = jax.jit(jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1)))


def _assert_nan(q, p):
    value, gradients = _value_and_gradients(q, p)
    assert np.isnan(value)
    assert all(np.any(np.isnan(x)) for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_value_gives_nan(name):
    bad, _ = INVALID[name]
    _assert_nan(bad, _valid(bad))
    _assert_nan(_valid(bad), bad)
    _assert_nan(bad, bad)


@pytest.mark.parametrize("name", ["not lower triangular", "not symmetric"])
def test_invalid_value_beside_another_structure_gives_nan(name):
    bad, _ = INVALID[name]
    _assert_nan(bad, PRIOR)
    _assert_nan(PRIOR, bad)


def test_no_other_parametrization_takes_a_covariance_that_is_none():
    q = kljax.MultivariateNormal(jnp.zeros(2), covariance_matrix=jnp.array([[1.0, 2], [2, 1]]))
    for p in (
        kljax.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        kljax.MultivariateNormal(jnp.zeros(2), precision_matrix=jnp.eye(2)),
        kljax.standard_normal(2),
        kljax.LowRankMultivariateNormal(jnp.zeros(2), jnp.zeros((2, 1)), jnp.ones(2)),
    ):
        assert np.isnan(kljax.kl_divergence(q, p))
        assert np.isnan(kljax.kl_terms(q, p).log_det)


def test_the_log_det_of_an_invalid_scale_is_nan():
    for name in ("scale", "variance", "log_variance"):
        q = kljax.Normal(0.0, **{name: jnp.nan})
        assert np.isnan(kljax.kl_terms(q, kljax.Normal(0.0, 1.0)).log_det)


@pytest.mark.parametrize("size", [3, 16, 64, 65])
@pytest.mark.parametrize("entry", [2.0**-126, -1.0, 3e38, np.inf, np.nan])
def test_any_entry_above_the_diagonal_is_invalid(size, entry):
    good = np.tril(np.full((size, size), 2.0**100, np.float32))
    bad = good.copy()
    bad[size - 2, size - 1] = entry
    test = CONSTRAINTS["lower_triangular"].invalid
    assert test is not None
    np.testing.assert_array_equal(jax.jit(jax.vmap(test))(np.stack([good, bad])), [False, True])


def test_only_the_invalid_entry_of_a_batch_is_nan():
    q = Normal(0.0, jnp.array([1.0, -1.0, 2.0]))
    got = kljax.kl_divergence(q, Normal(0.0, 1.0))
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


@pytest.mark.parametrize("name", INVALID)
def test_check_says_what_is_wrong(name):
    bad, pattern = INVALID[name]
    with pytest.raises(ValueError, match=pattern) as raised:
        kljax.check(_valid(bad), bad)
    assert "\n" not in str(raised.value)


@jax.jit
@checkify.checkify
@jax.jit
def _checked(q):
    kljax.check(q)
    return kljax.kl_divergence(q, q)


@pytest.mark.parametrize("name", INVALID)
def test_check_under_checkify(name):
    bad, pattern = INVALID[name]
    error, value = _checked(bad)
    with pytest.raises(checkify.JaxRuntimeError, match=pattern.split("; got")[0]):
        error.throw()
    assert np.isnan(value)
    error, value = _checked(_valid(bad))
    error.throw()
    assert value == 0


def test_check_names_the_entry_of_a_batch():
    with pytest.raises(ValueError, match=r"got -1\. at index \(1,\)"):
        kljax.check(Normal(0.0, jnp.array([1.0, -1.0])))
    kljax.check(PRIOR, Normal(0.0, jnp.ones(2)))


def test_other_functions_refuse_with_a_sentence():
    with pytest.raises(TypeError, match="Normal has no covariance; it has log_prob, sample"):
        kljax.covariance(Normal(0.0, 1.0))
    with pytest.raises(TypeError, match="entropy needs a distribution; got an array"):
        kljax.entropy(ONES)
    with pytest.raises(TypeError, match=r"check needs distributions; got a float"):
        kljax.check(1.0)
    with pytest.raises(ValueError, match="x has event size 2"):
        kljax.log_prob(PRIOR, ONES[:2])
    with pytest.raises(ValueError, match="precision must be 'default' or 'high'; got 'low'"):
        kljax.kl_divergence(PRIOR, PRIOR, precision="low")  # pyright: ignore


def test_registration_refuses_what_it_cannot_keep():
    with pytest.raises(ValueError, match=r"KL\(Normal ‖ Normal\) is registered already"):
        kljax.register_kl(Normal, Normal)
    with pytest.raises(TypeError, match=r"needs classes made by kljax\.record"):
        kljax.register_kl(int, Normal)
    with pytest.raises(ValueError, match="Normal is registered already"):
        kljax.register_distribution(Normal)
    with pytest.raises(ValueError, match="constraint='small'; it must be one of real"):
        kljax.param(constraint="small")
