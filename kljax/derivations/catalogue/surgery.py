"""ELBO surgery: the mean divergence of a data set in two parts."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Same
from kljax.derivations.expectation import GRID, line, log_normal, normal
from kljax.derivations.expression import dimension, exp, log, log_mean_exp, sum_over
from kljax.derivations.naming import named
from kljax.derivations.parameters import positive_vector, vector

d = Derivation(
    name="surgery",
    title="ELBO surgery: what the code knows, and what the prior misses",
    question=(
        "The KL term of a VAE is a mean over data points i of KL(q_i‖p). How much of it is "
        "information about i, and how much says that the codes together do not fill the prior?"
    ),
    parameters={
        "mu": vector("μ", "means of the posteriors q_i of three data points"),
        "sigma": positive_vector("σ", "their standard deviations"),
    },
    law=lambda t: normal(0 * t.mu[0], 1.0 + 0 * t.mu[0], "p"),
    far=4.0,
    notation={"k": "number of data points"},
    same=(
        Same(
            4,
            "μ_i",
            "the law of E_q_i[log N",
            "E ∇ log q = 0: the law's mean has no first derivative to bend.",
        ),
    ),
    answer=(
        "The mean divergence is the mutual information of data point and code, at most log k, "
        "plus the divergence of the mixture of all posteriors from the prior (Hoffman & "
        "Johnson 2016)."
    ),
)


def _posterior(t, i):
    return normal(t.mu[i], t.sigma[i], "q_i")


def _prior(z):
    return log_normal(z, 0.0, 1.0)


def _mixture(t, z):
    """The log-density of the mixture of all posteriors."""

    def mixture(z):
        return log_mean_exp(t.mu, lambda j: log_normal(z, t.mu[j], t.sigma[j] ** 2))

    return named("log q̄", mixture, z)


@d.start("mean of KL(q_i‖p)", route=GRID)
def _(E, t):
    def divergence(i):
        q = _posterior(t, i)
        return E(lambda z: q.log_density(z) - _prior(z), q)

    return sum_over(t.mu, divergence) / dimension(t.mu)


@d.step(rules.insert, route=GRID, note="The logarithm of the mixture is added and subtracted.")
def _(E, t):
    def divergence(i):
        q = _posterior(t, i)
        return E(
            lambda z: (q.log_density(z) - _mixture(t, z)) + (_mixture(t, z) - _prior(z)), q
        )

    return sum_over(t.mu, divergence) / dimension(t.mu)


@d.step(rules.linearity, route=GRID)
def _(E, t):
    def information(i):
        q = _posterior(t, i)
        return E(lambda z: q.log_density(z) - _mixture(t, z), q)

    def marginal(i):
        return E(lambda z: _mixture(t, z) - _prior(z), _posterior(t, i))

    return sum_over(t.mu, information) / dimension(t.mu) + sum_over(t.mu, marginal) / dimension(
        t.mu
    )


@d.step(
    rules.mixture,
    route=GRID,
    sampled=False,
    note="Mutual information of index and code, plus the divergence of the mixture from p.",
)
def _(E, t):
    def information(i):
        q = _posterior(t, i)
        return E(lambda z: q.log_density(z) - _mixture(t, z), q)

    marginal = E(lambda z: exp(_mixture(t, z)) * (_mixture(t, z) - _prior(z)), line())
    return sum_over(t.mu, information) / dimension(t.mu) + marginal


@d.step(rules.linearity, route=GRID, sampled=False)
def _(E, t):
    def negentropy(i):
        q = _posterior(t, i)
        return E(lambda z: q.log_density(z), q)

    def cross(i):
        return E(lambda z: _mixture(t, z), _posterior(t, i))

    marginal = E(lambda z: exp(_mixture(t, z)) * (_mixture(t, z) - _prior(z)), line())
    return (
        sum_over(t.mu, negentropy) / dimension(t.mu)
        - sum_over(t.mu, cross) / dimension(t.mu)
        + marginal
    )


@d.step(rules.univariate_mean, note="The mean of the closed forms.")
def _(E, t):
    return sum_over(
        t.mu, lambda i: t.sigma[i] ** 2 + t.mu[i] ** 2 - 1 - 2 * log(t.sigma[i])
    ) / (2 * dimension(t.mu))
