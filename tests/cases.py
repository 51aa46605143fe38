"""The table that drives the tests: every family, parametrization and closed form."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kljax


class Parametrization(NamedTuple):
    """A family and the field that carries its spread."""

    family: type
    field: str

    def __str__(self) -> str:
        return f"{self.family.__name__}.{self.field}"


PARAMETRIZATIONS = [
    Parametrization(kljax.Normal, "scale"),
    Parametrization(kljax.Normal, "variance"),
    Parametrization(kljax.Normal, "log_variance"),
    Parametrization(kljax.MultivariateNormalDiag, "scale_diag"),
    Parametrization(kljax.MultivariateNormalDiag, "variance"),
    Parametrization(kljax.MultivariateNormalDiag, "log_variance"),
    Parametrization(kljax.MultivariateNormal, "scale_tril"),
    Parametrization(kljax.MultivariateNormal, "covariance_matrix"),
    Parametrization(kljax.MultivariateNormal, "precision_matrix"),
]

_REGISTERED = {(form.q, form.p) for form in kljax.closed_forms()}
PAIRS = [
    (q, p)
    for q in PARAMETRIZATIONS
    for p in PARAMETRIZATIONS
    if (q.family, p.family) in _REGISTERED
]


def pair_name(pair: Any) -> str:
    return f"{pair[0]}-{pair[1]}" if isinstance(pair, tuple) else str(pair)


def rng_for(*names: Any) -> np.random.Generator:
    """A generator of its own for every test, the same in every run."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, names)).encode()))


def draw(
    which: Parametrization,
    rng: np.random.Generator,
    *,
    batch: tuple[int, ...] = (),
    d: int = 3,
    dtype: Any = np.float32,
) -> Any:
    """A well-conditioned distribution of a parametrization."""
    if which.family is kljax.Normal:
        loc, scale = rng.normal(size=batch), np.exp(rng.normal(0, 0.5, batch))
        covariance = None
    else:
        loc, scale = rng.normal(size=(*batch, d)), np.exp(rng.normal(0, 0.5, (*batch, d)))
        root = np.tril(rng.normal(0, 0.4, (*batch, d, d)), -1)
        root = root + scale[..., None] * np.eye(d)
        covariance = root @ np.swapaxes(root, -1, -2)
    with jax.enable_x64(dtype == np.float64):
        spread = jnp.asarray(_spread(which, scale, covariance), dtype)
        return which.family(jnp.asarray(loc, dtype), **{which.field: spread})


def _spread(which: Parametrization, scale: np.ndarray, covariance: Any) -> np.ndarray:
    match which.field:
        case "scale" | "scale_diag":
            return scale
        case "variance":
            return scale**2
        case "log_variance":
            return 2 * np.log(scale)
        case "scale_tril":
            return np.linalg.cholesky(covariance)
        case "covariance_matrix":
            return covariance
        case _:
            inverse = np.linalg.inv(covariance)
            return (inverse + np.swapaxes(inverse, -1, -2)) / 2


def moments(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of one event in float64, by numpy alone."""
    loc = np.atleast_1d(np.asarray(x.loc, np.float64))
    fields = {
        name: np.asarray(getattr(x, name), np.float64)
        for name in vars(x)
        if name != "loc" and getattr(x, name) is not None
    }
    ((name, value),) = fields.items()
    match name:
        case "scale" | "scale_diag":
            return loc, np.diag(np.atleast_1d(value) ** 2)
        case "variance":
            return loc, np.diag(np.atleast_1d(value))
        case "log_variance":
            return loc, np.diag(np.exp(np.atleast_1d(value)))
        case "scale_tril":
            return loc, value @ value.T
        case "covariance_matrix":
            return loc, value
        case _:
            return loc, np.linalg.inv(value)
