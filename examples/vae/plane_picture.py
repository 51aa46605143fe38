"""The rate-distortion plane with lines of equal ELBO, and the way of the rate in training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.pictures import BLACK, BLUE, GREEN, ORANGE, VERMILION, save

STYLES = {
    "beta": (BLUE, "o"),
    "schedule": (ORANGE, "^"),
    "free bits": (GREEN, "s"),
    "capacity": (VERMILION, "D"),
}
DASHES = ("-", "--", ":", "-.")

Array = np.ndarray[Any, Any]


def draw(found: Sequence[Any], paths: Array, steps: int, path: Path) -> None:
    """Draws where every arm ends, and the rate of those that change on their way.

    Args:
        found: of `schedules.summarize`.
        paths: rate and distortion on the way, shape (arms, records, 2).
        steps: of training.
        path: of the picture.
    """
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    plane, way = figure.subplots(1, 2)
    ends(plane, found)
    ways(way, found, paths, steps)
    save(figure, path)


def ends(axes: Axes, found: Sequence[Any]) -> None:
    for kind, (color, marker) in STYLES.items():
        mine = [x for x in found if x.kind == kind]
        style: Any = {"color": color, "marker": marker, "s": 60, "label": kind, "zorder": 3}
        axes.scatter([x.rate for x in mine], [x.distortion for x in mine], **style)
    for x in found:
        if x.kind == "beta":
            place, shift = (x.rate, x.distortion), (8, 6)
            axes.annotate(x.name, place, xytext=shift, textcoords="offset points")
    equal_elbo(axes, found)
    axes.set_xlabel("rate KL(q ‖ p) on the test images (nats per image)")
    axes.set_ylabel("distortion -E log p(x | z) on the test images (nats per image)")
    axes.set_title("Where each objective ends")
    axes.legend(title="what is shaped")


def equal_elbo(axes: Axes, found: Sequence[Any]) -> None:
    """Lines on which rate + distortion, -ELBO, is the same; the least of all is bold."""
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = high - low, top - bottom
    # Room for the levels to the left of all points, and for names to the right of them.
    low, high = low - 0.14 * width, high + 0.22 * width
    best = min(x.minus_elbo for x in found)
    for level in best + np.array([0.0, 5.0, 10.0, 20.0, 40.0]):
        thick = 1.6 if level == best else 0.7
        axes.plot([low, high], [level - low, level - high], "--", color=BLACK, linewidth=thick)
        x = max(low + 0.02 * width, level - top + 0.03 * height)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        if bottom < level - x < top and x < high:
            axes.text(x, level - x, f"-ELBO {level:.0f}", fontsize=8, va="center", bbox=white)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= high])
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)


def ways(axes: Axes, found: Sequence[Any], paths: Array, steps: int) -> None:
    at = (np.arange(paths.shape[1]) + 1) * steps / paths.shape[1]
    used: dict[str, int] = {}
    for x, way in zip(found, paths, strict=True):
        if x.kind == "beta" and x.name != "beta 1":
            continue
        turn = used[x.kind] = used.get(x.kind, -1) + 1
        color = STYLES[x.kind][0]
        axes.plot(at, way[:, 0], DASHES[turn], color=color, label=x.name)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("rate KL(q ‖ p) on the training images (nats per image)")
    axes.set_title("How the rate gets there")
    axes.grid(alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
