"""The command line of the VAE example; every refusal is one line and exit code 2."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vae import command
from vae.flag_types import (
    address,
    number_from_0,
    positive_number,
    schedule,
    three_weights,
    whole_number,
)
from vae.objective import BOUNDS_OF_MANY, ESTIMATORS, SCHEDULES, Objective, Refused

PROGRAM = "vae_digits.py"


@dataclass(frozen=True)
class Flags:
    """The parsed command line."""

    latents: int
    posterior: str
    estimator: str
    samples: int | None
    beta: float
    weights: tuple[float, ...] | None
    free_bits: float | None
    capacity: float | None
    constraint: float | None
    delta_vae: float | None
    schedule: tuple[str, int] | None
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    devices: int
    coordinator: str | None
    processes: int
    process: int
    data: Path | None
    out: Path
    checkpoint_every: int | None
    resume: bool

    @property
    def objective(self) -> Objective:
        """What is minimized."""
        names = ("beta", "weights", "free_bits", "capacity", "constraint", "schedule")
        return Objective(
            self.estimator.replace("-", "_"),
            self.samples or (8 if self.estimator in BOUNDS_OF_MANY else 1),
            **{name: getattr(self, name) for name in names},
        )


def stop(message: str) -> NoReturn:
    """Ends the program for something that its user can correct."""
    command.stop(PROGRAM, message)


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Parses a command line, by default that of the process."""
    parser = command.Parser(
        prog=PROGRAM,
        description="Trains a variational autoencoder on small images and reports what "
        "it learned, in nats per image.",
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
    add_objective(parser)
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
    add_machines(parser)
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
        help="folder for metrics, pictures and checkpoints, by default %(default)s; those "
        "of an earlier run are replaced, unless --resume is given",
    )
    add(
        "--checkpoint-every",
        type=whole_number(1),
        metavar="STEPS",
        help="steps between checkpoints, by default a tenth of --steps; epochs are "
        "completed first, and Ctrl-C leaves one too",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, to the numbers that the run would "
        "have had without a break; the other flags must be those of the run",
    )
    options = Flags(**vars(parser.parse_args(arguments)))
    check(options, parser)
    return options


def add_objective(parser: argparse.ArgumentParser) -> None:
    """What training minimizes; evaluation is at weights one, whatever is chosen."""
    add = parser.add_argument
    add(
        "--estimator",
        choices=[name.replace("_", "-") for name in ESTIMATORS],
        default="closed-form",
        help="of the objective, by default %(default)s; the others sample the KL",
    )
    add(
        "--samples",
        type=whole_number(1),
        help="latents drawn for every image of a step, by default 1, for iwae and dreg 8",
    )
    add(
        "--beta",
        type=number_from_0,
        default=1.0,
        help="weight of the KL, by default %(default)s, which is the ELBO",
    )
    add(
        "--weights",
        type=three_weights,
        metavar="A,B,C",
        help="weights of the trace, the Mahalanobis term and the log-determinant of the KL "
        "one by one; 1,1,1 is the ELBO",
    )
    add(
        "--free-bits",
        type=number_from_0,
        metavar="NATS",
        help="of each latent, the mean KL below which it costs nothing",
    )
    add(
        "--capacity",
        type=number_from_0,
        metavar="NATS",
        help="minimize reconstruction + beta * abs(KL - capacity) instead; needs a --beta "
        "above 1 to hold the KL there",
    )
    add(
        "--constraint",
        type=positive_number,
        metavar="NATS",
        help="minimize the KL, of those models that reconstruct within so many nats, by a "
        "multiplier that training finds (GECO)",
    )
    add(
        "--delta-vae",
        type=positive_number,
        metavar="NATS",
        help="bound the variances of q so that the KL of every latent stays above",
    )
    add(
        "--schedule",
        type=schedule,
        metavar="NAME:STEPS",
        help="raise beta, all weights or the capacity from 0 in so many steps: "
        f"{', '.join(SCHEDULES)}",
    )


def add_machines(parser: argparse.ArgumentParser) -> None:
    """Where it runs; results agree up to rounding whatever is chosen."""
    add = parser.add_argument
    add(
        "--devices",
        type=whole_number(1),
        default=1,
        help="devices of every process among which each batch is divided, by default "
        "%(default)s",
    )
    add(
        "--coordinator",
        type=address,
        metavar="HOST:PORT",
        help="address of process 0, where several processes train one model; each is "
        "started with the same flags and its own --process, on one shared --out",
    )
    add("--processes", type=whole_number(1), default=1, help="how many processes there are")
    add("--process", type=whole_number(0), default=0, help="which of them this one is")


def check(options: Flags, parser: argparse.ArgumentParser) -> None:
    """Refuses flags that do not go together."""
    try:
        options.objective.check(options.steps)
    except Refused as error:
        parser.error(str(error))
    if (options.processes > 1) != (options.coordinator is not None):
        parser.error("several --processes and a --coordinator need each other")
    if options.process >= options.processes:
        parser.error(f"--process {options.process} is not below --processes")
    if options.delta_vae is not None and options.posterior != "diag":
        parser.error("--delta-vae bounds the variances of --posterior diag")
    shares = options.devices * options.processes
    if options.batch_size % shares:
        parser.error(
            f"--batch-size {options.batch_size} cannot be divided among {shares} devices"
        )
