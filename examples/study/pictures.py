"""The pictures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from kljax.vae.importance import k_limit
from study.design import BASE, TO_ZERO, VANISHING
from study.results import Found, Results

# Okabe and Ito's colors, which stay distinct for color-blind readers.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
# Of the rate, beyond which a point would squeeze all others.
FAR = 60.0
# Of labels in crowded places, in points.
OFFSETS = {"(4,4,1)": (2, -14), "(.25,.25,1)": (9, -4), "(1,.25,1)": (5, -14)}


def draw(out: Path, results: Results) -> None:
    for picture in (terms, rate_distortion, log_det_to_zero, starts, variance):
        path = out / f"{picture.__name__}.png"
        picture(results).savefig(path, dpi=100)
        # Few colors are used, so a palette takes a third of the bytes.
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10, 20, ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def weight(c: float) -> str:
    return str(Fraction(c).limit_denominator(1024))


def terms(x: Results) -> Figure:
    """Every term along training, without each of the terms in turn."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    names = (
        ("trace", "trace term T = Σ s / 2"),
        ("mahalanobis", "Mahalanobis term M = Σ μ² / 2"),
        ("log_det", "log-determinant term L = −Σ log s / 2"),
    )
    arms = (
        (BASE, BLACK, "-", "weights (1, 1, 1)"),
        ("(0,1,1)", BLUE, "--", "trace off (0, 1, 1)"),
        ("(1,0,1)", ORANGE, "-.", "Mahalanobis off (1, 0, 1)"),
        ("(1,1,0)", VERMILION, ":", "log-determinant off (1, 1, 0)"),
    )
    for axes, (metric, title) in zip(panels, names, strict=True):
        for arm, color, style, label in arms:
            course = 0.5 * np.sum(x.eight.course(arm, metric), axis=-1)
            steps = steps_of(course.shape[1], x)
            axes.plot(steps, np.mean(course, axis=0), color=color, ls=style, label=label)
            low, high = np.min(course, axis=0), np.max(course, axis=0)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.set_ylabel("nats per image")
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.suptitle(
        "What each term does when one of them has no weight: 8 latents, mean and range of seeds"
    )
    return figure


def steps_of(records: int, x: Results) -> np.ndarray:
    return (1 + np.arange(records)) * x.record


def rate_distortion(x: Results) -> Figure:
    """Rate and distortion of every weighting, with lines of equal ELBO."""
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    for axes, found in zip(figure.subplots(1, 2), (x.eight, x.sixteen), strict=True):
        plane(axes, found)
    figure.suptitle("What every weighting buys; along a dotted line the ELBO is the same")
    return figure


def plane(axes: Axes, found: Found) -> None:
    arms = [arm for arm in found.group.arms if arm.log_variance == 0 and arm.unit == 1]
    place = {
        arm.name: (found.mean(arm.name, "test_kl").mean, found.mean(arm.name, "reconstruction"))
        for arm in arms
    }
    points = {name: (kl, d.mean) for name, (kl, d) in place.items()}
    shown = {n: p for n, p in points.items() if np.all(np.isfinite(p)) and p[0] < FAR}
    betas = [arm.name for arm in arms if len(set(arm.weights)) == 1]
    vanish = [arm.name for arm in arms if arm.weights[:2] == (1, 1)]
    others = [arm.name for arm in arms if arm.name not in (*betas, *vanish)]
    value = {arm.name: arm.weights[2] for arm in arms}
    families = (
        (betas, BLUE, "o", "(β, β, β), from right to left with β", lambda n: f"{value[n]:g}"),
        (vanish, GREEN, "^", "(1, 1, c), labelled c", lambda n: f"c={weight(value[n])}"),
        (others, VERMILION, "s", "other (trace, Mahalanobis, log-det)", lambda n: n),
    )
    for names, color, marker, label, text in families:
        known = sorted((n for n in names if n in shown), key=lambda n: value[n])
        ends = np.asarray([shown[n] for n in known]).reshape(-1, 2)
        joined = "" if marker == "s" else "-"
        axes.plot(ends[:, 0], ends[:, 1], joined + marker, color=color, ms=6, lw=1, label=label)
        for i, name in enumerate(known):
            if name == BASE and marker == "^":
                continue
            # Off the line, and off the labels of neighbors.
            below = marker == "o" or (marker == "^" and i % 2 == 1)
            off = OFFSETS.get(name, (-5, -13) if below else (4, 6))
            axes.annotate(
                text(name),
                shown[name],
                off,
                textcoords="offset points",
                fontsize="small",
                color=color,
                ha="right" if off[0] < 0 else "left",
            )
    equal_elbo(axes, np.asarray(list(shown.values())))
    axes.set_xlabel("rate: KL to N(0, I), nats per test image")
    axes.set_ylabel("distortion: −E log p(x | z), nats per test image")
    off = [name for name in points if name not in shown]
    note = f" (outside: {', '.join(off)})" if off else ""
    axes.set_title(f"{found.group.name}, decoder variance {found.group.model.variance:g}{note}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper right")


def equal_elbo(axes: Axes, points: np.ndarray) -> None:
    total = np.sum(points, axis=1)
    ends = np.asarray([0.0, 1.12 * np.max(points[:, 0])])
    for level in np.linspace(np.min(total), np.max(total), 6):
        axes.plot(ends, level - ends, ":", color=BLACK, lw=0.8, alpha=0.5)
    low, high = np.min(points[:, 1]), np.max(points[:, 1])
    axes.set_ylim(low - 0.07 * (high - low), high + 0.25 * (high - low))
    axes.set_xlim(*ends)


def log_det_to_zero(x: Results) -> Figure:
    """What happens to estimators as the weight of the log-determinant goes to 0."""
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    (likelihood, samples), (tails, noise) = figure.subplots(2, 2)
    place = np.arange(len(TO_ZERO))
    proposals = (
        ("nll", BLUE, "o", "draws from q"),
        ("nll_defensive", ORANGE, "s", "half of the draws from the prior"),
        ("nll_implied", GREEN, "^", "variance s / c instead of s"),
    )
    for name, color, marker, label in proposals:
        known = TO_ZERO[:-1] if name == "nll_implied" else TO_ZERO
        style: Any = {"color": color, "marker": marker, "capsize": 3, "label": label}
        for axes, kind in ((likelihood, ""), (samples, "_effective"), (tails, "_pareto_k")):
            found = [x.eight.mean(arm, name + kind) for arm in known]
            middle, half = [f.mean for f in found], [f.half for f in found]
            axes.errorbar(place[: len(known)], middle, half, **style)
    likelihood.set_ylabel("estimated −log p(x), nats per image")
    likelihood.set_title("the likelihood that is estimated")
    samples.set_ylabel(f"effective samples per image, of {x.importance}")
    samples.set_title("how many draws count")
    samples.set_yscale("log")
    plain_numbers(samples.yaxis)
    samples.axhline(10, color=BLACK, ls="--", lw=1, label="fewest that are trusted")
    tails.set_ylabel("Pareto k-hat, median over images")
    tails.set_title("how heavy the weights' tail is")
    tails.plot(place, [1 - c for c in (1.0, *VANISHING, 0.0)], ":", color=PURPLE, label="1 − c")
    limit = k_limit(x.importance)
    tails.axhline(limit, color=BLACK, ls="--", lw=1, label=f"limit, {limit:.2f}")
    for name, color, marker, label in (
        ("closed_form", BLUE, "o", "closed form"),
        ("monte_carlo", ORANGE, "s", "Monte Carlo"),
        ("sticking_the_landing", GREEN, "^", "sticking the landing"),
    ):
        values = [x.eight.mean(arm, f"noise {name}").mean for arm in TO_ZERO]
        noise.plot(place, values, color=color, marker=marker, label=label)
    noise.set_ylabel("variance of the encoder's gradient, nats²")
    noise.set_title("how noisy the gradient is")
    noise.set_yscale("log")
    plain_numbers(noise.yaxis)
    for axes in (likelihood, samples, tails, noise):
        axes.set_xticks(place, [weight(c) for c in (1.0, *VANISHING, 0.0)])
        axes.set_xlabel("weight c of the log-determinant, weights (1, 1, c)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(
        "Estimators as the log-determinant loses its weight: 8 latents, 95 % intervals of seeds"
    )
    return figure


STARTS = (
    ("beta 4", BLACK, "-", "β = 4", "β = 4"),
    ("(1,1,4)", VERMILION, "--", "(1, 1, 4) from s = 1", "(1, 1, 4)\ns = 1"),
    ("(1,1,4) s=c", ORANGE, "-.", "(1, 1, 4) from s = c / a", "(1, 1, 4)\ns = c / a"),
    ("(1,1,4) unit", BLUE, ":", "(1, 1, 4) from β's start, its unit", "(1, 1, 4)\nunit of β"),
)


def starts(x: Results) -> Figure:
    """Weights (1, 1, 4) from three starts, beside beta = 4."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    course, ends = figure.subplots(1, 2)
    for i, (arm, color, style, label, _) in enumerate(STARTS):
        values = x.sixteen.course(arm, "reconstruction")
        steps = steps_of(values.shape[1], x)
        course.plot(steps, np.mean(values, axis=0), color=color, ls=style, label=label)
        ends.plot(np.full(values.shape[0], i), x.sixteen.of(arm, "nll_fit"), "o", color=color)
    course.set_xscale("log")
    plain_numbers(course.xaxis)
    course.set_xlabel("training step")
    course.set_ylabel("reconstruction, nats per training image")
    course.legend(fontsize="small")
    join_seeds(ends, [x.sixteen.of(arm, "nll_fit") for arm, *_ in STARTS])
    ends.set_xticks(range(len(STARTS)), [tick for *_, tick in STARTS])
    ends.set_ylabel("−log p(x) under the fitted prior, nats per test image")
    ends.set_title("at the end; a gray line is a seed", fontsize="medium")
    course.set_title("on the way", fontsize="medium")
    for axes in (course, ends):
        axes.grid(alpha=0.3)
    figure.suptitle("Equal optima, unequal roads: β = 4 and (1, 1, 4), 16 latents")
    return figure


def join_seeds(axes: Axes, values: Sequence[np.ndarray]) -> None:
    for seed in np.stack(values, axis=1):
        axes.plot(range(len(seed)), seed, color="0.7", lw=0.8, zorder=0)


def variance(x: Results) -> Figure:
    """Log s beside what the decoder's Jacobian predicts."""
    figure = Figure(figsize=(6.2, 5.6), layout="constrained")
    axes = figure.subplots()
    place = x.eight.index(BASE)
    predicted = x.eight.responses["log_s_predicted"][place, 0].ravel()
    found = x.eight.responses["log_s"][place, 0].ravel()
    axes.plot(predicted, found, ".", color=BLUE, ms=3, alpha=0.5, label="a latent of an image")
    ends = [min(predicted.min(), found.min()), max(predicted.max(), found.max())]
    axes.plot(ends, ends, color=BLACK, label="theory")
    axes.set_xlabel("log c / (a + h), h = |column of the decoder's Jacobian|² / variance")
    axes.set_ylabel("log s, as the encoder says")
    axes.set_title("Posterior variances follow the decoder: 8 latents, (1, 1, 1), one seed")
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
