"""Every closed form, in every parametrization, against every check."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

import kljax
from cases import PAIRS, pair_name
from checks import (
    check_definition,
    check_equal,
    check_gradient,
    check_nonnegative,
    check_sampled,
    check_terms,
    check_traced,
)

pytestmark = pytest.mark.light

SAME = [pair for pair in PAIRS if pair[0] == pair[1]]
SAMPLED = [
    pair
    for pair in PAIRS
    if (pair[0] == pair[1] and pair[0].field in ("scale", "scale_tril", "precision_matrix"))
    or {x.field for x in pair} == {"scale_tril", "log_variance"}
]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_value_terms_and_gradient_are_those_of_the_definition(pair):
    check_definition(pair)
    check_terms(pair)
    check_gradient(pair)
    check_traced(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_never_negative(pair):
    check_nonnegative(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_exactly_zero_at_equality(pair):
    check_equal(pair)


@pytest.mark.parametrize("pair", SAMPLED, ids=pair_name)
def test_agrees_with_samples(pair):
    check_sampled(pair)


@pytest.mark.parametrize("size", [2, 17])
@pytest.mark.parametrize("ratio", [1 / 3, 3.0])
def test_largest_factors_are_divided_by(size, ratio):
    # 1 / P_ii is subnormal here, so a product with it would be 0.
    largest = 1e38 * np.eye(size)
    q, p = (
        kljax.MultivariateNormal(jnp.zeros(size), jnp.asarray(x, jnp.float32))
        for x in ((ratio * largest, largest) if ratio > 1 else (largest, largest / ratio))
    )
    expected = size * ((ratio**2 - 1) / 2 - math.log(ratio))
    np.testing.assert_allclose(kljax.kl_divergence(q, p), expected, rtol=1e-5)
