"""The derivations: what they claim, who sees a mistake in them, and on what they stand."""

from __future__ import annotations

import os
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax
from kljax.derivations import anchors, expectation, get, kill_table, museum, rules, verify
from kljax.derivations.catalogue import NAMES
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, Reading, normal
from kljax.derivations.expression import log
from kljax.derivations.parameters import Parameter, positive, real
from kljax.derivations.precision import digits_lost
from kljax.derivations.rules import Rule
from kljax.derivations.series import Series
from kljax.derivations.verify import TOLERANCE, Z_LIMIT, Trees, by_jax, mixed
from kljax.families.gaussian_mixes import densely

# The rest is verified by `kljax verify`, which compiles every line.
VERIFIED = NAMES if os.environ.get("KLJAX_FULL") else ("univariate", "vae")


@pytest.mark.parametrize("name", VERIFIED)
def test_catalogue_is_verified(name):
    report = verify(get(name))
    assert report.ok, report.failures
    assert report.worst("value") <= TOLERANCE["value"]
    assert report.worst("gradient") <= TOLERANCE["gradient"]
    assert report.worst("hessian") <= TOLERANCE["Hessian"]
    assert report.worst("z") <= Z_LIMIT
    for line, step in zip(report.lines, report.derivation.steps, strict=True):
        # A line with all bits of the one before would be the same computation.
        alone = step.rule is None or step.relation != "=" or step.rule is rules.root
        assert alone or line.same_bits < 1, (name, step.number)


@pytest.mark.parametrize("name", NAMES)
def test_no_mistake_survives(name):
    table = kill_table(get(name), library=bool(os.environ.get("KLJAX_FULL")))
    assert not table.unsound, "a line differs from the one beside it"
    assert not table.survivors, table.survivors[:5]
    kinds = table.by_kind()
    assert len(table.fates) > 50 or name in ("structures", "mixes")
    # Each check is worth having: it sees mistakes, and no check alone sees all.
    seen = Counter(check for fate in table.fates for check in fate.seen_by)
    assert seen["value"] < len(table.fates)
    assert seen["Hessian"] > 0
    assert {"factor 1 % off", "stop_gradient", "wrong second-order rule"} <= set(kinds)


def test_there_are_many_kinds_of_mistakes():
    kinds = set(kill_table(get("full"), library=False).by_kind())
    kinds |= set(kill_table(get("vae"), library=False).by_kind())
    kinds |= set(kill_table(get("univariate"), library=False).by_kind())
    assert len(kinds) >= 17, sorted(kinds)


@pytest.mark.parametrize("rule", rules.catalogue().values(), ids=lambda rule: rule.name)
def test_rule_holds(rule):
    assert rule.error() <= 1e-9
    assert rule.statement.endswith(".")
    assert rule.source


def test_anchors_hold():
    for anchor in anchors.check():
        assert anchor.ok, anchor


def test_every_mistake_of_the_museum_is_seen():
    sightings = museum.visit()
    assert len(sightings) == 19
    for sighting in sightings:
        assert sighting.seen_by & set(museum.CHECKS), sighting.mistake.name
    # What people check instead misses some of them.
    for check in museum.WEAK_CHECKS:
        assert not all(check in s.seen_by for s in sightings), check
    by_name = {s.mistake.name: s.seen_by for s in sightings}
    assert by_name["stop_gradient on the variance"] == {"gradient", "Hessian"}
    assert "gradient" not in by_name["−1/2 forgotten"]


def test_the_mistakes_of_the_museum_belong_to_derivations():
    shown = {mistake for name in NAMES for mistake in get(name).mistakes}
    # Each name exists, and nothing in the museum is without a derivation.
    assert shown == {mistake.name for mistake in museum.MISTAKES}
    with pytest.raises(ValueError, match="no mistake 'xyz'"):
        museum.get("xyz")


@pytest.mark.parametrize(
    ("name", "log_ratio"),
    [
        ("k in front of the log-determinant", np.log(3)),
        ("(log σ)² and a sign", -2 * 0.42630275),
        ("variance ratio squared in the trace", -np.log(2) / 2),
        ("1/2 on the first term only", np.log(2)),
    ],
)
def test_where_a_wrong_formula_comes_to_rest(name, log_ratio):
    """The sentences on the variance that a mistake trains to."""

    def variance_term(x):
        z = jnp.zeros(3)
        t = SimpleNamespace(mu=z, sigma=jnp.exp(x / 2) * jnp.ones(3), nu=z, tau=jnp.ones(3))
        return museum.get(name).formula(t)

    assert abs(jax.grad(variance_term)(log_ratio)) < 1e-5


def test_every_closed_form_has_a_derivation():
    derived = {form for name in NAMES for form in get(name).ends_in}
    registered = {
        (form.q.__name__, form.p.__name__)
        for form in kljax.closed_forms()
        if form.q.__module__.startswith("kljax.")
    }
    # The rule of a dense mix is that of two matrices. Each family's matrix is derived on both
    # sides of it, beside the full one.
    full = "MultivariateNormal"
    by_its_matrix = {
        family
        for family, _ in registered
        if family == full or {(family, full), (full, family)} <= derived
    }
    dense = {
        (form.q.__name__, form.p.__name__)
        for form in kljax.closed_forms()
        if form.kl is densely and {form.q.__name__, form.p.__name__} <= by_its_matrix
    }
    assert registered - dense <= derived
    assert {type(form) for form in derived} == {get("full").ends_in[0].__class__}


# ---- no check compares code with itself ------------------------------------------------------


def _short() -> Derivation:
    """The univariate derivation in three lines."""
    d = Derivation(
        name="short",
        title="Two normal laws",
        question="How far is q from p?",
        parameters={
            "mu": real("μ", "mean of q"),
            "sigma": positive("σ", "standard deviation of q"),
            "nu": real("ν", "mean of p"),
            "tau": positive("τ", "standard deviation of p"),
        },
        partners={"mu": "nu", "sigma": "tau"},
        law=lambda t: normal(t.mu, t.sigma),
        generic=4,
    )

    @d.start("KL(q‖p)")
    def _(E, t):
        q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
        return E(lambda x: q.log_density(x) - p.log_density(x))

    @d.step(rules.log_ratio, route=SIGMA)
    def _(E, t):
        squares = E(lambda x: (x - t.nu) ** 2 / t.tau**2 - (x - t.mu) ** 2 / t.sigma**2)
        return log(t.tau / t.sigma) + squares / 2

    @d.step(rules.one_coordinate)
    def _(E, t):
        second = t.sigma**2 + (t.mu - t.nu) ** 2
        return log(t.tau / t.sigma) - 1 / 2 + second / (2 * t.tau**2)

    return d


def _failed_checks(d: Derivation) -> set[tuple[int, str]]:
    return {(f.step, f.check) for f in verify(d).failures}


def test_a_right_derivation_passes():
    assert verify(_short()).ok


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, loc, variance: -((x - loc) ** 2) / variance - log(variance) / 2,
        lambda x, loc, variance: -((x + loc) ** 2) / (2 * variance) - log(variance) / 2,
        lambda x, loc, variance: -((x - loc) ** 2) / (2 * variance**2) - log(variance) / 2,
    ],
    ids=["half lost", "x + m", "variance squared"],
)
def test_a_wrong_shared_density_turns_the_derivation_and_the_anchors_red(wrong, monkeypatch):
    density = expectation.log_normal
    monkeypatch.setitem(density.__dict__, "compute", wrong)
    assert not all(anchor.ok for anchor in anchors.check())
    assert (1, "value") in _failed_checks(_short())


def test_a_wrong_library_turns_the_catalogue_red(monkeypatch):
    right = kljax.kl_divergence
    line = get("univariate").steps[-1]
    trees = Trees(get("univariate"))
    _, thetas = get("univariate").points(3)
    with jax.enable_x64(True):
        good = by_jax(trees, line, thetas)
        monkeypatch.setattr(kljax, "kl_divergence", lambda q, p: right(p, q))
        shipped = trees.lines[-1].op.compute
        monkeypatch.setattr(shipped, "_compiled", {})
        bad = by_jax(trees, line, thetas)
    assert np.max(np.abs(good.value - bad.value)) > 1e-2


def test_a_false_rule_turns_the_derivation_red():
    d = _short()
    step = d.steps[1]
    false = Rule("false", "2 = 3.", "algebra", "nowhere", lambda _: (2.0, 3.0))
    d.steps[1] = type(step)(**{**vars(step), "rule": false})
    assert (1, "rule") in _failed_checks(d)


def test_a_bound_the_wrong_way_round_is_seen():
    d = _short()

    @d.bound(rules.phi_nonnegative)
    def _(E, t):
        return 1 + log(t.tau / t.sigma) + (t.sigma**2 + (t.mu - t.nu) ** 2) / (2 * t.tau**2)

    assert (3, "bound") in _failed_checks(d)


def test_series_are_a_second_autodiff():
    d = get("full")
    trees = Trees(d)
    step = d.steps[7]
    _, thetas = d.points(3)
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(2, *thetas.shape))
    with jax.enable_x64(True):
        by_compiler = by_jax(trees, step, thetas)
    value, first, second, both = mixed(
        Reading(trees.series(thetas, [u, v]), step.route)(trees.lines[7]), 2
    )
    np.testing.assert_allclose(value, by_compiler.value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(first, np.sum(by_compiler.gradient * u, 1), 1e-9, 1e-9)
    np.testing.assert_allclose(second, np.sum(by_compiler.gradient * v, 1), 1e-9, 1e-9)
    curved = np.einsum("bi,bij,bj->b", u, by_compiler.hessian, v)
    np.testing.assert_allclose(both, curved, 1e-9, 1e-9)


def test_series_follow_the_rules_of_calculus():
    parts = np.zeros((4, 1))
    parts[:, 0] = 0.7, 1.0, 1.0, 0.0
    x = Series(parts, 0)
    np.testing.assert_allclose(
        x.sin().parts[:, 0], [np.sin(0.7), np.cos(0.7)] * 1 + [np.cos(0.7), -np.sin(0.7)]
    )
    np.testing.assert_allclose((x**3).parts[:, 0], [0.343, 3 * 0.49, 3 * 0.49, 6 * 0.7])
    np.testing.assert_allclose((x.exp().log() - x).parts, 0, atol=1e-15)


def test_equal_lines_are_not_equal_programs():
    lost = {loss.step: loss for loss in digits_lost(get("univariate"))}
    textbook, by_log_ratio, library = lost[6], lost[7], lost[8]
    assert max(library.digits) < 1
    assert not library.negative
    assert textbook.negative
    assert max(textbook.digits) > 7
    assert min(textbook.digits[2:]) > 5
    # A digit lost for every factor of ten that q is nearer to p.
    assert by_log_ratio.digits[-1] - by_log_ratio.digits[0] > 3


# ---- bad input ------------------------------------------------------------------------------


def test_a_name_that_is_almost_right_is_suggested():
    with pytest.raises(
        ValueError, match=r"no derivation 'univarate'; did you mean 'univariate'\?"
    ):
        get("univarate")
    with pytest.raises(ValueError, match="there are univariate, "):
        get("xyz")


def test_a_derivation_without_steps():
    d = _short()
    d.steps.clear()
    with pytest.raises(ValueError, match="'short' has no steps; begin with @short"):
        verify(d)


def test_a_step_whose_shape_disagrees():
    d = _short()

    @d.step(rules.rearrange)
    def _(E, t):
        return jnp.ones(2) * log(t.tau)

    with pytest.raises(
        ValueError, match=r"lines 2 and 3 of 'short' have the shapes \(2,\) and"
    ):
        verify(d)


def test_a_domain_outside_of_the_formula():
    d = _short()
    d.parameters["sigma"] = Parameter("σ", "standard deviation of q", 1, lambda x: x[0])
    with pytest.raises(ValueError, match="of 'short' is not finite at the point 'generic"):
        verify(d)
