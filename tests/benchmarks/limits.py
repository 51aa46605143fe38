"""Measures what XLA itself allows on this machine, beside what kljax takes.

    python tests/benchmarks/limits.py [--rounds 15]

In each round every program is timed once: kljax, the textbook formula in jax.numpy, and a part
that no formula can do without: for diagonal Gaussians the sum of the inputs over coordinates,
for low rank the three products W^T W of the factors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import kljax
from kljax.coordinates import add_up

DIAGONAL = ((100_000, 64), (1_000, 1024), (1_000_000, 16))
LOW_RANK = ((1, 2000, 10), (8, 2000, 10), (64, 2000, 10))
_sums = jax.vmap(add_up)


# ---- diagonal: means and log-variances, with the sum over coordinates that kljax has --------


def general(m: Array, a: Array, n: Array, b: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.MultivariateNormalDiag(n, log_variance=b))


def general_textbook(m: Array, a: Array, n: Array, b: Array) -> Array:
    return 0.5 * _sums(jnp.exp(a - b) + (m - n) ** 2 * jnp.exp(-b) - 1 - (a - b))


def general_part(m: Array, a: Array, n: Array, b: Array) -> Array:
    return _sums(m + a + n + b)


def standard(m: Array, a: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.standard_normal(m.shape[-1]))


def standard_textbook(m: Array, a: Array) -> Array:
    return 0.5 * _sums(jnp.exp(a) + m * m - 1 - a)


def standard_part(m: Array, a: Array) -> Array:
    return _sums(m + a)


# ---- low rank: means, factors and diagonals -------------------------------------------------


def low_rank(m: Array, w: Array, c: Array, n: Array, v: Array, d: Array) -> Array:
    q = kljax.LowRankMultivariateNormal(m, w, c)
    return kljax.kl_divergence(q, kljax.LowRankMultivariateNormal(n, v, d))


def low_rank_textbook(m: Array, w: Array, c: Array, n: Array, v: Array, d: Array) -> Array:
    """By Woodbury's identity and the determinant lemma."""
    eye, scaled = jnp.eye(v.shape[-1]), v.mT / d[:, None]
    factor = jnp.linalg.cholesky(eye + scaled @ v)
    factor_q = jnp.linalg.cholesky(eye + (w.mT / c[:, None]) @ w)
    log_det = 2 * (_log_diagonal(factor) - _log_diagonal(factor_q)) + jnp.log(d / c).sum(-1)
    shift = m - n
    right = jnp.concatenate([scaled, scaled @ w, scaled @ shift[..., None]], -1)
    whitened = jax.scipy.linalg.solve_triangular(factor, right, lower=True) ** 2
    events = c.shape[-1]
    variances = c / d - (whitened[..., :events] * c[:, None]).sum(-2)
    squares = variances + ((w**2).sum(-1) + shift**2) / d - 1
    return 0.5 * (squares.sum(-1) - whitened[..., events:].sum((-1, -2)) + log_det)


def _log_diagonal(factor: Array) -> Array:
    return jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)


def low_rank_part(m: Array, w: Array, c: Array, n: Array, v: Array, d: Array) -> Array:
    del m, c, n, d
    # Of rows, which is the layout that XLA multiplies fastest.
    w, v = (x.reshape(x.shape[0], x.shape[2], x.shape[1]) for x in (w, v))
    return _gram(w, w) + _gram(w, v) + _gram(v, v)


def _gram(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))), precision="highest")


# ---- rounds ---------------------------------------------------------------------------------

_Case = tuple[str, tuple[Callable[..., Array], ...], list[Array]]


def _cases() -> Iterator[_Case]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    for n, d in DIAGONAL:
        inputs = [normal(n, d) for _ in range(4)]
        yield f"general ({n}, {d})", (general, general_textbook, general_part), inputs
        programs = (standard, standard_textbook, standard_part)
        yield f"standard prior ({n}, {d})", programs, inputs[:2]
    for n, d, rank in LOW_RANK:
        inputs = [
            x for _ in "qp" for x in (normal(n, d), normal(n, d, rank), jnp.exp(normal(n, d)))
        ]
        programs = (low_rank, low_rank_textbook, low_rank_part)
        yield f"low rank ({n}, {d}, {rank})", programs, inputs


def _seconds(program: Callable[..., Array], inputs: list[Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*inputs))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for name, of, inputs in _cases():
        every = tuple(range(len(inputs)))
        programs = {f.__name__: jax.jit(f) for f in of}
        for f in of[:2]:
            slope = jax.value_and_grad(lambda *x, f=f: f(*x).sum(), every)
            programs[f"{f.__name__}, gradient"] = jax.jit(slope)
        for program in programs.values():
            _seconds(program, inputs)
        taken = {key: [] for key in programs}
        for _ in range(rounds):
            for key, program in programs.items():
                taken[key].append(_seconds(program, inputs))
        own = statistics.median(taken[of[0].__name__])
        print(name)
        for key, times in taken.items():
            median = statistics.median(times)
            print(f"  {key:30} {1e3 * median:8.2f} ms {median / own:6.2f}", flush=True)


if __name__ == "__main__":
    main()
