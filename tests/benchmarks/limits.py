"""Measures what XLA itself allows on this machine, beside what kljax takes.

    python tests/benchmarks/limits.py [--rounds 15]

In each round every program is timed once: kljax, the textbook formula in jax.numpy, and parts
that no formula can do without. For diagonal Gaussians: adding up the inputs over coordinates,
or the exponentials, with gradient also outputs that read what their formulas need. For low
rank: the three products W^T D^-1 W of the factors, with gradient also four of those with
factors. For all pairs: a product, of matrices their inverses and squares too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import kljax
from kljax import linalg, special
from kljax.coordinates import total

DIAGONAL = ((100_000, 64), (1_000, 1024), (1_000_000, 16))
LOW_RANK = ((1, 2000, 10), (8, 2000, 10), (64, 2000, 10))
PAIRWISE = (200, 16)
PAIRWISE_DIAGONAL = (2000, 64)


# ---- diagonal: means and log-variances, with the sum over coordinates that kljax has --------


def _sums(of_each: Callable[..., Array]) -> Callable[..., Array]:
    return jax.vmap(lambda *x: total(of_each, *x))


def general(m: Array, a: Array, n: Array, b: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.MultivariateNormalDiag(n, log_variance=b))


@_sums
def general_textbook(m: Array, a: Array, n: Array, b: Array) -> Array:
    return 0.5 * (jnp.exp(a - b) + (m - n) ** 2 * jnp.exp(-b) - 1 - (a - b))


@_sums
def general_part(m: Array, a: Array, n: Array, b: Array) -> Array:
    return m + a + n + b


def general_part_gradient(m: Array, a: Array, n: Array, b: Array) -> tuple[Array, ...]:
    """Each by the arguments that its formula needs; XLA gives each a loop of its own."""
    by_m = (m - n) * b
    sums = general_part(m, a, n, b)
    return jnp.sum(sums), by_m, a - b, -by_m, (m - n) * a * b


@_sums
def general_exponentials(m: Array, a: Array, n: Array, b: Array) -> Array:
    return special.exp(a - b) + (m - n) * special.exp(-b)


def general_exponentials_gradient(m: Array, a: Array, n: Array, b: Array) -> tuple[Array, ...]:
    ratio, by_m = special.exp(a - b), (m - n) * special.exp(-b)
    sums = general_exponentials(m, a, n, b)
    return jnp.sum(sums), by_m, ratio, -by_m, (m - n) * by_m + ratio


def standard(m: Array, a: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.standard_normal(m.shape[-1]))


@_sums
def standard_textbook(m: Array, a: Array) -> Array:
    return 0.5 * (jnp.exp(a) + m * m - 1 - a)


@_sums
def standard_part(m: Array, a: Array) -> Array:
    return m + a


def standard_part_gradient(m: Array, a: Array) -> tuple[Array, ...]:
    return jnp.sum(standard_part(m, a)), 2 * m, 2 * a


@_sums
def standard_exponentials(m: Array, a: Array) -> Array:
    return special.exp(a) + m


def standard_exponentials_gradient(m: Array, a: Array) -> tuple[Array, ...]:
    return jnp.sum(standard_exponentials(m, a)), 2 * m, special.exp(a)


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
    """C of both, and W_q^T D_p^-1 W_p between them: of rows, the fastest of the layouts."""
    del m, n
    w, v = linalg.settled(w.mT), linalg.settled(v.mT)
    scaled = v / d[:, None]
    return _gram(w / c[:, None], w) + _gram(scaled, w) + _gram(scaled, v)


def low_rank_part_gradient(
    m: Array, w: Array, c: Array, n: Array, v: Array, d: Array
) -> tuple[Array, ...]:
    """The derivative by each factor mixes the columns of both."""
    small = low_rank_part(m, w, c, n, v, d)
    turned = small.mT
    by_w, by_v = w @ small + v @ turned, v @ small + w @ turned
    return jnp.sum(small), m, by_w, c, n, by_v, d


def _gram(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))), precision="highest")


# ---- all pairs of matrices: means and factors -----------------------------------------------


def all_pairs(m: Array, lq: Array, n: Array, lp: Array) -> Array:
    q = kljax.MultivariateNormal(m, lq)
    return kljax.batch.pairwise(q, kljax.MultivariateNormal(n, lp))


def all_pairs_textbook(m: Array, lq: Array, n: Array, lp: Array) -> Array:
    """The product of moments in float64, with nothing that says how right it is."""
    with jax.enable_x64(True):
        m, lq, n, lp = (x.astype(np.float64) for x in (m, lq, n, lp))
        moments, precisions = _squares(lq, lp)
        moments = moments + m[:, :, None] * m[:, None, :]
        weighted = (precisions * n[:, None, :]).sum(2)
        of_q = jnp.concatenate([moments.reshape(len(m), -1), m], axis=1)
        of_p = jnp.concatenate([precisions.reshape(len(n), -1), -2 * weighted], axis=1)
        doubled = _outer(of_q, of_p) + (weighted * n).sum(1) - m.shape[1]
        log_det = 2 * (_log_diagonal(lp)[None, :] - _log_diagonal(lq)[:, None])
        return (0.5 * (doubled + log_det)).astype(np.float32)


def all_pairs_part(m: Array, lq: Array, n: Array, lp: Array) -> Array:
    """The inverses, the squares of both sides and their product, in float64."""
    del m, n
    with jax.enable_x64(True):
        sides = _squares(lq.astype(np.float64), lp.astype(np.float64))
        return _outer(*(x.reshape(x.shape[0], -1) for x in sides)).astype(np.float32)


def _squares(lq: Array, lp: Array) -> tuple[Array, Array]:
    inverse = jax.vmap(linalg.inverse_lower)(lp)
    return _gram(lq, lq), _gram(inverse.mT, inverse.mT)


def _outer(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision="highest")


def all_pairs_diagonal(m: Array, s: Array, n: Array, t: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=s)
    return kljax.batch.pairwise(q, kljax.MultivariateNormalDiag(n, log_variance=t))


def all_pairs_diagonal_textbook(m: Array, s: Array, n: Array, t: Array) -> Array:
    """The product of moments in float64, with nothing that says how right it is."""
    with jax.enable_x64(True):
        m, s, n, t = (x.astype(np.float64) for x in (m, s, n, t))
        precision = jnp.exp(-t)
        of_q = jnp.concatenate([jnp.exp(s) + m * m, m], axis=1)
        of_p = jnp.concatenate([precision, -2 * precision * n], axis=1)
        doubled = _outer(of_q, of_p) + (precision * n * n + t).sum(1) - m.shape[1]
        return (0.5 * (doubled - s.sum(1)[:, None])).astype(np.float32)


def all_pairs_diagonal_part(m: Array, s: Array, n: Array, t: Array) -> Array:
    """A product of that size."""
    with jax.enable_x64(True):
        sides = (jnp.concatenate(x, axis=1).astype(np.float64) for x in ((m, s), (n, t)))
        return _outer(*sides).astype(np.float32)


# ---- rounds ---------------------------------------------------------------------------------


class _Part(NamedTuple):
    """What values, and gradients, cannot do without."""

    value: Callable[..., Any]
    gradient: Callable[..., Any] | None = None


class _Case(NamedTuple):
    """Programs for one size."""

    name: str
    own: Callable[..., Array]
    textbook: Callable[..., Array]
    parts: dict[str, _Part]
    inputs: list[Array]
    gradient: bool = True


def _cases() -> Iterator[_Case]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    for n, d in DIAGONAL:
        inputs = [normal(n, d) for _ in range(4)]
        parts = {
            "inputs": _Part(general_part, general_part_gradient),
            "exponentials": _Part(general_exponentials, general_exponentials_gradient),
        }
        yield _Case(f"general ({n}, {d})", general, general_textbook, parts, inputs)
        parts = {
            "inputs": _Part(standard_part, standard_part_gradient),
            "exponentials": _Part(standard_exponentials, standard_exponentials_gradient),
        }
        name = f"standard prior ({n}, {d})"
        yield _Case(name, standard, standard_textbook, parts, inputs[:2])
    for n, d, rank in LOW_RANK:
        inputs = [
            x for _ in "qp" for x in (normal(n, d), normal(n, d, rank), jnp.exp(normal(n, d)))
        ]
        name = f"low rank ({n}, {d}, {rank})"
        parts = {"products": _Part(low_rank_part, low_rank_part_gradient)}
        yield _Case(name, low_rank, low_rank_textbook, parts, inputs)
    n, d = PAIRWISE
    factors = (jnp.tril(0.1 * normal(n, d, d), -1) + jnp.eye(d) for _ in "qp")
    inputs = [x for factor in factors for x in (normal(n, d), factor)]
    name, parts = f"all pairs ({n}, {d})", {"products": _Part(all_pairs_part)}
    yield _Case(name, all_pairs, all_pairs_textbook, parts, inputs, gradient=False)
    n, d = PAIRWISE_DIAGONAL
    name, parts = f"all pairs, diagonal ({n}, {d})", {"product": _Part(all_pairs_diagonal_part)}
    own, textbook = all_pairs_diagonal, all_pairs_diagonal_textbook
    inputs = [normal(n, d) for _ in range(4)]
    yield _Case(name, own, textbook, parts, inputs, gradient=False)


def _seconds(program: Callable[..., Array], inputs: list[Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*inputs))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    rounds = args.rounds
    for case in _cases():
        if args.only not in case.name:
            continue
        print(case.name)
        values = {name: part.value for name, part in case.parts.items()}
        _compare("value", rounds, case.inputs, case.own, case.textbook, values)
        if not case.gradient:
            continue
        every = tuple(range(len(case.inputs)))
        own, textbook = (
            jax.value_and_grad(lambda *x, f=f: f(*x).sum(), every)
            for f in (case.own, case.textbook)
        )
        gradients = {name: part.gradient for name, part in case.parts.items() if part.gradient}
        _compare("with gradient", rounds, case.inputs, own, textbook, gradients)


def _compare(
    what: str,
    rounds: int,
    inputs: list[Array],
    own: Callable[..., Any],
    textbook: Callable[..., Any],
    parts: dict[str, Callable[..., Any]],
) -> None:
    """Prints medians of interleaved rounds, and their ratios to the first program."""
    named = {"kljax": own, "textbook": textbook} | parts
    programs = {name: jax.jit(f) for name, f in named.items()}
    for program in programs.values():
        _seconds(program, inputs)
    taken = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            taken[name].append(_seconds(program, inputs))
    base = statistics.median(taken["kljax"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"  {what:14} {name:13}{1e3 * median:8.2f} ms {median / base:6.2f}", flush=True)


if __name__ == "__main__":
    main()
