"""The divergence is never negative, and 0 only where q is p."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Same
from kljax.derivations.expectation import GRID, line, normal
from kljax.derivations.expression import exp, log, zero_like
from kljax.derivations.parameters import positive, real


def _parts(loc, scale):
    """Everything inside a density that is integrated, as text."""
    density = f"log N(x; {loc}, {scale}²)"
    return f"N(x; {loc}, {scale}²)", density, loc, f"{scale}²", scale


d = Derivation(
    name="nonnegativity",
    title="Never negative, and zero only at q = p",
    question="Why can the divergence not be negative, and when is it zero?",
    parameters={
        "mu": real("μ", "mean of q"),
        "sigma": positive("σ", "standard deviation of q"),
        "nu": real("ν", "mean of p"),
        "tau": positive("τ", "standard deviation of p"),
    },
    partners={"mu": "nu", "sigma": "tau"},
    law=lambda t: normal(t.mu, t.sigma),
    far=6.0,
    same=(
        *(
            Same(2, was, "∫", "∫ p = ∫ q = 1 for all parameters: no derivative is left.", kind)
            for law in ("μ, σ", "ν, τ")
            for was in _parts(*law.split(", "))
            for kind in ("stop_gradient", "wrong second-order rule")
        ),
        *(
            Same(step, "q, p", "", "The overlap is symmetric in q and p.", "q and p swapped")
            for step in (6, 7)
        ),
    ),
    answer=(
        "It is an expectation under p of a function that is nowhere negative. And it is at "
        "least a sum of two terms that are 0 only for equal variances and for equal means."
    ),
)


def _laws(t):
    return normal(t.mu, t.sigma), normal(t.nu, t.tau, "p")


@d.start("KL(q‖p)", route=GRID)
def _(E, t):
    q, p = _laws(t)
    return E.integral(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.log_ratio, route=GRID)
def _(E, t):
    def log_ratio(x):
        squares = (x - t.nu) ** 2 / (2 * t.tau**2) - (x - t.mu) ** 2 / (2 * t.sigma**2)
        return log(t.tau / t.sigma) + squares

    return E.integral(log_ratio)


@d.step(rules.equal_mass, sampled=False, note="This is p φ(q/p) with φ(r) = r log r + 1 − r.")
def _(E, t):
    q, p = _laws(t)

    def integrand(x):
        of_q, of_p = q.log_density(x), p.log_density(x)
        return exp(of_q) * (of_q - of_p) + exp(of_p) - exp(of_q)

    return E(integrand, line())


@d.bound(rules.phi_nonnegative)
def _(E, t):
    return zero_like(t.mu)


@d.start("KL(q‖p), bounded from below")
def _(E, t):
    q, p = _laws(t)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.root)
def _(E, t):
    q, p = _laws(t)
    return -2 * E(lambda x: log(exp((p.log_density(x) - q.log_density(x)) / 2)))


@d.bound(rules.jensen, sampled=False, note="The expectation of √(p/q) is the overlap ∫√(q p).")
def _(E, t):
    q, p = _laws(t)
    return -2 * log(E(lambda x: exp((q.log_density(x) + p.log_density(x)) / 2), line()))


@d.step(rules.affinity)
def _(E, t):
    spread = t.sigma**2 + t.tau**2
    return log(spread / (2 * t.sigma * t.tau)) + (t.mu - t.nu) ** 2 / (2 * spread)


@d.bound(rules.two_means, note="Equality needs σ = τ and μ = ν.")
def _(E, t):
    return zero_like(t.mu)
