"""vmap, jit, grad, hessian, donation, sharding, dtypes and pickling of the closed forms."""

from __future__ import annotations

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kljax
import truth
from cases import PARAMETRIZATIONS, draw, rng_for
from checks import gradient_of_definition, hessian_of_definition
from kljax import linalg
from truth import Spread

# What does not depend on the parametrization is shown on one of each kind of structure.
ONE_OF_EACH = pytest.mark.parametrize("which", PARAMETRIZATIONS[0:9:3], ids=str)
PARAMETRIZED = pytest.mark.parametrize("which", PARAMETRIZATIONS, ids=str)


def _pair(which, d=2, **options):
    rng = rng_for("transforms", which)
    return draw(which, rng, d=d, **options), draw(which, rng, d=d, **options)


def _high(q, p):
    return kljax.kl_divergence(q, p, precision="high")


_value_and_gradient = jax.jit(jax.value_and_grad(kljax.kl_divergence))


@ONE_OF_EACH
def test_batch_is_a_loop(which):
    q, p = _pair(which, batch=(2, 3))
    got = kljax.kl_divergence(q, p)
    chex.assert_shape(got, (2, 3))
    one = jax.tree.map(lambda x: x[1, 2], (q, p))
    np.testing.assert_allclose(got[1, 2], kljax.kl_divergence(*one), rtol=3e-7)


@ONE_OF_EACH
def test_batches_broadcast(which):
    (q, _), (_, p) = _pair(which, batch=(4, 1)), _pair(which, batch=(3,))
    got = kljax.kl_divergence(q, p)
    chex.assert_shape(got, (4, 3))
    single = kljax.kl_divergence(
        jax.tree.map(lambda x: x[2, 0], q), jax.tree.map(lambda x: x[1], p)
    )
    np.testing.assert_allclose(got[2, 1], single, rtol=3e-7)
    assert kljax.kl_terms(q, p).dimension.shape == (4, 3)


@ONE_OF_EACH
def test_vmap_over_any_axis(which):
    q, p = _pair(which, batch=(4,))
    want = kljax.kl_divergence(q, p)
    got = jax.vmap(kljax.kl_divergence)(q, p)
    chex.assert_trees_all_close(got, want, rtol=3e-7)

    first = jax.tree.map(lambda x: x[0], p)
    got = jax.vmap(kljax.kl_divergence, in_axes=(0, None))(q, first)
    chex.assert_trees_all_close(got, kljax.kl_divergence(q, first), rtol=3e-7)
    last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), q)
    got = jax.vmap(kljax.kl_divergence, in_axes=(-1, 0))(last, p)
    chex.assert_trees_all_close(got, want, rtol=3e-7)


def test_vmap_over_one_parameter_by_a_record_of_axes():
    q = kljax.Normal(jnp.arange(3.0), 1.0)
    got = jax.vmap(kljax.kl_divergence, in_axes=(kljax.Normal(0, None), None))(
        q, kljax.Normal(0.0, 1.0)
    )
    np.testing.assert_allclose(got, np.arange(3.0) ** 2 / 2)


@ONE_OF_EACH
def test_gradient_is_a_record_like_the_argument(which):
    q, p = _pair(which)
    gradient = jax.grad(kljax.kl_divergence)(q, p)
    assert type(gradient) is which.family
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, q)


@pytest.mark.parametrize("which", PARAMETRIZATIONS[2:9:5] + PARAMETRIZATIONS[6:7], ids=str)
def test_forward_mode_is_reverse_mode(which):
    """Against the definition, as reverse mode is."""
    q, p = _pair(which)
    forward = jax.jit(jax.jacfwd(kljax.kl_divergence, argnums=(0, 1)))(q, p)
    for a, b in zip(
        *map(jax.tree.leaves, (forward, gradient_of_definition(q, p))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_alone_does_not_evaluate_the_value_for_every_number():
    """The divergence of small factors is one long expression, and no matrix repeats it."""
    size = 6
    q = kljax.MultivariateNormal(jnp.zeros((3, size)), jnp.stack([jnp.eye(size)] * 3))
    p = kljax.MultivariateNormal(q.loc + 1, 2 * q.scale_tril)
    program = jax.jit(jax.grad(lambda q, p: jnp.sum(kljax.kl_divergence(q, p)), (0, 1)))
    text = program.lower(q, p).compile().as_text()
    loops = [body for body in text.split("\n\n") if "-> f32[3,6" in body.split("{")[0]]
    assert loops
    assert max(body.count(" multiply(") for body in loops) < 60


def _fisher(which, x) -> dict[str, np.ndarray]:
    """Fisher information of loc and of the spread, flattened, in the textbook's form."""
    loc = np.eye(np.size(x.loc))
    value = np.asarray(getattr(x, which.field), np.float64)
    size = value.size
    match which.field:
        case "scale" | "scale_diag":
            value = value.reshape(-1)
            return {"loc": loc / value**2, "spread": np.diag(2 / value**2)}
        case "variance":
            value = value.reshape(-1)
            return {"loc": loc / value, "spread": np.diag(0.5 / value**2)}
        case "log_variance":
            value = value.reshape(-1)
            return {"loc": loc * np.exp(-value), "spread": 0.5 * np.eye(size)}
        case "scale_tril":
            precision = np.linalg.inv(value @ value.T)
            inverse = np.linalg.inv(value)
            d = len(value)
            # Change dL: relative change X = L^-1 dL, information |X + X^T|^2 / 2.
            basis = [
                np.outer(np.eye(d)[i], np.eye(d)[j]) * (i >= j)
                for i in range(d)
                for j in range(d)
            ]
            changes = [inverse @ b for b in basis]
            symmetric = [c + c.T for c in changes]
            spread = [[0.5 * np.sum(a * b) for b in symmetric] for a in symmetric]
            return {"loc": precision, "spread": np.array(spread)}
        case _:
            inverse = np.linalg.inv(value)
            loc = inverse if which.field == "covariance_matrix" else value
            d = len(value)
            basis = [np.outer(np.eye(d)[i], np.eye(d)[j]) for i in range(d) for j in range(d)]
            basis = [(b + b.T) / 2 for b in basis]
            spread = [[0.5 * np.trace(inverse @ a @ inverse @ b) for b in basis] for a in basis]
            return {"loc": loc, "spread": np.array(spread)}


@PARAMETRIZED
def test_hessian_at_equality_is_the_fisher_information(which, x64):
    p = draw(which, rng_for("fisher", which), d=2, dtype=np.float64)
    hessian = jax.jit(jax.hessian(kljax.kl_divergence))(p, p)
    want = _fisher(which, p)
    d = max(1, np.size(p.loc))
    by_loc = np.asarray(hessian.loc.loc).reshape(d, d)
    by_spread = np.asarray(getattr(getattr(hessian, which.field), which.field))
    size = int(np.sqrt(by_spread.size))
    np.testing.assert_allclose(by_loc, want["loc"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        by_spread.reshape(size, size), want["spread"], rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("which", PARAMETRIZATIONS[2:9:5] + PARAMETRIZATIONS[6:7], ids=str)
def test_hessian_in_float32_and_apart(which):
    """Second order is as good as the value: against the Hessian of the definition."""
    q, p = _pair(which)
    got = jax.jit(jax.hessian(kljax.kl_divergence, argnums=(0, 1)))(q, p)
    want = hessian_of_definition(q, p)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # The definition has noise where a part of the Hessian is 0.
        absolute = 1e-12 + 2e-5 * float(np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=absolute)


@ONE_OF_EACH
def test_high_precision_in_every_mode(which):
    q, p = _pair(which)
    want, by_q = _value_and_gradient(q, p)
    high, high_by_q = jax.jit(jax.value_and_grad(_high))(q, p)
    forward_by_q = jax.jit(jax.jacfwd(_high))(q, p)
    assert _high(q, p).dtype == high.dtype == jnp.float32
    for value in (_high(q, p), high):
        chex.assert_trees_all_close(value, want, rtol=1e-5)
    for gradient in (high_by_q, forward_by_q):
        chex.assert_trees_all_close(gradient, by_q, rtol=1e-4, atol=1e-5)


def test_high_precision_survives_vmap():
    """A batch of float64 parts inside a float32 program is not rounded on the way."""
    which = PARAMETRIZATIONS[7]
    # More rows than an unrolled block has.
    p = draw(which, rng_for("survives", which), batch=(3,), d=linalg.LEAF + 1)
    q = jax.tree.map(lambda x: x * np.float32(1.001), p)
    function = jax.vmap(jax.value_and_grad(_high, argnums=(0, 1)))
    got = jax.tree.leaves(jax.jit(function)(q, p))
    for i in range(3):
        (q_loc, q_spread), (p_loc, p_spread) = (
            (np.asarray(x.loc[i]), Spread(which.field, np.asarray(x.covariance_matrix[i])))
            for x in (q, p)
        )
        want = truth.gaussian(q_loc, q_spread, p_loc, p_spread)
        by_p = want.grad_p_dispersion + want.grad_p_location
        exact = (want.kl, want.grad_loc, want.grad_q, -want.grad_loc, by_p)
        for a, b in zip(got, exact, strict=True):
            np.testing.assert_allclose(a[i], np.asarray(b, np.float64), rtol=2e-7)


def test_high_precision_hessian_and_batches():
    q, p = _pair(PARAMETRIZATIONS[3])
    got, want = (jax.jit(jax.hessian(f))(q, p) for f in (_high, kljax.kl_divergence))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), q)
    chex.assert_trees_all_close(_high(batch, p), kljax.kl_divergence(batch, p), rtol=1e-5)


def test_jit_with_donated_inputs():
    q, p = _pair(PARAMETRIZATIONS[3], batch=(8,))
    want = kljax.kl_divergence(q, p)

    def step(q, p):
        gradient = jax.grad(lambda q: kljax.kl_divergence(q, p).sum())(q)
        return jax.tree.map(lambda x, g: x - 0.1 * g, q, gradient)

    moved = jax.jit(step, donate_argnums=0)(q, p)
    assert float(kljax.kl_divergence(moved, p).sum()) < float(want.sum())


@pytest.mark.parametrize("which", PARAMETRIZATIONS[3:9:3], ids=str)
def test_sharded_inputs(which):
    mesh = Mesh(np.array(jax.devices()), ("pairs",))
    q, p = _pair(which, batch=(8,))
    want = kljax.kl_divergence(q, p)
    sharding = NamedSharding(mesh, PartitionSpec("pairs"))
    q, p = jax.device_put((q, p), sharding)
    got = jax.jit(kljax.kl_divergence)(q, p)
    assert len(got.sharding.device_set) == jax.device_count() > 1
    chex.assert_trees_all_close(got, want, rtol=3e-7)


@ONE_OF_EACH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_half_precision_is_accumulated_in_float32(which, dtype):
    q, p = _pair(which)
    q, p = jax.tree.map(lambda x: x.astype(dtype), (q, p))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (q, p))
    got, gradient = _value_and_gradient(q, p)
    assert got.dtype == jnp.float32
    chex.assert_trees_all_equal(got, _value_and_gradient(*wide)[0])
    assert all(x.dtype == dtype for x in jax.tree.leaves(gradient))


def test_float64_where_it_is_enabled(x64):
    q, p = kljax.Normal(jnp.float64(0), 1.0), kljax.Normal(jnp.float32(1), 2.0)
    assert kljax.kl_divergence(q, p).dtype == jnp.float64
    near = kljax.Normal(0.0, 1 + 1e-9)
    np.testing.assert_allclose(
        kljax.kl_divergence(near, kljax.Normal(0.0, 1.0)), (near.scale - 1) ** 2, rtol=1e-8
    )


def test_numbers_lists_and_integers_are_promoted():
    for q, p in (
        (kljax.Normal(0.0, 1.0), kljax.Normal(1.0, 2.0)),
        (kljax.Normal(0, 1), kljax.Normal(1, 2)),
        (kljax.Normal(np.int8(0), np.int32(1)), kljax.Normal(np.float64(1), 2)),
        (kljax.Normal([0, 0], [1.0, 1]), kljax.Normal(1, 2)),
    ):
        got = kljax.kl_divergence(q, p)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, np.log(2) + 2 / 8 - 0.5, rtol=1e-6)


@PARAMETRIZED
def test_records_are_pytrees_that_pickle(which):
    q, _ = _pair(which)
    leaves, structure = jax.tree.flatten(q)
    assert len(leaves) == 2
    again = pickle.loads(pickle.dumps(q))
    chex.assert_trees_all_equal(again, q)
    assert jax.tree.structure(again) == structure
    with pytest.raises(AttributeError):
        q.loc = 0
    assert repr(q).startswith(which.family.__name__ + "(loc=")
    assert "None" not in repr(q)


def test_jit_never_takes_one_family_for_another():
    """Families with the same fields have different structures, whatever their hashes are."""
    first = jax.tree.structure(kljax.Normal(loc=0.0, scale=1.0))
    assert first != jax.tree.structure(kljax.MultivariateNormalDiag(loc=0.0, scale_diag=1.0))

    def family(number):
        field = kljax.param("")
        body = {"__annotations__": {"loc": float}, "loc": field, "number": number}
        return kljax.record(type(f"Family{number}", (), body))

    number = jax.jit(lambda x: x.loc * 0 + type(x).number)
    # Many, since unequal structures meet in one bucket of a cache only now and then.
    families = [family(i) for i in range(40)]
    assert [int(number(one(loc=0.0))) for one in families] == list(range(40))


def test_empty_batches_and_empty_events():
    @jax.jit
    def everything(q, p):
        gradient = jax.grad(lambda q, p: kljax.kl_divergence(q, p).sum())(q, p)
        return kljax.kl_divergence(q, p), gradient, kljax.kl_terms(q, p)

    for which in PARAMETRIZATIONS[0:9:3]:
        q, p = _pair(which, batch=(0,))
        kl, gradient, _ = everything(q, p)
        assert kl.shape == (0,)
        chex.assert_trees_all_equal_shapes(gradient, q)
    for which in PARAMETRIZATIONS[3:]:
        q, p = _pair(which, d=0)
        kl, gradient, terms = everything(q, p)
        assert all(float(x) == 0 for x in jax.tree.leaves((kl, terms)))
        chex.assert_trees_all_equal_shapes(gradient, q)


@ONE_OF_EACH
def test_debug_flags_find_nothing_on_valid_input(which):
    q, p = _pair(which)
    with jax.debug_nans(True), jax.debug_infs(True):
        jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))(q, p)
        jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))(p, p)
