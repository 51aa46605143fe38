"""The pictures of the VAE example, drawn without a display or global settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vae.data import Images
from vae.evaluate import active

NAMES = (
    "terms.png",
    "reconstructions.png",
    "samples.png",
    "latent_space.png",
    "kl_per_latent.png",
)
# Okabe and Ito's colors, which stay distinct for color-blind readers.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
CLASS_COLORS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK)
CLASS_MARKERS = ("o", "^", "s", "D")
# More points than this would hide each other.
MOST_POINTS = 1500

Array = np.ndarray[Any, Any]
Rows = Sequence[Mapping[str, float]]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def as_pictures(intensities: Array, shape: tuple[int, ...]) -> Array:
    """Flat intensities in [0, 1] as (images, height, width) or (..., channels)."""
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        shape = (side, side) if side * side == shape[0] else (1, shape[0])
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    return intensities.reshape(len(intensities), *shape)


def tile(axes: Axes, pictures: Array, columns: int) -> None:
    """Draws framed pictures of size 1 in rows, at whole-number places."""
    # A strip is stretched, or it would be too thin to see.
    wide = min(max(pictures.shape[2] / pictures.shape[1], 1 / 3), 3)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        left, right, top, bottom = column + 0.05, column + 0.95, row + 0.05, row + 0.95
        extent = (left * wide, right * wide, bottom, top)
        style: Any = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axes.imshow(picture, extent=extent, **style)
        corner, width, height = (extent[0], top), extent[1] - extent[0], bottom - top
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=BLACK))
    axes.set_xlim(0, columns * wide)
    axes.set_ylim(math.ceil(len(pictures) / columns), 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)


def draw_all(
    out: Path, images: Images, rows: Rows, assessed: Mapping[str, Array], samples: Array
) -> None:
    """Writes every picture into the folder `out`."""
    paths = [out / name for name in NAMES]
    terms(rows, paths[0])
    reconstructions(images, assessed["decoded"], paths[1])
    prior_samples(samples, images.shape, paths[2])
    latent_space(images, assessed, paths[3])
    kl_per_latent(assessed, paths[4])


def terms(rows: Rows, path: Path) -> None:
    """The -ELBO with its two parts and the KL with its four terms, over training."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    bound, divergence = figure.subplots(1, 2)
    draw_bound(bound, rows)
    draw_terms(divergence, rows)
    for axes in (bound, divergence):
        axes.set_xlabel("gradient steps")
        axes.set_ylabel("nats per image")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    save(figure, path)


def curve(axes: Axes, rows: Rows, values: Sequence[float], **style: Any) -> None:
    # A run of one epoch is a single point, which a line alone would not show.
    style |= {"marker": "."} if len(rows) < 20 else {}
    axes.plot([row["step"] for row in rows], values, **style)


def draw_bound(axes: Axes, rows: Rows) -> None:
    for part, dashes in (("train", "--"), ("test", "-")):
        for name, color in (("elbo", BLACK), ("reconstruction", ORANGE), ("kl", BLUE)):
            sign = -1 if name == "elbo" else 1
            label = {"elbo": "-ELBO", "kl": "KL"}.get(name, name)
            values = [sign * row[f"{part}_{name}"] for row in rows]
            text = f"{label}, {part}"
            curve(axes, rows, values, color=color, linestyle=dashes, label=text)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title("-ELBO = reconstruction + KL")


def draw_terms(axes: Axes, rows: Rows) -> None:
    for name, label, color, sign in (
        ("log_det", "log-det / 2", GREEN, 1),
        ("mahalanobis", "Mahalanobis / 2", ORANGE, 1),
        ("trace", "trace / 2", SKY, 1),
        ("dimension", "-dimension / 2", PURPLE, -1),
    ):
        values = [sign * row[f"test_{name}"] / 2 for row in rows]
        curve(axes, rows, values, color=color, label=label)
    kl = [row["test_kl"] for row in rows]
    curve(axes, rows, kl, color=BLACK, linewidth=2, label="KL, their sum")
    axes.set_title("The terms of the KL on the test images")


def reconstructions(images: Images, decoded: Array, path: Path) -> None:
    """Test images above what the decoder makes of their posterior means."""
    columns = min(16, len(images.test))
    chosen = one_of_each_class(images, columns)
    both = np.concatenate([images.test[chosen] / images.levels, decoded[chosen]])
    pictures = as_pictures(both, images.shape)
    figure = Figure(figsize=(12, 2.3), layout="constrained")
    axes = figure.subplots()
    tile(axes, pictures, columns)
    axes.set_yticks([0.5, 1.5], ["original", "decoded"])
    axes.tick_params(length=0)
    axes.set_title("Test images, and what is decoded from their posterior means")
    save(figure, path)


def one_of_each_class(images: Images, count: int) -> Array:
    """Indices of test images that take turns through the classes."""
    if images.test_labels is None:
        return np.arange(count)
    labels = images.test_labels[:MOST_POINTS]
    turn = [np.sum(labels[:i] == label) for i, label in enumerate(labels)]
    return np.lexsort((labels, turn))[:count]


def prior_samples(samples: Array, shape: tuple[int, ...], path: Path) -> None:
    """Images decoded from draws of the prior."""
    figure = Figure(figsize=(7, 7.4), layout="constrained")
    axes = figure.subplots()
    tile(axes, as_pictures(samples, shape), math.isqrt(len(samples)))
    axes.set_title("Images decoded from draws of the prior N(0, I)")
    save(figure, path)


def latent_space(images: Images, assessed: Mapping[str, Array], path: Path) -> None:
    """The posterior means of the test images in the two most active latents."""
    means = assessed["loc"]
    most = np.argsort(-np.var(means, axis=0))[:2]
    names = [f"posterior mean of latent {i} (prior standard deviations)" for i in most]
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_xlabel(names[0])
    if len(most) == 1:
        scatter(axes, means[:, 0], assessed["kl"], images)
        axes.set_ylabel("KL (nats per image)")
    else:
        scatter(axes, means[:, most[0]], means[:, most[1]], images)
        axes.set_ylabel(names[1])
        axes.set_aspect("equal")
    axes.set_title("The latent space: where the encoder puts the test images")
    save(figure, path)


def scatter(axes: Axes, across: Array, up: Array, images: Images) -> None:
    """Points that show their class by color and by shape, where classes are known."""
    across, up = across[:MOST_POINTS], up[:MOST_POINTS]
    most_classes = len(CLASS_COLORS) * len(CLASS_MARKERS)
    if images.test_labels is None or len(images.classes) > most_classes:
        axes.scatter(across, up, s=16, color=BLUE)
        return
    for code, name in enumerate(images.classes):
        mine = images.test_labels[:MOST_POINTS] == code
        color = CLASS_COLORS[code % len(CLASS_COLORS)]
        marker = class_marker(code, name)
        style: Any = {"s": 36, "color": color, "marker": marker, "label": name}
        axes.scatter(across[mine], up[mine], **style)
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))


def class_marker(code: int, name: str) -> str:
    """The name itself if it is one digit or letter, else a shape."""
    if len(name) == 1 and name.isalnum() and name.isascii():
        return f"${name}$"
    return CLASS_MARKERS[code // len(CLASS_COLORS)]


def kl_per_latent(assessed: Mapping[str, Array], path: Path) -> None:
    """How many nats each latent carries, the largest first."""
    kl = np.mean(assessed["kl_per_latent"], axis=0)
    used = active(assessed["loc"])
    order = np.argsort(-kl)
    places = np.arange(len(kl))
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    for chosen, color, label in ((used, BLUE, "active"), (~used, ORANGE, "inactive")):
        if np.any(chosen):
            mine = chosen[order]
            axes.bar(places[mine], kl[order][mine], color=color, label=label)
    if len(kl) <= 32:
        axes.set_xticks(places, order)
    axes.set_xlabel("latent, by falling KL")
    axes.set_ylabel("KL of its marginal to the prior (nats per image)")
    axes.set_title(f"KL of each latent on the test images, {np.sum(used)} active")
    axes.legend()
    save(figure, path)
