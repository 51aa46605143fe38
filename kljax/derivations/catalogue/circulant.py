"""Two circulant covariances: the Fourier transform makes both diagonal."""

from kljax import CirculantNormal
from kljax.derivations import rules
from kljax.derivations.catalogue import textbook
from kljax.derivations.derivation import Derivation, Form
from kljax.derivations.expectation import gaussian
from kljax.derivations.expression import diagonal_matrix, log, ones, outer, stack
from kljax.derivations.library import kl
from kljax.derivations.parameters import positive_vector, vector

d = Derivation(
    name="circulant",
    title="Two circulant covariances: the Fourier transform",
    question="What is the divergence of two stationary processes on a circle?",
    parameters={
        "mu": vector("μ", "mean of q"),
        "kappa": positive_vector("κ", "eigenvalues of q of frequency 0 and 1", 2),
        "nu": vector("ν", "mean of p"),
        "rho": positive_vector("λ", "eigenvalues of p of frequency 0 and 1", 2),
    },
    partners={"mu": "nu", "kappa": "rho"},
    law=lambda t: gaussian(t.mu, _circulant(t.mu, t.kappa)),
    ends_in=(Form("CirculantNormal", "CirculantNormal"),),
    generic=6,
    answer=(
        "The sum over the frequencies of the divergences of independent numbers, as the "
        "Fourier transform makes every circulant matrix diagonal. Frequencies j and n − j are "
        "equal."
    ),
)


def _row(eigenvalues):
    """The first row of three points on a circle."""
    on = (eigenvalues[0] + 2 * eigenvalues[1]) / 3
    off = (eigenvalues[0] - eigenvalues[1]) / 3
    return on, off


def _circulant(loc, eigenvalues):
    every = ones(loc)
    shared = (eigenvalues[0] - eigenvalues[1]) / 3 * outer(every, every)
    return diagonal_matrix(eigenvalues[1] * every) + shared


@d.start("KL(q‖p)", restates="full")
def _(E, t):
    q, p = gaussian(t.mu, _circulant(t.mu, t.kappa)), gaussian(t.nu, _circulant(t.nu, t.rho))
    return E(lambda x: q.log_density(x) - p.log_density(x), q)


@d.step(rules.full_formula)
def _(E, t):
    return textbook.full(t.mu, _circulant(t.mu, t.kappa), t.nu, _circulant(t.nu, t.rho))


def _power(x, y):
    """|F (x - y)|^2 / 3 of frequency 0, and of frequency 1."""
    total = ((x[0] + x[1] + x[2]) - (y[0] + y[1] + y[2])) ** 2 / 3
    rest = (x[0] - y[0]) ** 2 + (x[1] - y[1]) ** 2 + (x[2] - y[2]) ** 2 - total
    return total, rest / 2


@d.step(rules.fourier)
def _(E, t):
    constant, wave = _power(t.mu, t.nu)

    def frequency(kappa, scale, power):
        return (kappa / scale - 1 - log(kappa / scale) + power / scale) / 2

    first = frequency(t.kappa[0], t.rho[0], constant)
    return first + 2 * frequency(t.kappa[1], t.rho[1], wave)


@d.shipped(rules.shipped)
def _(E, t):
    q = {"loc": t.mu, "covariance_rfft": t.kappa}
    return kl(CirculantNormal, q, {"loc": t.nu, "covariance_rfft": t.rho})


@d.shipped(rules.shipped, note="Or from the first rows.")
def _(E, t):
    def record(loc, eigenvalues):
        on, off = _row(eigenvalues)
        return {"loc": loc, "covariance_row": stack(on, off, off)}

    return kl(CirculantNormal, record(t.mu, t.kappa), record(t.nu, t.rho))
