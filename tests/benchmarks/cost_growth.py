"""Measures how the time of value and gradient grows: python -m tests.benchmarks.cost_growth.

For each structure the exponent e of time ~ size^e is fitted over the larger half of its sizes,
where the fixed cost of a call no longer shows; sizes end where what a program holds at a time
outgrows the caches and the allocator (32 MiB), which costs a power of its own.

A structure is a row of `PROGRAMS`: the sizes tried, and a function from a size to a compiled
program without arguments.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kljax
from tests.benchmarks import chain_programs

REPEATS = 15


class Growth(NamedTuple):
    """A structure whose cost is measured.

    Attributes:
        size: what the size counts, such as "d".
        sizes: the sizes tried, growing.
        program: a size to a function that runs value and gradient once.
    """

    size: str
    sizes: Sequence[int]
    program: Callable[[int], Callable[[], Any]]


_value_and_grad = jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))


def compiled(q: Any, p: Any) -> Callable[[], Any]:
    """Value and gradient of a pair, compiled, as a function without arguments."""
    program = jax.jit(_value_and_grad).lower(q, p).compile()
    return lambda: jax.block_until_ready(program(q, p))


def _array(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def low_rank(d: int, rank: int = 10) -> Callable[[], Any]:
    """Two low-rank distributions of d coordinates."""
    rng = np.random.default_rng(d)

    def draw() -> kljax.LowRankMultivariateNormal:
        factor = 0.3 * rng.normal(size=(d, rank))
        spread = rng.uniform(0.5, 1.5, d)
        return kljax.LowRankMultivariateNormal(
            *map(_array, (rng.normal(size=d), factor, spread))
        )

    return compiled(draw(), draw())


def block_diagonal(n: int, b: int = 8) -> Callable[[], Any]:
    """Two block-diagonal distributions of n blocks."""
    rng = np.random.default_rng(n)

    def draw() -> kljax.BlockDiagonalNormal:
        blocks = np.tril(rng.normal(0, 0.3, (n, b, b)), -1) + np.eye(b)
        return kljax.BlockDiagonalNormal(_array(rng.normal(size=n * b)), _array(blocks))

    return compiled(draw(), draw())


PROGRAMS = {
    "low rank, r = 10": Growth("d", [2**i for i in (8, 13, 14, 15, 16)], low_rank),
    "block-diagonal, b = 8": Growth("n", [2**i for i in (7, 10, 11, 12, 13)], block_diagonal),
} | {name: Growth(*row) for name, row in chain_programs.PROGRAMS.items()}


def measure(growth: Growth) -> list[float]:
    """Least seconds of a call, for every size: what a loaded machine adds is not the cost.

    The sizes take turns, so that a slow moment meets all of them.
    """
    programs = [growth.program(size) for size in growth.sizes]
    taken = [[_seconds(program) for program in programs] for _ in range(REPEATS + 1)]
    return np.min(taken[1:], axis=0).tolist()


def _seconds(program: Callable[[], Any]) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time by log size, over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def _plot(measured: dict[str, list[float]], path: str) -> None:
    # Here, since the table alone needs no plotting library.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
    for name, seconds in measured.items():
        growth = PROGRAMS[name]
        label = f"{name}: {growth.size}^{exponent(growth.sizes, seconds):.2f}"
        axes.loglog(growth.sizes, np.array(seconds) * 1e3, "o-", label=label)
    axes.set(xlabel="size", ylabel="value and gradient, ms")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)


def main() -> None:
    """Prints the table, and draws it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="also draw it, with matplotlib")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose name has it")
    arguments = parser.parse_args()
    measured = {}
    print(f"{'structure':24s} {'size':>16s} {'ms':>20s}  exponent")
    for name, growth in PROGRAMS.items():
        if arguments.only not in name:
            continue
        seconds = measured[name] = measure(growth)
        sizes = f"{growth.size} = {growth.sizes[0]} ... {growth.sizes[-1]}"
        range_of_time = f"{1e3 * seconds[0]:.2f} ... {1e3 * seconds[-1]:.1f}"
        print(
            f"{name:24s} {sizes:>16s} {range_of_time:>18s}  "
            f"{exponent(growth.sizes, seconds):.2f}",
            flush=True,
        )
    if arguments.plot:
        _plot(measured, arguments.plot)


if __name__ == "__main__":
    main()
