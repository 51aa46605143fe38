"""Two normal distributions of a number, from the integral to what the library runs."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Form, Same
from kljax.derivations.expectation import GRID, SIGMA, normal
from kljax.derivations.expression import expm1, log
from kljax.derivations.library import NORMAL, kl
from kljax.derivations.parameters import positive, real

d = Derivation(
    name="univariate",
    title="Two normal distributions of a number",
    question="How far is q = N(μ, σ²) from p = N(ν, τ²), and where does each term come from?",
    parameters={
        "mu": real("μ", "mean of q"),
        "sigma": positive("σ", "standard deviation of q"),
        "nu": real("ν", "mean of p"),
        "tau": positive("τ", "standard deviation of p"),
    },
    partners={"mu": "nu", "sigma": "tau"},
    mistakes=(
        "−1/2 forgotten",
        "−1 missing",
        "E x² = σ² − μ²",
        "standard deviation read as variance",
        "variance ratio squared in the trace",
        "logarithm around everything",
        "1/2 dropped",
        "1/2 on the first term only",
        "q and p swapped",
    ),
    law=lambda t: normal(t.mu, t.sigma),
    ends_in=(Form("Normal", "Normal"),),
    same=(Same(5, "σ", "the law of E_q[x − μ]", "E(x − μ) = 0 for any standard deviation."),),
)


@d.start("KL(q‖p)", route=GRID, note="The definition, as an integral over x.")
def _(E, t):
    q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
    return E.integral(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.expectation)
def _(E, t):
    q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.log_ratio, route=SIGMA, note="The factor √(2π) is in both and cancels.")
def _(E, t):
    return E(
        lambda x: (
            log(t.tau / t.sigma)
            - (x - t.mu) ** 2 / (2 * t.sigma**2)
            + (x - t.nu) ** 2 / (2 * t.tau**2)
        )
    )


@d.step(rules.linearity)
def _(E, t):
    return (
        log(t.tau / t.sigma)
        - E(lambda x: (x - t.mu) ** 2) / (2 * t.sigma**2)
        + E(lambda x: (x - t.nu) ** 2) / (2 * t.tau**2)
    )


@d.step(rules.variance, route=SIGMA)
def _(E, t):
    return log(t.tau / t.sigma) - 1 / 2 + E(lambda x: (x - t.nu) ** 2) / (2 * t.tau**2)


@d.step(rules.expand_square)
def _(E, t):
    spread, shift = E(lambda x: (x - t.mu) ** 2), E(lambda x: x - t.mu)
    delta = t.mu - t.nu
    square = spread + 2 * delta * shift + delta**2
    return log(t.tau / t.sigma) - 1 / 2 + square / (2 * t.tau**2)


@d.step(rules.centered)
def _(E, t):
    return log(t.tau / t.sigma) - 1 / 2 + (t.sigma**2 + (t.mu - t.nu) ** 2) / (2 * t.tau**2)


@d.step(rules.by_log_ratio, note="Two groups, neither of them ever negative.")
def _(E, t):
    rho = 2 * log(t.sigma / t.tau)
    return (expm1(rho) - rho + ((t.mu - t.nu) / t.tau) ** 2) / 2


@d.shipped(rules.shipped)
def _(E, t):
    return kl(NORMAL, {"loc": t.mu, "scale": t.sigma}, {"loc": t.nu, "scale": t.tau})
