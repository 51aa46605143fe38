"""The divergence as cross-entropy less entropy."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Same
from kljax.derivations.expectation import LOG_2PI, SIGMA, gaussian
from kljax.derivations.expression import dimension, dot, inv, logdet, outer, tr
from kljax.derivations.library import MVN, cross_entropy, entropy, kl
from kljax.derivations.parameters import covariance, vector

d = Derivation(
    name="entropy",
    title="Cross-entropy less entropy",
    question="How much of a cross-entropy is the divergence, and how much is q's own entropy?",
    parameters={
        "mu": vector("μ", "mean of q"),
        "S": covariance("S", "covariance matrix of q"),
        "nu": vector("ν", "mean of p"),
        "T": covariance("T", "covariance matrix of p"),
    },
    partners={"mu": "nu", "S": "T"},
    law=lambda t: gaussian(t.mu, t.S),
    same=tuple(
        Same(
            step,
            "μ",
            "H(MultivariateNormal(loc = μ, covariance_matrix = S))",
            "The entropy does not depend on the mean.",
        )
        for step in (3, 11)
    ),
    answer=(
        "H(q, p) = H(q) + KL(q‖p). The entropy depends on the unit of x and may be negative, "
        "the divergence neither. Only here is the constant log 2π seen."
    ),
)


def _q(t):
    return {"loc": t.mu, "covariance_matrix": t.S}


def _p(t):
    return {"loc": t.nu, "covariance_matrix": t.T}


@d.start("H(q)")
def _(E, t):
    q = gaussian(t.mu, t.S)
    return -E(lambda x: q.log_density(x))


@d.step(rules.normal_density, route=SIGMA)
def _(E, t):
    square = E(lambda x: dot(x - t.mu, inv(t.S) @ (x - t.mu)))
    return (dimension(t.mu) * LOG_2PI + logdet(t.S) + square) / 2


@d.step(rules.covariance)
def _(E, t):
    return (dimension(t.mu) * LOG_2PI + logdet(t.S) + dimension(t.mu)) / 2


@d.shipped(rules.shipped)
def _(E, t):
    return entropy(MVN, _q(t))


@d.start("H(q, p)")
def _(E, t):
    p = gaussian(t.nu, t.T)
    return -E(lambda x: p.log_density(x))


@d.step(rules.normal_density, route=SIGMA)
def _(E, t):
    square = E(lambda x: dot(x - t.nu, inv(t.T) @ (x - t.nu)))
    return (dimension(t.nu) * LOG_2PI + logdet(t.T) + square) / 2


@d.step(rules.trace_trick)
def _(E, t):
    square = tr(inv(t.T) @ E(lambda x: outer(x - t.nu, x - t.nu)))
    return (dimension(t.nu) * LOG_2PI + logdet(t.T) + square) / 2


@d.step(rules.spread_about_another_point)
def _(E, t):
    square = tr(inv(t.T) @ (t.S + outer(t.mu - t.nu, t.mu - t.nu)))
    return (dimension(t.nu) * LOG_2PI + logdet(t.T) + square) / 2


@d.shipped(rules.shipped)
def _(E, t):
    return cross_entropy(MVN, _q(t), _p(t))


@d.start("KL(q‖p)")
def _(E, t):
    q, p = gaussian(t.mu, t.S), gaussian(t.nu, t.T)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.linearity, route=SIGMA)
def _(E, t):
    q, p = gaussian(t.mu, t.S), gaussian(t.nu, t.T)
    return -E(lambda x: p.log_density(x)) - (-E(lambda x: q.log_density(x)))


@d.shipped(rules.shipped)
def _(E, t):
    return cross_entropy(MVN, _q(t), _p(t)) - entropy(MVN, _q(t))


@d.shipped(rules.shipped)
def _(E, t):
    return kl(MVN, _q(t), _p(t))
