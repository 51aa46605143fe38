"""The library against stored 40-digit vectors, inputs exactly the float32 given.

Next to the accuracy table, whose compiled programs it takes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import accuracy
import truth
from accuracy import Case
from truth import Spread

FILES = sorted(
    path
    for path in (Path(__file__).parent / "reference").glob("*.json")
    if "achieved" not in path.name
)
# In ulp of the value and of the sum of the absolute parts of a gradient entry; matrices in
# units of u cond.
DIAGONAL_GOAL = (6.0, 6.0)
MATRIX_GOAL = {
    "scale_tril": (4.0, 64.0),
    "covariance_matrix": (8.0, 32.0),
    "precision_matrix": (8.0, 32.0),
}


def _side(parameters: dict, size: int) -> tuple[np.ndarray, Spread]:
    if not parameters:
        return np.zeros(size, np.float32), Spread("scale", np.ones(size, np.float32))
    loc = np.atleast_1d(np.asarray(parameters["loc"]).astype(np.float32))
    ((kind, value),) = ((k, v) for k, v in parameters.items() if k != "loc")
    array = np.asarray(value).astype(np.float32)
    if kind in truth.DIAGONAL_KINDS:
        array = np.broadcast_to(array, loc.shape)
    return loc, Spread(kind, array)


def _case(stored: dict) -> Case:
    size = np.size(stored["q"]["loc"])
    return Case(*_side(stored["q"], size), *_side(stored["p"], size))


def _relative(a, b) -> float:
    return float(abs(a - b) / abs(b)) if b else float(abs(a))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_truth_reproduces_the_stored_digits(path):
    for stored in json.loads(path.read_text())["cases"]:
        case = _case(stored)
        want = truth.gaussian(*case)
        kl, terms = truth.exact(stored["kl"])[()], stored.get("terms", {})
        assert _relative(want.kl, kl) < 1e-38 or abs(want.kl) < 1e-50
        for name in ("trace", "mahalanobis", "log_det", "dispersion", "location"):
            exact = truth.exact(terms[name])[()] if name in terms else None
            if exact:
                assert _relative(getattr(want, name), exact) < 1e-35
        for slot, got in (("loc", want.grad_loc), (case.q.kind, want.grad_q)):
            exact = truth.exact(stored["grad"]["q"].get(slot, 0))
            got = got.sum() if exact.ndim < got.ndim else got
            size = float(np.max(np.abs(accuracy._float(exact)), initial=1e-300))
            assert np.max(np.abs(accuracy._float(got - exact)), initial=0) <= 1e-28 * size


# A standard normal p and equal scales are special cases of files that are here.
LIBRARY = [p for p in FILES if p.stem.split("_")[-1] != "isotropic" and "full" not in p.stem]
LIBRARY += [p for p in FILES if "full" in p.stem and "standard" not in p.stem]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_library_against_the_vectors(path):
    """Events of size 1 by themselves, all others padded to the largest size."""
    cases = [(_case(one), one["tag"]) for one in json.loads(path.read_text())["cases"]]
    for single in (True, False):
        group = [(case, tag) for case, tag in cases if (len(case.q_loc) == 1) == single]
        different = [case for case, tag in group if tag != "equal"]
        equal = [case for case, tag in group if tag == "equal"]
        if not different:
            continue
        kinds = {different[0].q.kind, different[0].p.kind} - set(truth.DIAGONAL_KINDS)
        if kinds:
            errors = accuracy.measure_matrix(different, (True,))
            assert errors.meets(MATRIX_GOAL[kinds.pop()]), (single, errors)
        else:
            modes = accuracy.BOTH if single else (True,)
            errors = accuracy.measure_diagonal(different, modes)
            assert errors.meets(DIAGONAL_GOAL), (single, errors)
        for kl, gradients in accuracy.evaluate(equal):
            assert kl == 0
            for gradient in gradients:
                np.testing.assert_array_equal(gradient, 0)
