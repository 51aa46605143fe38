"""What a variational autoencoder maximizes, and by how much it falls short."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Same
from kljax.derivations.expectation import (
    gaussian,
    gaussian_by_factor,
    log_gaussian,
)
from kljax.derivations.expression import identity, inv, ones, zeros
from kljax.derivations.library import DIAG, MVN, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import matrix, positive, scale_tril, vector

d = Derivation(
    name="elbo",
    title="log p(x) = ELBO + KL(q‖p(z|x))",
    question=(
        "A linear decoder x = W z + b + σ ε with prior N(0, I) has a likelihood in closed "
        "form. What does the ELBO of any q(z) miss?"
    ),
    parameters={
        "x": vector("x", "a data point", 3),
        "W": matrix("W", "weights of the decoder", 3, 2),
        "b": vector("b", "offset of the decoder", 3),
        "sigma": positive("σ", "standard deviation of the noise"),
        "m": vector("m", "mean of q(z)", 2),
        "C": scale_tril("C", "Cholesky factor of the covariance of q(z)", 2),
    },
    law=lambda t: gaussian_by_factor(t.m, t.C),
    far=4.0,
    same=tuple(
        Same(step, was, "the law of E_q", "What is under the expectation does not depend on z.")
        for step in (1, 2)
        for was in ("m", "C")
    ),
    answer=(
        "Exactly the divergence of q from the posterior. The expected log-likelihood less "
        "KL(q‖prior) is a lower bound, and tight where q is the posterior."
    ),
)


def _noise(t):
    return t.sigma**2 * identity(t.x)


def _likelihood(t, z):
    return log_gaussian(t.x, t.W @ z + t.b, _noise(t))


def _prior(t, z):
    return log_gaussian(z, zeros(t.m), identity(t.m))


def _posterior(t):
    """Mean and covariance matrix of p(z|x)."""
    spread = named("P", inv(identity(t.m) + t.W.T @ t.W / t.sigma**2))
    return named("a", spread @ (t.W.T @ (t.x - t.b)) / t.sigma**2), spread


@d.start("log p(x)", note="The marginal of a linear model is normal.")
def _(E, t):
    return log_gaussian(t.x, t.b, t.W @ t.W.T + _noise(t))


@d.step(rules.bayes, note="For every z, so under any q: nothing in the brackets depends on z.")
def _(E, t):
    return E(lambda z: _likelihood(t, z) + _prior(t, z) - log_gaussian(z, *_posterior(t)))


@d.step(rules.insert, note="log q(z) is added and subtracted.")
def _(E, t):
    q = gaussian_by_factor(t.m, t.C)

    def elbo(z):
        return _likelihood(t, z) + _prior(t, z) - q.log_density(z)

    return E(lambda z: elbo(z) + (q.log_density(z) - log_gaussian(z, *_posterior(t))))


@d.step(rules.linearity, note="The first is the ELBO, the second KL(q‖p(z|x)).")
def _(E, t):
    q = gaussian_by_factor(t.m, t.C)
    gap = E(lambda z: q.log_density(z) - log_gaussian(z, *_posterior(t)))
    elbo = E(lambda z: _likelihood(t, z) + _prior(t, z) - q.log_density(z))
    return elbo + gap


@d.shipped(rules.full_formula, note="Expected log-likelihood − KL(q‖prior) + KL(q‖posterior).")
def _(E, t):
    q = {"loc": t.m, "scale_tril": t.C}
    mean, spread = _posterior(t)
    to_prior = kl((MVN, DIAG), q, {"loc": zeros(t.m), "scale_diag": ones(t.m)})
    to_posterior = kl(MVN, q, {"loc": mean, "covariance_matrix": spread})
    return E(lambda z: _likelihood(t, z)) - to_prior + to_posterior


@d.bound(rules.data_processing, note="Without the last divergence: the ELBO.")
def _(E, t):
    q = gaussian(t.m, t.C @ t.C.T)
    return E(lambda z: _likelihood(t, z) + _prior(t, z) - q.log_density(z))
