"""What the study found, in the form that predictions ask for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from study.design import Group
from study.exact import CASES, Linear
from study.statistics import Interval, interval
from study.store import Arrays


@dataclass(frozen=True)
class Found:
    """Responses (arms, seeds, ...) and trajectories (arms, seeds, records, ...) of a group.

    A response that only some arms have is nan for the others.
    """

    group: Group
    responses: Arrays
    trajectories: Arrays

    def index(self, arm: str) -> int:
        return [x.name for x in self.group.arms].index(arm)

    def of(self, arm: str, response: str) -> np.ndarray:
        """The response of an arm, one number a seed."""
        return self.responses[response][self.index(arm)]

    def mean(self, arm: str, response: str) -> Interval:
        return interval(self.of(arm, response))

    def difference(self, arm: str, other: str, response: str) -> Interval:
        """The paired difference of two arms."""
        return interval(self.of(arm, response) - self.of(other, response))

    def course(self, arm: str, metric: str) -> np.ndarray:
        """A metric along training, shape (seeds, records, ...)."""
        return self.trajectories[metric][self.index(arm)]


@dataclass(frozen=True)
class Results:
    """All of it.

    Attributes:
        linear: trainings of the linear VAE.
        eight: 8 latents, all of them useful.
        sixteen: 16 latents and more noise, so that some are of no use.
        full: 8 latents with covariance matrices.
        mixture: by name, arrays (objectives, seeds).
        record: steps between points of a trajectory.
        importance: samples behind the likelihood of an image.
    """

    linear: Linear
    eight: Found
    sixteen: Found
    full: Found
    mixture: Arrays
    record: int
    importance: int

    def case(self, name: str) -> int:
        """The place of a linear training."""
        return [case.name for case in CASES].index(name)
