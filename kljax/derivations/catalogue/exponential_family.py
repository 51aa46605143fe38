"""The divergence as a Bregman divergence of the log-partition function."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, normal
from kljax.derivations.expression import dot, gradient, log, stack
from kljax.derivations.library import NORMAL, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import positive, real

d = Derivation(
    name="exponential_family",
    title="Any exponential family: a Bregman divergence",
    question="What do all families of the form h(x) exp(⟨η, t(x)⟩ − A(η)) have in common?",
    parameters={
        "mu": real("μ", "mean of q"),
        "sigma": positive("σ", "standard deviation of q"),
        "nu": real("ν", "mean of p"),
        "tau": positive("τ", "standard deviation of p"),
    },
    partners={"mu": "nu", "sigma": "tau"},
    law=lambda t: normal(t.mu, t.sigma),
    far=4.0,
    answer=(
        "KL(q‖p) is how far A at p's parameters lies above its tangent at q's: a Bregman "
        "divergence with the arguments in the other order. Only A is needed."
    ),
)


def _natural(t):
    """Natural parameters of q and of p."""
    return (
        named("η_q", stack(t.mu / t.sigma**2, -1 / (2 * t.sigma**2))),
        named("η_p", stack(t.nu / t.tau**2, -1 / (2 * t.tau**2))),
    )


def A(eta):
    """The logarithm of what the density must be divided by."""
    return named("A", lambda eta: -(eta[0] ** 2) / (4 * eta[1]) - log(-2 * eta[1]) / 2, eta)


@d.start("KL(q‖p)")
def _(E, t):
    q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.exponential_family, route=SIGMA)
def _(E, t):
    q, p = _natural(t)
    return E(lambda x: dot(q - p, stack(x, x**2)) - A(q) + A(p))


@d.step(rules.linearity)
def _(E, t):
    q, p = _natural(t)
    mean = E(lambda x: stack(x, x**2))
    return dot(q - p, mean) - A(q) + A(p)


@d.step(rules.mean_parameters)
def _(E, t):
    q, p = _natural(t)
    mean = gradient(lambda eta: A(eta), q)
    return dot(q - p, mean) - A(q) + A(p)


@d.step(rules.rearrange, note="A at p, above the tangent of A at q.")
def _(E, t):
    q, p = _natural(t)
    tangent = A(q) + dot(p - q, stack(t.mu, t.mu**2 + t.sigma**2))
    return A(p) - tangent


@d.shipped(rules.shipped)
def _(E, t):
    return kl(NORMAL, {"loc": t.mu, "scale": t.sigma}, {"loc": t.nu, "scale": t.tau})
