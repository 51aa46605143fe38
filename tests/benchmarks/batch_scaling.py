"""Measures `evaluate` on 1, 2 and 8 devices, and `kljax evaluate` in 1 and 2 processes.

The devices are simulated. The cores of the machine are what there is to gain: a program of one
device uses them in part already. The numbers are compared bit by bit.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_DEVICES = """
import hashlib, statistics, sys, time
import jax, numpy as np
import kljax
from kljax import batch
n, d, rounds = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 8)
rng = np.random.default_rng(0)
q, p = (
    kljax.MultivariateNormalDiag(
        rng.standard_normal((n, d), np.float32),
        log_variance=rng.standard_normal((n, d), np.float32),
    )
    for _ in range(2)
)
counts = (1, 2, 8)
taken = {count: [] for count in counts}
digests = set()
for _ in range(rounds + 1):
    for count in counts:
        start = time.perf_counter()
        got = batch.evaluate(q, p, devices=jax.local_devices()[:count])
        taken[count].append(time.perf_counter() - start)
        digests.add(hashlib.sha256(got.tobytes()).hexdigest())
for count in counts:
    seconds = statistics.median(taken[count][1:])
    print(f"{count} devices: {n / seconds:,.3g} pairs/s with compiling ({seconds:.2f} s)")
print("the same numbers, bit by bit" if len(digests) == 1 else "DIFFERENT numbers")
"""


def _save(directory: Path, n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    for name in "qp":
        np.savez(
            directory / f"{name}.npz",
            loc=rng.standard_normal((n, d), np.float32),
            log_variance=rng.standard_normal((n, d), np.float32),
        )


def processes(n: int, d: int) -> bool:
    """Runs the command in one and in two processes; whether the files are identical."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _save(directory, n, d)
        for count in (1, 2):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            words = [sys.executable, "-m", "kljax", "evaluate", "q.npz", "p.npz"]
            words += ["--output", f"{count}.npy"]
            together = ["--coordinator", f"localhost:{port}", "--processes", str(count)]
            start = time.perf_counter()
            running = [
                subprocess.Popen(
                    [*words, *together, "--process-id", str(i)],
                    cwd=directory,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for i in range(count)
            ]
            said = [process.communicate()[1] for process in running]
            seconds = time.perf_counter() - start
            rate = next(line for line in said[0].splitlines() if "pairs/s" in line)
            print(f"{count} processes: {seconds:.1f} s in all; the first: {rate}")
        return (directory / "1.npy").read_bytes() == (directory / "2.npy").read_bytes()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--size", type=int, default=32, help="coordinates of an event")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    words = [str(args.pairs), str(args.size), str(args.rounds)]
    done = subprocess.run([sys.executable, "-c", _DEVICES, *words], text=True, check=True)
    same = processes(args.pairs, args.size)
    print("the same file from 1 and 2 processes" if same else "DIFFERENT files")
    return int(done.returncode or not same)


if __name__ == "__main__":
    raise SystemExit(main())
