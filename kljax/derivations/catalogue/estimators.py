"""Two ways to differentiate an expectation, one gradient."""

from kljax.derivations import rules
from kljax.derivations.derivation import Derivation, Same
from kljax.derivations.expectation import cubature, normal
from kljax.derivations.expression import gradient, sin, sqrt
from kljax.derivations.parameters import positive, real

d = Derivation(
    name="estimators",
    title="Bonnet, Price, and the two gradient estimators",
    question="Points that move or a density that moves: do both give the same gradient?",
    parameters={
        "mu": real("μ", "mean of q"),
        "sigma": positive("σ", "standard deviation of q"),
    },
    law=lambda t: normal(t.mu, t.sigma),
    far=4.0,
    same=tuple(
        Same(4, was, "E_q", "(x − μ)/σ has the standard law whatever μ and σ are.")
        for was in ("(x − μ)²/σ²", "(x − μ)²/σ² − 1")
    ),
    answer="Yes, in expectation. They differ in the variance of their samples.",
)

MANY = cubature(60)


def _f(x):
    return sin(x) + x**3 / 6


@d.start("∇_μ E[sin x + x³/6]", route=MANY, note="Pathwise: the nodes move with μ.")
def _(E, t):
    return gradient(lambda m: E(_f, normal(m, t.sigma)), t.mu)


@d.step(rules.score, route=MANY)
def _(E, t):
    return E(lambda x: _f(x) * (x - t.mu) / t.sigma**2)


@d.step(rules.bonnet, route=MANY)
def _(E, t):
    return E(lambda x: gradient(_f, x))


@d.start("∇_v E[sin x + x³/6], v = σ²", route=MANY)
def _(E, t):
    return gradient(lambda v: E(_f, normal(t.mu, sqrt(v))), t.sigma**2)


@d.step(rules.score, route=MANY)
def _(E, t):
    def weight(x):
        return ((x - t.mu) ** 2 / t.sigma**2 - 1) / (2 * t.sigma**2)

    return E(lambda x: _f(x) * weight(x))


@d.step(rules.price, route=MANY)
def _(E, t):
    return E(lambda x: gradient(lambda y: gradient(_f, y), x)) / 2
