"""The divergence in the loss of a variational autoencoder."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, independent, log_normal
from kljax.derivations.expression import exp, expm1, ones, sum_over, zeros
from kljax.derivations.library import DIAG, kl
from kljax.derivations.parameters import vector

d = Derivation(
    name="vae",
    title="The KL term of a variational autoencoder",
    question=(
        "The encoder returns a mean μ and a log-variance l for every latent, the prior is "
        "N(0, I). Where does the line −½ Σ (1 + l − μ² − eˡ) come from, and what should one "
        "write instead?"
    ),
    parameters={
        "mu": vector("μ", "means that the encoder returns"),
        "l": vector("l", "log-variances that the encoder returns"),
    },
    mistakes=(
        "mean over the latents",
        "log 2π in place of log σ",
        "log-variance used as log of the standard deviation",
        "(log σ)² and a sign",
        "sign",
        "epsilon inside the logarithm",
    ),
    law=lambda t: independent(t.mu, exp(t.l / 2)),
    answer=(
        "The textbook line is the divergence itself, to be added to the loss. It subtracts "
        "numbers that are nearly equal when a latent is almost unused; expm1(l) − l does not."
    ),
)


@d.start("KL(q‖N(0, I))")
def _(E, t):
    def log_ratio(z, i):
        return log_normal(z[i], t.mu[i], exp(t.l[i])) - log_normal(z[i], 0.0, 1.0)

    return E(lambda z: sum_over(t.mu, lambda i: log_ratio(z, i)))


@d.step(rules.log_ratio, route=SIGMA)
def _(E, t):
    return E(
        lambda z: sum_over(
            t.mu,
            lambda i: z[i] ** 2 / 2 - (z[i] - t.mu[i]) ** 2 / (2 * exp(t.l[i])) - t.l[i] / 2,
        )
    )


@d.step(rules.centered, note="E z² = eˡ + μ² and E(z − μ)² = eˡ.")
def _(E, t):
    return sum_over(t.mu, lambda i: (exp(t.l[i]) + t.mu[i] ** 2) / 2 - 1 / 2 - t.l[i] / 2)


@d.step(rules.rearrange, note="The line of the paper and of most repositories: +KL.")
def _(E, t):
    return -sum_over(t.mu, lambda i: 1 + t.l[i] - t.mu[i] ** 2 - exp(t.l[i])) / 2


@d.step(rules.by_log_ratio, note="Nothing cancels between the two groups.")
def _(E, t):
    return sum_over(t.mu, lambda i: expm1(t.l[i]) - t.l[i] + t.mu[i] ** 2) / 2


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "log_variance": t.l}
    return kl(DIAG, q, {"loc": zeros(t.mu), "scale_diag": ones(t.mu)})
