"""Every ordered mix of Gaussian families of vectors: structure changes the cost alone."""

import itertools

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import gaussian
from kljax.derivations.expression import diagonal_matrix, stack
from kljax.derivations.library import BLOCKS, CIRCULANT, DIAG, ISOTROPIC, LOW_RANK, MVN, kl
from kljax.derivations.naming import named
from kljax.derivations.parameters import covariance, matrix, positive, positive_vector, vector


def _circulant(t, name):
    """The covariance of a circle of two points, which share a deviation."""
    shared = stack(stack(t.g), stack(t.g))
    return named(name, diagonal_matrix(stack(t.s, t.s) ** 2) + shared @ shared.T)


# The covariance of one event of each family, and the fields that say it; t is q's or p's.
_FAMILIES = {
    MVN: (lambda t: t.S, lambda t: {"covariance_matrix": t.S}),
    DIAG: (lambda t: diagonal_matrix(t.D), lambda t: {"variance": t.D}),
    ISOTROPIC: (
        lambda t: diagonal_matrix(stack(t.s, t.s) ** 2),
        lambda t: {"scale": t.s},
    ),
    LOW_RANK: (
        lambda t: diagonal_matrix(t.D) + t.W @ t.W.T,
        lambda t: {"cov_factor": t.W, "cov_diag": t.D},
    ),
    BLOCKS: (lambda t: t.S, lambda t: {"block_covariance": stack(t.S)}),
    CIRCULANT: (
        lambda t: _circulant(t, "B" if isinstance(t, _OfP) else "A"),
        lambda t: {"covariance_row": stack(t.s**2 + t.g**2, t.g**2)},
    ),
}
_WORDS = {
    MVN: "full",
    DIAG: "diagonal",
    ISOTROPIC: "isotropic",
    LOW_RANK: "low rank",
    BLOCKS: "blocks",
    CIRCULANT: "circulant",
}
# Pairs with a derivation of their own.
_OWN = [(CIRCULANT, CIRCULANT), *itertools.product([MVN, DIAG], [MVN, DIAG])]
_PAIRS = [pair for pair in itertools.product(_FAMILIES, _FAMILIES) if pair not in _OWN]

d = Derivation(
    name="mixes",
    title="Structured families, one formula",
    question=(
        "Isotropic, low-rank, block-diagonal and circulant Gaussians have shorter formulas "
        "than two full matrices. Is each of them, in every mix, the same divergence?"
    ),
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "D": positive_vector("D", "variances of q", 2),
        "W": matrix("W", "factor of q", 2, 1),
        "s": positive("s", "standard deviation of q"),
        "g": positive("g", "standard deviation that two points of a circulant q share"),
        "nu": vector("ν", "mean of p", 2),
        "S_p": covariance("T", "covariance matrix of p", 2),
        "D_p": positive_vector("E", "variances of p", 2),
        "W_p": matrix("V", "factor of p", 2, 1),
        "s_p": positive("t", "standard deviation of p"),
        "g_p": positive("h", "standard deviation that two points of a circulant p share"),
    },
    partners={"mu": "nu", "S": "S_p", "D": "D_p", "W": "W_p", "s": "s_p", "g": "g_p"},
    law=lambda t: gaussian(t.mu, t.S),
    ends_in=tuple(Form(q.__name__, p.__name__) for q, p in _PAIRS),
    generic=2,
    answer=f"Yes: {len(_PAIRS)} mixes, one formula of the textbook.",
)


class _OfP:
    """The parameters of p by the names of q's."""

    def __init__(self, t):
        self.S, self.D, self.W = t.S_p, t.D_p, t.W_p
        self.s, self.g = t.s_p, t.g_p


def _mix(q_family, p_family):
    (q_matrix, q_fields), (p_matrix, p_fields) = _FAMILIES[q_family], _FAMILIES[p_family]

    @d.start(f"KL of {_WORDS[q_family]} and {_WORDS[p_family]}", restates="full")
    def _(E, t):
        q, p = gaussian(t.mu, q_matrix(t)), gaussian(t.nu, p_matrix(_OfP(t)))
        return E(lambda x: q.log_density(x) - p.log_density(x), q)

    @d.step(rules.full_formula)
    def _(E, t):
        return textbook.full(t.mu, q_matrix(t), t.nu, p_matrix(_OfP(t)))

    @d.shipped(rules.shipped)
    def _(E, t):
        q, p = {"loc": t.mu, **q_fields(t)}, {"loc": t.nu, **p_fields(_OfP(t))}
        return kl((q_family, p_family), q, p)


for _pair in _PAIRS:
    _mix(*_pair)
