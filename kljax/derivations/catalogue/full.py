"""Two normal distributions of a vector, by the trace trick."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Form, Same
from kljax.derivations.expectation import SIGMA, gaussian
from kljax.derivations.expression import (
    cholesky,
    diagonal,
    dimension,
    dot,
    inv,
    log,
    logdet,
    outer,
    square_norm,
    sum_over,
    tr,
)
from kljax.derivations.library import MVN, kl
from kljax.derivations.parameters import covariance, vector

d = Derivation(
    name="full",
    title="Two normal distributions of a vector: the trace trick",
    question=(
        "How far is q = N(μ, S) from p = N(ν, T), and where do the trace, the distance of the "
        "means, the dimension and the determinants come from?"
    ),
    parameters={
        "mu": vector("μ", "mean of q"),
        "S": covariance("S", "covariance matrix of q"),
        "nu": vector("ν", "mean of p"),
        "T": covariance("T", "covariance matrix of p"),
    },
    partners={"mu": "nu", "S": "T"},
    mistakes=(
        "k in front of the log-determinant",
        "q and p swapped",
    ),
    law=lambda t: gaussian(t.mu, t.S),
    ends_in=(Form("MultivariateNormal", "MultivariateNormal"),),
    same=(
        Same(
            7,
            "chol(T)⁻¹ chol(S)",
            "Σ_i",
            "The diagonal of a product of lower triangular matrices is that of its factors.",
            "operands swapped",
        ),
    ),
    answer=(
        "The trace says how wide q is in units of p, the Mahalanobis distance how far the "
        "means are apart, and log-determinant and dimension make the sum zero where q is p."
    ),
)


@d.start("KL(q‖p)")
def _(E, t):
    q, p = gaussian(t.mu, t.S), gaussian(t.nu, t.T)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.log_ratio, route=SIGMA, note="The power of 2π is in both densities and cancels.")
def _(E, t):
    return E(
        lambda x: (
            (
                logdet(t.T)
                - logdet(t.S)
                - dot(x - t.mu, inv(t.S) @ (x - t.mu))
                + dot(x - t.nu, inv(t.T) @ (x - t.nu))
            )
            / 2
        )
    )


@d.step(rules.trace_trick)
def _(E, t):
    return E(
        lambda x: (
            (
                logdet(t.T)
                - logdet(t.S)
                - tr(inv(t.S) @ outer(x - t.mu, x - t.mu))
                + tr(inv(t.T) @ outer(x - t.nu, x - t.nu))
            )
            / 2
        )
    )


@d.step(rules.trace_is_linear, route=SIGMA)
def _(E, t):
    about_mu = E(lambda x: outer(x - t.mu, x - t.mu))
    about_nu = E(lambda x: outer(x - t.nu, x - t.nu))
    log_det = logdet(t.T) - logdet(t.S)
    return (log_det - tr(inv(t.S) @ about_mu) + tr(inv(t.T) @ about_nu)) / 2


@d.step(rules.covariance)
def _(E, t):
    about_nu = E(lambda x: outer(x - t.nu, x - t.nu))
    return (logdet(t.T) - logdet(t.S) - dimension(t.mu) + tr(inv(t.T) @ about_nu)) / 2


@d.step(rules.spread_about_another_point)
def _(E, t):
    spread = t.S + outer(t.mu - t.nu, t.mu - t.nu)
    return (logdet(t.T) - logdet(t.S) - dimension(t.mu) + tr(inv(t.T) @ spread)) / 2


@d.step(rules.trace_trick, note="Trace, Mahalanobis distance, dimension, log-determinant.")
def _(E, t):
    delta = t.mu - t.nu
    mahalanobis = dot(delta, inv(t.T) @ delta)
    log_det = logdet(t.T) - logdet(t.S)
    return (tr(inv(t.T) @ t.S) + mahalanobis - dimension(t.mu) + log_det) / 2


@d.step(rules.factors, note="chol(S) is the lower triangular factor of S.")
def _(E, t):
    m = inv(cholesky(t.T)) @ cholesky(t.S)
    y = inv(cholesky(t.T)) @ (t.mu - t.nu)
    log_diagonal = sum_over(t.mu, lambda i: log(diagonal(m)[i]))
    return (square_norm(m) + square_norm(y) - dimension(t.mu)) / 2 - log_diagonal


@d.shipped(rules.shipped, note="The library, given the covariance matrices.")
def _(E, t):
    q = {"loc": t.mu, "covariance_matrix": t.S}
    return kl(MVN, q, {"loc": t.nu, "covariance_matrix": t.T})


@d.shipped(rules.shipped, note="The library, given the Cholesky factors.")
def _(E, t):
    q = {"loc": t.mu, "scale_tril": cholesky(t.S)}
    return kl(MVN, q, {"loc": t.nu, "scale_tril": cholesky(t.T)})


@d.shipped(rules.shipped, note="The library, given the precision matrices.")
def _(E, t):
    q = {"loc": t.mu, "precision_matrix": inv(t.S)}
    return kl(MVN, q, {"loc": t.nu, "precision_matrix": inv(t.T)})
