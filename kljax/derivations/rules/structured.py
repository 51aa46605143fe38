"""What Kronecker products and circulant matrices turn into."""

from __future__ import annotations

from typing import Any

import numpy as np

from kljax.derivations.rules import draws
from kljax.derivations.rules.rule import Rule


def _kronecker(rng: np.random.Generator) -> tuple[Any, Any]:
    u, v, s, t = (draws.spd(rng, n) for n in (2, 3, 2, 3))
    pair = np.kron(u, v)
    relative = np.linalg.inv(np.kron(s, t)) @ pair
    apart = np.trace(np.linalg.inv(s) @ u) * np.trace(np.linalg.inv(t) @ v)
    log_det = 3 * np.linalg.slogdet(u)[1] + 2 * np.linalg.slogdet(v)[1]
    inverse = np.kron(np.linalg.inv(s), np.linalg.inv(t))
    left = [np.trace(relative), np.linalg.slogdet(pair)[1], np.linalg.inv(np.kron(s, t))[1, 4]]
    return left, [apart, log_det, inverse[1, 4]]


kronecker = Rule(
    "Kronecker products",
    "(S⊗T)⁻¹ = S⁻¹⊗T⁻¹, tr(A⊗B) = tr A · tr B, log |U⊗V| = m log |U| + n log |V| for U of n "
    "and V of m rows.",
    "algebra",
    "Van Loan 2000, The ubiquitous Kronecker product",
    _kronecker,
)


def _matrix_of_a_vector(rng: np.random.Generator) -> tuple[Any, Any]:
    a, b, x = draws.spd(rng, 2), draws.spd(rng, 3), rng.normal(size=(2, 3))
    return x.ravel() @ np.kron(a, b) @ x.ravel(), np.trace(a @ x @ b @ x.T)


matrix_of_a_vector = Rule(
    "a vector read as a matrix",
    "With x = X read row by row, xᵀ(A⊗B)x = tr(A X B Xᵀ) for symmetric A and B.",
    "algebra",
    "Van Loan 2000, The ubiquitous Kronecker product",
    _matrix_of_a_vector,
)


def _fourier(rng: np.random.Generator) -> tuple[Any, Any]:
    eigenvalues = np.exp(rng.normal(size=4))
    row, x = np.fft.irfft(eigenvalues, 7), rng.normal(size=7)
    matrix = np.stack([np.roll(row, shift) for shift in range(7)])
    power = np.abs(np.fft.fft(x)) ** 2 / 7
    every = np.concatenate([eigenvalues, eigenvalues[:0:-1]])
    left = [x @ np.linalg.solve(matrix, x), np.linalg.slogdet(matrix)[1], np.trace(matrix)]
    return left, [np.sum(power / every), np.sum(np.log(every)), np.sum(every)]


fourier = Rule(
    "the Fourier transform diagonalizes",
    "A circulant matrix has the Fourier vectors for eigenvectors, the transform of its first "
    "row for eigenvalues; those of j and n − j are equal.",
    "algebra",
    "Gray 2006, Toeplitz and Circulant Matrices, section 3.1",
    _fourier,
)
