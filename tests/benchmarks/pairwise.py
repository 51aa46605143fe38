"""Measures all pairs beside the peers that are installed, interleaved in one process.

The peers broadcast, which is how they are asked for all pairs. Their LAPACK calls need a larger
thread pool than two cores give (PJRT_NPROC), so this sets one for all.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("PJRT_NPROC", "16")

import jax
import jax.numpy as jnp
import numpy as np

import kljax
from kljax import batch

Job = Callable[[], Any]


def _diagonal(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, d), np.float32),
        np.exp(0.5 * rng.standard_normal((n, d), np.float32)),
    )


def _full(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    below = np.tril(rng.standard_normal((n, d, d), np.float32), -1) * np.float32(0.3 / d**0.5)
    on = np.exp(0.3 * rng.standard_normal((n, d), np.float32))
    return rng.standard_normal((n, d), np.float32), below + on[:, :, None] * np.eye(
        d, dtype=np.float32
    )


@jax.jit
def _textbook_diagonal(q: Any, p: Any) -> jax.Array:
    (mq, sq), (mp, sp) = q, p
    ratio = (sq[:, None] / sp[None]) ** 2
    z = (mq[:, None] - mp[None]) / sp[None]
    return 0.5 * jnp.sum(ratio + z * z - 1 - jnp.log(ratio), -1)


@jax.jit
def _textbook_full(q: Any, p: Any) -> jax.Array:
    (mq, lq), (mp, lp) = q, p
    n, m, d = len(mq), len(mp), mq.shape[-1]
    both = jnp.concatenate([lq, mq[:, :, None]], -1)
    right = jnp.broadcast_to(both[:, None], (n, m, d, d + 1))
    right = right.at[..., -1].add(-mp[None])
    left = jnp.broadcast_to(lp[None], (n, m, d, d))
    x = jax.lax.linalg.triangular_solve(left, right, left_side=True, lower=True)
    log_q, log_p = (jnp.sum(jnp.log(jnp.diagonal(l, axis1=-2, axis2=-1)), -1) for l in (lq, lp))
    return 0.5 * (jnp.sum(x * x, (-2, -1)) - d) + log_p[None] - log_q[:, None]


def _numpyro(family: str) -> Callable[[Any, Any], jax.Array]:
    import numpyro.distributions as dist

    def of(x: Any, axis: int) -> Any:
        loc, spread = (jnp.expand_dims(a, axis) for a in x)
        if family == "diagonal":
            return dist.Normal(loc, spread).to_event(1)
        return dist.MultivariateNormal(loc, scale_tril=spread)

    return jax.jit(lambda q, p: dist.kl_divergence(of(q, 1), of(p, 0)))


def _tfp(family: str) -> Callable[[Any, Any], jax.Array]:
    from tensorflow_probability.substrates.jax import distributions as dist

    def of(x: Any, axis: int) -> Any:
        loc, spread = (jnp.expand_dims(a, axis) for a in x)
        if family == "diagonal":
            return dist.Independent(dist.Normal(loc, spread), 1)
        return dist.MultivariateNormalTriL(loc, spread)

    return jax.jit(lambda q, p: dist.kl_divergence(of(q, 1), of(p, 0)))


def _torch(family: str) -> Callable[[Any, Any], Any]:
    import torch
    from torch import distributions as dist

    def of(x: Any, axis: int) -> Any:
        loc, spread = (torch.from_numpy(np.array(a)).unsqueeze(axis) for a in x)
        if family == "diagonal":
            return dist.Independent(dist.Normal(loc, spread), 1)
        return dist.MultivariateNormal(loc, scale_tril=spread)

    return lambda q, p: dist.kl_divergence(of(q, 1), of(p, 0))


def _jobs(family: str, q: Any, p: Any) -> dict[str, Job]:
    cls = kljax.MultivariateNormalDiag if family == "diagonal" else kljax.MultivariateNormal
    arrays = jax.tree.map(jnp.asarray, (q, p))
    textbook = _textbook_diagonal if family == "diagonal" else _textbook_full
    records = [cls(*x) for x in arrays]
    jobs: dict[str, Job] = {
        "kljax": lambda: batch.pairwise(*records),
        "kljax, q against q": lambda: batch.pairwise(records[0], records[0]),
        "textbook jnp": lambda: textbook(*arrays),
    }
    for name, make in (("numpyro", _numpyro), ("TFP", _tfp), ("torch", _torch)):
        try:
            function = make(family)
        except ImportError:
            continue
        jobs[name] = functools.partial(function, *((q, p) if name == "torch" else arrays))
    return jobs


def _floor(n: int, m: int, width: int) -> dict[str, Job]:
    """The float32 and float64 products of this size, without anything around them."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, width)) for rows in (n, m))
    jobs = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            x, y = jnp.asarray(a.astype(dtype)), jnp.asarray(b.T.astype(dtype))
            product = jax.jit(lambda x, y: x @ y).lower(x, y).compile()
        jobs[f"product alone, {dtype.__name__}"] = functools.partial(product, x, y)
    return jobs


def measure(jobs: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds of every job, one of each in every round."""
    for job in jobs.values():
        jax.block_until_ready(job())
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            jax.block_until_ready(job())
            taken[name].append(time.perf_counter() - start)
    return taken


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    for family, n, d, make in (
        ("diagonal", 2000, 64, _diagonal),
        ("full", 200, 16, _full),
    ):
        q, p = make(n, d, 0), make(n, d, 1)
        jobs = _jobs(family, q, p)
        results = {name: np.asarray(job()) for name, job in jobs.items()}
        width = 2 * d if family == "diagonal" else d * (d + 3) // 2
        taken = measure({**jobs, **_floor(n, n, width)}, args.rounds)
        medians = {name: statistics.median(times) for name, times in taken.items()}
        print(f"\n{family}, {n} x {n} x {d}, float32, median of {args.rounds} rounds")
        for name, seconds in medians.items():
            ratio = seconds / medians["kljax"]
            line = f"  {name:24s} {1e3 * seconds:9.2f} ms  {ratio:7.2f} times kljax"
            if name in results and "against q" not in name:
                gap = np.max(np.abs(results[name] / results["kljax"] - 1))
                line += f"   off by {gap:.1e}"
            print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
