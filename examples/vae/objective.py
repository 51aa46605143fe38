"""What the VAE example minimizes: an estimator of `kljax.vae`, and how its loss is shaped."""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from kljax import vae

ESTIMATORS = tuple(vae.ESTIMATORS)
SCHEDULES = ("linear", "cosine", "sigmoid", "cyclical")
# A cyclical schedule has four cycles.
LEAST_STEPS = 4
# Of log multiplier of a constraint, in each step for each nat that is missed: a model begins a
# hundred nats away, which must not decide on the multiplier of thousands of steps.
MULTIPLIER_RATE = 1e-4
# Their losses are no sums of reconstruction and KL.
BOUNDS_OF_MANY = ("iwae", "dreg")


class Refused(ValueError):
    """Choices that contradict each other, in one sentence."""


@dataclass(frozen=True)
class Objective:
    """The chosen objective; a constant of compiled programs, so it is hashable.

    Attributes:
        estimator: a name of `kljax.vae.ESTIMATORS`.
        samples: latents drawn for every image.
        beta: weight of the KL, or of its distance from the capacity.
        weights: of trace, Mahalanobis and log-determinant, or None.
        free_bits: nats of each latent that cost nothing, or None.
        capacity: nats at which the KL is held, or None.
        constraint: nats of reconstruction that are asked for, or None.
        schedule: name and length of the way from 0 to what the loss is weighted with, or
            None.
    """

    estimator: str = "closed_form"
    samples: int = 1
    beta: float = 1.0
    weights: tuple[float, ...] | None = None
    free_bits: float | None = None
    capacity: float | None = None
    constraint: float | None = None
    schedule: tuple[str, int] | None = None

    def check(self, run_steps: int) -> None:
        """Refuses what contradicts itself, or outlasts the run."""
        shapes = ("weights", "free_bits", "capacity", "constraint")
        given = [name for name in shapes if getattr(self, name) is not None]
        flags = ["--" + name.replace("_", "-") for name in given]
        if self.schedule is not None and self.schedule[1] > run_steps:
            raise Refused(
                f"the {self.schedule[0]} schedule takes {self.schedule[1]} steps, more than "
                f"the run, which has --steps {run_steps}"
            )
        if self.schedule is not None and self.schedule[1] < LEAST_STEPS:
            raise Refused(f"a schedule needs at least {LEAST_STEPS} steps")
        if len(flags) > 1:
            raise Refused(f"{flags[0]} and {flags[1]} are two objectives; choose one")
        if self.weights is not None and self.beta != 1:
            raise Refused("--beta and --weights both weigh the KL; choose one")
        if self.constraint is not None and (self.beta != 1 or self.schedule is not None):
            raise Refused(
                "--constraint finds the weight of the KL; give no --beta or --schedule"
            )
        shaped = flags or self.beta != 1 or self.schedule is not None
        if self.estimator in BOUNDS_OF_MANY and shaped:
            raise Refused(
                f"--estimator {self.estimator} is no sum of reconstruction and KL, so nothing "
                "of it can be weighted"
            )
        terms = self.weights is not None or self.free_bits is not None
        if self.estimator != "closed_form" and terms:
            raise Refused(f"{flags[0]} needs the terms of --estimator closed-form")

    def shaped(
        self, parts: vae.ElboParts, step: Array | int, multiplier: vae.ConstraintState
    ) -> vae.ElboParts:
        """The parts of an estimator, with this objective as their loss."""
        if self.estimator in BOUNDS_OF_MANY:
            return parts
        if self.constraint is not None:
            return vae.with_constraint(parts, multiplier, self.constraint)
        if self.weights is not None:
            weights = [self.scheduled(weight, step) for weight in self.weights]
            return vae.with_term_weights(parts, vae.TermWeights(*weights))
        if self.capacity is not None:
            now = self.scheduled(self.capacity, step)
            return vae.with_capacity(parts, now, gamma=self.beta)
        beta = self.scheduled(self.beta, step)
        if self.free_bits is not None:
            return vae.with_free_bits(parts, self.free_bits, beta=beta)
        return vae.with_beta(parts, beta)

    def followed(
        self, multiplier: vae.ConstraintState, parts: vae.ElboParts
    ) -> vae.ConstraintState:
        """The multiplier of the constraint, if there is one, after a step."""
        if self.constraint is None:
            return multiplier
        return vae.update_constraint(multiplier, parts, self.constraint, rate=MULTIPLIER_RATE)

    def scheduled(self, value: float, step: Array | int) -> float | Array:
        """What `value` is at a step."""
        if self.schedule is None:
            return value
        name, length = self.schedule
        return getattr(vae.schedules, name)(0.0, value, length)(step)

    def final_weights(self, multiplier: vae.ConstraintState) -> vae.TermWeights:
        """Those that the end of training has; with a capacity, up to a common factor."""
        if self.weights is not None:
            return vae.TermWeights(*self.weights)
        beta = 1.0 if self.capacity is not None else self.beta
        if self.constraint is not None:
            beta = float(multiplier.beta)
        return vae.TermWeights(beta, beta, beta)

    def __str__(self) -> str:
        kl = "KL" if self.beta == 1 else f"{self.beta:g} KL"
        if self.estimator in BOUNDS_OF_MANY:
            words = f"-log of the mean of {self.samples} importance weights"
        elif self.weights is not None:
            a, b, c = self.weights
            words = (
                f"reconstruction + ({a:g} trace + {b:g} Mahalanobis "
                f"+ {c:g} (log-det - dimension)) / 2"
            )
        elif self.capacity is not None:
            words = f"reconstruction + {self.beta:g} abs(KL - {self.capacity:g} nats)"
        elif self.constraint is not None:
            words = f"the least KL whose reconstruction is within {self.constraint:g} nats"
        elif self.free_bits is not None:
            words = f"reconstruction + {kl}, {self.free_bits:g} nats of each latent free"
        else:
            words = f"reconstruction + {kl}"
        if self.schedule is not None:
            what = "capacity" if self.capacity is not None else "weight"
            words += f", {what} rising from 0 ({self.schedule[0]}, {self.schedule[1]} steps)"
        draws = "1 draw" if self.samples == 1 else f"{self.samples} draws"
        return f"{words}; {self.estimator.replace('_', ' ')}, {draws} an image"
