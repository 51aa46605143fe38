"""Measures how many ulp the library is off, and prints the table: python tests/accuracy.py.

Inputs are exactly the float32 numbers given; the truth has 60 digits (tests/truth.py).

- Normal and diagonal: the error of the value in ulp of the value, of a gradient entry in ulp
  of the sum of the absolute dispersion and location parts.
- Full covariance: relative errors (gradients in the Frobenius norm) in units of u cond, with
  u = 2^-24 and cond the 2-norm condition of what p was given by.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from jax import Array

import kljax
import truth
from truth import Spread, Truth

ACHIEVED = Path(__file__).parent / "reference" / "achieved_ulp.json"
UNIT = 2.0**-24
SEPARATIONS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


class Case(NamedTuple):
    """One pair of Gaussians in float32."""

    q_loc: np.ndarray
    q: Spread
    p_loc: np.ndarray
    p: Spread


class Errors(NamedTuple):
    """The largest error of value and gradient, and what must never happen."""

    value: float
    gradient: float
    violations: int

    def merge(self, other: Errors) -> Errors:
        return Errors(
            max(self.value, other.value),
            max(self.gradient, other.gradient),
            self.violations + other.violations,
        )

    def meets(self, goal: tuple[float, float]) -> bool:
        value, gradient = goal
        return self.value <= value and self.gradient <= gradient and not self.violations


# ---- cases --------------------------------------------------------------------------------


def _f32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def _spread_from_log_scale(kind: str, log_scale: np.ndarray) -> np.ndarray:
    factor = {"scale": 1.0, "variance": 2.0}
    if kind == "log_variance":
        return _f32(2 * log_scale)
    return _f32(np.exp(factor[kind] * log_scale))


def diagonal_cases(
    kinds: tuple[str, str], regime: str, size: int, count: int, seed: int
) -> Iterator[Case]:
    """Pairs of one regime: a separation such as "1e-3", or a named hard region."""
    rng = np.random.default_rng([seed, *regime.encode(), *kinds[0].encode()])
    for index in range(count):
        log_p = rng.normal(0, 1, size)
        loc_p = rng.normal(0, 1, size)
        match regime:
            case "generic":
                log_q, loc_q = rng.normal(0, 1, size), rng.normal(0, 1, size)
            case "offset 1e3":
                loc_p = 1e3 + loc_p
                log_q = log_p + rng.normal(0, 1e-2, size)
                loc_q = loc_p + np.exp(log_p) * rng.normal(0, 1e-2, size)
            case "ratio 1e30":
                half = rng.uniform(5, 15, size) * np.log(10)
                sign = rng.choice([-1, 1], size)
                log_p, log_q = -sign * half, sign * half
                loc_q = loc_p + np.exp(log_p) * rng.normal(0, 1, size)
            case _:
                separation = float(regime)
                # Mean only, scale only, both. Converting a parametrization would leave
                # equal spreads equal up to rounding only: there both always differ.
                mixed = kinds[0] != kinds[1] and kinds[1] != "standard"
                choices = ((1, 1),) if mixed else ((1, 0), (0, 1), (1, 1))
                shift, stretch = choices[index % len(choices)]
                log_q = log_p + stretch * separation * _away_from_zero(rng, size)
                step = shift * separation * _away_from_zero(rng, size)
                loc_q = loc_p + np.exp(log_p) * step
        if kinds[1] == "standard":
            # The prior of a VAE: q is moved to where p = N(0, 1) is.
            loc_q, log_q = (loc_q - loc_p) / np.exp(log_p), log_q - log_p
            loc_p, p_kind, log_p = 0 * loc_p, "scale", 0 * log_p
        else:
            p_kind = kinds[1]
        yield Case(
            _f32(loc_q),
            Spread(kinds[0], _spread_from_log_scale(kinds[0], log_q)),
            _f32(loc_p),
            Spread(p_kind, _spread_from_log_scale(p_kind, log_p)),
        )


def _away_from_zero(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.choice([-1, 1], size) * rng.uniform(0.2, 2, size)


def _factor(rng: np.random.Generator, size: int, condition: float) -> np.ndarray:
    """A lower triangular factor of the given 2-norm condition."""
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    singular = np.geomspace(1, 1 / condition, size) if size > 1 else np.ones(1)
    lower = np.linalg.qr((basis * singular).T)[1].T
    return lower * np.sign(np.diag(lower))


def matrix_cases(
    kinds: tuple[str, str],
    regime: str,
    size: int,
    count: int,
    condition: float,
    seed: int,
) -> Iterator[Case]:
    """Pairs with a p of the given condition (of the factor or of the matrix given)."""
    rng = np.random.default_rng(
        [
            seed,
            *regime.encode(),
            *"".join(kinds).encode(),
            size,
            int(np.log10(condition)),
        ]
    )
    root = condition if set(kinds) == {"scale_tril"} else np.sqrt(condition)
    diagonal = any(kind in truth.DIAGONAL_KINDS for kind in kinds)
    for _ in range(count):
        factor_p = _factor(rng, size, root)
        if regime == "far":
            factor_q, step = _factor(rng, size, root), rng.normal(size=size)
        else:
            if diagonal:
                factor_p = np.diag(np.geomspace(1, 1 / root, size))
            separation = float(regime)
            noise = np.tril(rng.normal(size=(size, size)))
            factor_q = factor_p @ (np.eye(size) + separation * noise)
            step = separation * rng.normal(size=size)
        loc_p = rng.normal(size=size)
        loc_q = loc_p + factor_p @ step
        yield Case(
            _f32(loc_q),
            _matrix_spread(kinds[0], factor_q),
            _f32(loc_p),
            _matrix_spread(kinds[1], factor_p),
        )


def _matrix_spread(kind: str, factor: np.ndarray) -> Spread:
    covariance = factor @ factor.T
    match kind:
        case "scale_tril":
            return Spread(kind, _f32(factor))
        case "covariance_matrix":
            matrix = _f32(covariance)
        case "precision_matrix":
            matrix = _f32(np.linalg.inv(covariance))
        case _:
            return Spread(
                kind,
                _spread_from_log_scale(kind, 0.5 * np.log(np.diag(covariance))),
            )
    return Spread(kind, np.tril(matrix) + np.tril(matrix, -1).T)


# ---- measuring ----------------------------------------------------------------------------

_FIELD = {"scale": "scale_diag"}


def distribution(loc, spread: Spread, *, scalar: bool = False) -> Any:
    """The record of a loc and a spread."""
    if spread.kind in ("scale_tril", "covariance_matrix", "precision_matrix"):
        return kljax.MultivariateNormal(loc, **{spread.kind: spread.value})
    if scalar:
        return kljax.Normal(loc, **{spread.kind: spread.value})
    field = _FIELD.get(spread.kind, spread.kind)
    return kljax.MultivariateNormalDiag(loc, **{field: spread.value})


def ulp(x) -> np.ndarray:
    """The spacing of normal float32 numbers at |x|."""
    size = np.maximum(np.abs(np.asarray(x, np.float64)), 2.0**-126)
    return 2.0 ** (np.floor(np.log2(size)) - 23)


def _padded(loc: np.ndarray, spread: Spread, size: int) -> tuple[np.ndarray, Spread]:
    """With more coordinates, all N(0, 1): equal in q and p, they change nothing."""
    own = len(loc)
    if spread.kind in truth.DIAGONAL_KINDS:
        one = 0 if spread.kind == "log_variance" else 1
        value = np.pad(spread.value, (0, size - own), constant_values=one)
    else:
        value = np.pad(spread.value, (0, size - own))
        value[own:, own:] = np.eye(size - own)
    return np.pad(loc, (0, size - own)), Spread(spread.kind, value)


def _stack(sides: list[tuple[np.ndarray, Spread]]) -> Any:
    """All q, or all p, as one batch of the size of the largest."""
    size = max(len(loc) for loc, _ in sides)
    padded = [_padded(loc, spread, size) for loc, spread in sides]
    spread = Spread(sides[0][1].kind, np.stack([spread.value for _, spread in padded]))
    batch = distribution(np.stack([loc for loc, _ in padded]), spread)
    return jax.tree.map(jnp.asarray, batch)


def _total(precision: str, q: Any, p: Any) -> tuple[Array, Array]:
    kl = kljax.kl_divergence(q, p, precision=precision)  # pyright: ignore
    return jnp.sum(kl), kl


_value_and_grad = jax.value_and_grad(_total, argnums=(1, 2), has_aux=True)
_jitted = jax.jit(_value_and_grad, static_argnums=0)


# One compiled program serves cases of any number: it sees so many at a time.
CHUNK = 32


class Computed(NamedTuple):
    """What the library makes of a case."""

    kl: float
    gradients: list[np.ndarray]
    """By the loc and the spread of q, then of p."""


def evaluate(
    cases: list[Case], *, jit: bool = True, precision: str = "default"
) -> list[Computed]:
    """Values and gradients of all cases."""
    computed = []
    for start in range(0, len(cases), CHUNK):
        chunk = cases[start : start + CHUNK]
        filled = chunk + cases[-1:] * (CHUNK - len(chunk))
        q, p = (
            _stack([(c.q_loc, c.q) for c in filled]),
            _stack([(c.p_loc, c.p) for c in filled]),
        )
        if jit:
            (_, kl), gradients = _jitted(precision, q, p)
        else:
            with jax.disable_jit():
                (_, kl), gradients = _value_and_grad(precision, q, p)
        kl, *gradients = (np.asarray(x, np.float64) for x in jax.tree.leaves((kl, gradients)))
        for index, case in enumerate(chunk):
            own = [_without_padding(x[index], len(case.q_loc)) for x in gradients]
            computed.append(Computed(kl[index], own))
    return computed


def _without_padding(gradient: np.ndarray, size: int) -> np.ndarray:
    own = (slice(size),) * gradient.ndim
    rest = gradient.copy()
    rest[own] = 0
    np.testing.assert_array_equal(rest, 0)
    return gradient[own]


LARGEST, SMALLEST = float(np.finfo(np.float32).max), 2.0**-126


def _in_range(x) -> np.ndarray:
    size = np.abs(np.asarray(x, np.float64))
    return (size >= SMALLEST) & (size <= LARGEST)


def _float(x) -> np.ndarray:
    return np.asarray(x, object).astype(np.float64)


def _difference(got, want) -> np.ndarray:
    """|got - want| without rounding the truth first."""
    exact = truth.exact(np.nan_to_num(got, nan=1e300, posinf=1e300, neginf=-1e300))
    return np.abs(_float(exact - want))


def _entry_errors(got, parts: list[np.ndarray]) -> tuple[float, int]:
    """Largest error in ulp of the sum of absolute parts; entries not finite although true."""
    want = sum(parts[1:], start=parts[0])
    size = sum((np.abs(_float(x)) for x in parts), start=np.zeros(np.shape(got)))
    counted = size <= LARGEST
    bad = int(np.sum(~np.isfinite(got) & counted))
    errors = _difference(got, want) / ulp(size)
    counted = counted & np.isfinite(got) & (size >= SMALLEST)
    return float(np.max(errors, initial=0, where=counted)), bad


Modes = tuple[bool, ...]
BOTH: Modes = (True, False)
"""Jitted and op by op: a compiler may rewrite and contract what one of them keeps."""


def _gradient_parts(want: Truth) -> list[list[np.ndarray]]:
    """Per gradient slot the dispersion and location parts that it is the sum of."""
    return [
        [want.grad_loc],
        [want.grad_q],
        [-want.grad_loc],
        [want.grad_p_dispersion, want.grad_p_location],
    ]


def measure_diagonal(cases: list[Case], modes: Modes = BOTH) -> Errors:
    """Errors in ulp, the larger of jitted and op by op."""
    truths = [truth.gaussian(*case) for case in cases]
    worst = Errors(0.0, 0.0, 0)
    for jit in modes:
        worst = worst.merge(_measure_diagonal(evaluate(cases, jit=jit), truths))
    return worst


def _measure_diagonal(computed: list[Computed], truths: list[Truth]) -> Errors:
    value, gradient, violations = 0.0, 0.0, 0
    for (kl, gradients), want in zip(computed, truths, strict=True):
        violations += bool(kl < 0)
        if _in_range(want.kl):
            value = max(value, float(_difference(kl, want.kl) / ulp(want.kl)))
            violations += not (np.isfinite(kl) and kl > 0)
        for got, parts in zip(gradients, _gradient_parts(want), strict=True):
            error, bad = _entry_errors(got, parts)
            gradient, violations = max(gradient, error), violations + bad
    return Errors(value, gradient, violations)


def condition_of(spread: Spread) -> float:
    if spread.kind in truth.DIAGONAL_KINDS:
        return 1.0
    return float(np.linalg.cond(spread.value.astype(np.float64)))


def _norm(x) -> float:
    return float(np.sqrt(np.sum(_float(x) ** 2)))


def measure_matrix(
    cases: list[Case], modes: Modes = BOTH, *, precision: str = "default"
) -> Errors:
    """Errors in units of u cond; with high precision in ulp, gradients in 2 u."""
    truths = [truth.gaussian(*case) for case in cases]
    units = [UNIT * max(condition_of(c.q), condition_of(c.p)) for c in cases]
    worst = Errors(0.0, 0.0, 0)
    for jit in modes:
        computed = evaluate(cases, jit=jit, precision=precision)
        worst = worst.merge(_measure_matrix(computed, truths, units, precision))
    return worst


def _measure_matrix(
    computed: list[Computed], truths: list[Truth], units: list[float], precision: str
) -> Errors:
    value, gradient, violations = 0.0, 0.0, 0
    for (kl, gradients), want, unit in zip(computed, truths, units, strict=True):
        scale = float(ulp(want.kl)) if precision == "high" else unit * float(want.kl)
        unit = 2 * UNIT if precision == "high" else unit
        value = max(value, float(_difference(kl, want.kl)) / scale)
        violations += not (np.isfinite(kl) and kl > 0)
        for got, parts in zip(gradients, _gradient_parts(want), strict=True):
            violations += int(np.sum(~np.isfinite(got)))
            error = _norm(_difference(got, sum(parts[1:], start=parts[0])))
            size = sum(_norm(part) for part in parts)
            gradient = max(gradient, error / (size * unit) if size else error)
    return Errors(value, gradient, violations)


# ---- the table ----------------------------------------------------------------------------

DIAGONAL_REGIMES = (*(f"{s:g}" for s in SEPARATIONS), "generic", "offset 1e3", "ratio 1e30")
MATRIX_REGIMES = ("0.1", "0.001", "1e-05", "1e-07", "far")
CONDITIONS = (1.0, 1e2, 1e4, 1e6)
MATRIX_KINDS = ("scale_tril", "covariance_matrix", "precision_matrix")


class Row(NamedTuple):
    """One row of the table: what is measured and what is promised."""

    family: str
    kinds: tuple[str, str]
    regime: str
    condition: float | None
    precision: str
    goal: tuple[float, float]

    @property
    def key(self) -> str:
        condition = "" if self.condition is None else f" cond {self.condition:g}"
        pair = self.kinds[0] if len(set(self.kinds)) == 1 else " ‖ ".join(self.kinds)
        high = " high" if self.precision == "high" else ""
        return f"{self.family}, {pair}{high}, {self.regime}{condition}"

    def measure(self, scalars: int, matrices: int, modes: Modes = BOTH) -> Errors:
        if self.condition is None:
            size = 1 if self.family == "Normal" else 8
            count = scalars if size == 1 else max(3, scalars // 8)
            cases = diagonal_cases(self.kinds, self.regime, size, count, 0)
            return measure_diagonal(list(cases), modes)
        cases = matrix_cases(self.kinds, self.regime, 8, matrices, self.condition, 0)
        return measure_matrix(list(cases), modes, precision=self.precision)


def rows() -> list[Row]:
    """Every row of the table, with its goal in the units of its family."""
    table = []
    for family in ("Normal", "MultivariateNormalDiag"):
        for kind in truth.DIAGONAL_KINDS:
            for regime in DIAGONAL_REGIMES:
                table.append(Row(family, (kind, kind), regime, None, "default", (6, 6)))
        # A converted parametrization is known to twice the digits, no more: below a
        # separation of 1e-6 two float32 numbers of different kinds may lie closer than that.
        for kinds in MIXED_DIAGONAL:
            for regime in DIAGONAL_REGIMES:
                if regime not in ("1e-07", "ratio 1e30"):
                    table.append(Row(family, kinds, regime, None, "default", (6, 6)))
    for regime in DIAGONAL_REGIMES[:-2]:
        kinds = ("log_variance", "standard")
        table.append(Row("VAE", kinds, regime, None, "default", (3, 6)))
    for kind in MATRIX_KINDS:
        limit = (4.0, 64.0) if kind == "scale_tril" else (8.0, 32.0)
        for precision, goal in (("default", limit), ("high", (1.0, 1.0))):
            for condition in CONDITIONS:
                for regime in MATRIX_REGIMES:
                    kinds = (kind, kind)
                    name = "MultivariateNormal"
                    table.append(Row(name, kinds, regime, condition, precision, goal))
    for kinds in MIXED_MATRIX:
        for regime in MATRIX_REGIMES:
            name = "MultivariateNormal"
            table.append(Row(name, kinds, regime, 1e2, "default", (8.0, 64.0)))
    return table


MIXED_DIAGONAL = tuple(
    (a, b) for a in truth.DIAGONAL_KINDS for b in truth.DIAGONAL_KINDS if a != b
)
MIXED_MATRIX = (
    *((a, b) for a in MATRIX_KINDS for b in MATRIX_KINDS if a != b),
    *((a, b) for a in MATRIX_KINDS for b in truth.DIAGONAL_KINDS),
    *((a, b) for a in truth.DIAGONAL_KINDS for b in MATRIX_KINDS),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scalars", type=int, default=100, help="cases a scalar row")
    parser.add_argument("--matrices", type=int, default=6, help="cases a matrix row")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--store", action="store_true", help="keep the figures achieved")
    args = parser.parse_args(argv)
    achieved, failed = {}, 0
    print(f"{'family, parametrization, separation':64} {'value':>7} {'gradient':>8}  goals")
    for row in rows():
        if args.only not in row.key:
            continue
        errors = row.measure(args.scalars, args.matrices)
        missed = not errors.meets(row.goal)
        failed += missed
        achieved[row.key] = [round(errors.value, 2), round(errors.gradient, 2)]
        goals = f"{row.goal[0]:g} / {row.goal[1]:g}"
        mark = f"  MISSED ({errors.violations} never-events)" if missed else ""
        figures = f"{errors.value:7.2f} {errors.gradient:8.2f}"
        print(f"{row.key:64} {figures}  {goals}{mark}", flush=True)
    print(
        "units: ulp for Normal, MultivariateNormalDiag, VAE and high precision; u cond for "
        "MultivariateNormal"
    )
    if args.store:
        # With --only, the other rows keep their figures.
        kept = json.loads(ACHIEVED.read_text()) | achieved
        ACHIEVED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
