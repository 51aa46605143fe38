"""The pictures of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.design import BASE, TO_ZERO
from study.results import Results

# Okabe and Ito's colors, which stay distinct for color-blind readers.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
NAMES = (
    "terms.png",
    "rate_distortion.png",
    "log_det_to_zero.png",
    "starts.png",
    "variance.png",
)


def draw(out: Path, results: Results) -> None:
    for name, picture in zip(
        NAMES, (terms, rate_distortion, log_det_to_zero, starts, variance), strict=True
    ):
        figure = picture(results)
        figure.savefig(out / name, dpi=120)


def terms(x: Results) -> Figure:
    """Every term along training, without each of the terms in turn."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    names = (("trace", "trace T"), ("mahalanobis", "Mahalanobis M"), ("log_det", "log-det L"))
    arms = (
        (BASE, BLACK, "-", "weights (1, 1, 1)"),
        ("(0,1,1)", BLUE, "--", "no trace (0, 1, 1)"),
        ("(1,0,1)", ORANGE, "-.", "no Mahalanobis (1, 0, 1)"),
        ("(1,1,0)", VERMILION, ":", "no log-det (1, 1, 0)"),
    )
    for axes, (metric, title) in zip(panels, names, strict=True):
        for arm, color, style, label in arms:
            course = 0.5 * np.sum(x.eight.course(arm, metric), axis=-1)
            steps = steps_of(course.shape[1], x)
            axes.plot(steps, np.mean(course, axis=0), color=color, ls=style, label=label)
            low, high = np.min(course, axis=0), np.max(course, axis=0)
            axes.fill_between(steps, low, high, color=color, alpha=0.15)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("nats an image")
        axes.set_yscale("symlog", linthresh=1)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.suptitle("8 latents: what each term does when one has no weight (bands: all seeds)")
    return figure


def steps_of(records: int, x: Results) -> np.ndarray:
    return (1 + np.arange(records)) * x.record


def rate_distortion(x: Results) -> Figure:
    """Rate and distortion of every weighting, with lines of equal ELBO."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, found in zip(figure.subplots(1, 2), (x.eight, x.sixteen), strict=True):
        kl = np.mean(found.responses["test_kl"], axis=1)
        distortion = np.mean(found.responses["reconstruction"], axis=1)
        shown = np.isfinite(kl) & np.isfinite(distortion) & (kl < 200)
        for i, arm in enumerate(found.group.arms):
            if not shown[i]:
                continue
            sweep = len(set(arm.weights)) == 1
            color, marker = (BLUE, "o") if sweep else (VERMILION, "s")
            axes.plot(kl[i], distortion[i], marker, color=color, ms=6)
            axes.annotate(
                arm.name,
                (kl[i], distortion[i]),
                (5, 3),
                textcoords="offset points",
                fontsize="x-small",
            )
        equal_elbo(axes, kl[shown], distortion[shown])
        axes.plot([], [], "o", color=BLUE, label="all terms by the same beta")
        axes.plot([], [], "s", color=VERMILION, label="(trace, Mahalanobis, log-det) apart")
        axes.set_xlabel("rate: KL, nats an image (test)")
        axes.set_ylabel("distortion: -E log p(x | z), nats an image (test)")
        off = [arm.name for i, arm in enumerate(found.group.arms) if not shown[i]]
        note = f"; outside: {', '.join(off)}" if off else ""
        axes.set_title(found.group.name + note, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle("What every weighting buys: dotted lines have the same ELBO at weights one")
    return figure


def equal_elbo(axes: Axes, kl: np.ndarray, distortion: np.ndarray) -> None:
    ends = np.asarray([0.0, 1.1 * np.max(kl)])
    for total in np.linspace(np.min(kl + distortion), np.max(kl + distortion), 5):
        axes.plot(ends, total - ends, ":", color=BLACK, lw=0.8, alpha=0.6)
    axes.set_ylim(np.min(distortion) - 2, np.max(distortion) + 2)
    axes.set_xlim(*ends)


def log_det_to_zero(x: Results) -> Figure:
    """What happens to estimators as the weight of the log-determinant goes to 0."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    likelihood, samples, noise = figure.subplots(1, 3)
    arms = TO_ZERO
    c = [x.eight.group.arms[x.eight.index(arm)].weights[2] for arm in arms]
    place = np.arange(len(arms))
    for name, color, label in (
        ("nll", BLUE, "draws from q"),
        ("nll_defensive", ORANGE, "half of the draws from the prior"),
    ):
        style: Any = {"color": color, "marker": "o", "capsize": 3, "label": label}
        found = [x.eight.mean(arm, name) for arm in arms]
        likelihood.errorbar(place, [f.mean for f in found], [f.half for f in found], **style)
        found = [x.eight.mean(arm, f"{name}_effective") for arm in arms]
        samples.errorbar(place, [f.mean for f in found], [f.half for f in found], **style)
    likelihood.set_ylabel("estimated -log p(x), nats an image")
    samples.set_ylabel("effective samples an image")
    samples.set_yscale("log")
    samples.axhline(10, color=BLACK, ls="--", label="least that is trusted")
    for name, color, marker, label in (
        ("closed_form", BLUE, "o", "closed form"),
        ("monte_carlo", ORANGE, "s", "Monte Carlo"),
        ("sticking_the_landing", GREEN, "^", "sticking the landing"),
    ):
        values = [np.mean(x.eight.of(arm, f"noise {name}")) for arm in arms]
        noise.plot(place, values, color=color, marker=marker, label=label)
    noise.set_ylabel("variance of the encoder's gradient, summed")
    noise.set_yscale("log")
    for axes in (likelihood, samples, noise):
        axes.set_xticks(place, [f"{value:g}" for value in c])
        axes.set_xlabel("weight c of the log-determinant, weights (1, 1, c)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle("Estimators as the log-determinant loses its weight (8 latents)")
    return figure


def starts(x: Results) -> Figure:
    """Weights (1, 1, 4) from three starts, beside beta = 4."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    arms = (
        ("beta 4", BLACK, "-", "beta = 4"),
        ("(1,1,4)", VERMILION, "--", "(1,1,4) from s = 1"),
        ("(1,1,4) s=c", ORANGE, "-.", "(1,1,4) from s = c / a"),
        ("(1,1,4) unit", BLUE, ":", "(1,1,4) from beta's start in its unit"),
    )
    course, ends = figure.subplots(1, 2)
    for i, (arm, color, style, label) in enumerate(arms):
        values = x.sixteen.course(arm, "reconstruction")
        steps = steps_of(values.shape[1], x)
        course.plot(steps, np.mean(values, axis=0), color=color, ls=style, label=label)
        found = x.sixteen.of(arm, "nll_fit")
        ends.plot(np.full(len(found), i), found, "o", color=color, alpha=0.8)
    course.set_xscale("log")
    course.set_xlabel("step")
    course.set_ylabel("reconstruction, nats an image (training)")
    course.legend(fontsize="small")
    ends.set_xticks(range(len(arms)), [arm for arm, *_ in arms])
    ends.set_ylabel("-log p(x) under the fitted prior, nats an image")
    for axes in (course, ends):
        axes.grid(alpha=0.3)
    figure.suptitle("Equal optima, unequal roads: 16 latents (points: seeds)")
    return figure


def variance(x: Results) -> Figure:
    """Log s beside what the decoder's Jacobian predicts."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    place = x.eight.index(BASE)
    predicted = x.eight.responses["log_s_predicted"][place, 0].ravel()
    found = x.eight.responses["log_s"][place, 0].ravel()
    axes.plot(predicted, found, ".", color=BLUE, ms=3, alpha=0.5, label="a latent of an image")
    ends = [min(predicted.min(), found.min()), max(predicted.max(), found.max())]
    axes.plot(ends, ends, color=BLACK, label="s = c / (a + h)")
    axes.set_xlabel("log c / (a + h), h = |decoder's column|^2 / variance")
    axes.set_ylabel("log s of the encoder")
    axes.set_title("Posterior variances follow the decoder (8 latents)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
