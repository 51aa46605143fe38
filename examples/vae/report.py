"""What the VAE example tells: on the console, and in its files of numbers."""

import csv
import json
import math
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import flax
import jax
import matplotlib
import numpy as np
import optax
from tqdm import tqdm

import kljax
from vae import evaluate, pictures
from vae.data import Images
from vae.flags import Flags, stop

PLAIN_LINES = 12
UNITS = "nats per image: event axes (pixels, latents) are summed, the images are averaged"
TERMS = ("trace", "mahalanobis", "dimension", "log_det")
METRICS = ("elbo", "reconstruction", "kl", *TERMS)
PARTS = ("train", "test")
INDENT = " " * 26
HEADER = (
    "    step    train ELBO |  test ELBO  reconstruction      KL"
    "     trace  Mahalanobis  log-det"
)

Array = np.ndarray[Any, Any]


def likelihood(images: Images) -> str:
    return f"discretized logistic on the pixel values 0..{images.levels}"


def device() -> str:
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"


def open_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        # An interrupted run must not be read together with results of an earlier one.
        for name in ("metrics.csv", "summary.json", *pictures.NAMES):
            (out / name).unlink(missing_ok=True)
        (out / "metrics.csv").touch()
    except OSError as error:
        stop(f"--out {out}: the folder cannot be written: {error.strerror}.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def begin(options: Flags, images: Images) -> None:
    """Makes the folder, writes config.json and says what is about to be computed."""
    open_folder(options.out)
    write_config(options, images)
    introduce(options, images)


def introduce(options: Flags, images: Images) -> None:
    count, shape = (
        len(images.train) + len(images.test),
        " x ".join(map(str, images.shape)),
    )
    kind = "stratified by class" if images.stratified else "not stratified"
    covariance = "diagonal" if options.posterior == "diag" else "full"
    print(
        f"images      {count:,} of {shape} pixels from {images.source}\n"
        f"split       {len(images.train):,} train, {len(images.test):,} test, {kind}\n"
        f"likelihood  {likelihood(images)},\n"
        "            a probability mass, so -ELBO bounds the NLL -log p(image)\n"
        f"units       {UNITS}\n"
        f"posterior   Gaussian of {options.latents} latents, {covariance} covariance\n"
        f"device      {device()}",
        flush=True,
    )


def write_config(options: Flags, images: Images) -> None:
    """Everything that is needed to repeat the run."""
    chosen = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
    }
    versions = {
        module.__name__: module.__version__
        for module in (kljax, jax, flax, optax, np, matplotlib)
    }
    write_json(
        options.out / "config.json",
        {
            "flags": chosen,
            "versions": {"python": platform.python_version()} | versions,
            "device": device(),
            "images": {
                "source": images.source,
                "shape": images.shape,
                "levels": images.levels,
                "train": len(images.train),
                "test": len(images.test),
                "stratified": images.stratified,
            },
            "likelihood": likelihood(images),
            "units": UNITS,
        },
    )


class Progress:
    """Shows the metrics of every epoch, and keeps them in metrics.csv as they come."""

    def __init__(self, options: Flags):
        self.options = options
        self.rows: list[dict[str, float]] = []
        self._shown = 0
        self._bar: Bar | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        path = self.options.out / "metrics.csv"
        self._file = self._stack.enter_context(path.open("w", newline=""))
        columns = ["epoch", "step", *(f"{a}_{b}" for a in PARTS for b in METRICS)]
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._writer.writeheader()
        if sys.stderr.isatty():
            self._bar = self._stack.enter_context(Bar(self.options.steps))
        else:
            print(HEADER, flush=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def record(self, step: int, train: Mapping[str, Any], test: Mapping[str, Any]) -> None:
        """Takes the means of one epoch."""
        row: dict[str, float] = {"epoch": len(self.rows) + 1, "step": step}
        for part, means in zip(PARTS, (train, test), strict=True):
            row |= {f"{part}_{name}": float(means[name]) for name in METRICS}
        self.rows.append(row)
        self._writer.writerow({key: f"{value:.9g}" for key, value in row.items()})
        self._file.flush()
        self._show(step, row)
        if not all(math.isfinite(value) for value in row.values()):
            stop(
                f"the ELBO is {row['train_elbo']:.3g} in training and "
                f"{row['test_elbo']:.3g} in testing after step {step}; give a smaller "
                "--learning-rate."
            )

    def _show(self, step: int, row: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.show(step, row)
        elif step * PLAIN_LINES >= self._shown * self.options.steps:
            print(plain_text(row), flush=True)
            self._shown = 1 + step * PLAIN_LINES // self.options.steps


class Bar:
    """A progress bar of the ELBO with a line of the KL's terms below it."""

    def __init__(self, steps: int):
        # tqdm draws nothing on a terminal that does not know its width.
        width = shutil.get_terminal_size().columns
        shape = "{n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"
        self._above = tqdm(total=steps, ncols=width, bar_format=shape)
        self._below = tqdm(total=0, ncols=width, bar_format="{desc}", position=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._below.close()
        self._above.close()

    def show(self, step: int, row: Mapping[str, float]) -> None:
        self._below.set_description_str(
            f"trace {row['test_trace']:.3f}  Mahalanobis {row['test_mahalanobis']:.2f}  "
            f"log-det {row['test_log_det']:.2f}  (test images)",
            refresh=False,
        )
        self._above.set_postfix_str(
            f"ELBO {row['test_elbo']:.1f}  reconstruction "
            f"{row['test_reconstruction']:.1f}  KL {row['test_kl']:.1f}",
            refresh=False,
        )
        if self._above.update(step - self._above.n):
            self._below.refresh()


def plain_text(row: Mapping[str, float]) -> str:
    return (
        f"{row['step']:8.0f}{row['train_elbo']:14.2f} |{row['test_elbo']:11.2f}"
        f"{row['test_reconstruction']:16.2f}{row['test_kl']:8.2f}"
        f"{row['test_trace']:10.3f}{row['test_mahalanobis']:13.2f}"
        f"{row['test_log_det']:9.2f}"
    )


def mean_and_error(values: Array) -> dict[str, float]:
    """Mean over the test images, and the standard error of that mean."""
    values = values.astype(np.float64)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "standard_error": float(error)}


def summarize(options: Flags, assessed: Mapping[str, Array]) -> dict[str, Any]:
    """The numbers of summary.json, from what `evaluate.assess` says of every image."""
    # Relative to what is added up, since the terms cancel where q is near the prior.
    size = 0.5 * sum(np.abs(assessed[name]) for name in TERMS)
    difference = np.abs(assessed["kl_from_terms"] - assessed["kl"]) / size
    names = ("minus_elbo", "iw_nll", "reconstruction", "kl", "kl_from_terms", *TERMS)
    return {name: mean_and_error(assessed[name]) for name in names} | {
        "units": UNITS,
        "test_images": len(difference),
        "importance_samples": evaluate.IMPORTANCE_SAMPLES,
        "largest_relative_difference_of_kl_and_its_terms": float(np.max(difference)),
        "kl_per_latent": np.mean(assessed["kl_per_latent"], axis=0).tolist(),
        "kl_per_latent_of": "q" if options.posterior == "diag" else "marginals of q",
        "active_units": int(np.sum(evaluate.active(assessed["loc"]))),
    }


def print_summary(options: Flags, summary: Mapping[str, Any]) -> None:
    def mean(name: str) -> float:
        return summary[name]["mean"]

    def with_error(name: str) -> str:
        return f"{mean(name):8.3f} ± {summary[name]['standard_error']:.3f}"

    difference = summary["largest_relative_difference_of_kl_and_its_terms"]
    print(
        f"\n{summary['test_images']} test images, mean ± standard error in\n{UNITS}\n"
        f"  -ELBO                   {with_error('minus_elbo')}\n"
        f"    reconstruction        {with_error('reconstruction')}\n"
        f"    KL                    {with_error('kl')}\n"
        f"  importance-weighted NLL {with_error('iw_nll')}"
        f"   ({summary['importance_samples']} samples per image)\n"
        f"  kl_divergence           {mean('kl'):8.4f}\n"
        f"  KL from its terms       {mean('kl_from_terms'):8.4f} = (trace "
        f"{mean('trace'):.4f} + Mahalanobis {mean('mahalanobis'):.4f}\n{INDENT}"
        f"- dimension {mean('dimension'):.0f} + log-det {mean('log_det'):.4f}) / 2\n"
        f"  their difference        {difference:8.1e} of the terms' size, at most\n"
        + latents_text(options, summary)
        + f"  files                   {options.out}"
    )


def latents_text(options: Flags, summary: Mapping[str, Any]) -> str:
    """KL per latent, ten to a line, and how many latents are in use."""
    kl = summary["kl_per_latent"]
    lines = [
        " ".join(f"{value:6.3f}" for value in kl[i : i + 10]) for i in range(0, len(kl), 10)
    ]
    rest = summary["kl"]["mean"] - sum(kl)
    note = f"they add up to {sum(kl):.3f}"
    if options.posterior == "full":
        note = f"of the marginals of q; the correlations in q make up {rest:.3f} more"
    between = f"\n{INDENT}"
    return (
        f"  KL per latent           {between.join(lines)}{between}({note})\n"
        f"  active units            {summary['active_units']} of {len(kl)} (variance "
        f"of the posterior mean over the images > {evaluate.ACTIVE_VARIANCE})\n"
    )


def finish(
    options: Flags,
    images: Images,
    progress: Progress,
    assessed: Mapping[str, Array],
    samples: Array,
) -> None:
    """Writes summary.json and the pictures, and prints the summary."""
    summary = summarize(options, assessed)
    write_json(options.out / "summary.json", summary)
    pictures.draw_all(options.out, images, progress.rows, assessed, samples)
    print_summary(options, summary)
