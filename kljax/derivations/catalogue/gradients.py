"""What each term of the divergence does to the parameters."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import gaussian, normal_by_variance
from kljax.derivations.expression import (
    cholesky,
    diagonal,
    diagonal_matrix,
    exp,
    gradient,
    inv,
    lower,
    outer,
)
from kljax.derivations.parameters import covariance, real, vector

d = Derivation(
    name="gradients",
    title="Pulls and pushes: the gradient of every term",
    question="In which direction does each term move the mean and the spread of q and p?",
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "nu": vector("ν", "mean of p", 2),
        "T": covariance("T", "covariance matrix of p", 2),
        "m": real("m", "mean of a normal law of a number"),
        "l": real("l", "its log-variance"),
        "n": real("n", "mean of another one"),
        "h": real("h", "its log-variance"),
    },
    partners={"mu": "nu", "S": "T", "m": "n", "l": "h"},
    mistakes=(
        "stop_gradient on the variance",
        "log-variance clipped to [−1, 1]",
        "free bits left inside",
    ),
    law=lambda t: gaussian(t.mu, t.S),
    answer=(
        "The Mahalanobis term pulls the means together. The trace pulls the variance of q "
        "down, in proportion to it; the log-determinant pushes it up, by the same half a nat "
        "for every log-variance. They balance where the variances are equal."
    ),
)


def _divergence(E, mu, S, nu, T):
    q, p = gaussian(mu, S), gaussian(nu, T)
    return E(lambda x: q.log_density(x) - p.log_density(x), q)


@d.start("∇_μ KL", restates="full", note="The definition, its nodes moving with μ.")
def _(E, t):
    return gradient(lambda mu: _divergence(E, mu, t.S, t.nu, t.T), t.mu)


@d.step(rules.quadratic_form, note="The Mahalanobis term alone: it pulls μ to ν.")
def _(E, t):
    return inv(t.T) @ (t.mu - t.nu)


@d.start("∇_ν KL", restates="full")
def _(E, t):
    return gradient(lambda nu: _divergence(E, t.mu, t.S, nu, t.T), t.nu)


@d.step(rules.quadratic_form, note="Equal and opposite.")
def _(E, t):
    return inv(t.T) @ (t.nu - t.mu)


@d.start("∇_S KL", restates="full", note="By a matrix that is kept symmetric.")
def _(E, t):
    return gradient(lambda S: _divergence(E, t.mu, (S + S.T) / 2, t.nu, t.T), t.S)


@d.step(
    rules.log_det_gradient,
    note="The trace pulls by T⁻¹/2, the log-determinant pushes by S⁻¹/2: balance at S = T.",
)
def _(E, t):
    return (inv(t.T) - inv(t.S)) / 2


@d.start("∇_T KL", restates="full")
def _(E, t):
    return gradient(lambda T: _divergence(E, t.mu, t.S, t.nu, (T + T.T) / 2), t.T)


@d.step(rules.inverse_gradient, note="Zero at T = S + (μ − ν)(μ − ν)ᵀ: p matches the moments.")
def _(E, t):
    delta = t.mu - t.nu
    return (inv(t.T) - inv(t.T) @ (t.S + outer(delta, delta)) @ inv(t.T)) / 2


@d.start("∇_L KL with S = L Lᵀ", restates="full")
def _(E, t):
    def by_factor(L):
        return _divergence(E, t.mu, lower(L) @ lower(L).T, t.nu, t.T)

    return gradient(by_factor, cholesky(t.S))


@d.step(rules.factor_gradient)
def _(E, t):
    factor = cholesky(t.S)
    return lower(inv(t.T) @ factor) - diagonal_matrix(1 / diagonal(factor))


def _number(E, m, l, n, h):
    q, p = normal_by_variance(m, exp(l)), normal_by_variance(n, exp(h))
    return E(lambda x: q.log_density(x) - p.log_density(x), q)


@d.start(
    "∂KL/∂l",
    restates="univariate",
    note="A number with log-variance l, as a VAE's encoder returns it.",
)
def _(E, t):
    return gradient(lambda l: _number(E, t.m, l, t.n, t.h), t.l)


@d.step(
    rules.scalar_derivative,
    note=(
        "The trace pulls l down by half of the variance ratio, the log-determinant pushes it "
        "up by one half, always: a variance that is too large is pulled hard, one that is too "
        "small recovers gently."
    ),
)
def _(E, t):
    return exp(t.l - t.h) / 2 - 1 / 2


@d.start("∂KL/∂h", restates="univariate")
def _(E, t):
    return gradient(lambda h: _number(E, t.m, t.l, t.n, h), t.h)


@d.step(rules.scalar_derivative)
def _(E, t):
    return (1 - exp(t.l - t.h) - (t.m - t.n) ** 2 / exp(t.h)) / 2
