"""A hidden state and what is seen of it: jointly, alone, and given what was seen."""

import jax.numpy as jnp

from kljax import (
    GaussMarkov,
    LinearGaussianObservations,
    LinearGaussianPosterior,
    LinearGaussianStateSpace,
)
from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form, Same
from kljax.derivations.expectation import SIGMA, gaussian, log_normal, normal_by_variance
from kljax.derivations.expression import log, stack
from kljax.derivations.library import MVN, kl, of_numbers
from kljax.derivations.parameters import positive, real

# One state: the transitions of a longer path are the subject of `markov`.
_NO_STEPS = {
    "transition_matrix": jnp.zeros((0, 1, 1)),
    "transition_offset": jnp.zeros((0, 1)),
    "transition_covariance": jnp.zeros((0, 1, 1)),
}
JOINT = of_numbers(LinearGaussianStateSpace, **_NO_STEPS)
SEEN = of_numbers(LinearGaussianObservations, **_NO_STEPS)
POSTERIOR = of_numbers(LinearGaussianPosterior, **_NO_STEPS)
PRIOR = of_numbers(GaussMarkov, **_NO_STEPS)

# Parts of the mean and the variance of a law inside its own density.
_SEEN = ("h μ", "h² v + w", "h² v", "h²")
_PRECISION = "1/v + h²/w"
_GIVEN = (
    f"(μ/v + h ν/w)/({_PRECISION})",
    "μ/v + h ν/w",
    "μ/v",
    "h ν/w",
    "h ν",
    _PRECISION,
    "1/v",
    "h²/w",
    "h²",
    f"1/({_PRECISION})",
)

d = Derivation(
    name="state_space",
    title="A hidden state and what is seen of it",
    question=(
        "How far apart are two models of a hidden state x and an observation y, how far their "
        "observations alone, and what does an observation teach about the state?"
    ),
    parameters={
        "mu": real("μ", "mean of the state under q"),
        "v": positive("v", "variance of the state under q"),
        "h": real("h", "how the observation sees the state, under q"),
        "w": positive("w", "variance of the observation given the state, under q"),
        "nu": real("ν", "mean of the state under p"),
        "s": positive("s", "variance of the state under p"),
        "k": real("k", "how the observation sees the state, under p"),
        "r": positive("r", "variance of the observation given the state, under p"),
    },
    partners={"mu": "nu", "v": "s", "h": "k", "w": "r"},
    law=lambda t: gaussian(*_both(t.mu, t.v, t.h, t.w)),
    ends_in=(
        Form("LinearGaussianStateSpace", "LinearGaussianStateSpace"),
        Form("LinearGaussianObservations", "LinearGaussianObservations"),
        Form("LinearGaussianPosterior", "GaussMarkov"),
        *(
            Form(*pair)
            for one in ("StateSpace", "Observations", "Posterior")
            for pair in (
                (f"LinearGaussian{one}", "MultivariateNormal"),
                ("MultivariateNormal", f"LinearGaussian{one}"),
            )
        ),
    ),
    same=(
        *(
            Same(step, "((v, h v), (h v, h h v + w))", where, "It is symmetric.", "transpose")
            for step, where in ((0, ""), (1, "the law of E_q"))
        ),
        Same(0, "((s, k s), (k s, k k s + r))", "", "It is symmetric.", "transpose"),
        *(
            Same(step, "h v", "the law of E_q", "The factor reads the lower triangle alone.")
            for step in (0, 1)
        ),
        *(
            Same(step, was, "E_q", "The score of a law has mean 0 under it, so nothing bends.")
            for step, parts in ((7, _SEEN), (12, _GIVEN))
            for was in parts
        ),
    ),
    generic=6,
    far=5.0,
    answer=(
        "Jointly by the divergence of the states and the mean divergence of the emissions. The "
        "observations alone are never easier to tell apart. The posterior is normal, and its "
        "divergence from the prior is what an ELBO pays."
    ),
)


def _both(mean, variance, slope, noise):
    """Mean and covariance of state and observation."""
    cross = slope * variance
    covariance = stack(stack(variance, cross), stack(cross, slope * cross + noise))
    return stack(mean, slope * mean), covariance


@d.start("KL of state and observation")
def _(E, t):
    q, p = gaussian(*_both(t.mu, t.v, t.h, t.w)), gaussian(*_both(t.nu, t.s, t.k, t.r))
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.conditional)
def _(E, t):
    def ratio(x, y):
        state = log_normal(x, t.mu, t.v) - log_normal(x, t.nu, t.s)
        return state + (log_normal(y, t.h * x, t.w) - log_normal(y, t.k * x, t.r))

    return E(lambda x: ratio(x[0], x[1]))


@d.step(rules.tower, note="The divergence of the states, and that of the emissions.")
def _(E, t):
    def emission(x):
        return textbook.by_variance(t.h * x, t.w, t.k * x, t.r)

    q = normal_by_variance(t.mu, t.v, "q_x")
    first = E(lambda x: log_normal(x, t.mu, t.v) - log_normal(x, t.nu, t.s), q)
    return first + E(emission, q)


@d.step(rules.one_coordinate)
def _(E, t):
    square = (t.h - t.k) ** 2 * (t.v + t.mu**2)
    emission = (log(t.r / t.w) - 1 + (t.w + square) / t.r) / 2
    return textbook.by_variance(t.mu, t.v, t.nu, t.s) + emission


def _model(mean, variance, slope, noise):
    return {
        "initial_loc": mean,
        "initial_covariance": variance,
        "emission_matrix": slope,
        "emission_offset": 0 * mean,
        "emission_covariance": noise,
    }


@d.shipped(rules.shipped)
def _(E, t):
    return kl(JOINT, _model(t.mu, t.v, t.h, t.w), _model(t.nu, t.s, t.k, t.r))


def _full(mean, covariance):
    return {"loc": mean, "covariance_matrix": covariance}


def _of_one(mean, variance):
    return _full(stack(mean), stack(stack(variance)))


@d.shipped(rules.shipped, note="State and observation are the two numbers of a vector.")
def _(E, t):
    p = _full(*_both(t.nu, t.s, t.k, t.r))
    return kl((JOINT, MVN), _model(t.mu, t.v, t.h, t.w), p)


@d.shipped(rules.shipped)
def _(E, t):
    q = _full(*_both(t.mu, t.v, t.h, t.w))
    return kl((MVN, JOINT), q, _model(t.nu, t.s, t.k, t.r))


@d.bound(rules.data_processing, note="Of the observation alone.")
def _(E, t):
    seen_q = t.h * t.mu, t.h**2 * t.v + t.w
    seen_p = t.k * t.nu, t.k**2 * t.s + t.r
    q = normal_by_variance(*seen_q, "q_y")
    return E(lambda y: log_normal(y, *seen_q) - log_normal(y, *seen_p), q)


@d.step(rules.one_coordinate)
def _(E, t):
    seen_q = t.h * t.mu, t.h**2 * t.v + t.w
    return textbook.by_variance(*seen_q, t.k * t.nu, t.k**2 * t.s + t.r)


@d.shipped(rules.shipped)
def _(E, t):
    return kl(SEEN, _model(t.mu, t.v, t.h, t.w), _model(t.nu, t.s, t.k, t.r))


@d.shipped(rules.shipped)
def _(E, t):
    p = _of_one(t.k * t.nu, t.k**2 * t.s + t.r)
    return kl((SEEN, MVN), _model(t.mu, t.v, t.h, t.w), p)


@d.shipped(rules.shipped)
def _(E, t):
    q = _of_one(t.h * t.mu, t.h**2 * t.v + t.w)
    return kl((MVN, SEEN), q, _model(t.nu, t.s, t.k, t.r))


def _posterior(t):
    """Mean and variance of the state given that ν was observed, under q."""
    precision = 1 / t.v + t.h**2 / t.w
    return (t.mu / t.v + t.h * t.nu / t.w) / precision, 1 / precision


@d.start("KL of the state given y = ν from what was believed before")
def _(E, t):
    mean, variance = _posterior(t)
    after = normal_by_variance(mean, variance, "q_x|y")
    return E(lambda x: log_normal(x, mean, variance) - log_normal(x, t.mu, t.v), after)


@d.step(rules.one_coordinate, route=SIGMA)
def _(E, t):
    mean, variance = _posterior(t)
    return textbook.by_variance(mean, variance, t.mu, t.v)


@d.shipped(rules.shipped)
def _(E, t):
    q = {**_model(t.mu, t.v, t.h, t.w), "observations": t.nu}
    return kl((POSTERIOR, PRIOR), q, {"initial_loc": t.mu, "initial_covariance": t.v})


@d.shipped(rules.shipped)
def _(E, t):
    q = {**_model(t.mu, t.v, t.h, t.w), "observations": t.nu}
    return kl((POSTERIOR, MVN), q, _of_one(t.mu, t.v))


@d.start("KL of what was believed before from the state given y = ν")
def _(E, t):
    mean, variance = _posterior(t)
    before = normal_by_variance(t.mu, t.v, "q_x")
    return E(lambda x: log_normal(x, t.mu, t.v) - log_normal(x, mean, variance), before)


@d.step(rules.one_coordinate)
def _(E, t):
    return textbook.by_variance(t.mu, t.v, *_posterior(t))


@d.shipped(rules.shipped)
def _(E, t):
    p = {**_model(t.mu, t.v, t.h, t.w), "observations": t.nu}
    return kl((MVN, POSTERIOR), _of_one(t.mu, t.v), p)
