"""The command line of the VAE example; every refusal is one line and exit code 2."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PROGRAM = "vae_digits.py"


@dataclass(frozen=True)
class Flags:
    """The parsed command line."""

    latents: int
    posterior: str
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    data: Path | None
    out: Path


def stop(message: str) -> NoReturn:
    """Ends the program for something that its user can correct."""
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        stop(f"{message} (--help lists the flags)")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"got {text!r}, needs a whole number {wanted}")
        return value

    return parse


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a finite number greater than 0")
    return value


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Parses a command line, by default that of the process."""
    parser = _Parser(
        prog=PROGRAM,
        description="Trains a variational autoencoder on small images and reports what "
        "it learned, in nats per image.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--latents",
        type=whole_number(1, 1024),
        default=12,
        help="size of the latent vector, by default %(default)s",
    )
    add(
        "--posterior",
        choices=("diag", "full"),
        default="diag",
        help="covariance of q(latents | image): diagonal (the default) or a full matrix",
    )
    add(
        "--steps",
        type=whole_number(1, 10**9),
        default=4400,
        help="gradient steps, by default %(default)s",
    )
    add(
        "--batch-size",
        type=whole_number(1),
        default=128,
        help="images in a step, by default %(default)s",
    )
    add(
        "--learning-rate",
        type=positive_number,
        default=2e-3,
        help="of AdamW in the first step, by default %(default)s; it falls to 0 along a cosine",
    )
    add(
        "--seed",
        # JAX makes keys of 32 bits, so larger seeds would repeat smaller ones.
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of weights, batches and draws, by default %(default)s; the split into "
        "training and test images is fixed",
    )
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="your images, by default the digits of scikit-learn: .npy or .npz of shape "
        "(N, H, W), (N, H, W, C) or (N, D), or an MNIST-style IDX file, gzipped or not; "
        "pixels are whole numbers 0..255, or floats in [0, 1] that are rounded to 255 "
        "levels",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("runs/vae_digits"),
        help="folder for metrics and pictures, by default %(default)s; those of an "
        "earlier run are replaced",
    )
    return Flags(**vars(parser.parse_args(arguments)))
