"""How many altered formulas each check would catch alone, and which none of them catches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from kljax.derivations import mutants
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import Reading, Route
from kljax.derivations.expression import Expr
from kljax.derivations.mutants import Mutant
from kljax.derivations.verify import (
    TOLERANCE,
    Trees,
    any_point,
    has_expectation,
    mixed,
)

CHECKS = ("value", "gradient", "Hessian", "pointwise", "bound")


class Fate(NamedTuple):
    """A mutant of a line and the checks that see it."""

    step: int
    mutant: Mutant
    seen_by: frozenset[str]
    proof: str = ""


class KillTable(NamedTuple):
    """What became of every mutant of a derivation.

    Attributes:
        derivation: which.
        fates: of every mutant.
        unsound: numbers of lines that differ from a line beside them as they stand.
    """

    derivation: Derivation
    fates: tuple[Fate, ...]
    unsound: tuple[int, ...] = ()

    @property
    def survivors(self) -> tuple[Fate, ...]:
        """Mutants that no check sees and that are not proved to be the same formula."""
        return tuple(f for f in self.fates if not f.seen_by and not f.proof)

    def by_kind(self) -> dict[str, Counter[str]]:
        """For every kind: how many there are, how many are seen, and by which check alone."""
        out: dict[str, Counter[str]] = {}
        for fate in self.fates:
            row = out.setdefault(fate.mutant.kind, Counter())
            row["mutants"] += 1
            row["seen"] += bool(fate.seen_by)
            row.update(fate.seen_by)
        return out


class _Line:
    """A line with all that its mutants are compared with."""

    def __init__(self, trees: Trees, number: int, values: dict, at: dict):
        self.step = trees.derivation.steps[number]
        self.tree = trees.lines[number]
        self.reading = Reading(values, self.step.route)
        self.point = Reading(at, Route("at"), at=lambda shape: any_point(shape, _width(at)))


def _width(values: dict) -> int:
    return next(iter(values.values())).parts.shape[-1]


def _seen(got: np.ndarray, want: np.ndarray) -> set[str]:
    """The orders of derivative at which two lines differ."""
    scale = np.maximum(1, np.abs(want))
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(got - want) / scale, nan=np.inf).max(axis=1)
    out = set()
    if error[0] > TOLERANCE["value"]:
        out.add("value")
    if max(error[1], error[2]) > TOLERANCE["gradient"]:
        out.add("gradient")
    if error[3] > TOLERANCE["Hessian"]:
        out.add("Hessian")
    return out


def kill_table(derivation: Derivation, *, points: int = 3, library: bool = True) -> KillTable:
    """Alters every line at every place, and asks every check.

    A mutant is compared with the lines beside its own: value, slope and curvature along a
    random direction, and, across algebra steps, the same with the expectation at one point.

    Args:
        derivation: what to alter.
        points: how many generic points, besides q = p.
        library: whether lines that call the library are altered too; their programs take
            long to compile.

    Returns:
        The table; `table.survivors` is empty if the checks see everything.
    """
    names, thetas = derivation.points(points, seed=1)
    skipped = set[str]().union(*(step.skip for step in derivation.steps))
    wanted = {"q = p"} - skipped
    keep = [n for n, name in enumerate(names) if name.startswith("generic") or name in wanted]
    thetas = thetas[keep]
    rng = np.random.default_rng(17)
    changes = [rng.normal(size=thetas.shape) for _ in range(2)]
    with (
        jax.enable_x64(True),
        jax.default_device(jax.devices("cpu")[0]),
        np.errstate(all="ignore"),
    ):
        trees = Trees(derivation)
        values = trees.series(thetas, changes)
        lines = [_Line(trees, n, values, values) for n in range(len(trees.lines))]
        fates: list[Fate] = []
        unsound: list[int] = []
        for part in derivation.parts():
            numbers = [step.number for step in part]
            for number in numbers:
                if library or not lines[number].step.shipped:
                    found, sound = _fates(trees, lines, numbers, number, library)
                    fates += found
                    unsound += [] if sound else [number]
    return KillTable(derivation, tuple(fates), tuple(unsound))


def _neighbours(
    lines: list[_Line], numbers: list[int], number: int, library: bool
) -> list[tuple[int, bool]]:
    """Lines to compare with, and whether across an algebra step."""
    out = []
    for other, step in ((number - 1, number), (number + 1, number + 1)):
        if other not in numbers or lines[step].step.relation != "=":
            continue
        if lines[other].step.shipped and not library:
            continue
        out.append((other, lines[step].step.at_points))
    return out


def _fates(
    trees: Trees, lines: list[_Line], numbers: list[int], number: int, library: bool
) -> tuple[list[Fate], bool]:
    """The fates of a line's mutants, and whether the line itself passes."""
    line = lines[number]
    neighbours = _neighbours(lines, numbers, number, library)
    if not neighbours:
        return [], True
    exact = [mixed(lines[other].reading(lines[other].tree), 2) for other, _ in neighbours]
    original = mixed(line.reading(line.tree), 2)
    sound = not any(_seen(original, want) for want in exact)
    pointwise = [
        mixed(lines[other].point(lines[other].tree), 2)
        for other, algebra in neighbours
        if algebra and any(map(has_expectation, (lines[other].tree, line.tree)))
    ]
    if pointwise:
        at_point = mixed(line.point(line.tree), 2)
        sound = sound and not any(_seen(at_point, want) for want in pointwise)
    if line.step.restates:
        return [], sound
    parameters = {
        s: trees.series(np.zeros((1, _size(trees))), [])[s].shape for s in _symbols(trees)
    }
    partners = {}
    for left, right in trees.derivation.partners.items():
        partners[trees.symbols[left]] = trees.symbols[right]
        partners[trees.symbols[right]] = trees.symbols[left]
    bounds = _bounds(trees, lines, numbers, number)
    fixed = line.step.route.kind == "grid"
    out = []
    for mutant in mutants.of_line(
        line.tree, line.reading.shapes(), partners, parameters, fixed
    ):
        seen: set[str] = set()
        got = _evaluate(line.reading, mutant.tree)
        for want in exact:
            seen |= _seen(got, want)
        for want in pointwise:
            if _seen(_evaluate(line.point, mutant.tree), want):
                seen.add("pointwise")
        if any(breaks(mutant.tree) for breaks in bounds):
            seen.add("bound")
        proof = "" if seen else _proof(trees.derivation, number, mutant)
        out.append(Fate(number, mutant, frozenset(seen), proof))
    return out, sound


def _bounds(
    trees: Trees, lines: list[_Line], numbers: list[int], number: int
) -> list[Callable[[Expr], bool]]:
    """For a bound on an integrand beside the line: whether an altered line breaks it."""
    step = number + 1
    if step not in numbers or lines[step].step.relation != "≥":
        return []
    rule = lines[step].step.rule
    if rule is None or rule.kind != "pointwise bound":
        return []
    rng = np.random.default_rng(23)
    theta = rng.normal(0, 0.5, (400, _size(trees)))
    reading = Reading(
        trees.series(theta, []), Route("at"), at=lambda shape: any_point(shape, 400, 0)
    )
    below = mixed(reading(lines[step].tree), 0)[0]
    return [lambda tree: bool(np.any(mixed(reading(tree), 0)[0] < below - 1e-9))]


def _proof(derivation: Derivation, number: int, mutant: Mutant) -> str:
    for same in derivation.same:
        place = (same.step, same.was) == (number, mutant.was)
        place = place and mutant.inside.startswith(same.inside)
        if place and same.kind in ("", mutant.kind):
            return same.proof
    return ""


def _evaluate(reading: Reading, tree: Expr) -> np.ndarray:
    try:
        return mixed(reading(tree), 2)
    except np.linalg.LinAlgError:
        # A mutant may ask for the factor of a matrix that is not positive definite.
        return np.full((4, 1), np.nan)


def _symbols(trees: Trees):
    return trees.symbols.values()


def _size(trees: Trees) -> int:
    return sum(p.size for p in trees.derivation.parameters.values())
