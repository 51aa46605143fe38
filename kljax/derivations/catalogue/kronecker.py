"""Two matrix normals: the trace and the determinant of a Kronecker product."""

from kljax import MatrixNormal
from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import gaussian
from kljax.derivations.expression import dimension, dot, inv, kronecker, logdet, stack, tr
from kljax.derivations.library import MVN, kl
from kljax.derivations.parameters import covariance, vector

d = Derivation(
    name="kronecker",
    title="Two matrix normals: Kronecker products",
    question="What is the divergence of two matrices whose rows and columns vary separately?",
    parameters={
        "mu": vector("μ", "mean of q, row by row", 4),
        "U": covariance("U", "covariance of the rows under q", 2),
        "V": covariance("V", "covariance of the columns under q", 2),
        "nu": vector("ν", "mean of p, row by row", 4),
        "S": covariance("S", "covariance of the rows under p", 2),
        "T": covariance("T", "covariance of the columns under p", 2),
    },
    partners={"mu": "nu", "U": "S", "V": "T"},
    law=lambda t: gaussian(t.mu, kronecker(t.U, t.V)),
    ends_in=(
        Form("MatrixNormal", "MatrixNormal"),
        Form("MatrixNormal", "MultivariateNormal"),
        Form("MultivariateNormal", "MatrixNormal"),
    ),
    generic=4,
    answer=(
        "Traces multiply, log-determinants add with the other size as a factor, and the means "
        "are compared in units of rows and columns: the large covariance is never formed."
    ),
)


def _matrix(x):
    return stack(stack(x[0], x[1]), stack(x[2], x[3]))


@d.start("KL(q‖p)", restates="full")
def _(E, t):
    q, p = gaussian(t.mu, kronecker(t.U, t.V)), gaussian(t.nu, kronecker(t.S, t.T))
    return E(lambda x: q.log_density(x) - p.log_density(x), q)


@d.step(rules.full_formula)
def _(E, t):
    return textbook.full(t.mu, kronecker(t.U, t.V), t.nu, kronecker(t.S, t.T))


@d.step(rules.kronecker)
def _(E, t):
    delta = t.mu - t.nu
    mahalanobis = dot(delta, kronecker(inv(t.S), inv(t.T)) @ delta)
    log_det = 2 * (logdet(t.S) - logdet(t.U)) + 2 * (logdet(t.T) - logdet(t.V))
    trace = tr(inv(t.S) @ t.U) * tr(inv(t.T) @ t.V)
    return (trace + mahalanobis - dimension(t.mu) + log_det) / 2


@d.step(rules.matrix_of_a_vector)
def _(E, t):
    delta = _matrix(t.mu - t.nu)
    mahalanobis = tr(inv(t.S) @ delta @ inv(t.T) @ delta.T)
    log_det = 2 * (logdet(t.S) - logdet(t.U)) + 2 * (logdet(t.T) - logdet(t.V))
    trace = tr(inv(t.S) @ t.U) * tr(inv(t.T) @ t.V)
    return (trace + mahalanobis - dimension(t.mu) + log_det) / 2


def _of_q(t):
    return {"loc": _matrix(t.mu), "row_covariance": t.U, "column_covariance": t.V}


def _of_p(t):
    return {"loc": _matrix(t.nu), "row_covariance": t.S, "column_covariance": t.T}


@d.shipped(rules.shipped)
def _(E, t):
    return kl(MatrixNormal, _of_q(t), _of_p(t))


@d.shipped(rules.shipped, note="A matrix is read row by row.")
def _(E, t):
    p = {"loc": t.nu, "covariance_matrix": kronecker(t.S, t.T)}
    return kl((MatrixNormal, MVN), _of_q(t), p)


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "covariance_matrix": kronecker(t.U, t.V)}
    return kl((MVN, MatrixNormal), q, _of_p(t))
