"""Numbers with infinitesimal parts: derivatives by arithmetic alone, nothing compiled.

A series holds the coefficients of 1, e1, e2, e1 e2, ... for nilpotent e (e^2 = 0). Fed with
x + e1 u + e2 v, a formula returns its value, its derivatives along u and v, and, as the
coefficient of e1 e2, its second derivative along both. It is a second automatic
differentiation beside JAX's, and cheap enough to try thousands of altered formulas.

Arrays have the axes (coefficients, *event, *nodes, batch): formulas see the event alone,
expectations and sums add a node axis each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@functools.cache
def _products(count: int) -> tuple[tuple[int, int, int], ...]:
    """(i, j, i + j) for the pairs of monomials, as bit masks, whose product is not 0."""
    masks = range(1 << count)
    return tuple((i, j, i | j) for i in masks for j in masks if not i & j)


class Series:
    """An array of nilpotent series."""

    __slots__ = ("depth", "parts")
    __array_ufunc__ = None

    def __init__(self, parts: np.ndarray, depth: int):
        self.parts = parts
        self.depth = depth

    # ---- shapes -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of infinitesimals."""
        return len(self.parts).bit_length() - 1

    @property
    def rank(self) -> int:
        """The number of event axes."""
        return self.parts.ndim - self.depth - 2

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one event."""
        return self.parts.shape[1 : 1 + self.rank]

    def deepen(self, depth: int, count: int) -> Series:
        """The same in a scope with more node axes and more infinitesimals."""
        parts = self.parts
        for _ in range(depth - self.depth):
            parts = parts[..., None, :]
        missing = (1 << count) - len(parts)
        if missing:
            parts = np.concatenate([parts, np.zeros((missing, *parts.shape[1:]))])
        return Series(parts, depth)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Series:
        """A linear function of every coefficient."""
        return Series(np.stack([function(part) for part in self.parts]), self.depth)

    def constant(self) -> Series:
        """The value without its infinitesimals."""
        parts = np.zeros_like(self.parts)
        parts[0] = self.parts[0]
        return Series(parts, self.depth)

    def __getitem__(self, index: Any) -> Series:
        index = index if isinstance(index, tuple) else (index,)
        return Series(self.parts[(slice(None), *index)], self.depth)

    @property
    def T(self) -> Series:
        return self.map(lambda a: np.swapaxes(a, 0, 1))

    def contract(self, subscripts: str) -> Series:
        """Einsum over event axes."""
        return self.map(lambda a: np.einsum(subscripts, a))

    # ---- arithmetic -------------------------------------------------------------------------

    def _like(self, other: Any) -> Series:
        if isinstance(other, Series):
            return other
        value = np.asarray(other)
        shape = value.shape + (1,) * (self.depth + 1)
        parts = np.zeros((len(self.parts), *shape), self.parts.dtype)
        parts[0] = value.reshape(shape)
        return Series(parts, self.depth)

    def product(self, other: Any, multiply: Callable[[Any, Any], np.ndarray]) -> Series:
        """A bilinear product of the coefficients."""
        other = self._like(other)
        out: list[Any] = [0] * len(self.parts)
        for i, j, k in _products(self.count):
            out[k] = out[k] + multiply(self.parts[i], other.parts[j])
        return Series(np.stack(out), self.depth)

    def __add__(self, other: Any) -> Series:
        other = self._like(other)
        return Series(_aligned(self, other, np.add), self.depth)

    def __sub__(self, other: Any) -> Series:
        other = self._like(other)
        return Series(_aligned(self, other, np.subtract), self.depth)

    def __rsub__(self, other: Any) -> Series:
        return self._like(other) - self

    def __neg__(self) -> Series:
        return Series(-self.parts, self.depth)

    def __mul__(self, other: Any) -> Series:
        return self.product(other, np.multiply)

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Series:
        return self * self._like(other).power(-1)

    def __rtruediv__(self, other: Any) -> Series:
        return self._like(other) * self.power(-1)

    def __pow__(self, exponent: float) -> Series:
        return self.power(exponent)

    def __matmul__(self, other: Any) -> Series:
        other = self._like(other)
        left = "ij"[2 - self.rank :]
        right = "jk"[: other.rank]
        out = (left + right).replace("j", "")
        subscripts = f"{left}...,{right}...->{out}..."
        return self.product(other, lambda a, b: np.einsum(subscripts, a, b))

    def __rmatmul__(self, other: Any) -> Series:
        return self._like(other) @ self

    # ---- functions of one number ------------------------------------------------------------

    def apply(self, taylor: Callable[[np.ndarray], Sequence[np.ndarray]]) -> Series:
        """A function, given its Taylor coefficients at the value."""
        coefficients = taylor(self.parts[0])
        rest = self.parts.copy()
        rest[0] = 0
        rest = Series(rest, self.depth)
        out = np.zeros_like(self.parts)
        out[0] = coefficients[0]
        power = rest
        for k in range(1, self.count + 1):
            out = out + coefficients[k] * power.parts
            if k < self.count:
                power = power * rest
        return Series(out, self.depth)

    def power(self, exponent: float) -> Series:
        def taylor(a: np.ndarray) -> list[np.ndarray]:
            factor, out = 1.0, []
            for k in range(self.count + 1):
                # A whole power has only so many derivatives, also at 0.
                out.append(factor * a ** (exponent - k) if factor else np.zeros_like(a))
                factor *= (exponent - k) / (k + 1)
            return out

        return self.apply(taylor)

    def log(self) -> Series:
        orders = range(1, self.count + 1)
        return self.apply(
            lambda a: [np.log(a), *((-1.0) ** (k + 1) / (k * a**k) for k in orders)]
        )

    def exp(self) -> Series:
        return self.apply(
            lambda a: [np.exp(a) / math.factorial(k) for k in range(self.count + 1)]
        )

    def expm1(self) -> Series:
        exponential = self.exp()
        exponential.parts[0] = np.expm1(self.parts[0])
        return exponential

    def log1p(self) -> Series:
        out = (1 + self).log()
        out.parts[0] = np.log1p(self.parts[0])
        return out

    def sin(self) -> Series:
        return self.apply(
            lambda a: [
                np.sin(a + k * np.pi / 2) / math.factorial(k) for k in range(self.count + 1)
            ]
        )

    # ---- functions of a matrix --------------------------------------------------------------

    def _value(self) -> np.ndarray:
        """The matrices themselves, with the event axes last as numpy.linalg wants them."""
        return np.moveaxis(self.parts[0], (0, 1), (-2, -1))

    def _constant_matrix(self, value: np.ndarray) -> Series:
        parts = np.zeros(
            (len(self.parts), *value.shape[-2:], *self.parts.shape[3:]), np.float64
        )
        parts[0] = np.moveaxis(value, (-2, -1), (0, 1))
        return Series(parts, self.depth)

    def _relative(self, inverse: Series) -> Series:
        rest = self.parts.copy()
        rest[0] = 0
        return inverse @ Series(rest, self.depth)

    def inv(self) -> Series:
        inverse = self._constant_matrix(np.linalg.inv(self._value()))
        step = -self._relative(inverse)
        total, power = inverse, inverse
        for _ in range(self.count):
            power = step @ power
            total = total + power
        return total

    def logdet(self) -> Series:
        inverse = self._constant_matrix(np.linalg.inv(self._value()))
        sign, value = np.linalg.slogdet(self._value())
        step = self._relative(inverse)
        parts = np.zeros((len(self.parts), *value.shape))
        parts[0] = np.where(sign > 0, value, np.nan)
        total, power = Series(parts, self.depth), step
        for k in range(1, self.count + 1):
            total = total + power.contract("ii...->...") * ((-1.0) ** (k + 1) / k)
            power = power @ step
        return total

    def cholesky(self) -> Series:
        factor = self._constant_matrix(np.linalg.cholesky(self._value()))
        inverse = self._constant_matrix(np.linalg.inv(np.linalg.cholesky(self._value())))
        relative = self._relative(inverse) @ inverse.T
        size = self.shape[0]
        half = (np.tril(np.ones((size, size)), -1) + 0.5 * np.eye(size)).reshape(
            size, size, *(1,) * (self.depth + 1)
        )
        # (I + X)(I + X)^T = I + relative, one order of the infinitesimals a round.
        x = relative.map(lambda a: half * a)
        for _ in range(self.count - 1):
            x = (relative - x @ x.T).map(lambda a: half * a)
        return factor + factor @ x


def _aligned(a: Series, b: Series, function: Callable[..., np.ndarray]) -> np.ndarray:
    """Coefficient by coefficient, numbers broadcast against vectors and matrices."""
    return np.stack([function(x, y) for x, y in zip(a.parts, b.parts, strict=True)])
