"""Near q = p the divergence is the Fisher information."""

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import (
    cubature,
    gaussian,
    log_gaussian,
    log_normal,
    normal_by_variance,
)
from kljax.derivations.expression import dot, exp, gradient, inv, tr
from kljax.derivations.naming import named
from kljax.derivations.parameters import covariance, positive, real, vector

FOUR = cubature(4)


def _curve(t, s):
    """Mean and log-variance at s of a curve of normal laws."""
    mean = named("m", lambda s: t.n + s * t.a, s)
    return mean, named("l", lambda s: t.h + s * t.c, s)


def _vector_curve(t, s):
    """Mean and covariance matrix at s of a curve of normal laws of a vector."""
    mean = named("u", lambda s: t.nu + s * t.v, s)
    return mean, named("C", lambda s: t.T + s * t.V, s)


def _p(t):
    mean, log_variance = _curve(t, t.s)
    return normal_by_variance(mean, exp(log_variance), "p")


d = Derivation(
    name="fisher",
    title="The Hessian at q = p is the Fisher information",
    question="How does the divergence grow when the parameters of q leave those of p?",
    parameters={
        "n": real("n", "mean of a normal law of a number at s = 0"),
        "h": real("h", "its log-variance"),
        "a": real("a", "how fast the mean moves"),
        "c": real("c", "how fast the log-variance moves"),
        "nu": vector("ν", "mean of a normal law of a vector at s = 0", 2),
        "T": covariance("T", "its covariance matrix", 2),
        "v": vector("v", "how fast the mean vector moves", 2),
        "V": covariance("V", "how fast the covariance matrix moves", 2),
        "s": positive("s", "where on the curve p is"),
    },
    law=_p,
    far=2.0,
    answer=(
        "Quadratically, with the Fisher information as its matrix: e⁻ʰ for the mean, 1/2 for "
        "every log-variance whatever the law is, 0 between them."
    ),
)


@d.start("d²/dr² KL(p_r‖p_s) at r = s", restates="univariate")
def _(E, t):
    def divergence(r):
        return textbook.by_log_variance(*_curve(t, r), *_curve(t, t.s))

    return gradient(lambda r: gradient(divergence, r), t.s)


def _log_p(t, x, r):
    mean, log_variance = _curve(t, r)
    return log_normal(x, mean, exp(log_variance))


@d.step(rules.second_order_at_equality)
def _(E, t):
    def slope(x, r):
        return gradient(lambda s: _log_p(t, x, s), r)

    return -E(lambda x: gradient(lambda r: slope(x, r), t.s))


@d.step(rules.scalar_derivative, pointwise=True, route=FOUR)
def _(E, t):
    mean, log_variance = _curve(t, t.s)
    variance = exp(log_variance)

    def curvature(x):
        mixed = 2 * t.a * t.c * (x - mean) / variance
        return t.a**2 / variance + mixed + t.c**2 * (x - mean) ** 2 / (2 * variance)

    return E(curvature)


@d.step(rules.information, note="The mean square of the score.")
def _(E, t):
    return E(lambda x: gradient(lambda r: _log_p(t, x, r), t.s) ** 2)


@d.step(rules.scalar_derivative, pointwise=True, route=FOUR)
def _(E, t):
    mean, log_variance = _curve(t, t.s)
    variance = exp(log_variance)

    def score(x):
        by_log_variance = ((x - mean) ** 2 / variance - 1) / 2
        return t.a * (x - mean) / variance + t.c * by_log_variance

    return E(lambda x: score(x) ** 2)


@d.step(
    rules.fourth_moment,
    note=(
        "Mean and log-variance do not mix, and the information about the log-variance is one "
        "half whatever the law is."
    ),
)
def _(E, t):
    _, log_variance = _curve(t, t.s)
    return t.a**2 / exp(log_variance) + t.c**2 / 2


@d.start("d²/dr² KL(p_r‖p_s) at r = s, of a vector", restates="full")
def _(E, t):
    def divergence(r):
        return textbook.full(*_vector_curve(t, r), *_vector_curve(t, t.s))

    return gradient(lambda r: gradient(divergence, r), t.s)


@d.step(rules.information)
def _(E, t):
    def score(x):
        return gradient(lambda r: log_gaussian(x, *_vector_curve(t, r)), t.s)

    return E(lambda x: score(x) ** 2, gaussian(*_vector_curve(t, t.s), "p"))


@d.step(rules.log_det_gradient, pointwise=True)
def _(E, t):
    mean, spread = _vector_curve(t, t.s)

    def score(x):
        delta = inv(spread) @ (x - mean)
        return dot(t.v, delta) + (dot(delta, t.V @ delta) - tr(inv(spread) @ t.V)) / 2

    return E(lambda x: score(x) ** 2, gaussian(mean, spread, "p"))


@d.step(rules.gaussian_information)
def _(E, t):
    _, spread = _vector_curve(t, t.s)
    relative = inv(spread) @ t.V
    return dot(t.v, inv(spread) @ t.v) + tr(relative @ relative) / 2
