"""Measures what XLA itself allows for diagonal Gaussians, beside what kljax takes.

    python tests/benchmarks/diagonal_limits.py [--rounds 15]

In each round every program is timed once: kljax, the textbook line with the same sum over
coordinates, and that sum of the inputs alone, which no formula can undercut.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import kljax
from kljax.coordinates import add_up

SIZES = ((100_000, 64), (1_000, 1024), (1_000_000, 16))
_sums = jax.vmap(add_up)


def general(m: Array, a: Array, n: Array, b: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.MultivariateNormalDiag(n, log_variance=b))


def general_textbook(m: Array, a: Array, n: Array, b: Array) -> Array:
    return 0.5 * _sums(jnp.exp(a - b) + (m - n) ** 2 * jnp.exp(-b) - 1 - (a - b))


def general_inputs(m: Array, a: Array, n: Array, b: Array) -> Array:
    return _sums(m + a + n + b)


def standard(m: Array, a: Array) -> Array:
    q = kljax.MultivariateNormalDiag(m, log_variance=a)
    return kljax.kl_divergence(q, kljax.standard_normal(m.shape[-1]))


def standard_textbook(m: Array, a: Array) -> Array:
    return 0.5 * _sums(jnp.exp(a) + m * m - 1 - a)


def standard_inputs(m: Array, a: Array) -> Array:
    return _sums(m + a)


def _seconds(program, inputs: list[Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*inputs))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    for of in (
        (general, general_textbook, general_inputs),
        (standard, standard_textbook, standard_inputs),
    ):
        count = 4 if of[0] is general else 2
        for n, d in SIZES:
            inputs = [jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for _ in range(count)]
            programs = {f.__name__: jax.jit(f) for f in of}
            for f in of[:2]:
                slope = jax.value_and_grad(lambda *x, f=f: f(*x).sum(), tuple(range(count)))
                programs[f"{f.__name__}, gradient"] = jax.jit(slope)
            for program in programs.values():
                _seconds(program, inputs)
            taken = {name: [] for name in programs}
            for _ in range(rounds):
                for name, program in programs.items():
                    taken[name].append(_seconds(program, inputs))
            own = statistics.median(taken[of[0].__name__])
            print(f"({n}, {d})")
            for name, times in taken.items():
                median = statistics.median(times)
                print(f"  {name:30} {1e3 * median:8.2f} ms {median / own:6.2f}", flush=True)


if __name__ == "__main__":
    main()
