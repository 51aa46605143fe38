"""The chain rule: first one coordinate, then the other given the first."""

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, gaussian, log_normal, normal_by_variance
from kljax.derivations.expression import log
from kljax.derivations.library import MVN, NORMAL, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import covariance, vector

d = Derivation(
    name="chain",
    title="The chain rule",
    question="How does the divergence of a pair split into parts, and what is lost with one?",
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "nu": vector("ν", "mean of p", 2),
        "T": covariance("T", "covariance matrix of p", 2),
    },
    partners={"mu": "nu", "S": "T"},
    law=lambda t: gaussian(t.mu, t.S),
    answer=(
        "The divergence of the first coordinate, and the mean divergence of the second given "
        "the first. What is thrown away never makes two distributions easier to tell apart."
    ),
)


def _given(x, label, mean, C):
    """Mean and variance of the second coordinate, the first being x."""
    expected = named(f"m_{label}", lambda x: mean[1] + C[1][0] / C[0][0] * (x - mean[0]), x)
    return expected, named(f"v_{label}", C[1][1] - C[1][0] ** 2 / C[0][0])


def _both_given(x, t):
    return *_given(x, "q", t.mu, t.S), *_given(x, "p", t.nu, t.T)


def _first(t):
    q = normal_by_variance(t.mu[0], t.S[0][0], "q_1")
    return q, normal_by_variance(t.nu[0], t.T[0][0], "p_1")


@d.start("KL(q‖p)")
def _(E, t):
    q, p = gaussian(t.mu, t.S), gaussian(t.nu, t.T)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.conditional)
def _(E, t):
    q, p = _first(t)

    def second(x):
        mean_q, variance_q, mean_p, variance_p = _both_given(x[0], t)
        return log_normal(x[1], mean_q, variance_q) - log_normal(x[1], mean_p, variance_p)

    return E(lambda x: (q.log_density(x[0]) - p.log_density(x[0])) + second(x))


def _conditional_divergence(x, t):
    return textbook.by_variance(*_both_given(x, t))


@d.step(rules.tower, note="The inner expectation is a divergence of two numbers.")
def _(E, t):
    q, p = _first(t)
    rest = E(lambda x: _conditional_divergence(x, t), q)
    return E(lambda x: q.log_density(x) - p.log_density(x), q) + rest


def _log_ratio(x, t):
    squares = (x - t.nu[0]) ** 2 / t.T[0][0] - (x - t.mu[0]) ** 2 / t.S[0][0]
    return (log(t.T[0][0] / t.S[0][0]) + squares) / 2


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    q, _ = _first(t)
    rest = E(lambda x: _conditional_divergence(x, t), q)
    return E(lambda x: _log_ratio(x, t), q) + rest


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "covariance_matrix": t.S}
    return kl(MVN, q, {"loc": t.nu, "covariance_matrix": t.T})


@d.bound(rules.data_processing, note="Of the first coordinate alone.")
def _(E, t):
    q, p = _first(t)
    return E(lambda x: q.log_density(x) - p.log_density(x), q)


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    q, _ = _first(t)
    return E(lambda x: _log_ratio(x, t), q)


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu[0], "variance": t.S[0][0]}
    return kl(NORMAL, q, {"loc": t.nu[0], "variance": t.T[0][0]})
