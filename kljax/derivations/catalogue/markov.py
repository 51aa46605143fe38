"""Two Gauss-Markov chains: the chain rule along time."""

from kljax import BlockTridiagonalNormal, GaussMarkov
from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form, Same
from kljax.derivations.expectation import gaussian, log_normal, normal_by_variance
from kljax.derivations.expression import log, stack
from kljax.derivations.library import MVN, kl, of_numbers
from kljax.derivations.parameters import positive, real

CHAIN, BLOCKS = of_numbers(GaussMarkov), BlockTridiagonalNormal

d = Derivation(
    name="markov",
    title="Two chains: one step after the other",
    question="How far apart are two paths whose next state depends on the present alone?",
    parameters={
        "mu": real("μ", "mean of the first state under q"),
        "v": positive("v", "variance of the first state under q"),
        "a": real("a", "what the second state takes over from the first, under q"),
        "b": real("b", "what is added to it, under q"),
        "w": positive("w", "variance of the second state given the first, under q"),
        "nu": real("ν", "mean of the first state under p"),
        "s": positive("s", "variance of the first state under p"),
        "f": real("f", "what the second state takes over from the first, under p"),
        "g": real("g", "what is added to it, under p"),
        "r": positive("r", "variance of the second state given the first, under p"),
    },
    partners={"mu": "nu", "v": "s", "a": "f", "b": "g", "w": "r"},
    law=lambda t: gaussian(*_joint(t.mu, t.v, t.a, t.b, t.w)),
    ends_in=(
        Form("GaussMarkov", "GaussMarkov"),
        Form("BlockTridiagonalNormal", "BlockTridiagonalNormal"),
        Form("GaussMarkov", "BlockTridiagonalNormal"),
        Form("BlockTridiagonalNormal", "GaussMarkov"),
        Form("GaussMarkov", "MultivariateNormal"),
        Form("MultivariateNormal", "GaussMarkov"),
        Form("BlockTridiagonalNormal", "MultivariateNormal"),
        Form("MultivariateNormal", "BlockTridiagonalNormal"),
    ),
    same=(
        *(
            Same(step, "((v, a v), (a v, a a v + w))", where, "It is symmetric.", "transpose")
            for step, where in ((0, ""), (1, "the law of E_q"))
        ),
        Same(0, "((s, f s), (f s, f f s + r))", "", "It is symmetric.", "transpose"),
        *(
            Same(step, "a v", "the law of E_q", "The factor reads the lower triangle alone.")
            for step in (0, 1)
        ),
    ),
    generic=6,
    far=5.0,
    answer=(
        "The divergence of the first states, and of every transition the mean divergence under "
        "q: of its noise, of its mean at the mean of the state, and of how its mean changes "
        "with the state. A longer path adds one such term a step, so that T steps cost T."
    ),
)


def _joint(mean, variance, slope, shift, noise):
    """Mean and covariance of both states."""
    cross = slope * variance
    covariance = stack(stack(variance, cross), stack(cross, slope * cross + noise))
    return stack(mean, slope * mean + shift), covariance


@d.start("KL(q‖p)")
def _(E, t):
    q = gaussian(*_joint(t.mu, t.v, t.a, t.b, t.w))
    p = gaussian(*_joint(t.nu, t.s, t.f, t.g, t.r))
    return E(lambda x: q.log_density(x) - p.log_density(x))


@d.step(rules.conditional)
def _(E, t):
    def ratio(x, y):
        first = log_normal(x, t.mu, t.v) - log_normal(x, t.nu, t.s)
        return first + (log_normal(y, t.a * x + t.b, t.w) - log_normal(y, t.f * x + t.g, t.r))

    return E(lambda x: ratio(x[0], x[1]))


def _first(t):
    return normal_by_variance(t.mu, t.v, "q_1")


@d.step(rules.tower, note="The inner expectation is a divergence of two numbers.")
def _(E, t):
    def step(x):
        return textbook.by_variance(t.a * x + t.b, t.w, t.f * x + t.g, t.r)

    first = E(lambda x: log_normal(x, t.mu, t.v) - log_normal(x, t.nu, t.s), _first(t))
    return first + E(step, _first(t))


@d.step(rules.one_coordinate)
def _(E, t):
    def step(x):
        return textbook.by_variance(t.a * x + t.b, t.w, t.f * x + t.g, t.r)

    return textbook.by_variance(t.mu, t.v, t.nu, t.s) + E(step, _first(t))


@d.step(rules.spread_about_another_point)
def _(E, t):
    shift = (t.a - t.f) * t.mu + (t.b - t.g)
    noise = log(t.r / t.w) - 1 + t.w / t.r
    moved = (shift**2 + (t.a - t.f) ** 2 * t.v) / t.r
    return textbook.by_variance(t.mu, t.v, t.nu, t.s) + (noise + moved) / 2


def _chain(mean, variance, slope, shift, noise):
    return {
        "initial_loc": mean,
        "initial_covariance": variance,
        "transition_matrix": slope,
        "transition_offset": shift,
        "transition_covariance": noise,
    }


def _blocks(mean, variance, slope, shift, noise):
    def matrix(number):
        return stack(stack(number))

    first, second = matrix(1 / variance + slope**2 / noise), matrix(1 / noise)
    return {
        "loc": stack(stack(mean), stack(slope * mean + shift)),
        "precision_diagonal_blocks": stack(first, second),
        "precision_lower_blocks": stack(matrix(-slope / noise)),
    }


def _of_q(t):
    return t.mu, t.v, t.a, t.b, t.w


def _of_p(t):
    return t.nu, t.s, t.f, t.g, t.r


@d.shipped(rules.shipped)
def _(E, t):
    return kl(CHAIN, _chain(*_of_q(t)), _chain(*_of_p(t)))


@d.shipped(rules.shipped, note="The precision of a chain is tridiagonal.")
def _(E, t):
    return kl(BLOCKS, _blocks(*_of_q(t)), _blocks(*_of_p(t)))


@d.shipped(rules.shipped)
def _(E, t):
    return kl((CHAIN, BLOCKS), _chain(*_of_q(t)), _blocks(*_of_p(t)))


@d.shipped(rules.shipped)
def _(E, t):
    return kl((BLOCKS, CHAIN), _blocks(*_of_q(t)), _chain(*_of_p(t)))


def _full(*law):
    mean, covariance = _joint(*law)
    return {"loc": mean, "covariance_matrix": covariance}


@d.shipped(rules.shipped, note="A path is read state by state.")
def _(E, t):
    return kl((CHAIN, MVN), _chain(*_of_q(t)), _full(*_of_p(t)))


@d.shipped(rules.shipped)
def _(E, t):
    return kl((MVN, CHAIN), _full(*_of_q(t)), _chain(*_of_p(t)))


@d.shipped(rules.shipped)
def _(E, t):
    return kl((BLOCKS, MVN), _blocks(*_of_q(t)), _full(*_of_p(t)))


@d.shipped(rules.shipped)
def _(E, t):
    return kl((MVN, BLOCKS), _full(*_of_q(t)), _blocks(*_of_p(t)))
