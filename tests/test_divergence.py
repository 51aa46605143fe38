"""Every closed form, in every parametrization, against every check."""

from __future__ import annotations

import pytest

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
