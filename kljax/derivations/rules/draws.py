"""Random instances that the rules are tested on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def normal_moments(rng: np.random.Generator) -> tuple[float, float, np.ndarray, np.ndarray]:
    """A normal law with 50 Gauss-Hermite nodes."""
    loc, scale = rng.normal(), math.exp(rng.normal(0, 0.2))
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    return loc, scale, loc + scale * nodes, weights / weights.sum()


def spd(rng: np.random.Generator, d: int = 3) -> np.ndarray:
    a = rng.normal(size=(d, d))
    return a @ a.T + np.eye(d)


def points(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points with weights that add up to 1: any expectation."""
    weights = rng.uniform(size=7)
    return rng.normal(size=7), weights / weights.sum()


def gaussian_nodes(rng: np.random.Generator) -> tuple[Any, ...]:
    mu, s = rng.normal(size=2), spd(rng, 2)
    line, weight = np.polynomial.hermite_e.hermegauss(6)
    grid = np.array([(a, b) for a in line for b in line])
    weights = np.array([a * b for a in weight for b in weight])
    return mu, s, mu + grid @ np.linalg.cholesky(s).T, weights / weights.sum()


def slope(f: Callable[[float], float], h: float = 1e-3) -> float:
    """A derivative at 0 to about 1e-11, by central differences of sixth order."""
    return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (
        60 * h
    )
