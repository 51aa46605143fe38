"""Which family is meant by the parameters in a file: the one that has fields of these names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from kljax import divergence
from kljax.batch.rows import FileError
from kljax.batch.tables import Column, Matrices, Stacked


def records(
    q: dict[str, Any],
    p: dict[str, Any],
    *,
    q_file: str,
    p_file: str,
    q_family: str | None = None,
    p_family: str | None = None,
) -> tuple[Any, Any]:
    """Two distributions of a registered pair whose fields are the parameters of two files.

    Raises:
        FileError: if no family, no registered pair or more than one is meant.
    """
    of_q = _candidates(q, q_file, q_family)
    of_p = _candidates(p, p_file, p_family)
    pairs = {(f.q, f.p) for f in divergence.closed_forms()}
    found = [(a, b) for a in of_q for b in of_p if (type(a), type(b)) in pairs]
    if not found:
        raise FileError(
            f"there is no closed form for {_names(of_q)} in {q_file!r} against "
            f"{_names(of_p)} in {p_file!r}."
        )
    # Parameters of a file are as many; and it holds a batch rather than one distribution of
    # an event as long.
    for preference in (_uneven, _single):
        least = min(preference(a) + preference(b) for a, b in found)
        found = [x for x in found if preference(x[0]) + preference(x[1]) == least]
    if len(found) > 1:
        pair = " or ".join(f"{type(a).__name__} and {type(b).__name__}" for a, b in found)
        raise FileError(f"the files may hold {pair}; say --q-family and --p-family.")
    return found[0]


def _families() -> dict[str, type]:
    return {family.__name__: family for f in divergence.closed_forms() for family in (f.q, f.p)}


def _names(records: list[Any]) -> str:
    return " or ".join(type(x).__name__ for x in records)


def _candidates(parameters: dict[str, Any], file: str, named: str | None) -> list[Any]:
    """A record of every family that these parameters can make."""
    families = _families()
    if named is not None:
        if named not in families:
            raise FileError(f"there is no family {named!r}; there are {', '.join(families)}.")
        families = {named: families[named]}
    complete = [family for family in families.values() if _complete(family, set(parameters))]
    if not complete:
        raise FileError(_incomplete(families, parameters, file))
    made = [x for family in complete if (x := _record(family, parameters)) is not None]
    if not made:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in parameters.items())
        names = " or ".join(family.__name__ for family in complete)
        listed = any(isinstance(x, (Column, Stacked)) for x in parameters.values())
        nested = "; write matrices as lists of lists" if listed else ""
        raise FileError(
            f"the shapes in {file!r} ({shapes}) are not those of a {names}, which has one axis "
            f"of distributions at most{nested}."
        )
    return made


def _groups(family: type) -> list[list[str]]:
    """Alternatives: exactly one field of each list is given."""
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(family):
        groups.setdefault(field.metadata["one_of"] or field.name, []).append(field.name)
    return list(groups.values())


def _complete(family: type, names: set[str]) -> bool:
    groups = _groups(family)
    known = {name for group in groups for name in group}
    return names <= known and all(len(names & set(group)) == 1 for group in groups)


def _incomplete(families: dict[str, type], parameters: dict[str, Any], file: str) -> str:
    """What is wrong with the names, and what the families that come nearest need."""
    groups = {name: _groups(family) for name, family in families.items()}
    known = {name for of in groups.values() for group in of for name in group}
    unknown = [name for name in parameters if name not in known]
    near = difflib.get_close_matches(unknown[0], known, 1) if unknown else []
    if near:
        return f"{file!r} has {unknown[0]!r}, which is no parameter; did you mean {near[0]!r}?"
    given = set(parameters) & known

    def faults(of: list[list[str]]) -> int:
        """How many parameters are missing or too many."""
        counts = [len(given.intersection(group)) for group in of]
        return sum(abs(n - 1) for n in counts) + len(given) - sum(counts)

    least = min(map(faults, groups.values()))
    forms = "; ".join(
        f"{name}: {', '.join(' | '.join(group) for group in of)}"
        for name, of in groups.items()
        if faults(of) == least
    )
    what = f"{', '.join(parameters)}, which is no family"
    if unknown:
        what = f"{unknown[0]!r}, which is no parameter"
    return f"{file!r} has {what}; the nearest: {forms}."


def _record(family: type, parameters: dict[str, Any]) -> Any:
    """The record, or None where the ranks are not those of its fields."""
    fields = {f.name: f.metadata["event"] for f in dataclasses.fields(family)}
    sizes: dict[str, int] = {}
    values: dict[str, Any] = {}
    # Squares tell the sizes of what has other axes beside.
    for name, value in sorted(parameters.items(), key=lambda item: len({*fields[item[0]]})):
        event = fields[name]
        value = _as_matrices(value, event, sizes)
        batch = len(value.shape) - len(event)
        if batch not in (0, 1) or (batch == 0 and isinstance(value, (Column, Stacked))):
            return None
        sizes |= dict(zip(event, value.shape[batch:], strict=True))
        values[name] = value
    return family(**values)


def _as_matrices(value: Any, event: tuple[str, ...], sizes: dict[str, int]) -> Any:
    """Rows of a table that hold a matrix as one long list."""
    if not isinstance(value, (Column, Stacked)) or len(value.shape) != 2 or len(event) < 2:
        return value
    width = value.shape[1]
    unknown = [axis for axis in event if axis not in sizes]
    if len(set(unknown)) == 1:
        known = math.prod(sizes.get(axis, 1) for axis in event)
        size = round((width / max(known, 1)) ** (1 / len(unknown)))
        sizes = {**sizes, unknown[0]: size}
    shape = tuple(sizes.get(axis, 0) for axis in event)
    return Matrices(value, shape) if math.prod(shape) == width else value


def _batch_ranks(x: Any) -> set[int]:
    return {
        len(value.shape) - len(field.metadata["event"])
        for field in dataclasses.fields(x)
        if (value := getattr(x, field.name)) is not None
    }


def _uneven(x: Any) -> int:
    """Whether some parameters have a batch and others have none."""
    return len(_batch_ranks(x)) - 1


def _single(x: Any) -> int:
    """Whether there is no batch."""
    return 1 - max(_batch_ranks(x))
