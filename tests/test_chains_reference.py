"""Kronecker, circulant and chain structures against stored 40-digit vectors, in float32.

Inputs are exactly the float32 numbers given. Errors are relative (gradients in the Frobenius
norm, symmetric where the parameter is) in units of u cond, with u = 2^-24 and cond the largest
condition among the matrices that a case is made of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax

UNIT = 2.0**-24
VECTORS = Path(__file__).parent / "reference" / "chains"


class File(NamedTuple):
    family: type
    goal: tuple[float, float]
    achieved: tuple[float, float]
    """The largest errors of value and gradient; twice as much is decay."""


FILES = {
    "matrix_normal": File(kljax.MatrixNormal, (8, 32), (1.0, 2.5)),
    "gaussian_circulant_row": File(kljax.CirculantNormal, (8, 32), (1.0, 1.0)),
    "gaussian_circulant_rfft": File(kljax.CirculantNormal, (6, 6), (2.5, 3.0)),
    "gauss_markov": File(kljax.GaussMarkov, (8, 32), (1.0, 2.0)),
    "gaussian_block_tridiagonal_precision": File(
        kljax.BlockTridiagonalNormal, (8, 32), (0.5, 1.0)
    ),
    "lgssm_joint": File(kljax.LinearGaussianStateSpace, (8, 32), (0.6, 4.0)),
    "lgssm_observations": File(kljax.LinearGaussianObservations, (8, 32), (1.5, 11.0)),
    "lgssm_posterior_prior": File(kljax.LinearGaussianPosterior, (8, 32), (1.5, 10.0)),
}


def _array(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def _load(name: str) -> list[dict]:
    cases = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    for case in cases:
        if name == "lgssm_posterior_prior":
            # One model makes both: the posterior of the observations, and its prior.
            case["q"] = {**case["p"], **case["q"]}
            case["grad"]["q"] = {**case["grad"].pop("p"), **case["grad"].pop("q", {})}
        if "block_tridiagonal" in name:
            for side in (case["q"], case["p"], *case["grad"].values()):
                length = len(side["precision_diagonal_blocks"])
                side["loc"] = np.reshape(side["loc"], (length, -1))
    return cases


def _stack(family: type, sides: list[dict]) -> Any:
    return family(
        **{key: np.stack([_array(side[key]).astype(np.float32) for side in sides])
           for key in sides[0]}
    )  # fmt: skip


def prior(model: kljax.LinearGaussianPosterior) -> kljax.GaussMarkov:
    return kljax.GaussMarkov(
        model.initial_loc,
        model.initial_covariance,
        model.transition_matrix,
        model.transition_offset,
        model.transition_covariance,
    )


def _total(q: Any, p: Any) -> tuple[jax.Array, Any]:
    terms = kljax.kl_terms(q, prior(q) if isinstance(q, kljax.LinearGaussianPosterior) else p)
    return jnp.sum(terms.total), terms


_evaluate = jax.jit(jax.value_and_grad(_total, argnums=(0, 1), has_aux=True))


def _matrices(name: str, side: dict) -> list[np.ndarray]:
    """What a law is made of."""
    if "circulant" in name:
        kind = "covariance_row"
        return [np.diag(np.fft.rfft(_array(side[kind])).real)] if kind in side else []
    if "precision_diagonal_blocks" in side:
        names = "precision_diagonal_blocks", "precision_lower_blocks"
        return [_precision(*(_array(side[name]) for name in names))]
    given = (_array(value) for key, value in side.items() if key.endswith("covariance"))
    return [matrix for x in given for matrix in x.reshape(-1, *x.shape[-2:])]


def _precision(on: np.ndarray, below: np.ndarray) -> np.ndarray:
    length, d, _ = on.shape
    whole = np.zeros((length, d, length, d))
    for t in range(length):
        whole[t, :, t] = on[t]
        if t + 1 < length:
            whole[t + 1, :, t], whole[t, :, t + 1] = below[t], below[t].T
    return whole.reshape(length * d, length * d)


def _condition(name: str, case: dict) -> float:
    matrices = _matrices(name, case["q"]) + _matrices(name, case["p"])
    return max((float(np.linalg.cond(m)) for m in matrices), default=1.0)


def _symmetric(key: str, gradient: np.ndarray) -> np.ndarray:
    if key.endswith(("covariance", "diagonal_blocks")):
        return (gradient + np.swapaxes(gradient, -1, -2)) / 2
    return gradient


def _gradient_errors(case: dict, gradients: dict[str, Any], index: int) -> list[float]:
    errors = []
    for side, wanted in case["grad"].items():
        for key, text in wanted.items():
            want = _array(text)
            got = _symmetric(key, _array(getattr(gradients[side], key)[index]))
            size = float(np.linalg.norm(want))
            if key == "emission_offset" and "observations" in wanted:
                # The sum over time of what each observation adds.
                size = float(np.sum(np.abs(_array(wanted["observations"]))))
            errors.append(float(np.linalg.norm(got - want)) / (size or 1.0))
    return errors


def measure(name: str) -> tuple[float, float]:
    """The largest errors of value and gradient; asserts what must never happen."""
    cases, family = _load(name), FILES[name].family
    q = _stack(family, [case["q"] for case in cases])
    p = _stack(family, [case["p"] for case in cases]) if "posterior" not in name else None
    (_, terms), (by_q, by_p) = _evaluate(q, p)
    kl = _array(terms.total)
    value, gradient = 0.0, 0.0
    for index, case in enumerate(cases):
        want, unit = float(case["kl"]), UNIT * _condition(name, case)
        assert np.all(np.isfinite(jax.tree.leaves((kl[index], by_q, by_p))[0]))
        errors = _gradient_errors(case, {"q": by_q, "p": by_p}, index)
        if case["tag"] == "equal":
            assert kl[index] == 0
            assert max(errors) == 0
            continue
        assert kl[index] > 0
        value = max(value, abs(kl[index] - want) / (want * unit))
        gradient = max(gradient, max(errors) / unit)
        _check_terms(case.get("terms", {}), terms, index, unit)
    return value, gradient


def _check_terms(wanted: dict, terms: Any, index: int, unit: float) -> None:
    size = sum(abs(float(wanted.get(key, 0))) for key in ("trace", "dimension", "log_det"))
    for key, text in wanted.items():
        want, got = _array(text), _array(getattr(terms, key)[index])
        # The logarithm of a ratio is known to the rounding of what it is the sum of.
        scale = size if key in ("trace", "log_det") else np.maximum(np.abs(want), 1e-30)
        assert np.all(np.abs(got - want) <= 16 * unit * scale), (key, got, want)


@pytest.mark.parametrize("name", FILES)
def test_library_against_the_vectors(name):
    value, gradient = measure(name)
    file = FILES[name]
    assert value <= file.goal[0], value
    assert gradient <= file.goal[1], gradient
    assert value <= 2 * file.achieved[0], value
    assert gradient <= 2 * file.achieved[1], gradient


if __name__ == "__main__":
    print(f"{'file':40} {'value':>7} {'gradient':>8}   units of u cond; goals")
    for _name, _file in FILES.items():
        _value, _gradient = measure(_name)
        print(f"{_name:40} {_value:7.2f} {_gradient:8.2f}   {_file.goal[0]} {_file.goal[1]}")
