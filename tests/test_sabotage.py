"""Planted mistakes: for each of them the suite's own checks must go red.

Every mistake is made in the formulas of two coordinates and of two matrices. The table says
which checks see it; a check that goes blind fails here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import checks
from cases import PARAMETRIZATIONS
from kljax import coordinates, covariances, factors, linalg, matrices, smallfactors, special
from kljax.families import gaussian

pytestmark = pytest.mark.light

DIAGONAL = (PARAMETRIZATIONS[3], PARAMETRIZATIONS[3])
FACTORS = (PARAMETRIZATIONS[6], PARAMETRIZATIONS[6])
COVARIANCES = (PARAMETRIZATIONS[7], PARAMETRIZATIONS[7])
MIXED = (PARAMETRIZATIONS[6], PARAMETRIZATIONS[7])


def _wrong_log_det_of_coordinates(q, p):
    log_ratio = coordinates.log_variance_ratio(q, p)
    return (jnp.expm1(log_ratio) + log_ratio) / 2


def _wrong_log_det_of_matrices(m):
    on = 2 * m.log_diagonal
    return jnp.sum((jnp.expm1(on) + on) / 2) + 0.5 * jnp.sum(m.lower * m.lower)


def _forgotten_dimension_of_coordinates(q, p, right=coordinates.dispersion):
    return right(q, p) + 0.5


def _forgotten_dimension_of_matrices(m, right=matrices.dispersion):
    return right(m) + 0.5 * m.log_diagonal.size


def _forgotten_dimension_of_factors(q, p, right=factors.dispersions):
    return right(q, p) + 0.5 * len(q)


def _without_prior(*arguments, of=smallfactors._slopes_of_rows):
    slopes = of(*arguments)
    return slopes._replace(by_p=0 * slopes.by_p)


def _transposed(lower, b):
    return linalg.solve_lower_transposed(lower, b)


def _doubled(right):
    return lambda *args: 2 * right(*args)


def _swapped(right):
    return lambda q, p: right(p, q)


def _swapped_with_means(right):
    return lambda q_loc, q, p_loc, p: right(p_loc, p, q_loc, q)


MISTAKES: dict[str, tuple[tuple[Any, Any], list[tuple[Any, str, Any]], set[str]]] = {
    "sign of log_det, coordinates": (
        DIAGONAL,
        [(coordinates, "dispersion", _wrong_log_det_of_coordinates)],
        {"definition", "terms", "gradient"},
    ),
    "sign of log_det, matrices": (
        MIXED,
        [(matrices, "dispersion", _wrong_log_det_of_matrices)],
        {"definition", "terms"},
    ),
    "dropped 1/2, coordinates": (
        DIAGONAL,
        [(coordinates, "location", _doubled(coordinates.location))],
        {"definition", "terms"},
    ),
    "dropped 1/2, matrices": (
        MIXED,
        [(matrices, "location", _doubled(matrices.location))],
        {"definition", "terms"},
    ),
    "q and p swapped, matrices": (
        MIXED,
        [(gaussian, "_groups", _swapped(gaussian._groups))],
        {"definition", "terms"},
    ),
    "dimension forgotten, coordinates": (
        DIAGONAL,
        [(coordinates, "dispersion", _forgotten_dimension_of_coordinates)],
        {"definition", "terms"},
    ),
    "dimension forgotten, matrices": (
        MIXED,
        [(matrices, "dispersion", _forgotten_dimension_of_matrices)],
        {"definition", "terms"},
    ),
    "transposed solve": (
        MIXED,
        [(linalg, "solve_lower", _transposed)],
        {"definition", "terms"},
    ),
    "dimension forgotten, factors": (
        FACTORS,
        [(factors, "dispersions", _forgotten_dimension_of_factors)],
        {"definition", "terms"},
    ),
    "gradient without a term, factors": (
        FACTORS,
        [(smallfactors, "_slopes_of_rows", _without_prior)],
        {"gradient"},
    ),
    "near for far, covariances": (
        COVARIANCES,
        [(covariances, "NEAR", 100.0)],
        {"definition", "terms"},
    ),
    "gradient doubled, covariances": (
        COVARIANCES,
        [(covariances, "_inverse_of_factor", _doubled(covariances._inverse_of_factor))],
        {"gradient"},
    ),
    # Last, since they clear what is compiled (see _forget).
    "q and p swapped, coordinates": (
        DIAGONAL,
        [
            (gaussian, "_by_coordinate", _swapped_with_means(gaussian._by_coordinate)),
            (gaussian, "_groups", _swapped(gaussian._groups)),
        ],
        {"definition", "terms", "sampled"},
    ),
    "sum of cancelling terms": (
        DIAGONAL,
        [
            (
                special.Quotient,
                "excess_minus_log",
                lambda r: (1 + r.excess) - 1 - jnp.log(1 + r.excess),
            )
        ],
        {"nonnegative"},
    ),
}


def red_checks(pair: Any, names: set[str]) -> set[str]:
    """Which of the named checks fail for a pair."""
    _forget(names)
    red = set()
    try:
        for name in names:
            try:
                checks.CHECKS[name](pair)
            except AssertionError:
                red.add(name)
    finally:
        _forget(names)
    return red


def _forget(names: set[str]) -> None:
    """So that nothing computed or traced from a planted mistake outlives its test."""
    checks.evaluated.cache_clear()
    if names & checks.TRACED:
        jax.clear_caches()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_seen(name, monkeypatch):
    pair, patches, expected = MISTAKES[name]
    for module, attribute, wrong in patches:
        monkeypatch.setattr(module, attribute, wrong)
    red = red_checks(pair, expected)
    assert expected == red, f"{name}: red {sorted(red)}, expected {sorted(expected)}"


def test_without_a_mistake_every_check_is_green():
    assert red_checks(DIAGONAL, set(checks.CHECKS)) == set()
