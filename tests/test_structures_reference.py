"""Structured Gaussians against stored 40-digit vectors, in float32.

Errors are relative and in units of u cond, u = 2^-24: cond is that of the capacitance matrix
I + W^T D^-1 W for low rank, of the given matrices elsewhere.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax

FOLDER = Path(__file__).parent / "reference"
FILES = [*sorted((FOLDER / "structured").glob("*.json")), FOLDER / "gaussian_isotropic.json"]
UNIT = 2.0**-24
# Of value and gradient, in units of u cond.
LOW_RANK, GOAL = (32.0, 32.0), (8.0, 32.0)
# Blocks of all sizes up to (BLOCKS, SIZE) are padded to that: what is added is equal in q
# and p and changes nothing.
BLOCKS, SIZE = 3, 4


def _array(x: Any) -> np.ndarray:
    return np.asarray(x, object).astype(np.float64)


def _padded_blocks(ragged: list, filling: float) -> np.ndarray:
    out = filling * np.stack([np.eye(SIZE)] * BLOCKS)
    for block, own in zip(out, ragged, strict=False):
        block[: len(own), : len(own)] = _array(own)
    return out


def _padded_loc(loc: list, ragged: list) -> np.ndarray:
    out, start = np.zeros((BLOCKS, SIZE)), 0
    for row, own in zip(out, ragged, strict=False):
        row[: len(own)] = _array(loc[start : start + len(own)])
        start += len(own)
    return out.reshape(-1)


def _fields(given: dict, blocks: list | None, filling: float = 1.0) -> dict[str, np.ndarray]:
    """Parameters, or gradients by them, as float64 arrays of one shape for all cases."""
    if blocks is None:
        return {name: _array(value) for name, value in given.items()}
    return {
        "loc": _padded_loc(given["loc"], blocks),
        "block_covariance": _padded_blocks(given["blocks"], filling),
    }


def _distribution(name: str, given: dict, d: int) -> Any:
    fields = {
        field: jnp.asarray(value, jnp.float32)
        for field, value in _fields(given, given.get("blocks")).items()
    }
    match name, [*given]:
        case _, []:
            return kljax.standard_normal(d)
        case "gaussian_isotropic", _:
            return kljax.IsotropicNormal(**fields)
        case _, [_, "blocks"]:
            return kljax.BlockDiagonalNormal(**fields)
        case _, [_, "cov_factor", _]:
            return kljax.LowRankMultivariateNormal(**fields)
        case _, [_, "covariance_matrix"]:
            return kljax.MultivariateNormal(**fields)
        case _:
            return kljax.MultivariateNormalDiag(fields["loc"], fields["scale"])


def _condition(given: dict) -> float:
    if "cov_factor" in given:
        w, diagonal = _array(given["cov_factor"]), _array(given["cov_diag"])
        return float(np.linalg.cond(np.eye(w.shape[1]) + w.T @ (w / diagonal[:, None])))
    matrices = given.get("blocks", [given.get("covariance_matrix", [[1]])])
    return max(float(np.linalg.cond(_array(matrix))) for matrix in matrices)


_value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))))


def _gradient_error(stored: dict, given: dict, got: Any) -> float:
    errors = []
    for name, want in _fields(stored, given.get("blocks"), 0.0).items():
        field = name if hasattr(got, name) else "scale_diag"
        value = np.asarray(getattr(got, field), np.float64)
        errors.append(np.linalg.norm(value - want) / np.linalg.norm(want))
    return max(errors, default=0.0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference(path):
    cases = json.loads(path.read_text())["cases"]
    goal = LOW_RANK if "lowrank" in path.stem else GOAL
    by_size = itertools.groupby(sorted(cases, key=_size), key=_size)
    for size, group in ((size, list(group)) for size, group in by_size):
        q, p = (
            jax.tree.map(
                lambda *x: jnp.stack(x),
                *[_distribution(path.stem, case[side], size) for case in group],
            )
            for side in "qp"
        )
        value, gradient = _value_and_grad(q, p)
        for i, case in enumerate(group):
            own = jax.tree.map(lambda x, i=i: np.asarray(x)[i], gradient)
            _check(case, float(value[i]), own, goal)


def _size(case: dict) -> int:
    return BLOCKS * SIZE if "blocks" in case["q"] else len(case["q"]["loc"])


def _check(case: dict, value: float, gradient: Any, goal: tuple[float, float]) -> None:
    want = float(case["kl"])
    if want == 0:
        assert value == 0, case["id"]
        for x in jax.tree.leaves(gradient):
            np.testing.assert_array_equal(x, 0)
        return
    unit = UNIT * max(_condition(case[side]) for side in "qp")
    assert abs(value - want) <= goal[0] * unit * want, (case["id"], value, want)
    for side, got in zip("qp", gradient, strict=True):
        error = _gradient_error(case["grad"][side], case[side], got)
        assert error <= goal[1] * unit, (case["id"], side, error / unit)
