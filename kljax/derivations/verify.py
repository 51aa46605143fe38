"""Verification: every line against the one before and against the definition.

by JAX        value, gradient and Hessian by every unconstrained number, at generic and at
              named hard points
pointwise     algebra under an expectation must hold with the expectation replaced by the
              value at any single point
sampled       the line with its expectations replaced by means of independent draws
same bits     a line that agrees with the one before in every bit, everywhere, is the same
              computation and proves nothing
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kljax.derivations import naming, parameters, smallmatrix
from kljax.derivations.derivation import Derivation, Step
from kljax.derivations.expectation import ExpectationOp, Numeric, Reading, Route
from kljax.derivations.expression import Expr, Symbol
from kljax.derivations.series import Series
from kljax.derivations.shipping import CHUNK, in_chunks

TOLERANCE = {"value": 1e-12, "gradient": 1e-11, "Hessian": 1e-10}
# A family-wise error below 1e-6 over a thousand comparisons of 64 batch means (Student's t).
Z_LIMIT = 7.0
BATCHES, DRAWS = 64, 2000


class Orders(NamedTuple):
    """A line at all points: value (points, ...), gradient and Hessian of a fixed mixture.

    A line that is a vector or a matrix is mixed with fixed weights before differentiation.
    """

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


class Failure(NamedTuple):
    """A check that a line did not pass.

    Attributes:
        step: the line's number.
        check: `value`, `gradient`, `Hessian`, `pointwise`, `sampled`, `rule` or `bound`.
        against: number of the line that it was compared with.
        parameter: the parameter whose derivative differs most, or an empty string.
        point: name of the point.
        got: the line's number there.
        want: the other line's.
        error: relative error.
    """

    step: int
    check: str
    against: int
    parameter: str
    point: str
    got: float
    want: float
    error: float


class LineReport(NamedTuple):
    """What was measured of one line; an entry is None where a check does not apply."""

    step: int
    value: float | None
    gradient: float | None
    hessian: float | None
    pointwise: float | None
    z: float | None
    same_bits: float | None
    example: np.ndarray


class Report(NamedTuple):
    """What was measured of a derivation."""

    derivation: Derivation
    lines: tuple[LineReport, ...]
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    def worst(self, check: str) -> float:
        """The largest error of a check over all lines."""
        found = [getattr(line, check) for line in self.lines]
        return max((x for x in found if x is not None), default=0.0)


# ---- one line -------------------------------------------------------------------------------


def mixing(shape: tuple[int, ...]) -> np.ndarray:
    """Fixed generic weights that turn an array into a number."""
    size = int(np.prod(shape))
    return np.cos(1 + 1.7 * np.arange(size)).reshape(shape) if shape else np.ones(())


def constrained(derivation: Derivation, theta: Any) -> SimpleNamespace:
    """The parameters behind unconstrained numbers."""
    where = parameters.slices(derivation.parameters)
    return SimpleNamespace(
        **{key: p.constrain(theta[where[key]]) for key, p in derivation.parameters.items()}
    )


def by_jax(trees: Trees, step: Step, thetas: np.ndarray) -> Orders:
    """Value, gradient and Hessian of a line by JAX's autodiff."""
    if step.shipped:
        return _by_chain_rule(trees, step, thetas)
    derivation = trees.derivation

    def mixed(theta: Any) -> Any:
        t = constrained(derivation, theta)
        out = jnp.asarray(step.function(Numeric(derivation.law(t), step.route), t))
        return jnp.sum(out * mixing(out.shape)), out

    def all_orders(theta: Any) -> Any:
        def first(theta: Any) -> Any:
            slope, out = jax.grad(mixed, has_aux=True)(theta)
            return slope, (slope, out)

        hessian, (slope, out) = jax.jacfwd(first, has_aux=True)(theta)
        return out, slope, hessian

    shape = jnp.zeros((CHUNK, thetas.shape[1]))
    compiled = smallmatrix.quickly(lambda x: lax.map(all_orders, x), shape)
    got = in_chunks(compiled, thetas)
    return Orders(*(x[: len(thetas)] for x in got))


def _by_chain_rule(trees: Trees, step: Step, thetas: np.ndarray) -> Orders:
    """The same for a function of the library: JAX's derivatives by its own arguments, then
    those of the arguments, so that the program is compiled once for checks and mutants.
    """
    points, n = thetas.shape
    rows, columns = np.triu_indices(n)
    eye = np.eye(n)
    theta = np.repeat(thetas, len(rows), axis=0)
    changes = [np.tile(eye[rows], (points, 1)), np.tile(eye[columns], (points, 1))]
    series = Reading(trees.series(theta, changes), step.route)(trees.lines[step.number])
    value, first, _, second = mixed(series, 2).reshape(4, points, len(rows))
    hessian = np.zeros((points, n, n))
    hessian[:, rows, columns] = hessian[:, columns, rows] = second
    return Orders(value[:, 0], first[:, rows == columns], hessian)


class Trees:
    """A derivation's lines as trees, and how to evaluate them among series.

    Attributes:
        derivation: which.
        symbols: of its parameters, by the names that the steps use.
        lines: the lines, without names for their parts.
        names: for every line, the named parts.
    """

    def __init__(self, derivation: Derivation):
        self.derivation = derivation
        self.symbols = derivation.symbols()
        lines = [naming.bare(derivation.tree(s, self.symbols)) for s in derivation.steps]
        self.lines = [line for line, _ in lines]
        self.names = [names for _, names in lines]

    def series(self, theta: np.ndarray, changes: list[np.ndarray]) -> dict[Symbol, Series]:
        """Parameters at theta (batch, n), moved along each change (batch, n)."""
        parts = np.zeros((1 << len(changes), theta.shape[1], len(theta)))
        parts[0] = theta.T
        for n, change in enumerate(changes):
            parts[1 << n] = change.T
        t = constrained(self.derivation, Series(parts, 0))
        return {s: getattr(t, key) for key, s in self.symbols.items()}


def mixed(x: Any, count: int) -> np.ndarray:
    """Coefficients (2^count, batch) of a number made of a line of any shape."""
    if not isinstance(x, Series):
        parts = np.zeros((1 << count, 1))
        parts[0] = x
        return parts
    axes = "ij"[: x.rank]
    return x.map(lambda a: np.einsum(f"{axes},{axes}...->...", mixing(x.shape), a)).parts


def has_expectation(x: Expr) -> bool:
    return isinstance(x.op, ExpectationOp) or any(map(has_expectation, x.args))


def any_point(shape: tuple[int, ...], batch: int, count: int = 2, seed: int = 5) -> np.ndarray:
    """Coefficients (2^count, *shape, batch) of a moving point that no law singles out."""
    rng = np.random.default_rng([seed, *shape])
    parts = np.zeros((1 << count, *shape, batch))
    parts[0] = rng.normal(0.7, 1.5, (*shape, batch)) if shape else rng.uniform(0.2, 3, batch)
    for n in range(count):
        parts[1 << n] = rng.normal(size=(*shape, batch))
    return parts


def _draws(base: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    size = (*shape, DRAWS, BATCHES)
    match base:
        case "normal":
            return rng.normal(size=size)
        case "exponential":
            return rng.exponential(size=size)
        case _:
            return rng.uniform(size=size)


def z_score(trees: Trees, step: Step, theta: np.ndarray, exact: float) -> float:
    """How many standard errors the line is off, with means of draws for expectations."""
    rng = np.random.default_rng([11, step.number, *trees.derivation.name.encode()])
    batch = np.repeat(theta[None], BATCHES, 0)
    reading = Reading(
        trees.series(batch, []), Route("samples"), draws=lambda b, s: _draws(b, s, rng)
    )
    means = mixed(reading(trees.lines[step.number]), 0)[0]
    if means.size == 1 or np.std(means) < 1e-13 * (1 + abs(exact)):
        return 0.0
    return float((means.mean() - exact) / (means.std(ddof=1) / np.sqrt(BATCHES)))


# ---- comparison -----------------------------------------------------------------------------


def _relative(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Errors of every entry at every point, relative to the largest entry or to 1 nat."""
    got, want = (x.reshape(len(x), -1) for x in (got, want))
    scale = np.maximum(1, np.max(np.abs(want), axis=1, keepdims=True, initial=0))
    error = np.abs(got - want) / scale
    return np.where(np.isfinite(error), error, np.inf)


class _Comparison:
    """Collects errors and failures of one derivation."""

    def __init__(self, derivation: Derivation, names: tuple[str, ...]):
        self.derivation = derivation
        self.names = names
        self.failures: list[Failure] = []
        owners: list[str] = []
        for parameter in derivation.parameters.values():
            owners += [parameter.symbol] * parameter.size
        self.owners = owners

    def orders(self, step: Step, got: Orders, against: int, want: Orders) -> list[float]:
        """Errors of value, gradient and Hessian, at the points that the line allows."""
        kept = np.array([name not in step.skip for name in self.names])
        out = []
        for check, a, b in zip(TOLERANCE, got, want, strict=True):
            # A line that is not differentiable somewhere still has a value there.
            use = kept if check == "Hessian" else np.ones_like(kept)
            if a.shape != b.shape:
                shapes = f"{a.shape[1:]} and {b.shape[1:]}"
                raise ValueError(
                    f"lines {against} and {step.number} of {self.derivation.name!r} have the "
                    f"shapes {shapes}; a step keeps the shape."
                )
            errors = _relative(a, b) * use[:, None]
            out.append(float(errors.max(initial=0)))
            if out[-1] > TOLERANCE[check]:
                point, entry = np.unravel_index(np.argmax(errors), errors.shape)
                owner = ""
                if check == "gradient":
                    owner = self.owners[entry]
                if check == "Hessian":
                    n = len(self.owners)
                    owner = f"{self.owners[entry // n]}, {self.owners[entry % n]}"
                flat = (float(x.reshape(len(x), -1)[point, entry]) for x in (a, b))
                self.add(step, check, against, owner, self.names[point], *flat, out[-1])
        return out

    def add(self, step: Step, check: str, against: int, *rest: Any) -> None:
        self.failures.append(Failure(step.number, check, against, *rest))


def pointwise_error(trees: Trees, step: Step, theta: np.ndarray) -> np.ndarray:
    """Errors (points,) of an algebra step with every expectation a value at one point."""
    rng = np.random.default_rng([3, step.number])
    changes = [rng.normal(size=theta.shape) for _ in range(2)]
    got, want = (
        mixed(
            Reading(
                trees.series(theta, changes),
                Route("at"),
                at=lambda shape: any_point(shape, len(theta)),
            )(trees.lines[number]),
            2,
        )
        for number in (step.number, step.number - 1)
    )
    scale = np.maximum(1, np.abs(want))
    return np.max(np.abs(got - want) / scale, axis=0)


RULE_TOLERANCE = 1e-9


def verify(derivation: Derivation, *, generic: int | None = None) -> Report:
    """Checks a derivation.

    Args:
        derivation: what to check.
        generic: how many generic points, instead of the derivation's own number.

    Returns:
        What was measured; `report.ok` says whether every check passed.

    Raises:
        ValueError: if the derivation has no steps, or a step changes the shape.
    """
    if not derivation.steps:
        raise ValueError(
            f"the derivation {derivation.name!r} has no steps; begin with @{derivation.name}"
            ".start(...)."
        )
    names, thetas = derivation.points(generic)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return _verify(derivation, names, thetas)


def _verify(derivation: Derivation, names: tuple[str, ...], thetas: np.ndarray) -> Report:
    trees = Trees(derivation)
    comparison = _Comparison(derivation, names)
    lines: list[LineReport] = []
    all_orders: list[Orders] = []
    first = 0
    for step, got in zip(derivation.steps, _all_by_jax(trees, thetas), strict=True):
        _require_finite(derivation, step, names, got)
        all_orders.append(got)
        if step.rule is None:
            first = step.number
            lines.append(_definition(trees, step, got, thetas, comparison))
            continue
        error = step.rule.error()
        if not error <= RULE_TOLERANCE:
            comparison.add(step, "rule", step.number, "", step.rule.name, error, 0.0, error)
        if step.relation == "≥":
            _bound_at_points(trees, step, thetas, comparison)
            lines.append(_bound(step, got, all_orders[-2], comparison))
            continue
        before = comparison.orders(step, got, step.number - 1, all_orders[-2])
        start = before
        if first != step.number - 1 and not _bound_between(derivation, first, step):
            start = comparison.orders(step, got, first, all_orders[first])
        value, slope, curve = map(max, zip(before, start, strict=True))
        pointwise = None
        pair = trees.lines[step.number - 1 : step.number + 1]
        if step.at_points and any(map(has_expectation, pair)):
            errors = pointwise_error(trees, step, thetas)
            pointwise = float(errors.max())
            if not pointwise <= TOLERANCE["Hessian"]:
                worst = names[int(errors.argmax())]
                comparison.add(
                    step, "pointwise", step.number - 1, "", worst, np.nan, np.nan, pointwise
                )
        z = _sampled(trees, step, got, thetas, comparison)
        same = np.mean(
            np.all((got.value == all_orders[-2].value).reshape(len(thetas), -1), axis=1)
        )
        lines.append(
            LineReport(
                step.number, value, slope, curve, pointwise, z, float(same), got.value[0]
            )
        )
    return Report(derivation, tuple(lines), tuple(comparison.failures))


# JAX's compiler leaves Python to other threads; tracing does not.
THREADS = 2


def _all_by_jax(trees: Trees, thetas: np.ndarray) -> Iterator[Orders]:
    """Every line by JAX, the next ones compiling while one is looked at."""

    def one(step: Step) -> Orders:
        # Both settings are of a thread.
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            return by_jax(trees, step, thetas)

    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(one, trees.derivation.steps)
    finally:
        pool.shutdown(cancel_futures=True)


def _bound_between(derivation: Derivation, first: int, step: Step) -> bool:
    return any(s.relation != "=" for s in derivation.steps[first : step.number + 1])


def _require_finite(
    derivation: Derivation, step: Step, names: tuple[str, ...], got: Orders
) -> None:
    finite = np.isfinite(got.value).reshape(len(names), -1).all(1)
    if not finite.all():
        raise ValueError(
            f"line {step.number} of {derivation.name!r} is not finite at the point "
            f"{names[int(np.argmin(finite))]!r}; keep the parameters inside the formula's "
            "domain (positive, positive definite)."
        )


def _exact(got: Orders, point: int) -> float:
    value = got.value[point]
    return float(np.sum(value * mixing(value.shape)))


def _sampled(
    trees: Trees, step: Step, got: Orders, thetas: np.ndarray, comparison: _Comparison
) -> float | None:
    if not step.sampled or not has_expectation(trees.lines[step.number]):
        return None
    scores = [z_score(trees, step, thetas[i], _exact(got, i)) for i in range(2)]
    worst = int(np.argmax(np.abs(scores)))
    z = float(scores[worst])
    if not abs(z) <= Z_LIMIT:
        name = comparison.names[worst]
        comparison.add(
            step, "sampled", step.number, "", name, np.nan, _exact(got, worst), abs(z)
        )
    return abs(z)


def _definition(
    trees: Trees, step: Step, got: Orders, thetas: np.ndarray, comparison: _Comparison
) -> LineReport:
    z = _sampled(trees, step, got, thetas, comparison)
    return LineReport(step.number, None, None, None, None, z, None, got.value[0])


def _bound_at_points(
    trees: Trees, step: Step, thetas: np.ndarray, comparison: _Comparison
) -> None:
    """A bound on an integrand holds at every single point."""
    if step.rule is None or step.rule.kind != "pointwise bound":
        return
    for seed in range(20):
        above, below = (
            mixed(
                Reading(
                    trees.series(thetas, []),
                    Route("at"),
                    at=lambda shape, seed=seed: any_point(shape, len(thetas), 0, seed),
                )(trees.lines[number]),
                0,
            )[0]
            for number in (step.number - 1, step.number)
        )
        gap = np.maximum(below - above, 0) / np.maximum(1, np.abs(above))
        if gap.max() > TOLERANCE["value"]:
            n = int(gap.argmax())
            values = (float(below.flat[n % below.size]), float(above.flat[n % above.size]))
            point = comparison.names[n % len(comparison.names)]
            comparison.add(step, "bound", step.number - 1, "", point, *values, float(gap.max()))
            return


def _bound(step: Step, got: Orders, before: Orders, comparison: _Comparison) -> LineReport:
    gap = _relative(np.minimum(before.value - got.value, 0), np.zeros_like(before.value))
    error = float(gap.max())
    if error > TOLERANCE["value"]:
        point = int(gap.max(axis=1).argmax())
        values = (float(x.value.reshape(len(x.value), -1)[point, 0]) for x in (got, before))
        comparison.add(
            step, "bound", step.number - 1, "", comparison.names[point], *values, error
        )
    return LineReport(step.number, error, None, None, None, None, None, got.value[0])
