"""What a wrong line may have meant: single changes that make it follow from the line before.

The alterations that mutants are made of are tried on the wrong line, as repairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from kljax.derivations import expression as ex
from kljax.derivations import kill, mutants, naming
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import Reading
from kljax.derivations.expression import Constant, Expr
from kljax.derivations.mutants import Mutant
from kljax.derivations.verify import Trees, mixed

# What spoils a right line and mends no wrong one.
_NEVER_A_REPAIR = {
    "factor 1 % off",
    "epsilon",
    "clamp",
    "stop_gradient",
    "wrong second-order rule",
    "rounded to bfloat16",
    "logarithm to base 2",
    "mean for sum",
}


_FACTOR = "a factor"


def _factors(root: Expr) -> Iterator[Mutant]:
    """Factors that people forget, and derivatives given back."""
    for path, node in mutants.places(root):
        if isinstance(node, Constant) or (path and _in_exponent(root, path)):
            continue
        repairs = [2 * node, node / 2, -node, node**2]
        if node.op is ex.STOP:
            repairs = [node.args[0]]
        for new in repairs:
            tree = mutants.replace(root, path, ex.as_expr(new))
            yield Mutant(_FACTOR, tree, repr(node), repr(new), repr(root))


def _in_exponent(root: Expr, path: tuple[int, ...]) -> bool:
    for i in path:
        if root.op in (ex.raise_to, ex.item) and i == 1:
            return True
        root = root.args[i]
    return False


def repairs(derivation: Derivation, number: int, *, most: int = 3) -> list[Mutant]:
    """Single changes after which a line follows from the one before.

    Args:
        derivation: the derivation.
        number: the wrong line.
        most: how many at most.

    Returns:
        The likeliest first; none if no single change mends the line.
    """
    step = derivation.steps[number]
    if number == 0 or step.shipped:
        return []
    names, thetas = derivation.points(3, seed=1)
    thetas = thetas[[n for n, name in enumerate(names) if name.startswith("generic")]]
    rng = np.random.default_rng(19)
    changes = [rng.normal(size=thetas.shape) for _ in range(2)]
    with (
        jax.enable_x64(True),
        jax.default_device(jax.devices("cpu")[0]),
        np.errstate(all="ignore"),
    ):
        trees = Trees(derivation)
        values = trees.series(thetas, changes)
        before = derivation.steps[number - 1]
        want = mixed(Reading(values, before.route)(trees.lines[number - 1]), 2)
        reading = Reading(values, step.route)
        reading(trees.lines[number])
        found = _repairs(trees, trees.lines[number], reading, want)
        names = trees.names[number]
        likeliest = _distinct(found)[:most]
        return [m._replace(tree=naming.spelled(m.tree, names)) for m in likeliest]


def _repairs(trees: Trees, line: Expr, reading: Reading, want: np.ndarray) -> Iterator[Mutant]:
    symbols, partners = trees.symbols, {}
    for left, right in trees.derivation.partners.items():
        partners[symbols[left]], partners[symbols[right]] = symbols[right], symbols[left]
    shapes = reading.shapes()
    own = {s: shapes[s] for s in symbols.values() if s in shapes}
    for mutant in (*mutants.of_line(line, shapes, partners, own), *_factors(line)):
        if mutant.kind in _NEVER_A_REPAIR:
            continue
        try:
            got = kill._evaluate(reading, mutant.tree)
        except (ValueError, IndexError):
            # A repair may ask for a square of what is not a number.
            continue
        if not kill._seen(got, want):
            yield mutant


def _distinct(found: Iterator[Mutant]) -> list[Mutant]:
    """One for every result; the kinds of mistake that people make first."""
    best: dict[str, Mutant] = {}
    for mutant in found:
        best.setdefault(repr(mutant.tree), mutant)
    return sorted(best.values(), key=lambda m: (m.kind == _FACTOR, len(m.was)))
