"""Kronecker, circulant and chain laws for tests: drawn, and written out densely by numpy.

The dense law of an event read as one vector (matrices row by row, paths time by time) shares no
formula with the library: chains are assembled from their residuals, observations by
marginalizing and posteriors by conditioning whole matrices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kljax
from cases import rng_for

T, D, K = 5, 3, 2
"""Time steps, and the sizes of a state and of an observation."""


def _matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Well-conditioned covariance matrices."""
    root = 0.4 * rng.normal(size=(*shape, shape[-1])) + np.eye(shape[-1])
    return root @ np.swapaxes(root, -1, -2)


def _row(rng: np.random.Generator, n: int) -> np.ndarray:
    eigenvalues = np.exp(0.5 * rng.normal(size=n // 2 + 1))
    return np.fft.irfft(eigenvalues, n)


def _chain(rng: np.random.Generator, *, tril: bool = False) -> dict[str, np.ndarray]:
    initial, noise = _matrix(rng, D), _matrix(rng, T - 1, D)
    kind, of = ("scale_tril", np.linalg.cholesky) if tril else ("covariance", lambda x: x)
    return {
        "initial_loc": rng.normal(size=D),
        f"initial_{kind}": of(initial),
        "transition_matrix": 0.5 * rng.normal(size=(T - 1, D, D)),
        "transition_offset": rng.normal(size=(T - 1, D)),
        f"transition_{kind}": of(noise),
    }


def _seen(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "emission_matrix": rng.normal(size=(K, D)),
        "emission_offset": rng.normal(size=K),
        "emission_covariance": _matrix(rng, K),
    }


def _blocks(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The precision of a random chain, so that it is positive definite."""
    precision = assemble(_chain(rng))[1].reshape(T, D, T, D)
    return {
        "loc": rng.normal(size=(T, D)),
        "precision_diagonal_blocks": np.stack([precision[t, :, t] for t in range(T)]),
        "precision_lower_blocks": np.stack([precision[t + 1, :, t] for t in range(T - 1)]),
    }


def _matrix_normal(rng: np.random.Generator, *, tril: bool = False) -> dict[str, np.ndarray]:
    rows, columns = _matrix(rng, 3), _matrix(rng, 4)
    if tril:
        rows, columns = np.linalg.cholesky(rows), np.linalg.cholesky(columns)
    kind = "scale_tril" if tril else "covariance"
    loc = rng.normal(size=(3, 4))
    return {"loc": loc, f"row_{kind}": rows, f"column_{kind}": columns}


MAKERS = {
    "matrix": (kljax.MatrixNormal, _matrix_normal),
    "matrix by factors": (kljax.MatrixNormal, lambda rng: _matrix_normal(rng, tril=True)),
    "circulant": (
        kljax.CirculantNormal,
        lambda rng: {"loc": rng.normal(size=7), "covariance_row": _row(rng, 7)},
    ),
    "circulant by eigenvalues": (
        kljax.CirculantNormal,
        lambda rng: {"loc": rng.normal(size=7), "covariance_rfft": np.exp(rng.normal(size=4))},
    ),
    "chain": (kljax.GaussMarkov, _chain),
    "chain by factors": (kljax.GaussMarkov, lambda rng: _chain(rng, tril=True)),
    "blocks": (kljax.BlockTridiagonalNormal, _blocks),
    "joint": (kljax.LinearGaussianStateSpace, lambda rng: {**_chain(rng), **_seen(rng)}),
    "observations": (
        kljax.LinearGaussianObservations,
        lambda rng: {**_chain(rng), **_seen(rng)},
    ),
    "posterior": (
        kljax.LinearGaussianPosterior,
        lambda rng: {**_chain(rng), **_seen(rng), "observations": rng.normal(size=(T, K))},
    ),
}


def draw(kind: str, *names: Any, dtype: Any = np.float64) -> Any:
    family, make = MAKERS[kind]
    with jax.enable_x64(dtype == np.float64):
        return family(
            **{k: jnp.asarray(x, dtype) for k, x in make(rng_for(kind, *names)).items()}
        )


# ---- densely --------------------------------------------------------------------------------


def parameters(x: Any) -> dict[str, np.ndarray]:
    """The parameters in float64, factors multiplied out."""
    found = {}
    for key, value in vars(x).items():
        if value is None:
            continue
        value = np.asarray(value, np.float64)
        if key.endswith("scale_tril"):
            key = key.replace("scale_tril", "covariance")
            value = value @ np.swapaxes(value, -1, -2)
        found[key] = value
    return found


def assemble(chain: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of a path: residual = B x - b with independent covariances."""
    length = len(chain["transition_offset"]) + 1
    d = len(chain["initial_loc"])
    b = np.eye(length * d)
    weight = np.zeros((length * d, length * d))
    weight[:d, :d] = np.linalg.inv(chain["initial_covariance"])
    for t in range(1, length):
        at, before = slice(t * d, (t + 1) * d), slice((t - 1) * d, t * d)
        b[at, before] = -chain["transition_matrix"][t - 1]
        weight[at, at] = np.linalg.inv(chain["transition_covariance"][t - 1])
    offset = np.concatenate([chain["initial_loc"], chain["transition_offset"].ravel()])
    return np.linalg.solve(b, offset), b.T @ weight @ b


def _emit(given: dict[str, np.ndarray], length: int) -> np.ndarray:
    return np.kron(np.eye(length), given["emission_matrix"])


def dense(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of an event read as one vector."""
    given = parameters(x)
    if isinstance(x, kljax.MatrixNormal):
        covariance = np.kron(given["row_covariance"], given["column_covariance"])
        return given["loc"].ravel(), covariance
    if isinstance(x, kljax.CirculantNormal):
        n = len(given["loc"])
        if "covariance_row" in given:
            row = given["covariance_row"]
        else:
            row = np.fft.irfft(given["covariance_rfft"], n)
        return given["loc"], np.stack([np.roll(row, shift) for shift in range(n)])
    if isinstance(x, kljax.BlockTridiagonalNormal):
        on, below = given["precision_diagonal_blocks"], given["precision_lower_blocks"]
        length, d, _ = on.shape
        whole = np.zeros((length, d, length, d))
        for t in range(length):
            whole[t, :, t] = on[t]
            if t + 1 < length:
                whole[t + 1, :, t], whole[t, :, t + 1] = below[t], below[t].T
        return given["loc"].ravel(), np.linalg.inv(whole.reshape(length * d, length * d))
    mean, precision = assemble(given)
    covariance = np.linalg.inv(precision)
    if isinstance(x, kljax.GaussMarkov):
        return mean, covariance
    return _seen_through(x, given, mean, covariance)


def _seen_through(
    x: Any, given: dict[str, np.ndarray], mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The joint law by marginalizing and conditioning."""
    length = len(given["transition_offset"]) + 1
    d, k = len(given["initial_loc"]), len(given["emission_offset"])
    emit = _emit(given, length)
    noise = np.kron(np.eye(length), given["emission_covariance"])
    seen_mean = emit @ mean + np.tile(given["emission_offset"], length)
    seen = emit @ covariance @ emit.T + noise
    if isinstance(x, kljax.LinearGaussianObservations):
        return seen_mean, seen
    cross = covariance @ emit.T
    if isinstance(x, kljax.LinearGaussianPosterior):
        gain = np.linalg.solve(seen, cross.T).T
        residual = given["observations"].ravel() - seen_mean
        return mean + gain @ residual, covariance - gain @ cross.T
    whole = np.block([[covariance, cross], [cross.T, seen]])
    order = np.concatenate(
        [
            np.concatenate([t * d + np.arange(d), length * d + t * k + np.arange(k)])
            for t in range(length)
        ]
    )
    return np.concatenate([mean, seen_mean])[order], whole[np.ix_(order, order)]


def dense_terms(q: Any, p: Any) -> dict[str, Any]:
    """The textbook formula on the dense laws."""
    (q_mean, q_covariance), (p_mean, p_covariance) = dense(q), dense(p)
    delta = q_mean - p_mean
    trace = np.trace(np.linalg.solve(p_covariance, q_covariance))
    mahalanobis = delta @ np.linalg.solve(p_covariance, delta)
    log_det = np.linalg.slogdet(p_covariance)[1] - np.linalg.slogdet(q_covariance)[1]
    dispersion = (trace - len(delta) + log_det) / 2
    return {
        "trace": trace,
        "mahalanobis": mahalanobis,
        "dimension": len(delta),
        "log_det": log_det,
        "dispersion": dispersion,
        "location": mahalanobis / 2,
        "total": dispersion + mahalanobis / 2,
    }
