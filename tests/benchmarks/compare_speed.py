"""Compares the speed of kljax with every library that is installed, interleaved in one run.

    python tests/benchmarks/compare_speed.py --jobs full --rounds 7

Every library runs in a process of its own; in each round every library is timed once, and
the medians over the rounds are compared, so a busy machine slows all of them. A library
that does not answer in time is ended and reported as such. All processes get the same
allocator settings (freed memory is kept), and the JAX peers a larger thread pool, without
which several of them never return on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from libraries import LIBRARIES

_MODULES = {
    "textbook": "jax",
    "tfp": "tensorflow_probability",
    "torch_compile": "torch",
}
_FULL = (
    (100_000, 4),
    (100_000, 8),
    (20_000, 16),
    (5_000, 32),
    (1_000, 64),
    (100, 256),
    (4, 1024),
)
_DIAGONAL = ((100_000, 64), (1_000, 1024), (1_000_000, 16))


def _jobs(group: str) -> list[dict[str, Any]]:
    sizes = {
        "full": [("scale_tril", n, k) for n, k in _FULL],
        "covariance": [("covariance_matrix", n, k) for n, k in _FULL],
        "diagonal": [("log_variance", n, k) for n, k in _DIAGONAL],
        "standard": [("standard", n, k) for n, k in _DIAGONAL],
        "pairwise": [("pairwise_diagonal", 2000, 64), ("pairwise_full", 200, 16)],
        "low_rank": [("low_rank", 8, 2000)],
    }[group]
    return [{"kind": kind, "batch": n, "k": k, "rank": 10} for kind, n, k in sizes]


def floor_s(job: dict[str, Any], gradient: bool, machine: dict[str, float]) -> float | None:
    """The larger of the bytes that must move and the operations, at the machine's rates."""
    n, k, kind = job["batch"], job["k"], job["kind"]
    if kind in ("scale_tril", "covariance_matrix"):
        numbers, flops = 2 * (k * k + k) * n, n * k**3 / 3
    elif kind in ("log_variance", "standard"):
        numbers, flops = (4 if kind == "log_variance" else 2) * k * n, 0.0
    else:
        return None
    if gradient:
        numbers, flops = 2 * numbers, 3 * flops
    moved = 4 * (numbers + n) / machine["bytes_per_s"]
    return max(moved, flops / machine["flops_per_s"])


class Worker:
    """The process of one library."""

    def __init__(self, library: str, pool: int) -> None:
        self.library = library
        environment = dict(os.environ)
        environment |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
            "MALLOC_TOP_PAD_": str(2**28),
        }
        if library not in ("kljax", "torch", "torch_compile"):
            environment["PJRT_NPROC"] = str(pool)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("libraries.py")), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put('{"error": "the process ended"}')

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._answers.get(timeout=limit))
        except queue.Empty:
            return {"error": f"HANG: no answer within {limit:g} s"}
        except BrokenPipeError:
            return {"error": "the process ended"}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(
    job: dict[str, Any], gradient: bool, libraries: list[str], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Medians of interleaved rounds, by library; or why there is none."""
    workers = {name: Worker(name, args.pool) for name in libraries}
    results: dict[str, dict[str, Any]] = {}
    try:
        for name, worker in workers.items():
            results[name] = worker.ask({"job": job, "gradient": gradient}, args.limit)
        times: dict[str, list[float]] = {name: [] for name in libraries}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                if "error" in results[name]:
                    continue
                answer = worker.ask({"run": args.seconds}, args.limit)
                if "error" in answer:
                    results[name] = answer
                    continue
                times[name].append(statistics.median(answer["times_s"]))
                results[name]["peak_bytes"] = answer["peak_bytes"]
        for name in libraries:
            if "error" not in results[name]:
                results[name]["median_s"] = statistics.median(times[name])
    finally:
        for worker in workers.values():
            worker.end()
    return results


def _installed(library: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(library, library)) is not None


def _report(
    job: dict[str, Any], gradient: bool, results: dict[str, dict[str, Any]], floor: float | None
) -> dict[str, Any]:
    """Prints one job and returns its line of the summary."""
    finished = {n: r["median_s"] for n, r in results.items() if "median_s" in r}
    peers = {n: t for n, t in finished.items() if n != "kljax"}
    what = "forward+gradient" if gradient else "forward"
    print(f"\n{job['kind']} (batch, k) = ({job['batch']}, {job['k']}), {what}")
    if floor is not None:
        print(f"  {'floor':14}{1e3 * floor:10.2f} ms")
    for name, result in results.items():
        if "error" in result:
            print(f"  {name:14} {result['error']}")
            continue
        time = result["median_s"]
        floors = f"{time / floor:8.1f} floors" if floor else ""
        ratio = f"{time / finished['kljax']:8.2f} x kljax" if "kljax" in finished else ""
        print(
            f"  {name:14}{1e3 * time:10.2f} ms{floors}{ratio}"
            f"   first call {result['first_call_s']:5.1f} s"
            f"   peak {result['peak_bytes'] / 2**20:6.0f} MiB",
            flush=True,
        )
    line: dict[str, Any] = {"job": job, "gradient": gradient, "results": results}
    if peers and "kljax" in finished:
        best = min(peers, key=peers.__getitem__)
        line |= {"fastest": best, "ratio": peers[best] / finished["kljax"]}
    return line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = ("full", "covariance", "diagonal", "standard", "pairwise", "low_rank")
    parser.add_argument("--jobs", nargs="+", choices=groups, default=list(groups))
    parser.add_argument("--libraries", nargs="+", choices=list(LIBRARIES))
    parser.add_argument(
        "--passes", nargs="+", choices=("forward", "gradient"), default=["forward", "gradient"]
    )
    parser.add_argument("--k", nargs="+", type=int, help="only these sizes of an event")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="a round, each library")
    parser.add_argument("--limit", type=float, default=120, help="seconds before it hangs")
    parser.add_argument("--pool", type=int, default=16, help="PJRT_NPROC of the JAX peers")
    parser.add_argument("--output", type=Path, help="writes the measurements as JSON")
    args = parser.parse_args(argv)
    libraries = [n for n in args.libraries or LIBRARIES if _installed(n)]

    probe = Worker("kljax", args.pool)
    machine = probe.ask({"machine": True}, args.limit)
    probe.end()
    if "error" in machine:
        print(machine["error"], file=sys.stderr)
        return 2
    print(
        f"copy {machine['bytes_per_s'] / 1e9:.0f} GB/s, "
        f"matrix product {machine['flops_per_s'] / 1e9:.0f} GFLOP/s; {', '.join(libraries)}"
    )

    lines = []
    for group in args.jobs:
        for job in _jobs(group):
            if args.k and job["k"] not in args.k:
                continue
            for gradient in (False, True):
                if ("gradient" if gradient else "forward") not in args.passes:
                    continue
                results = measure(job, gradient, libraries, args)
                floor = floor_s(job, gradient, machine)
                lines.append(_report(job, gradient, results, floor))
                if args.output:
                    args.output.write_text(json.dumps({"machine": machine, "jobs": lines}))

    print("\nkind                 batch     k  pass      fastest peer    its time / ours")
    for line in lines:
        if "ratio" in line:
            job = line["job"]
            print(
                f"{job['kind']:18}{job['batch']:8}{job['k']:6}  "
                f"{'gradient' if line['gradient'] else 'forward ':8}  "
                f"{line['fastest']:14}{line['ratio']:8.2f}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
