"""Measures the import and an eager call, and that nothing hangs on this machine."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

SIZES = (
    (100_000, 4),
    (100_000, 8),
    (20_000, 16),
    (5_000, 32),
    (1_000, 64),
    (100, 256),
    (4, 1024),
)
KINDS = ("scale_tril", "covariance_matrix", "precision_matrix")

_IMPORT = """
import time, jax
start = time.perf_counter()
import kljax
print(time.perf_counter() - start)
"""

_REPEAT = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, kljax
n, k, kind, times = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rng = np.random.default_rng(0)
below = np.tril(rng.standard_normal((n, k, k), np.float32), -1) * np.float32(0.3 / k**0.5)
factor = below + np.float32(1.5) * np.eye(k, dtype=np.float32)
def distribution(loc, factor):
    value = factor if kind == "scale_tril" else factor @ factor.swapaxes(1, 2)
    return kljax.MultivariateNormal(jnp.asarray(loc), **{kind: jnp.asarray(value)})
q = distribution(rng.standard_normal((n, k), np.float32), np.float32(1.1) * factor)
p = distribution(np.zeros((n, k), np.float32), factor)
both = jax.jit(jax.value_and_grad(lambda q, p: kljax.kl_divergence(q, p).sum(), argnums=(0, 1)))
jax.block_until_ready(both(q, p))
taken = []
for _ in range(times):
    start = time.perf_counter()
    jax.block_until_ready(both(q, p))
    taken.append(time.perf_counter() - start)
print(float(np.median(taken)))
"""


def _import_cost(times: int) -> float:
    """Median seconds that `import kljax` takes after `import jax`."""
    costs = []
    for _ in range(times):
        out = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True)
        costs.append(float(out.stdout))
    return statistics.median(costs)


def _eager_call(times: int) -> float:
    """Median seconds of an eager divergence whose program is compiled."""
    import jax.numpy as jnp

    import kljax

    q, p = (kljax.Normal(jnp.float32(x), jnp.float32(1 + x)) for x in (0, 1))
    kljax.kl_divergence(q, p)
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        kljax.kl_divergence(q, p)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _repeat(size: tuple[int, int], kind: str, times: int, limit: float) -> str:
    """Runs value and gradient many times in a process of its own, with a time limit."""
    batch, k = size
    command = [sys.executable, "-c", _REPEAT, str(batch), str(k), kind, str(times)]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"did not return within {limit:g} s"
    if out.returncode:
        return f"failed: {out.stderr.strip().splitlines()[-1]}"
    return f"returned {times} times, median {1e3 * float(out.stdout):.0f} ms"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="repetitions of a program")
    parser.add_argument("--limit", type=float, default=600, help="seconds for a program")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args(argv)
    print(f"import kljax after jax: {1e3 * _import_cost(5):.0f} ms (goal: below 100)")
    print(f"eager kl_divergence: {1e6 * _eager_call(2000):.1f} us (goal: below 30)")
    failed = 0
    for size in SIZES:
        for kind in args.kinds:
            result = _repeat(size, kind, args.times, args.limit)
            failed += not result.startswith("returned")
            print(f"value and gradient, (batch, k) = {size}, {kind}: {result}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
