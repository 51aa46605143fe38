"""Two normal distributions of a vector with independent coordinates."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import SIGMA, independent, log_normal, normal
from kljax.derivations.expression import diagonal_matrix, log, sum_over
from kljax.derivations.library import DIAG, MVN, kl
from kljax.derivations.parameters import positive_vector, vector

d = Derivation(
    name="diagonal",
    title="Independent coordinates: the divergence adds up",
    question="Why is the divergence of a vector with independent coordinates a sum?",
    parameters={
        "mu": vector("μ", "means of q"),
        "sigma": positive_vector("σ", "standard deviations of q"),
        "nu": vector("ν", "means of p"),
        "tau": positive_vector("τ", "standard deviations of p"),
    },
    partners={"mu": "nu", "sigma": "tau"},
    mistakes=(
        "mean over the latents",
        "standard deviation read as variance",
        "1/2 on the first term only",
    ),
    law=lambda t: independent(t.mu, t.sigma),
    ends_in=(Form("MultivariateNormalDiag", "MultivariateNormalDiag"),),
    answer=(
        "The logarithm turns the product of the densities into a sum, and a function of one "
        "coordinate needs the law of that coordinate only. A mean in place of the sum is the "
        "divergence divided by k."
    ),
)


def _ratio(t, i, x):
    q = log_normal(x, t.mu[i], t.sigma[i] ** 2)
    return q - log_normal(x, t.nu[i], t.tau[i] ** 2)


@d.start("KL(q‖p)")
def _(E, t):
    q, p = independent(t.mu, t.sigma), independent(t.nu, t.tau)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.log_product, route=SIGMA)
def _(E, t):
    return E(lambda x: sum_over(t.mu, lambda i: _ratio(t, i, x[i])))


@d.step(rules.marginal)
def _(E, t):
    return sum_over(
        t.mu, lambda i: E(lambda x: _ratio(t, i, x), normal(t.mu[i], t.sigma[i], "q_i"))
    )


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    def ratio(i, x):
        squares = (x - t.nu[i]) ** 2 / (2 * t.tau[i] ** 2) - (x - t.mu[i]) ** 2 / (
            2 * t.sigma[i] ** 2
        )
        return log(t.tau[i] / t.sigma[i]) + squares

    return sum_over(
        t.mu, lambda i: E(lambda x: ratio(i, x), normal(t.mu[i], t.sigma[i], "q_i"))
    )


@d.step(rules.one_coordinate)
def _(E, t):
    return sum_over(
        t.mu,
        lambda i: (
            log(t.tau[i] / t.sigma[i])
            - 1 / 2
            + (t.sigma[i] ** 2 + (t.mu[i] - t.nu[i]) ** 2) / (2 * t.tau[i] ** 2)
        ),
    )


@d.step(rules.one_half_outside)
def _(E, t):
    def term(i):
        ratio = t.sigma[i] ** 2 / t.tau[i] ** 2
        return ratio - 1 - log(ratio) + (t.mu[i] - t.nu[i]) ** 2 / t.tau[i] ** 2

    return sum_over(t.mu, term) / 2


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "scale_diag": t.sigma}
    return kl(DIAG, q, {"loc": t.nu, "scale_diag": t.tau})


@d.shipped(rules.diagonal_matrices, note="The case of a full matrix holds this one.")
def _(E, t):
    q = {"loc": t.mu, "covariance_matrix": diagonal_matrix(t.sigma**2)}
    p = {"loc": t.nu, "covariance_matrix": diagonal_matrix(t.tau**2)}
    return kl(MVN, q, p)
