"""Every pair of covariance structures and parametrizations that the library evaluates."""

from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import gaussian
from kljax.derivations.expression import cholesky, diagonal_matrix, inv, log
from kljax.derivations.library import DIAG, MVN, kl
from kljax.derivations.parameters import covariance, positive_vector, vector

d = Derivation(
    name="structures",
    title="All structures and parametrizations, one formula",
    question=(
        "The library takes covariances as scales, variances, log-variances, Cholesky factors, "
        "matrices and precisions, in every mix. Does each mix evaluate the same divergence?"
    ),
    parameters={
        "mu": vector("μ", "mean of q", 2),
        "S": covariance("S", "covariance matrix of q", 2),
        "sigma": positive_vector("σ", "standard deviations of a diagonal q", 2),
        "nu": vector("ν", "mean of p", 2),
        "T": covariance("T", "covariance matrix of p", 2),
        "tau": positive_vector("τ", "standard deviations of a diagonal p", 2),
    },
    partners={"mu": "nu", "S": "T", "sigma": "tau"},
    law=lambda t: gaussian(t.mu, t.S),
    ends_in=(
        Form("MultivariateNormal", "MultivariateNormal"),
        Form("MultivariateNormalDiag", "MultivariateNormal"),
        Form("MultivariateNormal", "MultivariateNormalDiag"),
        Form("MultivariateNormalDiag", "MultivariateNormalDiag"),
    ),
    generic=6,
    answer="Yes: 36 pairs, four formulas of the textbook.",
)

_FULL = {
    "scale_tril": cholesky,
    "covariance_matrix": lambda matrix: matrix,
    "precision_matrix": inv,
}
_DIAGONAL = {
    "scale_diag": lambda scale: scale,
    "variance": lambda scale: scale**2,
    "log_variance": lambda scale: 2 * log(scale),
}


def _matrices(t, full_q, full_p):
    S = t.S if full_q else diagonal_matrix(t.sigma**2)
    return S, t.T if full_p else diagonal_matrix(t.tau**2)


def _definition(full_q, full_p):
    @d.start(
        f"KL of a {'full' if full_q else 'diagonal'} q and a "
        f"{'full' if full_p else 'diagonal'} p",
        restates="full",
    )
    def _(E, t):
        S, T = _matrices(t, full_q, full_p)
        q, p = gaussian(t.mu, S), gaussian(t.nu, T)
        return E(lambda x: q.log_density(x) - p.log_density(x), q)

    @d.step(rules.full_formula)
    def _(E, t):
        S, T = _matrices(t, full_q, full_p)
        return textbook.full(t.mu, S, t.nu, T)


def _library(of_q, of_p):
    full_q, full_p = of_q in _FULL, of_p in _FULL
    family = MVN if full_q else DIAG, MVN if full_p else DIAG

    @d.shipped(rules.shipped)
    def _(E, t):
        spread_q = _FULL[of_q](t.S) if full_q else _DIAGONAL[of_q](t.sigma)
        spread_p = _FULL[of_p](t.T) if full_p else _DIAGONAL[of_p](t.tau)
        return kl(family, {"loc": t.mu, of_q: spread_q}, {"loc": t.nu, of_p: spread_p})


for _left in (_FULL, _DIAGONAL):
    for _right in (_FULL, _DIAGONAL):
        _definition(_left is _FULL, _right is _FULL)
        for _of_q in _left:
            for _of_p in _right:
                _library(_of_q, _of_p)
