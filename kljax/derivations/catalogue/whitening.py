"""The full covariance a second time: whiten, rotate, and only numbers are left."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Form, Same
from kljax.derivations.expectation import SIGMA, gaussian
from kljax.derivations.expression import (
    cholesky,
    diagonal,
    dimension,
    dot,
    eigenvalues,
    identity,
    inv,
    log,
    logdet,
    square_norm,
    sum_over,
    tr,
    zeros,
)
from kljax.derivations.library import MVN, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import covariance, vector

d = Derivation(
    name="whitening",
    title="Two normal distributions of a vector: whiten and rotate",
    question="Can the formula be found without any trace trick, from the case of one number?",
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "nu": vector("ν", "mean of p", 2),
        "T": covariance("T", "covariance matrix of p", 2),
    },
    partners={"mu": "nu", "S": "T"},
    law=lambda t: gaussian(t.mu, t.S),
    ends_in=(Form("MultivariateNormal", "MultivariateNormal"),),
    same=(
        *(
            Same(
                4,
                was,
                "Σ_i (eig(",
                "The sum of log λ_i is a log-determinant: order and transposes do not matter.",
                kind,
            )
            for was in ("chol(T)⁻¹ S", "chol(T)⁻¹", "chol(T)", "(chol(T)⁻¹)ᵀ")
            for kind in ("transpose", "operands swapped")
        ),
        Same(
            5,
            "chol(T)⁻¹ chol(S)",
            "Σ_i",
            "The diagonal of a product of lower triangular matrices is that of its factors.",
            "operands swapped",
        ),
    ),
    answer=(
        "Seen in the coordinates in which p is round and q lies along the axes, there are only "
        "variance ratios λ and distances z. No step is shared with the trace trick."
    ),
)

ROUND = {"q = p": "eigenvectors have no direction where the eigenvalues are equal"}


def _white(t):
    """Mean and covariance matrix of q where p is N(0, I)."""
    inverse = inv(named("K", cholesky(t.T)))
    return named("z", inverse @ (t.mu - t.nu)), named("W", inverse @ t.S @ inverse.T)


@d.start("KL(q‖p)")
def _(E, t):
    q, p = gaussian(t.mu, t.S), gaussian(t.nu, t.T)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.whitening, note="An expectation over y = K⁻¹(x − ν), under which p is N(0, I).")
def _(E, t):
    z, W = _white(t)
    q, p = gaussian(z, W), gaussian(zeros(t.mu), identity(t.mu))
    return E(lambda y: q.log_density(y) - p.log_density(y), q)


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    z, W = _white(t)

    def log_ratio(y):
        return (square_norm(y) - dot(y - z, inv(W) @ (y - z)) - logdet(W)) / 2

    return E(log_ratio, gaussian(z, W))


@d.step(rules.full_formula)
def _(E, t):
    z, W = _white(t)
    return (tr(W) + square_norm(z) - dimension(z) - logdet(W)) / 2


@d.step(rules.spectral, skip=ROUND, note="One number for every axis of q.")
def _(E, t):
    z, W = _white(t)
    ratios = named("λ", eigenvalues(W))
    stretch = sum_over(ratios, lambda i: ratios[i] - 1 - log(ratios[i]))
    return (stretch + square_norm(z)) / 2


@d.step(rules.factors, note="The same sum by the diagonal and the rest of M.")
def _(E, t):
    m = named("M", inv(named("K", cholesky(t.T))) @ cholesky(t.S))
    z, _ = _white(t)
    logs = sum_over(t.mu, lambda i: 1 + 2 * log(diagonal(m)[i]))
    return (square_norm(m) - logs + square_norm(z)) / 2


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "scale_tril": cholesky(t.S)}
    return kl(MVN, q, {"loc": t.nu, "scale_tril": cholesky(t.T)})
