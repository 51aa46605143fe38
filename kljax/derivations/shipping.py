"""Functions of the library as words of a formula: their series come from JAX, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.derivations import smallmatrix
from kljax.derivations.expression import Op
from kljax.derivations.layout import Box
from kljax.derivations.series import Series


class Shipped:
    """A function of the library, as the last line of a derivation.

    Its series come from JAX: value, gradient and Hessian by its own arguments, compiled once
    for all points and mutants, and the chain rule.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._compiled: dict[tuple[tuple[int, ...], ...], Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        if any(isinstance(x, Series) for x in args):
            return self._series(args)
        return self.function(*args)

    def _flat(self, shapes: list[tuple[int, ...]]) -> Callable[[Any], Any]:
        """The function of all its arguments in one vector."""
        sizes = [int(np.prod(shape)) for shape in shapes]

        def flat(x: Any) -> Any:
            parts = jnp.split(x, np.cumsum(sizes)[:-1])
            return self.function(*(a.reshape(s) for a, s in zip(parts, shapes, strict=True)))

        return flat

    def derivatives(self, shapes: list[tuple[int, ...]]) -> Callable[..., Any]:
        """Compiled value, gradient and Hessian by all arguments, flattened, of a batch."""
        key = tuple(shapes)
        if key not in self._compiled:
            flat = self._flat(shapes)
            size = sum(int(np.prod(shape)) for shape in shapes)

            def all_orders(x: jax.Array) -> Any:
                def first(x: jax.Array) -> Any:
                    value, gradient = jax.value_and_grad(flat)(x)
                    return gradient, (value, gradient)

                hessian, (value, gradient) = jax.jacfwd(first, has_aux=True)(x)
                return value, gradient, hessian

            # One at a time: the batch's size then never asks for another program.
            self._compiled[key] = smallmatrix.quickly(
                lambda xs: jax.lax.map(all_orders, xs), jnp.zeros((CHUNK, size))
            )
        return self._compiled[key]

    def _series(self, args: tuple[Any, ...]) -> Series:
        like = next(x for x in args if isinstance(x, Series))
        series = [like._like(x) for x in args]
        shapes = [x.shape for x in series]
        tail = np.broadcast_shapes(*(x.parts.shape[1 + x.rank :] for x in series))
        flat = np.concatenate(
            [
                np.broadcast_to(x.parts, (*x.parts.shape[: 1 + x.rank], *tail)).reshape(
                    len(x.parts), -1, *tail
                )
                for x in series
            ],
            axis=1,
        )
        points = flat[0].reshape(flat.shape[1], -1).T
        if len(flat) == 1:
            values = np.asarray(jax.vmap(self._flat(shapes))(jnp.asarray(points)))
            return Series(values.reshape(1, *tail), like.depth)
        points, place = np.unique(points, axis=0, return_inverse=True)
        orders = in_chunks(self.derivatives(shapes), points)
        value, gradient, hessian = (x[place.reshape(-1)] for x in orders)
        return _chain(flat, value, gradient, hessian, tail, like.depth)


CHUNK = 16


def in_chunks(function: Callable[..., Any], points: np.ndarray) -> Any:
    """A compiled function of exactly CHUNK rows, on any number of rows."""
    padded = -(-len(points) // CHUNK) * CHUNK
    points = np.concatenate([points, np.repeat(points[-1:], padded - len(points), 0)])
    blocks = [function(points[i : i + CHUNK]) for i in range(0, padded, CHUNK)]
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(a) for a in x]), *blocks)


def _chain(
    flat: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray,
    tail: tuple[int, ...],
    depth: int,
) -> Series:
    """The series of f(a) from f, f' and f'' at a, for up to two infinitesimals."""
    count = int(np.prod(tail))
    value, gradient, hessian = value[:count], gradient[:count], hessian[:count]
    parts = flat.reshape(len(flat), flat.shape[1], -1)
    out = [value]
    for part in parts[1:]:
        out.append(np.einsum("bn,nb->b", gradient, part))
    if len(parts) == 4:
        out[3] = out[3] + np.einsum("nb,bnm,mb->b", parts[1], hessian, parts[2])
    elif len(parts) > 4:
        raise NotImplementedError("a function of the library inside a gradient")
    return Series(np.stack(out).reshape(len(parts), *tail), depth)


def shipped(text: str, function: Callable[..., Any], show: Callable[..., Box]) -> Op:
    """A function of the library as an operation; `text` is how it is called in Python."""
    return Op(text, Shipped(function), show)
