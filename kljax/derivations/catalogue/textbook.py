"""The formulas that other derivations begin with, once they are derived."""

from kljax.derivations.expression import dimension, dot, exp, inv, log, logdet, tr


def univariate(mu, sigma, nu, tau):
    """KL(N(mu, sigma^2) ‖ N(nu, tau^2))."""
    return log(tau / sigma) - 1 / 2 + (sigma**2 + (mu - nu) ** 2) / (2 * tau**2)


def by_variance(mu, v, nu, w):
    """The same with variances v and w."""
    return (log(w / v) - 1 + (v + (mu - nu) ** 2) / w) / 2


def by_log_variance(mu, l, nu, m):
    """The same with log-variances l and m."""
    return (exp(l - m) - 1 - (l - m) + (mu - nu) ** 2 / exp(m)) / 2


def full(mu, S, nu, T):
    """KL(N(mu, S) ‖ N(nu, T))."""
    delta = mu - nu
    mahalanobis = dot(delta, inv(T) @ delta)
    return (tr(inv(T) @ S) + mahalanobis - dimension(mu) + logdet(T) - logdet(S)) / 2
