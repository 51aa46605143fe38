"""Paired differences over seeds, with 95 % intervals of Student's t."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over seeds and the half width of its interval."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g}"


def interval(values: np.ndarray) -> Interval:
    """Of the mean over seeds; nan where a run diverged, which no mean may hide."""
    x = np.asarray(values, np.float64)
    if not np.all(np.isfinite(x)):
        return Interval(np.nan, np.nan)
    quantile = float(stdtrit(len(x) - 1, 0.5 + LEVEL / 2))
    return Interval(float(np.mean(x)), quantile * float(np.std(x, ddof=1)) / np.sqrt(len(x)))
