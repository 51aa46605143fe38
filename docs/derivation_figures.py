"""Figures of the derivations, as SVG: one function each, and what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import kljax

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.patches import Ellipse

# Okabe and Ito's colors, which all eyes can tell apart; every curve has its name beside it.
Q, P, THIRD, FOURTH, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222"
STYLE = {
    "svg.hashsalt": "kljax",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "lines.linewidth": 1.8,
}
FIGURES: dict[str, tuple[Callable[[], Any], str]] = {}


def _figure(name: str, shows: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(draw: Callable[[], Any]) -> Callable[[], Any]:
        FIGURES[name] = draw, shows
        return draw

    return add


def write(name: str, folder: Path) -> None:
    """Draws the figure of a derivation into folder/name.svg."""
    with mpl.rc_context(STYLE):
        figure = FIGURES[name][0]()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _panels(count: int, height: float = 3.0) -> tuple[Any, list[Any]]:
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, height), layout="constrained")
    return figure, list(np.atleast_1d(axes))


def _density(x: Any, loc: float, scale: float) -> Any:
    return np.exp(-(((x - loc) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))


def _name(axis: Any, x: float, y: float, text: str, color: str, **more: Any) -> None:
    axis.text(x, y, text, color=color, **more)


def _ellipse(axis: Any, loc: Any, covariance: Any, color: str, text: str) -> None:
    """The one-standard-deviation contour with its center and name."""
    sizes, axes = np.linalg.eigh(covariance)
    angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
    width, height = 2 * math.sqrt(sizes[1]), 2 * math.sqrt(sizes[0])
    axis.add_patch(
        Ellipse(loc, width, height, angle=angle, fill=False, edgecolor=color, linewidth=2)
    )
    axis.plot(*loc, "o", color=color, markersize=4)
    axis.annotate(text, loc, xytext=(5, 5), textcoords="offset points", color=color)


def _plane(axis: Any, title: str, size: float = 3) -> None:
    axis.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", title=title)
    axis.set(xlabel="first coordinate", ylabel="second coordinate")


# ---- one dimension --------------------------------------------------------------------------


@_figure(
    "univariate",
    "Left: the densities and, shaded, the integrand of KL(q‖p), whose signed area is the "
    "divergence. Middle: its terms at equal means as the standard deviation of q changes. "
    "Right: what the gradient does to q.",
)
def univariate() -> Any:
    figure, (left, middle, right) = _panels(3)
    mu, sigma, nu, tau = -0.5, 0.7, 0.6, 1.1
    x = np.linspace(-4, 4.5, 400)
    q, p = _density(x, mu, sigma), _density(x, nu, tau)
    integrand = q * np.log(q / p)
    left.plot(x, q, color=Q)
    left.plot(x, p, color=P)
    left.fill_between(x, integrand, where=integrand > 0, color=THIRD, alpha=0.5, lw=0)
    left.fill_between(x, integrand, where=integrand < 0, color=FOURTH, alpha=0.5, lw=0)
    _name(left, -1.5, 0.5, "q", Q)
    _name(left, 1.8, 0.27, "p", P)
    _name(left, -3.9, 0.24, "q log(q/p):\nadds", THIRD)
    _name(left, 0.9, -0.13, "takes away", FOURTH)
    left.set(xlabel="x", ylabel="density; nats per unit of x", title="densities and integrand")

    ratio = np.linspace(0.25, 2.5, 200)
    trace, log_det = ratio**2 / 2, -np.log(ratio)
    middle.plot(ratio, trace, color=P)
    middle.plot(ratio, log_det, color=Q)
    middle.plot(ratio, trace + log_det - 0.5, color=INK)
    middle.axhline(0, color=INK, linewidth=0.5)
    _name(middle, 1.75, 2.3, "σ²/2τ²", P, ha="right")
    _name(middle, 1.0, -0.75, "log τ/σ", Q)
    _name(middle, 1.95, 0.35, "KL", INK)
    middle.set(xlabel="σ/τ", ylabel="nats", title="σ²/2τ² + log τ/σ − 1/2", ylim=(-1.2, 3.2))

    _forces(right)
    return figure


def _forces(axis: Any) -> None:
    """Minus the gradient by mean and log-scale, at points of the plane."""
    mu, log_sigma = np.meshgrid(np.linspace(-2, 2, 9), np.linspace(-1.2, 0.9, 8))
    pull_mean = -mu
    push_scale = 1 - np.exp(2 * log_sigma)
    size = np.hypot(pull_mean, push_scale)
    shrink = np.tanh(size) / np.maximum(size, 1e-9)
    axis.quiver(mu, log_sigma, pull_mean * shrink, push_scale * shrink, color=Q, scale=14)
    axis.plot(0, 0, "o", color=P)
    _name(axis, 0.1, 0.06, "p", P)
    axis.set(xlabel="(μ − ν)/τ", ylabel="log σ/τ", title="downhill from every q")


@_figure(
    "gradients",
    "Left: the Mahalanobis term pulls the mean of q to that of p, the harder the further away. "
    "Right: the trace pulls the variance of q down, the log-determinant pushes it up, and they "
    "balance where it is that of p.",
)
def gradients() -> Any:
    figure, (left, right) = _panels(2)
    x = np.linspace(-3.5, 3.5, 300)
    left.plot(x, _density(x, 0, 1), color=P)
    _name(left, 0.9, 0.3, "p", P)
    for mean in (-2.5, -1.2, 1.2, 2.5):
        left.plot(mean, 0, "o", color=Q)
        left.annotate(
            "",
            (mean - 0.45 * mean, -0.04),
            (mean, -0.04),
            arrowprops={"arrowstyle": "-|>", "color": Q, "lw": 1.6},
        )
    _name(left, -3.5, 0.2, "−∂KL/∂μ =\n(ν − μ)/τ²", Q)
    left.set(xlabel="mean of q, (μ − ν)/τ", ylabel="density of p", title="pull on the mean")
    left.set(ylim=(-0.1, 0.45))

    log_ratio = np.linspace(-2.5, 1.3, 200)
    right.plot(log_ratio, -np.exp(log_ratio) / 2, color=P)
    right.plot(log_ratio, np.full_like(log_ratio, 0.5), color=THIRD)
    right.plot(log_ratio, (1 - np.exp(log_ratio)) / 2, color=INK)
    right.axhline(0, color=INK, linewidth=0.5)
    right.plot(0, 0, "o", color=INK)
    _name(right, -2.4, -0.42, "trace pulls down", P)
    _name(right, -2.4, 0.6, "log-determinant pushes up", THIRD)
    _name(right, 0.1, 0.08, "balance: σ = τ", INK)
    right.set(xlabel="log σ²/τ²", ylabel="−∂KL/∂l, nats", title="force on the log-variance")
    right.set(ylim=(-1.6, 0.9))
    return figure


@_figure(
    "vae",
    "What a coordinate of the code costs: the parts of (e^l − 1 − l + μ²)/2 as the encoder's "
    "log-variance moves, and the whole for three means.",
)
def vae() -> Any:
    figure, (left, right) = _panels(2)
    l = np.linspace(-4, 2, 300)
    left.plot(l, np.expm1(l) / 2, color=P)
    left.plot(l, -l / 2, color=Q)
    left.plot(l, (np.expm1(l) - l) / 2, color=INK)
    left.axhline(0, color=INK, linewidth=0.5)
    _name(left, 0.6, 2.1, "(e^l − 1)/2", P, ha="right")
    _name(left, -3.6, 2.1, "−l/2", Q)
    _name(left, -3.4, 0.6, "sum", INK)
    left.set(
        xlabel="log-variance l", ylabel="nats", title="two parts, whose sum is never negative"
    )
    for mean, color in ((0, INK), (1, Q), (2, P)):
        cost = (np.expm1(l) - l + mean**2) / 2
        right.plot(l, cost, color=color)
        _name(right, 2.1, cost[-1], f"μ = {mean}", color, va="center")
    right.set(xlabel="log-variance l", ylabel="nats", title="the KL of a coordinate")
    right.set(ylim=(0, 4.5), xlim=(-4, 3.6))
    return figure


@_figure(
    "nonnegativity",
    "Left: r log r + 1 − r is never negative and touches zero at r = 1 only. Right: so the "
    "integrand p (r log r + 1 − r) with r = q/p has no negative part, and the same area as "
    "q log(q/p).",
)
def nonnegativity() -> Any:
    figure, (left, right) = _panels(2)
    r = np.linspace(1e-6, 3, 300)
    left.plot(r, r * np.log(r) + 1 - r, color=THIRD)
    left.axhline(0, color=INK, linewidth=0.5)
    left.plot(1, 0, "o", color=INK)
    _name(left, 1.0, 0.1, "r = 1", INK, ha="center")
    left.set(xlabel="r = q/p", ylabel="r log r + 1 − r", title="why it is never negative")
    x = np.linspace(-4, 4.5, 400)
    q, p = _density(x, -0.5, 0.7), _density(x, 0.6, 1.1)
    right.plot(x, q * np.log(q / p), color=FOURTH)
    right.fill_between(x, q * np.log(q / p) + p - q, color=THIRD, alpha=0.5, lw=0)
    right.axhline(0, color=INK, linewidth=0.5)
    _name(right, -3.9, 0.33, "q log(q/p)", FOURTH)
    _name(right, 0.6, 0.28, "p (r log r + 1 − r)", THIRD, fontsize=8)
    right.set(xlabel="x", ylabel="nats per unit of x", title="two integrands, one area")
    return figure


@_figure(
    "fisher",
    "Near q = p the divergence is half of a square: its curvature by the log-variance is 1/2 "
    "and by the mean 1/τ², which is the Fisher information.",
)
def fisher() -> Any:
    figure, (left, right) = _panels(2)
    l = np.linspace(-1.5, 1.5, 200)
    left.plot(l, (np.expm1(l) - l) / 2, color=Q)
    left.plot(l, l**2 / 4, "--", color=P)
    _name(left, 0.55, 0.72, "KL", Q)
    _name(left, -1.1, 0.42, "l²/4", P)
    left.set(xlabel="l = log σ²/τ²", ylabel="nats", title="by the log-variance")
    m = np.linspace(-1.5, 1.5, 200)
    right.plot(m, m**2 / 2, color=Q)
    right.plot(m, m**2 / 2, "--", color=P)
    _name(right, -0.4, 0.55, "KL = m²/2", Q)
    right.set(xlabel="m = (μ − ν)/τ", ylabel="nats", title="by the mean: exact")
    return figure


@_figure(
    "entropy",
    "The cross-entropy of q and p less the entropy of q is the divergence: the gap between the "
    "two curves, which closes at σ = τ only.",
)
def entropy() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    ratio = np.linspace(0.2, 2.5, 200)
    constant = 0.5 * math.log(2 * math.pi)
    cross, own = constant + ratio**2 / 2, constant + 0.5 + np.log(ratio)
    axis.plot(ratio, cross, color=P)
    axis.plot(ratio, own, color=Q)
    axis.fill_between(ratio, own, cross, color=THIRD, alpha=0.25, lw=0)
    _name(axis, 1.55, 3.1, "H(q, p)", P)
    _name(axis, 1.9, 1.65, "H(q)", Q)
    _name(axis, 0.22, 0.55, "KL", THIRD)
    axis.set(xlabel="σ, with μ = ν and τ = 1", ylabel="nats", title="cross-entropy and entropy")
    return figure


@_figure(
    "exponential_family",
    "The divergence as a gap: between the log-partition function at the parameter of p and the "
    "tangent that touches it at the parameter of q.",
)
def exponential_family() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    eta = np.linspace(-3.2, -0.12, 300)
    log_partition = -0.5 * np.log(-2 * eta)
    at, to = -2.0, -0.35
    value, slope = -0.5 * math.log(-2 * at), -0.5 / at
    tangent = value + slope * (eta - at)
    end = -0.5 * math.log(-2 * to)
    axis.plot(eta, log_partition, color=INK)
    axis.plot(eta, tangent, "--", color=Q)
    axis.plot(at, value, "o", color=Q)
    axis.plot(to, end, "o", color=P)
    axis.plot([to, to], [value + slope * (to - at), end], color=THIRD, linewidth=3)
    _name(axis, at, value + 0.12, "q", Q, ha="center")
    _name(axis, to - 0.05, end + 0.05, "p", P, ha="right")
    _name(axis, to + 0.1, -0.1, "KL(q‖p)", THIRD)
    _name(axis, -3.1, -0.65, "A(η)", INK)
    axis.set_xlim(-3.3, 0.9)
    axis.set(xlabel="η = −1/2σ², mean 0", ylabel="nats", title="a Bregman divergence")
    return figure


@_figure(
    "estimators",
    "Draws of two estimators of the gradient of KL by the mean of q. Both are right on average "
    "(black line); the pathwise one scatters less.",
)
def estimators() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    mu, sigma, nu, tau = 0.3, 0.8, -0.4, 1.1
    xi = np.random.default_rng(0).normal(size=20_000)
    x = mu + sigma * xi
    log_ratio = np.log(tau / sigma) - xi**2 / 2 + ((x - nu) / tau) ** 2 / 2
    pathwise, score = (x - nu) / tau**2 - xi / sigma, log_ratio * xi / sigma
    bins = np.linspace(-3, 4, 71)
    for draws, color, text in ((score, P, "score function"), (pathwise, Q, "pathwise")):
        label = f"{text}: standard deviation {draws.std():.2f}"
        axis.hist(draws, bins, density=True, color=color, alpha=0.5, label=label)
    axis.set_ylim(0, 2.3)
    axis.axvline((mu - nu) / tau**2, color=INK)
    axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel="estimate of ∂KL/∂μ from one draw", ylabel="density", title="one gradient")
    return figure


@_figure(
    "surgery",
    "Left: the codes of three data points, their average, and the prior. Right: the average "
    "KL splits into what a code says about its data point and what the prior misses.",
)
def surgery() -> Any:
    figure, (left, right) = _panels(2)
    means, scales = np.array([-1.4, 0.2, 1.5]), np.array([0.5, 0.4, 0.6])
    z = np.linspace(-5, 5, 2001)
    codes = _density(z[:, None], means, scales)
    average, prior = codes.mean(1), _density(z, 0, 1)
    left.plot(z, codes / 3, color=Q, linewidth=1)
    left.plot(z, average, color=THIRD)
    left.plot(z, prior, color=P)
    _name(left, -3.1, 0.2, "codes / 3", Q)
    _name(left, 1.9, 0.29, "their average", THIRD)
    _name(left, -3.6, 0.06, "prior", P)
    left.set(xlabel="z", ylabel="density", title="codes and prior", xlim=(-4, 4))
    step = z[1] - z[0]
    tiny = 1e-300
    inside = (codes * np.log((codes + tiny) / average[:, None])).sum(0).mean() * step
    missed = (average * np.log(average / prior)).sum() * step
    right.bar(["average KL"], [inside + missed], color=INK)
    right.bar(["split"], [inside], color=Q)
    right.bar(["split"], [missed], bottom=[inside], color=P)
    _name(right, 1.42, inside / 2, "what a code says\nabout its point", Q, va="center")
    _name(right, 1.42, inside + missed / 2, "what the prior misses", P, va="center")
    right.set(ylabel="nats", title="the same total", xlim=(-0.6, 3.4))
    return figure


@_figure(
    "elbo",
    "As the mean of q(z) moves, the ELBO changes by what the divergence from the posterior "
    "takes; their sum log p(x) stays.",
)
def elbo() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    weight, noise, x, spread = 1.2, 0.8, 1.5, 0.6
    precision = 1 + (weight / noise) ** 2
    mean = weight * x / noise**2 / precision
    evidence_variance = weight**2 + noise**2
    evidence = -0.5 * (x**2 / evidence_variance + math.log(2 * math.pi * evidence_variance))
    m = np.linspace(mean - 1.3, mean + 1.3, 200)
    gap = 0.5 * (precision * (spread**2 + (m - mean) ** 2) - 1 - np.log(precision * spread**2))
    axis.axhline(evidence, color=INK)
    axis.plot(m, evidence - gap, color=Q)
    axis.fill_between(m, evidence - gap, evidence, color=P, alpha=0.3, lw=0)
    axis.axvline(mean, color=THIRD, linestyle=":")
    _name(axis, m[0], evidence + 0.06, "log p(x)", INK)
    _name(axis, mean + 0.35, evidence - 1.2, "ELBO", Q, ha="right")
    _name(axis, mean - 1.28, evidence - 0.35, "KL(q‖p(z|x))", P, fontsize=8)
    _name(axis, mean + 0.05, evidence - 2.4, "posterior\nmean", THIRD)
    axis.set(xlabel="mean of q(z)", ylabel="nats", title="a bound with a known gap")
    return figure


# ---- two dimensions -------------------------------------------------------------------------

_MU, _NU = np.array([-0.7, 0.5]), np.array([0.6, -0.3])
_S = np.array([[0.5, 0.3], [0.3, 0.6]])
_T = np.array([[1.6, -0.5], [-0.5, 0.9]])


@_figure(
    "full",
    "Left: the one-standard-deviation contours of q and p. Right: the four terms of their "
    "divergence, and the sum.",
)
def full() -> Any:
    figure, (left, right) = _panels(2)
    _ellipse(left, _MU, _S, Q, "q")
    _ellipse(left, _NU, _T, P, "p")
    _plane(left, "two covariances", 2.4)
    q = kljax.MultivariateNormal(_MU, covariance_matrix=_S)
    terms = kljax.kl_terms(q, kljax.MultivariateNormal(_NU, covariance_matrix=_T))
    parts = {
        "tr(T⁻¹S)/2": (float(terms.trace) / 2, P),
        "Mahalanobis/2": (float(terms.mahalanobis) / 2, Q),
        "−k/2": (-float(terms.dimension) / 2, FOURTH),
        "log |T|/|S| /2": (float(terms.log_det) / 2, THIRD),
        "KL": (float(terms.total), INK),
    }
    bottom = 0.0
    for place, (text, (size, color)) in enumerate(parts.items()):
        start = 0.0 if text == "KL" else bottom
        right.barh(place, size, left=start, color=color)
        _name(right, max(start, start + size) + 0.03, place, f"{size:+.2f}", color, va="center")
        bottom += size
    right.set_yticks(range(len(parts)), list(parts))
    right.invert_yaxis()
    right.axvline(0, color=INK, linewidth=0.5)
    right.set(xlabel="nats", title="the terms, one after the other")
    right.margins(x=0.18)
    return figure


@_figure(
    "whitening",
    "The same pair three times: as given, after the map that makes p a standard normal, and "
    "after a rotation that makes the coordinates of q independent. The divergence does not "
    "change.",
)
def whitening() -> Any:
    figure, axes = _panels(3)
    factor = np.linalg.inv(np.linalg.cholesky(_T))
    sizes, turn = np.linalg.eigh(factor @ _S @ factor.T)
    loc = factor @ (_MU - _NU)
    for axis, title, m, s, n, t in (
        (axes[0], "as given", _MU, _S, _NU, _T),
        (axes[1], "whitened", loc, factor @ _S @ factor.T, np.zeros(2), np.eye(2)),
        (axes[2], "rotated", turn.T @ loc, np.diag(sizes), np.zeros(2), np.eye(2)),
    ):
        _ellipse(axis, n, t, P, "p")
        _ellipse(axis, m, s, Q, "q")
        _plane(axis, title, 2.4)
    return figure


@_figure(
    "invariance",
    "Moving, turning and stretching the plane changes both contours and leaves their "
    "divergence as it was.",
)
def invariance() -> Any:
    figure, axes = _panels(2)
    a, b = np.array([[1.1, 0.7], [-0.5, 0.8]]), np.array([0.3, 0.4])
    pairs = (_MU, _S, _NU, _T), (a @ _MU + b, a @ _S @ a.T, a @ _NU + b, a @ _T @ a.T)
    for axis, (m, s, n, t), title in zip(axes, pairs, ("x", "A x + b"), strict=True):
        _ellipse(axis, n, t, P, "p")
        _ellipse(axis, m, s, Q, "q")
        q = kljax.MultivariateNormal(m, covariance_matrix=s)
        kl = float(kljax.kl_divergence(q, kljax.MultivariateNormal(n, covariance_matrix=t)))
        _plane(axis, f"{title}: {kl:.4f} nats", 2.6)
    return figure


@_figure(
    "diagonal",
    "Three independent coordinates: each has a divergence of its own, of a spread and a shift "
    "part, and the divergence of the vector is their sum.",
)
def diagonal() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    mu, sigma = np.array([0.2, -0.8, 0.5]), np.array([0.6, 1.0, 1.5])
    spread, shift = (sigma**2 - 1 - 2 * np.log(sigma)) / 2, mu**2 / 2
    names = ["1", "2", "3", "vector"]
    spread, shift = np.append(spread, spread.sum()), np.append(shift, shift.sum())
    axis.bar(names, spread, color=Q, label="spread: (σ²/τ² − 1 − log σ²/τ²)/2")
    axis.bar(names, shift, bottom=spread, color=P, label="shift: (μ − ν)²/2τ²")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.set(xlabel="coordinate", ylabel="nats", title="a sum over coordinates", ylim=(0, 1.35))
    return figure


# ---- digits ---------------------------------------------------------------------------------


@_figure(
    "accuracy",
    "Relative error in float32 of the textbook line and of what the library runs, as q comes "
    "near p.",
)
def accuracy() -> Any:
    figure, (axis,) = _panels(1, 3.4)
    separations = 10.0 ** np.linspace(-7, 0, 60)
    single = np.float32
    old, new = [], []
    for separation in separations:
        scale = single(1 + separation)
        exact = (float(scale) ** 2 - 1) / 2 - math.log(float(scale))
        x = float(scale) - 1
        # Where float64 cancels too, the series is exact to all its digits.
        exact = x**2 - x**3 / 3 + x**4 / 4 if x < 1e-3 else exact
        plain = (scale * scale - single(1)) / single(2) - np.log(scale)
        q, p = kljax.Normal(single(0), scale), kljax.Normal(single(0), single(1))
        ours = float(kljax.kl_divergence(q, p))
        old.append(abs(float(plain) - exact) / exact if exact else np.nan)
        new.append(abs(ours - exact) / exact if exact else np.nan)
    floor = 1e-9
    axis.loglog(separations, np.maximum(old, floor), color=P)
    axis.loglog(separations, np.maximum(new, floor), color=Q)
    axis.axhline(2.0**-24, color=INK, linewidth=0.5)
    _name(axis, 2e-2, 1e-3, "textbook", P)
    _name(axis, 1e-6, 2e-7, "kljax", Q)
    _name(axis, 2e-1, 8e-8, "2⁻²⁴", INK, fontsize=8)
    axis.set(xlabel="σ/τ − 1", ylabel="relative error", title="digits lost in float32")
    return figure
