"""One library's programs for the jobs of the comparison, in a process of its own.

    python libraries.py LIBRARY

reads one JSON request a line from its input, `{"job": {...}}` or `{"run": seconds}`, and
answers each with one JSON line. A process a library, since thread pools and allocators of
two libraries in one process disturb each other, and since a program that hangs can then be
ended without the others.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Program = Callable[[], Any]


# ---- the data, the same for every library ---------------------------------------------------


def data(job: dict[str, Any]) -> Arrays:
    """Parameters of a batch of generic pairs, by the names that the programs use."""
    rng = np.random.default_rng(0)
    n, k, kind = job["batch"], job["k"], job["kind"]
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731

    def one(rows: int) -> Arrays:
        x = {"loc": normal(rows, k)}
        if kind in ("scale_tril", "covariance_matrix", "pairwise_full"):
            below = np.tril(normal(rows, k, k), -1) * np.float32(0.3 / k**0.5)
            on = np.exp(np.float32(0.3) * normal(rows, k))
            x["scale_tril"] = below + on[:, :, None] * np.eye(k, dtype=np.float32)
        if kind == "covariance_matrix":
            factor = x.pop("scale_tril")
            x["covariance_matrix"] = factor @ factor.swapaxes(1, 2)
        if kind in ("log_variance", "standard", "pairwise_diagonal"):
            x["log_variance"] = np.float32(0.5) * normal(rows, k)
        if kind == "low_rank":
            x["cov_factor"] = normal(rows, k, job["rank"])
            x["cov_diag"] = np.exp(np.float32(0.3) * normal(rows, k))
        return x

    q, p = one(n), one(n)
    q = {f"{name}_q": x for name, x in q.items()}
    return q if kind == "standard" else q | {f"{name}_p": x for name, x in p.items()}


# ---- programs in JAX ------------------------------------------------------------------------


def _jax_program(formula: Callable[[Any], Any], arrays: Arrays, gradient: bool) -> Program:
    import jax
    import jax.numpy as jnp

    if gradient:
        program = jax.jit(jax.value_and_grad(lambda x: jnp.sum(formula(x))))
    else:
        program = jax.jit(formula)
    on_device = {name: jnp.asarray(x) for name, x in arrays.items()}
    return lambda: jax.block_until_ready(program(on_device))


def _side(x: Any, side: str) -> dict[str, Any]:
    return {name[:-2]: value for name, value in x.items() if name.endswith(side)}


def kljax(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    import kljax as library

    kind, k = job["kind"], job["k"]
    family = {
        "log_variance": library.MultivariateNormalDiag,
        "standard": library.MultivariateNormalDiag,
        "pairwise_diagonal": library.MultivariateNormalDiag,
        "low_rank": getattr(library, "LowRankMultivariateNormal", None),
    }.get(kind, library.MultivariateNormal)

    def formula(x: Any) -> Any:
        q = family(**_side(x, "_q"))
        p = library.standard_normal(k) if kind == "standard" else family(**_side(x, "_p"))
        pair = library.batch.pairwise if kind.startswith("pairwise") else library.kl_divergence
        return pair(q, p)

    return _jax_program(formula, arrays, gradient)


def textbook(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    """The formula of the page in jax.numpy."""
    import jax.numpy as jnp
    from jax.scipy.linalg import solve_triangular

    def diagonal(q: Any, p: Any) -> Any:
        v, w = q["log_variance"], p["log_variance"]
        square = (q["loc"] - p["loc"]) ** 2
        return 0.5 * jnp.sum(w - v - 1 + (jnp.exp(v) + square) / jnp.exp(w), -1)

    def full(q: Any, p: Any) -> Any:
        lq, lp = q["scale_tril"], p["scale_tril"]
        m = solve_triangular(lp, lq, lower=True)
        y = solve_triangular(lp, (q["loc"] - p["loc"])[..., None], lower=True)
        on = jnp.log(jnp.diagonal(lp, axis1=-2, axis2=-1)) - jnp.log(
            jnp.diagonal(lq, axis1=-2, axis2=-1)
        )
        return 0.5 * (jnp.sum(m**2, (-2, -1)) + jnp.sum(y**2, (-2, -1)) - lp.shape[-1]) + (
            jnp.sum(on, -1)
        )

    def formula(x: Any) -> Any:
        q, p = _side(x, "_q"), _side(x, "_p")
        match job["kind"]:
            case "standard":
                v = q["log_variance"]
                return -0.5 * jnp.sum(1 + v - q["loc"] ** 2 - jnp.exp(v), -1)
            case "log_variance":
                return diagonal(q, p)
            case "scale_tril":
                return full(q, p)
            case "covariance_matrix":
                factors = (
                    x | {"scale_tril": jnp.linalg.cholesky(x["covariance_matrix"])}
                    for x in (q, p)
                )
                return full(*factors)
            case "pairwise_diagonal":
                return diagonal(
                    {name: a[:, None] for name, a in q.items()},
                    {name: a[None] for name, a in p.items()},
                )
            case "pairwise_full":
                n = q["loc"].shape[0]
                left = {name: jnp.repeat(a, n, 0) for name, a in q.items()}
                right = {name: jnp.tile(a, (n,) + (1,) * (a.ndim - 1)) for name, a in p.items()}
                return full(left, right).reshape(n, n)
            case "low_rank":  # the dense formula, as most people write it
                dense = lambda y: {  # noqa: E731
                    "loc": y["loc"],
                    "scale_tril": jnp.linalg.cholesky(
                        y["cov_factor"] @ y["cov_factor"].swapaxes(-1, -2)
                        + y["cov_diag"][..., None] * jnp.eye(job["k"], dtype=jnp.float32)
                    ),
                }
                return full(dense(q), dense(p))
        raise LookupError(job["kind"])

    return _jax_program(formula, arrays, gradient)


def _distribution(normal: Any, independent: Any, full: Any, low_rank: Any, exp: Any) -> Any:
    """A maker of one library's distribution from the named parameters."""

    def make(x: dict[str, Any]) -> Any:
        if "log_variance" in x:
            return independent(normal(x["loc"], exp(0.5 * x["log_variance"])))
        if "cov_factor" in x:
            return low_rank(x["loc"], x["cov_factor"], x["cov_diag"])
        return full(x)

    return make


def _pairs(job: dict[str, Any], x: Any, make: Any, kl: Any, zeros: Any) -> Any:
    q, p = _side(x, "_q"), _side(x, "_p")
    if job["kind"] == "standard":
        p = {name: zeros(a) for name, a in q.items()}
    if job["kind"].startswith("pairwise"):
        q = {name: a[:, None] for name, a in q.items()}
        p = {name: a[None] for name, a in p.items()}
    return kl(make(q), make(p))


def numpyro(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    import jax.numpy as jnp
    import numpyro.distributions as d

    make = _distribution(
        d.Normal,
        lambda x: x.to_event(1),
        lambda x: d.MultivariateNormal(**x),
        d.LowRankMultivariateNormal,
        jnp.exp,
    )
    formula = lambda x: _pairs(job, x, make, d.kl_divergence, jnp.zeros_like)  # noqa: E731
    return _jax_program(formula, arrays, gradient)


def _tfp_like(d: Any) -> Any:
    import jax.numpy as jnp

    def full(x: dict[str, Any]) -> Any:
        if "covariance_matrix" in x:
            x = {"loc": x["loc"], "scale_tril": jnp.linalg.cholesky(x["covariance_matrix"])}
        return d.MultivariateNormalTriL(x["loc"], x["scale_tril"])

    return _distribution(d.Normal, lambda x: d.Independent(x, 1), full, None, jnp.exp)


def tfp(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    import jax.numpy as jnp
    from tensorflow_probability.substrates import jax as library

    d = library.distributions
    formula = lambda x: _pairs(job, x, _tfp_like(d), d.kl_divergence, jnp.zeros_like)  # noqa: E731
    return _jax_program(formula, arrays, gradient)


def distrax(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    import distrax as d
    import jax.numpy as jnp

    def full(x: dict[str, Any]) -> Any:
        if "covariance_matrix" in x:
            return d.MultivariateNormalFullCovariance(x["loc"], x["covariance_matrix"])
        return d.MultivariateNormalTri(x["loc"], x["scale_tril"])

    make = _distribution(d.Normal, lambda x: d.Independent(x, 1), full, None, jnp.exp)
    kl = lambda q, p: q.kl_divergence(p)  # noqa: E731
    formula = lambda x: _pairs(job, x, make, kl, jnp.zeros_like)  # noqa: E731
    return _jax_program(formula, arrays, gradient)


# ---- programs in torch ----------------------------------------------------------------------


def torch(
    job: dict[str, Any], arrays: Arrays, gradient: bool, compiled: bool = False
) -> Program:
    import torch as library
    from torch import distributions as d

    device = "cuda" if library.cuda.is_available() else "cpu"
    x = {name: library.tensor(a, device=device) for name, a in arrays.items()}

    make = _distribution(
        lambda loc, scale: d.Normal(loc, scale, validate_args=False),
        lambda x: d.Independent(x, 1, validate_args=False),
        lambda x: d.MultivariateNormal(**x, validate_args=False),
        lambda *x: d.LowRankMultivariateNormal(*x, validate_args=False),
        library.exp,
    )

    def formula(x: Any) -> Any:
        return _pairs(job, x, make, d.kl_divergence, library.zeros_like)

    def simple(x: Any) -> Any:  # the line that people write; compiled, the fastest peer
        m, v = x["loc_q"], x["log_variance_q"]
        if job["kind"] == "standard":
            return -0.5 * (1 + v - m**2 - v.exp()).sum(-1)
        n, w = x["loc_p"], x["log_variance_p"]
        if job["kind"] == "pairwise_diagonal":
            m, v, n, w = m[:, None], v[:, None], n[None], w[None]
        return 0.5 * (w - v - 1 + (v.exp() + (m - n) ** 2) / w.exp()).sum(-1)

    if compiled and "log_variance_q" in x:
        formula = simple
    program = library.compile(formula) if compiled else formula

    def run() -> Any:
        if not gradient:
            with library.no_grad():
                out = program(x)
        else:
            for a in x.values():
                a.requires_grad_(True)
                a.grad = None
            out = program(x).sum()
            out.backward()
        if device == "cuda":
            library.cuda.synchronize()
        return out

    return run


def torch_compile(job: dict[str, Any], arrays: Arrays, gradient: bool) -> Program:
    return torch(job, arrays, gradient, compiled=True)


LIBRARIES = {
    f.__name__: f for f in (kljax, textbook, numpyro, tfp, distrax, torch, torch_compile)
}


# ---- floors of the machine ------------------------------------------------------------------


def machine() -> dict[str, float]:
    """Bytes a second of a copy and operations a second of a matrix product, in float32."""
    import jax
    import jax.numpy as jnp

    x, a = jnp.ones(2**26, jnp.float32), jnp.ones((2048, 2048), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))

    def best(f: Any, x: Any) -> float:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(f(x))
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "bytes_per_s": 2 * x.nbytes / best(copy, x),
        "flops_per_s": 2 * 2048**3 / best(product, a),
    }


def _times(program: Program, seconds: float) -> list[float]:
    """Calls until the time is over, at least one."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        program()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    build = LIBRARIES.get(sys.argv[1])
    program: Program | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "machine" in request:
                answer: dict[str, Any] = machine()
            elif "job" in request:
                assert build is not None
                program = build(request["job"], data(request["job"]), request["gradient"])
                start = time.perf_counter()
                program()
                answer = {"first_call_s": time.perf_counter() - start}
            else:
                assert program is not None
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                answer = {"times_s": _times(program, request["run"]), "peak_bytes": peak}
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            answer = {"error": f"{type(error).__name__}: {reason}"[:200]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
