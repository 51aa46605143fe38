"""The design of the study: which weights on which model, how long, from which starts.

An arm is one way to weigh the terms of the KL. All arms of a group share the network, and for
every seed the same first weights, minibatches and draws, so that differences between arms are
paired. A group is one compiled program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

BASE = "base"


class Arm(NamedTuple):
    """Weights of trace, Mahalanobis and log-determinant, and how training starts.

    Attributes:
        name: by which predictions ask for it.
        weights: (a, b, c).
        log_variance: of the posterior at the start.
        unit: of the latents at the start; means are multiplied by it and the decoder's first
            layer divided, which leaves every picture as it was.
    """

    name: str
    weights: tuple[float, float, float]
    log_variance: float = 0.0
    unit: float = 1.0


class Model(NamedTuple):
    """What a program is compiled for.

    Attributes:
        latents: how many.
        variance: of the Gaussian decoder, with pixels from 0 to 1.
        posterior: "diag", "full" or "mixture".
    """

    latents: int
    variance: float
    posterior: str


class Group(NamedTuple):
    """Arms of one model."""

    name: str
    model: Model
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Effort:
    """How much of everything: steps, seeds, draws.

    Attributes:
        steps: of Adam.
        seeds: paired starts of every arm.
        record: steps between two points of a trajectory.
        block: such points between two checkpoints.
        importance: samples of the likelihood of an image.
        images: test images whose likelihood is estimated.
        points: training images that make up the aggregated posterior.
        draws: of a gradient, whose variance is wanted.
        linear_steps: of Adam on the linear VAE.
    """

    steps: int
    seeds: int
    record: int
    block: int
    importance: int
    images: int
    points: int
    draws: int
    linear_steps: int

    @property
    def blocks(self) -> int:
        """Of a training."""
        return self.steps // (self.record * self.block)


FULL = Effort(8000, 5, 25, 8, 256, 360, 1437, 200, 200000)
QUICK = Effort(500, 3, 25, 5, 64, 120, 400, 50, 10000)

BETAS = (0.1, 0.25, 0.5, 2.0, 4.0, 10.0)
# Of the log-determinant alone, on its way to 0.
VANISHING = (1 / 4, 1 / 16, 1 / 64, 1 / 256)


# Names of the arms on that way, from 1 to 0.
TO_ZERO = (BASE, *(f"(1,1,{c:g})" for c in VANISHING), "(1,1,0)")


def beta(value: float) -> Arm:
    return Arm(f"beta {value:g}", (value, value, value))


def log_det(c: float) -> Arm:
    return Arm(f"(1,1,{c:g})", (1, 1, c))


def matched(c: float) -> tuple[Arm, Arm]:
    """Weights (1, 1, c) begun where beta = c begins, in two ways.

    At the variance c / a that an unused latent has at the end; and with means and decoder in
    that unit as well, which is the start of beta = c itself, seen through z -> z sqrt(c).
    """
    return (
        Arm(f"(1,1,{c:g}) s=c", (1, 1, c), log_variance=math.log(c)),
        Arm(f"(1,1,{c:g}) unit", (1, 1, c), unit=math.sqrt(c)),
    )


TRACE_FREE = Arm("(0,1,1)", (0, 1, 1))
MEAN_HEAVY = Arm("(1,16,1)", (1, 16, 1))

EIGHT = Group(
    "8 latents",
    Model(8, 0.03, "diag"),
    (
        Arm(BASE, (1, 1, 1)),
        *map(beta, BETAS),
        Arm("(4,4,1)", (4, 4, 1)),
        Arm("(.25,.25,1)", (0.25, 0.25, 1)),
        TRACE_FREE,
        Arm("(1,0,1)", (1, 0, 1)),
        Arm("(1,1,0)", (1, 1, 0)),
        MEAN_HEAVY,
        *map(log_det, VANISHING),
        *matched(1 / 4),
    ),
)
SIXTEEN = Group(
    "16 latents",
    Model(16, 0.1, "diag"),
    (
        Arm(BASE, (1, 1, 1)),
        beta(0.25),
        beta(4.0),
        Arm("(4,1,1)", (4, 1, 1)),
        Arm("(1,.25,1)", (1, 0.25, 1)),
        Arm("(.25,1,1)", (0.25, 1, 1)),
        Arm("(1,4,1)", (1, 4, 1)),
        TRACE_FREE,
        MEAN_HEAVY,
        log_det(1 / 4),
        log_det(4.0),
        *matched(4.0),
    ),
)
FULL_COVARIANCE = Group(
    "8 latents, full covariance", Model(8, 0.03, "full"), (Arm(BASE, (1, 1, 1)),)
)
GAUSSIAN_GROUPS = (EIGHT, SIXTEEN, FULL_COVARIANCE)

# Two latents, where four components can be told apart.
MIXTURE = Model(2, 0.03, "mixture")
MIXTURE_OBJECTIVES = ("ELBO", "SIWAE")
