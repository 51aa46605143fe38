"""Compares kljax, its peers and the textbook line on the same float32 inputs.

Run as `python tests/benchmarks/compare_accuracy.py [--markdown] [--cases N]`; a peer
that is not installed is skipped. JAX libraries run under jit, torch eagerly; "kljax
high" is `precision="high"`. The truth has 120 digits and takes the inputs exactly.

- Value: the median of the relative errors, the largest error in ulp of the true value,
  and how many results are negative, zero, nan or inf; the truth is positive and finite.
- Gradient: for every parameter of q and p, the Frobenius norm of the error over the sum
  of the norms of the dispersion and the location part of the true gradient; the worst
  parameter of a case counts, then the median over the cases. Of a gradient by a factor
  the lower triangle counts, of one by a covariance matrix the symmetric part.
- Separation 1e-k: q differs from p by about that many standard deviations of p, in
  mean, in spread or in both (matrices: always in both). Far: q and p are unrelated.
  Rounding covariance matrices of condition c to float32 adds up to about 1e-7 c to it.

What is not finite counts as infinitely wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import itertools
import platform
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax.scipy.linalg import solve_triangular

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kljax
import truth
from accuracy import Case, diagonal_cases, distribution, matrix_cases, ulp
from truth import Spread, Truth

SEED = 20
SEPARATIONS = ("1e-1", "1e-3", "1e-5", "1e-7", "far")
MATRIX_KINDS = ("scale_tril", "covariance_matrix")
Kl = Callable[..., Any]


class Job(NamedTuple):
    """One kind of pair: what q and p are given by, event size and condition."""

    name: str
    kinds: tuple[str, str]
    size: int
    condition: float = 1.0

    @property
    def is_matrix(self) -> bool:
        return self.kinds[0] in MATRIX_KINDS

    @property
    def has_prior(self) -> bool:
        """Whether p is the constant N(0, 1), which has no parameters."""
        return self.kinds[0] == "log_variance"


JOBS = (
    Job("Normal by scale", ("scale", "scale"), 1),
    Job("VAE: N(mu, exp(l)) from N(0, 1)", ("log_variance", "scale"), 1),
    Job("diagonal by scale, d = 8", ("scale", "scale"), 8),
    Job("full by scale_tril, d = 8, cond 1e2", ("scale_tril",) * 2, 8, 1e2),
    Job("full by covariance, d = 8, cond 1e4", ("covariance_matrix",) * 2, 8, 1e4),
)


class Row(NamedTuple):
    """What one library does with the cases of one job at one separation."""

    job: str
    separation: str
    library: str
    value: float
    ulps: float
    negative: int
    zero: int
    nan: int
    inf: int
    gradient: float


class Library(NamedTuple):
    """A name, and what returns the values and the gradients of a stack of cases."""

    name: str
    evaluate: Callable[[Job, list[np.ndarray]], list[np.ndarray]]


# ---- cases ---------------------------------------------------------------------------


def job_cases(job: Job, separation: str, count: int) -> list[tuple[Case, Truth]]:
    """Pairs with their truth, without those that rounding to float32 made equal."""
    drawn = 4 * count
    if job.is_matrix:
        size, condition = job.size, job.condition
        cases = matrix_cases(job.kinds, separation, size, drawn, condition, SEED)
    elif job.has_prior:
        cases = prior_cases(separation, drawn)
    else:
        regime = "generic" if separation == "far" else separation
        cases = diagonal_cases(job.kinds, regime, job.size, drawn, SEED)
    pairs = ((case, truth.gaussian(*case)) for case in cases)
    return list(itertools.islice((pair for pair in pairs if pair[1].kl > 0), count))


def prior_cases(separation: str, count: int) -> Iterator[Case]:
    """What an encoder returns for one latent unit, and the standard normal prior."""
    rng = np.random.default_rng([SEED, *separation.encode()])
    for index in range(count):
        if separation == "far":
            loc, log_scale = rng.normal(size=(2, 1))
        else:
            step = float(separation) * rng.choice([-1, 1], 2) * rng.uniform(0.2, 2, 2)
            shift, stretch = ((1, 0), (0, 1), (1, 1))[index % 3]
            loc, log_scale = step[:1] * shift, step[1:] * stretch
        yield Case(
            loc.astype(np.float32),
            Spread("log_variance", (2 * log_scale).astype(np.float32)),
            np.zeros(1, np.float32),
            Spread("scale", np.ones(1, np.float32)),
        )


def stack(job: Job, cases: Sequence[Case]) -> list[np.ndarray]:
    """The parameters to differentiate by, cases first, scalars without an axis."""
    rows = [(c.q_loc, c.q.value, c.p_loc, c.p.value) for c in cases]
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    if job.size == 1:
        columns = [column[:, 0] for column in columns]
    return columns[:2] if job.has_prior else columns


# ---- libraries -----------------------------------------------------------------------


def under_jit(kl_of: Callable[[Job], Kl]) -> Callable[[Job, list], list[np.ndarray]]:
    """Evaluates with JAX: vectors as one batch, matrices one after the other.

    A batch of decompositions spreads over threads that may wait for each other forever
    where there are few processors.
    """

    def evaluate(job: Job, inputs: list[np.ndarray]) -> list[np.ndarray]:
        kl = kl_of(job)
        one = jax.value_and_grad(kl, argnums=tuple(range(len(inputs))))

        def every(*arrays: jax.Array) -> Any:
            if job.is_matrix:
                return jax.lax.map(lambda case: one(*case), arrays)
            return jax.vmap(one)(*arrays)

        value, gradients = jax.jit(every)(*(jnp.asarray(x) for x in inputs))
        return [np.asarray(x) for x in (value, *gradients)]

    return evaluate


def kljax_of(precision: Literal["default", "high"]) -> Callable[[Job], Kl]:
    """The library itself, with every parameter as it is given."""

    def kl_of(job: Job) -> Kl:
        def kl(q_loc, q, p_loc=0.0, p=1.0):
            left, right = (
                distribution(loc, Spread(kind, value), scalar=job.size == 1)
                for kind, loc, value in zip(job.kinds, (q_loc, p_loc), (q, p), strict=True)
            )
            return kljax.kl_divergence(left, right, precision=precision)

        return kl

    return kl_of


def textbook_of(job: Job) -> Kl:
    """The formula of the textbook, as one writes it."""
    if job.has_prior:
        return lambda m, l: -0.5 * (1 + l - m**2 - jnp.exp(l))
    kinds = {
        "scale": _textbook_scale,
        "scale_tril": _textbook_scale_tril,
        "covariance_matrix": _textbook_covariance,
    }
    return kinds[job.kinds[0]]


def _textbook_scale(m, s, n, t):
    return jnp.sum(jnp.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5)


def _textbook_scale_tril(m, a, n, b):
    ratio, z = (solve_triangular(b, x, lower=True) for x in (a, m - n))
    log_det = 2 * jnp.sum(jnp.log(jnp.diag(b)) - jnp.log(jnp.diag(a)))
    return 0.5 * (jnp.sum(ratio**2) + jnp.sum(z**2) - len(m) + log_det)


def _textbook_covariance(m, a, n, b):
    trace = jnp.trace(jnp.linalg.solve(b, a))
    mahalanobis = (m - n) @ jnp.linalg.solve(b, m - n)
    log_det = jnp.linalg.slogdet(b)[1] - jnp.linalg.slogdet(a)[1]
    return 0.5 * (trace + mahalanobis - len(m) + log_det)


def peer_of(package: Any, exp: Callable[[Any], Any]) -> Callable[[Job], Kl]:
    """`numpyro.distributions` and `torch.distributions`, whose names are the same.

    They know no log-variance: a scale is made of it, as their users do.
    """

    def gaussian(kind: str, scalar: bool, loc: Any, value: Any) -> Any:
        if kind in MATRIX_KINDS:
            return package.MultivariateNormal(loc, **{kind: value})
        scale = exp(value / 2) if kind == "log_variance" else value
        normal = package.Normal(loc, scale)
        return normal if scalar else package.Independent(normal, 1)

    def kl_of(job: Job) -> Kl:
        def kl(q_loc, q, p_loc=0.0, p=1.0):
            scalar = job.size == 1
            return package.kl_divergence(
                gaussian(job.kinds[0], scalar, q_loc, q),
                gaussian(job.kinds[1], scalar, p_loc, p),
            )

        return kl

    return kl_of


def numpyro_library() -> Library:
    package = importlib.import_module("numpyro.distributions")
    return Library("numpyro", under_jit(peer_of(package, jnp.exp)))


def torch_library() -> Library:
    torch = importlib.import_module("torch")
    kl_of = peer_of(importlib.import_module("torch.distributions"), torch.exp)

    def evaluate(job: Job, inputs: list[np.ndarray]) -> list[np.ndarray]:
        arrays = [torch.tensor(x, requires_grad=True) for x in inputs]
        value = kl_of(job)(*arrays)
        value.sum().backward()
        return [value.detach().numpy(), *(x.grad.numpy() for x in arrays)]

    return Library("torch", evaluate)


def libraries() -> list[Library]:
    """Everything that is installed; one line for what is not."""
    found = [
        Library("kljax", under_jit(kljax_of("default"))),
        Library("kljax high", under_jit(kljax_of("high"))),
    ]
    for name, make in (("numpyro", numpyro_library), ("torch", torch_library)):
        try:
            found.append(make())
        except ModuleNotFoundError:
            print(f"{name} is not installed: skipped.")
    return [*found, Library("textbook", under_jit(textbook_of))]


# ---- measuring -----------------------------------------------------------------------


def _norm(x: np.ndarray) -> Any:
    return mpmath.sqrt(mpmath.fsum(entry * entry for entry in np.ravel(x)))


def _quotient(error: Any, size: Any) -> float:
    """The quotient; 0 where both are, infinite where the result is not finite."""
    if not mpmath.isfinite(error):
        return np.inf
    if not size:
        return np.inf if error else 0.0
    return float(error / size)


def value_error(got: float, want: Truth) -> float:
    """|got - true| / true."""
    return _quotient(abs(mpmath.mpf(float(got)) - want.kl), want.kl)


def gradient_error(kind: str, got: Sequence[np.ndarray], want: Truth) -> float:
    """The error of the worst parameter, relative to the parts of its true gradient."""
    parts = (
        [want.grad_loc],
        [want.grad_q],
        [-want.grad_loc],
        [want.grad_p_dispersion, want.grad_p_location],
    )
    # A prior has no parameters, so there may be fewer gradients than parts.
    pairs = zip(got, parts, strict=False)
    return max(_parameter_error(_own_part(kind, x), part) for x, part in pairs)


def _own_part(kind: str, gradient: np.ndarray) -> np.ndarray:
    """The part of a gradient along which the parameter can change.

    The rest is a convention: whether 0 or something else stands in the upper triangle.
    """
    if gradient.ndim < 2:
        return np.atleast_1d(gradient)
    if kind == "scale_tril":
        return np.tril(gradient)
    exact = gradient.astype(np.float64)
    return (exact + exact.T) / 2


def _parameter_error(got: np.ndarray, parts: list[np.ndarray]) -> float:
    difference = truth.exact(got) - sum(parts[1:], start=parts[0])
    return _quotient(_norm(difference), sum(_norm(part) for part in parts))


def summarize(
    kind: str, results: Sequence[np.ndarray], wants: Sequence[Truth]
) -> dict[str, Any]:
    """The figures of a row, from the values and gradients of its cases."""
    value, *gradients = results
    relative = [value_error(v, want) for v, want in zip(value, wants, strict=True)]
    size = np.array([float(want.kl) for want in wants])
    slopes = [
        gradient_error(kind, [gradient[i] for gradient in gradients], want)
        for i, want in enumerate(wants)
    ]
    return {
        "value": float(np.median(relative)),
        "ulps": float(np.max(relative * size / ulp(size))),
        "negative": int(np.sum(value < 0)),
        "zero": int(np.sum(value == 0)),
        "nan": int(np.sum(np.isnan(value))),
        "inf": int(np.sum(np.isinf(value))),
        "gradient": float(np.median(slopes)),
    }


def compare_job(job: Job, tested: Sequence[Library], count: int) -> Iterator[Row]:
    """All rows of a job; a library sees all separations at once, to compile once."""
    progress(f"{job.name}: truth")
    pairs = [job_cases(job, separation, count) for separation in SEPARATIONS]
    inputs = stack(job, [case for group in pairs for case, _ in group])
    ends = np.cumsum([len(group) for group in pairs])[:-1]
    results = {}
    for library in tested:
        progress(f"{job.name}: {library.name}")
        arrays = library.evaluate(job, inputs)
        results[library.name] = [np.split(array, ends) for array in arrays]
    for index, separation in enumerate(SEPARATIONS):
        wants = [want for _, want in pairs[index]]
        for name, split in results.items():
            own = [groups[index] for groups in split]
            yield Row(job.name, separation, name, **summarize(job.kinds[0], own, wants))


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- printing ------------------------------------------------------------------------


def header() -> str:
    """Versions of everything that takes part, and where JAX computes."""
    versions = [f"kljax {kljax.__version__}"]
    for name in ("jax", "jaxlib", "numpyro", "torch", "numpy", "mpmath"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    versions.append(f"Python {platform.python_version()}")
    versions.append(f"JAX on {jax.default_backend()}")
    return textwrap.fill(", ".join(versions), 88)


def print_text(rows: Sequence[Row]) -> None:
    """A block for every job, a line for every separation and library."""
    for job in dict.fromkeys(row.job for row in rows):
        print(f"\n{job}")
        print(
            f"{'separation':<11}{'library':<12}{'value':>9}{'max ulp':>10}"
            f"{'negative':>10}{'zero':>6}{'nan':>5}{'inf':>5}{'gradient':>11}"
        )
        previous = ""
        for row in (row for row in rows if row.job == job):
            label = "" if row.separation == previous else row.separation
            previous = row.separation
            print(
                f"{label:<11}{row.library:<12}{row.value:>9.1e}{row.ulps:>10.2g}"
                f"{row.negative:>10}{row.zero:>6}{row.nan:>5}{row.inf:>5}"
                f"{row.gradient:>11.1e}"
            )


def print_markdown(rows: Sequence[Row]) -> None:
    """One table of values and one of gradients, a column for every library."""
    print("\nValue: median relative error / largest error in ulp, wrong results\n")
    _print_table(rows, _value_cell)
    print("\nGradient: median relative error\n")
    _print_table(rows, lambda row: f"{row.gradient:.1e}")


def _print_table(rows: Sequence[Row], cell: Callable[[Row], str]) -> None:
    names = list(dict.fromkeys(row.library for row in rows))
    print(f"| q, p | separation | {' | '.join(names)} |")
    print("|---|---|" + "---|" * len(names))
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row.job, row.separation), []).append(cell(row))
    previous = ""
    for (job, separation), line in cells.items():
        label = "" if job == previous else job
        previous = job
        print(f"| {label} | {separation} | {' | '.join(line)} |")


def _value_cell(row: Row) -> str:
    counts = ("negative", "zero", "nan", "inf")
    wrong = [f"{getattr(row, k)} {k}" for k in counts if getattr(row, k)]
    return ", ".join([f"{row.value:.1e} / {row.ulps:.2g}", *wrong])


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Prints the comparison and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--cases", type=int, default=100, help="cases a cell; a fifth for matrices"
    )
    options = parser.parse_args(arguments)
    if options.cases < 1:
        parser.error("--cases must be at least 1.")
    fewer = max(options.cases // 5, 1)
    print(header())
    tested = libraries()
    print(f"{options.cases} cases for every figure, {fewer} for full covariances")
    rows: list[Row] = []
    for job in JOBS:
        rows += compare_job(job, tested, fewer if job.is_matrix else options.cases)
    (print_markdown if options.markdown else print_text)(rows)
    return rows


if __name__ == "__main__":
    main()
