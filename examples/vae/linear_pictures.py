"""The pictures of the linear VAE: training curves that meet their ends, and phases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kljax.vae import TermWeights, linear

# Okabe and Ito's colors, which stay distinct for color-blind readers.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK)
NAMES = ("training.png", "phases.png")
WEIGHTS = "weights ({:g}, {:g}, {:g}) of trace, Mahalanobis, log-det"

Array = np.ndarray[Any, Any]


def training(runs: Sequence[Any], columns: Array, compared: Sequence[Any], path: Path) -> None:
    """|w|^2 of every latent over the steps, and where theory says that they end.

    Args:
        runs: with names and weights.
        columns: squared lengths, shape (runs, steps, latents).
        compared: with the squared lengths of the closed form.
        path: of the picture.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    steps = columns.shape[1]
    # As many points as can be told apart on a logarithmic axis.
    shown = np.unique(np.geomspace(1, steps, 400).astype(int)) - 1
    for axes, run, lengths, truth in zip(panels, runs, columns, compared, strict=False):
        order = np.argsort(-lengths[-1])
        for place, latent in enumerate(order):
            color = COLORS[place % len(COLORS)]
            axes.plot(shown + 1, lengths[shown, latent], color=color)
        axes.plot(np.full(len(truth.squares), steps), truth.squares, "o", color=BLACK, ms=7)
        axes.set_xscale("log")
        axes.set_title(f"{run.name}: {truth.active} of {len(truth.squares)} active")
        axes.set_xlabel("steps of Adam\n" + WEIGHTS.format(*run.weights), fontsize="small")
        axes.set_ylabel("squared length of a decoder column")
        axes.grid(alpha=0.3)
    legend = panels[len(compared)]
    legend.set_axis_off()
    marks = [
        Line2D([], [], color=COLORS[0], label="a latent in training, a color each"),
        Line2D([], [], color=BLACK, marker="o", ls="", ms=7, label="closed form"),
    ]
    legend.legend(handles=marks, loc="center", fontsize="large")
    for axes in panels[len(compared) + 1 :]:
        axes.set_axis_off()
    figure.suptitle("A linear VAE in training, and the stationary points it has in theory")
    figure.savefig(path, dpi=120)


def phases(
    noise: float, eigenvalues: Sequence[float], compared: Sequence[Any], path: Path
) -> None:
    """Where a latent can be active: the points of theory, and what training found.

    Args:
        noise: variance of the decoder.
        eigenvalues: of the data, falling.
        compared: with weights and the squared lengths that training found, falling.
        path: of the picture.
    """
    figure = Figure(figsize=(13, 6), layout="constrained")
    continuous, abrupt = figure.subplots(1, 2)
    by_weights: dict[tuple[float, ...], list[Any]] = {}
    for x in compared:
        by_weights.setdefault(tuple(x.weights), []).append(x)
    colors = iter((BLUE, ORANGE, GREEN))
    for weights, found in by_weights.items():
        if weights[1] <= 2 * weights[0]:
            branches(continuous, noise, eigenvalues, weights, next(colors), found)
        else:
            window(abrupt, noise, weights)
            branches(abrupt, noise, eigenvalues, weights, VERMILION, found)
    continuous.set_title("Mahalanobis at most twice the trace: a latent opens continuously")
    abrupt.set_title("Mahalanobis 8 times the trace: in the window, the start decides")
    for axes in (continuous, abrupt):
        axes.set_xlabel("eigenvalue of the data that a latent follows")
        axes.set_ylabel("squared length of its decoder column")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def branches(
    axes: Axes,
    noise: float,
    eigenvalues: Sequence[float],
    weights: tuple[float, ...],
    color: str,
    found: Sequence[Any],
) -> None:
    """Stable points as a line, saddles dashed, the ends of training as circles."""
    fine = np.geomspace(0.8 * min(eigenvalues), 1.2 * max(eigenvalues), 2000)
    points = linear.stationary_points(fine, noise, TermWeights(*weights))
    name = "weights ({:g}, {:g}, {:g})".format(*weights)
    axes.plot(fine, points.active.decoder**2, color=color, label=f"stable, {name}")
    if np.any(points.saddle.exists):
        axes.plot(fine, points.saddle.decoder**2, color=color, ls="--", label="saddle between")
    calm = np.where(points.collapsed.stable, 0.0, np.nan)
    axes.plot(fine, calm, color=color)
    for x, marker in zip(found, "osD^", strict=False):
        used = eigenvalues[: len(x.trained)]
        style: Any = {"color": color, "markerfacecolor": "none", "ms": 9, "mew": 1.8}
        label = f"trained: {x.name}"
        axes.plot(used, x.trained, marker, label=label, **style)


def window(axes: Axes, noise: float, weights: tuple[float, ...]) -> None:
    """The eigenvalues for which active and collapsed are both stable."""
    fold, equal, collapse = map(float, linear.thresholds(noise, TermWeights(*weights)))
    axes.axvspan(fold, collapse, color=BLACK, alpha=0.08, label="both are stable")
    axes.axvline(equal, color=BLACK, ls=":", label="both are equally good")
