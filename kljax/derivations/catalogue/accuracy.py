"""One formula, written four ways, and how many digits each keeps where q is almost p."""

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import normal
from kljax.derivations.expression import expm1, log
from kljax.derivations.library import NORMAL, kl
from kljax.derivations.parameters import positive, real

d = Derivation(
    name="accuracy",
    title="The same formula with and without its digits",
    question=(
        "All these lines are equal in mathematics. Which one may a program evaluate, in which "
        "parametrization?"
    ),
    parameters={
        "mu": real("μ", "mean of q"),
        "sigma": positive("σ", "standard deviation of q"),
        "nu": real("ν", "mean of p"),
        "tau": positive("τ", "standard deviation of p"),
    },
    partners={"mu": "nu", "sigma": "tau"},
    law=lambda t: normal(t.mu, t.sigma),
    ends_in=(Form("Normal", "Normal"),),
    answer=(
        "The one whose parts cannot cancel, on the numbers that the user gave: a conversion "
        "between scale, variance and log-variance rounds, and the difference of q and p is "
        "then the difference of two rounding errors."
    ),
)


@d.start("KL(q‖p)", restates="univariate")
def _(E, t):
    q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.one_coordinate, note="The textbook's line.")
def _(E, t):
    return textbook.univariate(t.mu, t.sigma, t.nu, t.tau)


@d.step(rules.one_half_outside, note="The four terms, which cancel.")
def _(E, t):
    ratio = t.sigma**2 / t.tau**2
    return (ratio - 1 - log(ratio) + (t.mu - t.nu) ** 2 / t.tau**2) / 2


@d.step(rules.by_log_ratio, note="Better, but expm1(ρ) − ρ still cancels, and log σ/τ rounds.")
def _(E, t):
    rho = 2 * log(t.sigma / t.tau)
    return (expm1(rho) - rho + ((t.mu - t.nu) / t.tau) ** 2) / 2


_SPREADS = {
    "scale": lambda scale: scale,
    "variance": lambda scale: scale**2,
    "log_variance": lambda scale: 2 * log(scale),
}


def _library(of_q, of_p):
    @d.shipped(rules.shipped)
    def _(E, t):
        q = {"loc": t.mu, of_q: _SPREADS[of_q](t.sigma)}
        return kl(NORMAL, q, {"loc": t.nu, of_p: _SPREADS[of_p](t.tau)})


for _of_q in _SPREADS:
    for _of_p in _SPREADS:
        _library(_of_q, _of_p)
