"""Two exponential distributions: the family, its divergence, and why that is true."""

import jax
import jax.numpy as jnp
import numpy as np

import kljax
from kljax.derivations import Derivation, Rule, parameters, rules, shipped_kl
from kljax.derivations.words import exponential, log


@kljax.record
class Exponential:
    """The density λ e^(-λx) on x > 0."""

    rate: jax.Array = kljax.param(constraint="positive")


@kljax.register_kl(Exponential, Exponential, cost="O(1)")
def kl_exponential(q, p):
    """log(rate_q / rate_p) + rate_p / rate_q - 1."""
    return jnp.log(q.rate / p.rate) + p.rate / q.rate - 1


def both_sides(rng):
    """What the rule says is equal, on random numbers; the integral is over u with x = e^u."""
    rate = rng.uniform(0.5, 2)
    x = np.exp(np.linspace(-30, 6, 1000))
    return np.sum(x * x * rate * np.exp(-rate * x)) * 36 / 999, 1 / rate


statement = "E x = 1/λ under the density λ e^(−λx) on x > 0."
mean = Rule("mean", statement, "moment", "integration by parts", both_sides)

d = Derivation(
    name="exponential",
    title="Two exponential distributions",
    question="How far apart are two waiting times?",
    parameters={
        "rate": parameters.positive("λ", "rate of q"),
        "other": parameters.positive("κ", "rate of p"),
    },
    partners={"rate": "other"},
    law=lambda t: exponential(t.rate),
)


@d.start("KL(q‖p)")
def _(E, t):
    q, p = exponential(t.rate), exponential(t.other)
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.log_ratio)
def _(E, t):
    return E(lambda x: log(t.rate / t.other) - (t.rate - t.other) * x)


@d.step(rules.linearity)
def _(E, t):
    return log(t.rate / t.other) - (t.rate - t.other) * E(lambda x: x)


@d.step(mean)
def _(E, t):
    return log(t.rate / t.other) - (t.rate - t.other) / t.rate


@d.shipped(rules.shipped)
def _(E, t):
    return shipped_kl(Exponential, {"rate": t.rate}, {"rate": t.other})
