"""Measures resident memory: the nearest of 20,000 x 20,000 distributions, and a file of 4 GB.

Each runs in a process of its own; what counts is the peak beyond that of Python and JAX alone.
The file is made in a temporary directory and deleted; it is refused where the disk is too full.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

LIMIT_MB = 1000

_NEAREST = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import kljax
from kljax.batch.meter import peak, resident
n, d, k = map(int, sys.argv[1:])
jax.devices()
runtime = resident()
rng = np.random.default_rng(0)
q, p = (
    kljax.MultivariateNormalDiag(
        jnp.asarray(rng.standard_normal((n, d), np.float32)),
        jnp.asarray(np.exp(0.5 * rng.standard_normal((n, d), np.float32))),
    )
    for _ in range(2)
)
start = time.perf_counter()
values, index = kljax.batch.top_k(q, p, k)
jax.block_until_ready((values, index))
seconds = time.perf_counter() - start
print(f"{seconds:.1f} {peak() / 1e6:.0f} {(peak() - runtime) / 1e6:.0f}")
"""


def nearest(n: int, d: int, k: int) -> float:
    """Prints time and peak of `top_k`; returns its MB beyond the runtime's own."""
    command = [sys.executable, "-c", _NEAREST, str(n), str(d), str(k)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, peak, own = map(float, out.split())
    print(
        f"top_k, {n:,} x {n:,} x {d}, k = {k}: {seconds:.0f} s with compiling, peak resident "
        f"{peak:.0f} MB, {own:.0f} MB beyond the runtime's own (all pairs are "
        f"{4e-6 * n * n:,.0f} MB)"
    )
    return own


def _write(path: Path, n: int, d: int) -> None:
    """A .npz of n diagonal Gaussians, written a piece at a time."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("loc", "log_variance"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                entry = {"descr": "<f4", "fortran_order": False, "shape": (n, d)}
                np.lib.format.write_array_header_1_0(member, entry)
                for start in range(0, n, 1 << 18):
                    rows = min(1 << 18, n - start)
                    member.write(rng.standard_normal((rows, d), np.float32).data)


def file(gigabytes: float, d: int) -> float:
    """Prints what `kljax evaluate` says of its peak; returns the MB beyond the runtime."""
    n = int(gigabytes * 1e9 / (8 * d))
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.5e9 * gigabytes:
        print(f"a file of {gigabytes:g} GB: the disk has {free / 1e9:.1f} GB, too few")
        return 0.0
    with tempfile.TemporaryDirectory() as directory:
        q, p, out = (Path(directory, name) for name in ("q.npz", "p.npz", "kl.npy"))
        _write(q, n, d)
        np.savez(p, loc=np.zeros(d, np.float32), log_variance=np.zeros(d, np.float32))
        command = [
            sys.executable,
            "-m",
            "kljax",
            "evaluate",
            str(q),
            str(p),
            "--output",
            str(out),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        size = q.stat().st_size / 1e9
    said = done.stdout.partition("; ")[2].strip()
    print(f"kljax evaluate, {n:,} pairs x {d}, {size:.2f} GB: {seconds:.0f} s; {said}")
    return float(said.split(", ")[1].split()[0].replace(",", ""))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20_000, help="rows and columns of top_k")
    parser.add_argument("--gigabytes", type=float, default=4.1, help="size of the file")
    args = parser.parse_args(argv)
    own = [nearest(args.pairs, 32, 10), file(args.gigabytes, 64)]
    return int(max(own) > LIMIT_MB)


if __name__ == "__main__":
    raise SystemExit(main())
