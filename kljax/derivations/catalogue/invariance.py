"""The divergence does not depend on the coordinates."""

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, gaussian, gaussian_by_factor
from kljax.derivations.expression import cholesky, dot, inv, logdet
from kljax.derivations.library import MVN, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import covariance, matrix, vector

d = Derivation(
    name="invariance",
    title="The same in all coordinates",
    question="Does the divergence change when x is measured in other units, or mixed?",
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "nu": vector("ν", "mean of p", 2),
        "T": covariance("T", "covariance matrix of p", 2),
        "A": matrix("A", "an invertible matrix", 2, 2),
        "b": vector("b", "a shift", 2),
    },
    partners={"mu": "nu", "S": "T"},
    law=lambda t: gaussian(t.mu, t.S),
    answer="No: what A does to the densities cancels in their ratio.",
)


def _moved(t):
    """Mean and covariance matrix of q and of p after x ↦ A x + b."""
    q = named("m_q", t.A @ t.mu + t.b), named("C_q", t.A @ t.S @ t.A.T)
    return q, (named("m_p", t.A @ t.nu + t.b), named("C_p", t.A @ t.T @ t.A.T))


@d.start("KL after x ↦ A x + b")
def _(E, t):
    (m, S), (n, T) = _moved(t)
    q, p = gaussian_by_factor(m, t.A @ cholesky(t.S)), gaussian(n, T)
    density = gaussian(m, S)
    return E(lambda y: density.log_density(y) - p.log_density(y), q)


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    (m, S), (n, T) = _moved(t)

    def log_ratio(y):
        squares = dot(y - n, inv(T) @ (y - n)) - dot(y - m, inv(S) @ (y - m))
        return (logdet(T) - logdet(S) + squares) / 2

    return E(log_ratio, gaussian_by_factor(m, t.A @ cholesky(t.S)))


@d.step(rules.full_formula)
def _(E, t):
    (m, S), (n, T) = _moved(t)
    return textbook.full(m, S, n, T)


@d.step(rules.affine)
def _(E, t):
    return textbook.full(t.mu, t.S, t.nu, t.T)


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "covariance_matrix": t.S}
    return kl(MVN, q, {"loc": t.nu, "covariance_matrix": t.T})


@d.shipped(rules.affine, note="The library after the change.")
def _(E, t):
    (m, S), (n, T) = _moved(t)
    return kl(MVN, {"loc": m, "covariance_matrix": S}, {"loc": n, "covariance_matrix": T})
