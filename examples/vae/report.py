"""What the VAE example tells while it runs: on the console, and in its files of numbers."""

import csv
import json
import math
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import flax
import jax
import matplotlib
import numpy as np
import optax
from orbax import checkpoint as orbax
from tqdm import tqdm

import kljax
from vae import pictures
from vae.data import Images
from vae.flags import Flags, stop

PLAIN_LINES = 12
UNITS = "nats per image: event axes (pixels, latents) are summed, the images are averaged"
TERMS = ("trace", "mahalanobis", "dimension", "log_det")
METRICS = ("elbo", "reconstruction", "kl", *TERMS)
PARTS = ("train", "test")
HEADER = (
    "    step    train ELBO |  test ELBO  reconstruction      KL"
    "     trace  Mahalanobis  log-det"
)

Array = np.ndarray[Any, Any]


def likelihood(images: Images) -> str:
    return f"discretized logistic on the pixel values 0..{images.levels}"


def device(options: Flags) -> str:
    first, count = jax.devices()[0], options.devices * options.processes
    name = f"{first.platform} ({first.device_kind})"
    if count == 1:
        return name
    share = options.batch_size // count
    return f"{name}, {count} in {options.processes} processes, {share} images of a batch each"


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
    # What is no number is an error here: JSON has none.
    text = json.dumps(content, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


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
    least = ""
    if options.delta_vae is not None:
        least = f", each of at least {options.delta_vae:g} nats (delta-VAE)"
    print(
        f"images      {count:,} of {shape} pixels from {images.source}\n"
        f"split       {len(images.train):,} train, {len(images.test):,} test, {kind}\n"
        f"likelihood  {likelihood(images)},\n"
        "            a probability mass, so -ELBO bounds the NLL -log p(image)\n"
        f"units       {UNITS}\n"
        f"posterior   Gaussian of {options.latents} latents, {covariance} covariance{least}\n"
        f"objective   {options.objective}\n"
        f"device      {device(options)}",
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
        for module in (kljax, jax, flax, optax, orbax, np, matplotlib)
    }
    write_json(
        options.out / "config.json",
        {
            "flags": chosen,
            "versions": {"python": platform.python_version()} | versions,
            "device": device(options),
            "objective": str(options.objective),
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

    def __init__(self, options: Flags, rows: Sequence[Mapping[str, float]] = ()):
        self.options = options
        self.rows: list[dict[str, float]] = [dict(row) for row in rows]
        self._shown = 0
        self._bar: Bar | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        path = self.options.out / "metrics.csv"
        self._file = self._stack.enter_context(path.open("w", newline=""))
        columns = ["epoch", "step", *(f"{a}_{b}" for a in PARTS for b in METRICS), "loss"]
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._writer.writeheader()
        for row in self.rows:
            self._write(row)
        if sys.stderr.isatty() and not self.options.process:
            self._bar = self._stack.enter_context(Bar(self.options.steps))
        else:
            print(HEADER, flush=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def record(self, step: int, train: Mapping[str, Any], test: Mapping[str, Any]) -> None:
        """Takes the means of one epoch; the loss is that of training, weighted and all."""
        row: dict[str, float] = {"epoch": len(self.rows) + 1, "step": step}
        for part, means in zip(PARTS, (train, test), strict=True):
            row |= {f"{part}_{name}": float(means[name]) for name in METRICS}
        row["loss"] = float(train.get("loss", -train["elbo"]))
        self.rows.append(row)
        self._write(row)
        self._show(step, row)
        if not all(math.isfinite(value) for value in row.values()):
            stop(
                f"the ELBO is {row['train_elbo']:.3g} in training and "
                f"{row['test_elbo']:.3g} in testing after step {step}; give a smaller "
                "--learning-rate."
            )

    def _write(self, row: Mapping[str, float]) -> None:
        self._writer.writerow({key: f"{value:.9g}" for key, value in row.items()})
        self._file.flush()

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
