"""A derivation told to a reader: in a terminal, as Markdown, and as a report of what failed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import kljax
from kljax.derivations import expression as ex
from kljax.derivations import layout, mend, museum, naming
from kljax.derivations.anchors import TOLERANCE as ANCHOR_TOLERANCE
from kljax.derivations.anchors import Anchor
from kljax.derivations.derivation import Derivation, Step
from kljax.derivations.expectation import ExpectationOp
from kljax.derivations.expression import Expr
from kljax.derivations.kill import CHECKS, KillTable
from kljax.derivations.layout import Box
from kljax.derivations.museum import Sighting
from kljax.derivations.naming import NameOp
from kljax.derivations.verify import (
    RULE_TOLERANCE,
    TOLERANCE,
    Z_LIMIT,
    Failure,
    LineReport,
    Report,
    constrained,
)

Kills = Mapping[str, Mapping[str, int]]

# ---- what the symbols mean ------------------------------------------------------------------

_WORDS = {
    "log": ("log", "natural logarithm"),
    "sin": ("sin", "sine"),
    "N": ("N(x; m, v)", "density at x of the normal law with mean m and (co)variance v"),
    "KL": ("KL(q ‖ p)", "what kljax.kl_divergence returns for these two distributions"),
    "tr": ("tr(A)", "trace: the sum of the diagonal of A"),
    "H": ("H(q)", "entropy of q, and H(q, p) the cross-entropy: what the library returns"),
    "chol": ("chol(A)", "the lower triangular factor of A, with a positive diagonal"),
    "diag": ("diag(A)", "the diagonal of A, as a vector"),
    "Diag": ("Diag(a)", "the diagonal matrix with the vector a on its diagonal"),
    "eig": ("eig(A)", "the eigenvalues of A, as a vector"),
    "tril": ("tril(A)", "A with zeros above its diagonal"),
    "sum": ("sum(a)", "the sum of all entries of a"),
    "expm1": ("expm1(a)", "e to the power a, minus 1, right to the last digit also at small a"),
    "log1p": ("log1p(a)", "log(1 + a), right to the last digit also at small a"),
    "sg": ("sg(a)", "a as a constant: it has no derivative"),
}
_PUBLIC = {name for name in vars(kljax) if not name.startswith("_")}
_NAMES = {"e": "Euler's number", "k": "number of coordinates", "I": "identity matrix"}
_BOUND = {
    "expectation": "a draw from the law that E is under",
    "integral": "the variable of the integral",
    "gradient": "where the gradient is taken",
}


def _boxes(box: Box) -> Iterator[Box]:
    yield box
    for part in box.parts:
        if isinstance(part, Box):
            yield from _boxes(part)


def _nodes(x: Expr) -> Iterator[Expr]:
    yield x
    for arg in x.args:
        yield from _nodes(arg)


def glossary(derivation: Derivation) -> list[tuple[str, str]]:
    """Every symbol of a derivation's formulas with its meaning, parameters first."""
    out = {p.symbol: p.meaning for p in derivation.parameters.values()} | derivation.notation
    trees = _trees(derivation)
    for node in (node for tree in trees for node in _nodes(tree)):
        if isinstance(node.op, NameOp):
            for letter in node.op.letters:
                out.setdefault(letter.name, f"argument of {layout.plain(node.op.left)}")
        if node.bound is None:
            continue
        finite = isinstance(node.op, ExpectationOp) and node.op.base == "finite"
        meaning = (
            "one of finitely many outcomes"
            if finite
            else _BOUND.get(node.op.name, "index of a sum")
        )
        out.setdefault(node.bound.name, meaning)
    words: dict[str, str] = {}
    for box in (b for whole in _all_boxes(derivation, trees) for b in _boxes(whole)):
        match box.kind, box.parts:
            case "index", (Box(kind="word", parts=("E",)), label):
                words[f"E_{layout.plain(label)}[…]"] = (
                    f"expectation under {layout.plain(label)}"
                )
            case "word", (str(word),) if word in _WORDS:
                words.setdefault(*_WORDS[word])
            case "name", (str(name),) if name in _NAMES:
                words.setdefault(name, _NAMES[name])
            case "operator", ("ᵀ",):
                words["Aᵀ"] = "A transposed"
            case "fence", ("|", _, _):
                words["|A|"] = "determinant of A"
            case "fence", ("‖", _, _):
                words["‖a‖²"] = "sum of the squares of all entries of a"
            case _:
                pass
    return [*out.items(), *((k, v) for k, v in sorted(words.items()) if k not in out)]


def undefined(derivation: Derivation) -> set[str]:
    """Names and words in the formulas that the glossary does not explain."""
    symbols = {symbol for symbol, _ in glossary(derivation)}
    known = {part for symbol in symbols for part in symbol.split("_")}
    known |= set(_WORDS) | {"E"} | set(_PUBLIC)
    found: set[str] = set()
    trees = _trees(derivation)
    known |= {text for op in naming.definitions(trees) for text in op.name.split()}
    known = {part for text in known for part in text.split("_")}
    for box in (b for whole in _all_boxes(derivation, trees) for b in _boxes(whole)):
        for label in _labels(box):
            known |= set(layout.plain(label).split("_"))
        if box.kind in ("name", "word"):
            found.add(box.parts[0])
        if box.kind == "row":
            # An argument's name explains itself: scale = σ.
            pairs = zip(box.parts, box.parts[1:], strict=False)
            known |= {a.parts[0] for a, b in pairs if b == layout.operator("=")}
    # What has a space in it is made of words: log 2π.
    return {name for name in found - known if not name.isdigit() and " " not in name}


def _labels(box: Box) -> list[Box]:
    """The law named by E_q[...] or by q(x) under an integral."""
    match box.kind, box.parts:
        case "index", (Box(kind="word", parts=("E",)), label):
            return [label]
        case "row", (Box(kind="name") as label, Box(kind="fence")):
            return [label]
    return []


def _all_boxes(derivation: Derivation, trees: list[Expr]) -> list[Box]:
    """The definitions of names, and the lines."""
    return [*derivation.definitions(), *map(ex.box, trees)]


def _trees(derivation: Derivation) -> list[Expr]:
    symbols = derivation.symbols()
    return [derivation.tree(step, symbols) for step in derivation.steps]


# ---- numbers --------------------------------------------------------------------------------


def number(x: Any, digits: int = 12) -> str:
    """A number; the entries of a vector or a matrix in one line, with half of the digits."""
    x = np.asarray(x)
    if x.ndim == 0:
        return ("−" if x < 0 else "") + f"{abs(float(x)):.{digits}g}"
    return f"[{', '.join(number(row, max(4, digits // 2)) for row in x)}]"


def error(x: float | None) -> str:
    """An error by its leading digit."""
    if x is None:
        return ""
    return "0" if x == 0 else f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def bound(x: float) -> str:
    """The power of ten that an error stays below: the same on every machine."""
    return "0" if x == 0 else f"1e{math.ceil(math.log10(x))}"


def parameters_at(derivation: Derivation, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters, by their symbol, behind unconstrained numbers."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        values = vars(constrained(derivation, theta))
        return {
            parameter.symbol: np.asarray(values[key])
            for key, parameter in derivation.parameters.items()
        }


def example_point(derivation: Derivation) -> dict[str, np.ndarray]:
    """Parameters, by their symbol, at the point where the lines' numbers are shown."""
    return parameters_at(derivation, derivation.points(1).values[0])


_ORDERS = ("value", "gradient", "hessian", "pointwise")


def proves_nothing(step: Step, line: LineReport) -> bool:
    """Whether a line is the same computation as the one before."""
    return line.same_bits == 1.0 and step.rule is not None and step.rule.kind != "definition"


def checks(step: Step, line: LineReport) -> str:
    """What was measured of a line, in one line."""
    if step.relation == "≥" and line.value is not None:
        return f"at most the line before (violated by {error(line.value)})"
    names = {"hessian": "Hessian"}
    parts = [
        f"{names.get(check, check)} {error(getattr(line, check))}"
        for check in _ORDERS
        if getattr(line, check) is not None
    ]
    if line.z is not None:
        parts.append(f"|z| {line.z:.1f}")
    if line.same_bits is not None:
        parts.append(f"same bits {line.same_bits:.0%}".replace("%", " %"))
    return " · ".join(parts)


# ---- a terminal -----------------------------------------------------------------------------

_BREAKS = (" + ", " − ", " ‖ ", " = ", ", ")


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """A formula in lines of at most `width`, broken before signs as far outside as possible.

    Args:
        text: the formula.
        width: of the lines; a piece without a sign may be longer.
        indent: columns of the following lines, at least; a break inside brackets goes further
            in.
    """
    lines = []
    while len(text) > width:
        place = _break(text, width, indent)
        if place is None:
            break
        position, column = place
        lines.append(text[:position].rstrip())
        text = " " * column + text[position:].lstrip()
    return [*lines, text]


def _break(text: str, width: int, indent: int) -> tuple[int, int] | None:
    """Where to break, and the column where the rest goes."""
    opened: list[int] = []
    best: tuple[int, int, int] | None = None
    start = len(text) - len(text.lstrip())
    for i, letter in enumerate(text[: width + 1]):
        if letter in "([":
            opened.append(i)
        elif letter in ")]" and opened:
            opened.pop()
        sign = next((s for s in _BREAKS if text.startswith(s, i)), None)
        position = i + 1 if sign != ", " else i + 2
        if sign is None or position > width or i <= max(start, indent):
            continue
        # As few brackets as possible, then as late as possible; a break inside brackets must
        # still leave the rest less far in than where it stood.
        if best is None or len(opened) <= best[0]:
            column = opened[-1] + 1 if opened else indent
            best = (len(opened), position, min(column, indent + width // 3))
    return best and best[1:]


class _Paint:
    """Terminal colors, or none."""

    def __init__(self, color: bool):
        self._color = color

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._color and text else text


BOLD, DIM, RED, GREEN = "1", "2", "31", "32"


def _paragraph(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def equation(derivation: Derivation, step: Step, width: int = 10_000) -> str:
    """A line of the derivation as plain text, with its left-hand side or its relation."""
    left = f"{step.quantity} = " if step.rule is None else f"{step.relation} "
    indent = 2 if step.rule is not None else 4
    return "\n".join(wrap(left + layout.plain(derivation.formula(step)), width, indent))


def terminal(
    derivation: Derivation, report: Report, *, width: int = 80, color: bool = False
) -> str:
    """The walk through a derivation, line by line.

    Args:
        derivation: what to tell.
        report: what was measured of it.
        width: columns of the terminal.
        color: whether to use its colors.
    """
    paint = _Paint(color)
    blocks = [
        paint(BOLD, derivation.title) + "\n" + "─" * min(width, len(derivation.title)),
        _paragraph(derivation.question, width),
        _symbols(derivation, width),
        _example(derivation, width),
    ]
    for step, line in zip(derivation.steps, report.lines, strict=True):
        blocks.append(_terminal_line(report, step, line, width, paint))
    if derivation.answer:
        blocks.append(_paragraph(derivation.answer, width))
    if derivation.mistakes:
        found = (museum.get(name) for name in derivation.mistakes)
        said = (
            textwrap.fill(f"  - {m.name}: {m.effect}", width, subsequent_indent="    ")
            for m in found
        )
        blocks.append("\n".join(["What people got wrong:", *said]))
    blocks.append(_verdict(report, paint))
    return "\n\n".join(blocks)


def _symbols(derivation: Derivation, width: int) -> str:
    rows = glossary(derivation)
    column = max(len(symbol) for symbol, _ in rows) + 4
    meanings = [
        textwrap.fill(
            meaning,
            width,
            initial_indent=f"  {symbol}".ljust(column),
            subsequent_indent=" " * column,
        )
        for symbol, meaning in rows
    ]
    for n, equation_ in enumerate(derivation.definitions()):
        meanings += ["", "where", ""] if n == 0 else []
        meanings += wrap("  " + layout.plain(equation_), width, 6)
    return "\n".join(meanings)


def _example(derivation: Derivation, width: int) -> str:
    values = (f"{s} = {number(x, 6)}" for s, x in example_point(derivation).items())
    lines = wrap("The numbers are the lines at " + ", ".join(values), width)
    return "\n".join(lines) + "."


def _terminal_line(
    report: Report, step: Step, line: LineReport, width: int, paint: _Paint
) -> str:
    derivation = report.derivation
    margin = " " * 4
    rule = step.rule
    name = rule.name if rule else f"definition of {step.quantity}"
    out = [f"{step.number:>2}  " + paint(BOLD, name)]
    if rule is not None:
        out.append(paint(DIM, _paragraph(rule.statement, width, margin)))
    formula = textwrap.indent(equation(derivation, step, width - 6), " " * 6)
    out += ["", formula, ""]
    if step.note:
        out.append(_paragraph(step.note, width, margin))
    if step.restates:
        out.append(f"{margin}It builds on `kljax derive {step.restates}`.")
    failed = any(f.step == step.number for f in report.failures)
    out.append(_paragraph(number(line.example), width, margin))
    if measured := checks(step, line):
        out.append(paint(RED if failed else DIM, margin + measured))
    if proves_nothing(step, line):
        out.append(paint(RED, f"{margin}same bits everywhere: proves nothing"))
    return "\n".join(out)


def _verdict(report: Report, paint: _Paint) -> str:
    count = len(report.failures)
    if report.ok:
        return paint(GREEN, f"{len(report.lines)} lines, every check passed.")
    return paint(RED, f"{count} check{'s' if count > 1 else ''} failed.")


# ---- tables ---------------------------------------------------------------------------------


def _columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells in columns; the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def table(reports: Sequence[Report]) -> str:
    """One row for every derivation: its lines, the worst error of every check, the verdict."""
    head = (
        "derivation",
        "lines",
        "value",
        "gradient",
        "Hessian",
        "pointwise",
        "|z|",
        "verdict",
    )
    rows: list[tuple[str, ...]] = [head]
    for report in reports:
        worst = (error(report.worst(check)) for check in _ORDERS)
        verdict = "ok" if report.ok else f"{len(report.failures)} failed"
        z = f"{report.worst('z'):.1f}"
        rows.append((report.derivation.name, str(len(report.lines)), *worst, z, verdict))
    limits = (f"≤ {error(x)}" for x in (*TOLERANCE.values(), TOLERANCE["Hessian"]))
    rows.append(("allowed", "", *limits, f"≤ {Z_LIMIT:.0f}", ""))
    return _columns(rows)


def kills_of(table: KillTable) -> dict[str, dict[str, int]]:
    """A kill table as plain numbers: of every kind, how many there are and who sees them."""
    out = {kind: dict(row) for kind, row in table.by_kind().items()}
    for fate in table.fates:
        if fate.proof:
            row = out[fate.mutant.kind]
            row["proved"] = row.get("proved", 0) + 1
    return out


_KILL_HEAD = ("altered", "seen", "same formula", "alive", *CHECKS)


def _kill_row(rows: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    def total(key: str) -> int:
        return sum(row.get(key, 0) for row in rows)

    alive = total("mutants") - total("seen") - total("proved")
    counts = (total("mutants"), total("seen"), total("proved"), alive, *map(total, CHECKS))
    return tuple(f"{n:,}" for n in counts)


def kill_summary(tables: Mapping[str, Kills]) -> str:
    """One row for every derivation: how many altered formulas every check sees."""
    rows = [("derivation", *_KILL_HEAD)]
    rows += [(name, *_kill_row(list(kinds.values()))) for name, kinds in tables.items()]
    everything = [row for kinds in tables.values() for row in kinds.values()]
    return _columns([*rows, ("all", *_kill_row(everything))])


def survivors(table: KillTable) -> str:
    """The altered formulas that no check sees, one a paragraph."""
    return "\n\n".join(
        f"{table.derivation.name}, line {fate.step}: no check sees {fate.mutant.kind}: "
        f"{fate.mutant.was} → {fate.mutant.now} inside {fate.mutant.inside}"
        for fate in table.survivors
    )


def anchors_line(found: Sequence[Anchor]) -> str:
    """How many comparisons with the outside hold."""
    held = sum(anchor.ok for anchor in found)
    worst = error(max(anchor.error for anchor in found))
    allowed = error(ANCHOR_TOLERANCE)
    return f"anchors: {held} of {len(found)} hold, worst error {worst} (allowed {allowed})"


def rules_line(errors: Mapping[str, float]) -> str:
    """How many rules hold by their own tests."""
    held = sum(x <= RULE_TOLERANCE for x in errors.values())
    worst = error(max(errors.values()))
    allowed = error(RULE_TOLERANCE)
    return f"rules: {held} of {len(errors)} hold, worst error {worst} (allowed {allowed})"


def foundation_failures(found: Sequence[Anchor], errors: Mapping[str, float]) -> list[str]:
    """A sentence for every anchor and every rule that does not hold."""
    said = [
        f"The anchor {anchor.name!r} does not hold: relative error {error(anchor.error)}, "
        f"allowed {error(ANCHOR_TOLERANCE)}. A law that derivations use is not what it says."
        for anchor in found
        if not anchor.ok
    ]
    return said + [
        f"The rule {name!r} is false: its two sides differ by {error(x)} on random numbers, "
        f"allowed {error(RULE_TOLERANCE)}."
        for name, x in errors.items()
        if not x <= RULE_TOLERANCE
    ]


SEEN = "seen"


def museum_rows(sightings: Sequence[Sighting]) -> list[tuple[str, ...]]:
    """A head, and for every mistake the checks that see it."""
    checks_ = (*museum.CHECKS, *museum.WEAK_CHECKS)
    rows = [
        (s.mistake.name, *(SEEN if check in s.seen_by else "" for check in checks_))
        for s in sightings
    ]
    return [("mistake", *checks_), *rows]


def museum_table(sightings: Sequence[Sighting]) -> str:
    """The mistakes that people made, and who sees them; how many each check sees."""
    head, *rows = museum_rows(sightings)
    counts = [str(sum(cell == SEEN for cell in column)) for column in zip(*rows, strict=True)]
    return _columns([head, *rows, (f"of {len(rows)}", *counts[1:])])


# ---- what failed ----------------------------------------------------------------------------


def failures(report: Report, *, width: int = 96) -> str:
    """What a mistake can be found from: for every line that fails, which check, by how much,
    both lines as mathematics, and guesses at the mistake. Empty if nothing fails.
    """
    found: dict[int, list[Failure]] = {}
    for failure in report.failures:
        found.setdefault(failure.step, []).append(failure)
    return "\n\n".join(_failed_line(report, found, number, width) for number in found)


def _failed_line(
    report: Report, found: dict[int, list[Failure]], number_: int, width: int
) -> str:
    derivation, before = report.derivation, number_ - 1
    step = derivation.steps[number_]
    rule = f" ({step.rule.name})" if step.rule is not None else ""
    head = f"{derivation.name}, line {number_}{rule}:"
    fresh = [f for f in found[number_] if f.against in (before, number_)]
    if not fresh:
        checked = ", ".join(f.check for f in found[number_])
        innocent = f"It follows from line {before} and inherits its error ({checked})."
        return f"{head}\n  {innocent}"
    if _mistake_is_before(report, found, number_):
        return f"{head}\n  It agrees with the definition; the mistake is in line {before}."
    out = [head, *(_paragraph(_sentence(f), width, "  ") for f in fresh)]
    if point := _point(derivation, fresh[0].point):
        out.append(textwrap.indent("\n".join(wrap(point, width - 2)), "  "))
    if fresh[0].check == "sampled":
        out.append(_shown(derivation, step, width))
    elif {f.check for f in fresh} != {"rule"}:
        out.append("  The line before, and the line:")
        out += [_shown(derivation, s, width) for s in (derivation.steps[before], step)]
    out += [_paragraph(hint, width, "  ") for hint in _hints(fresh)]
    if any(f.check in TOLERANCE for f in fresh):
        out += _mended(derivation, number_, width)
    return "\n".join(out)


def _mistake_is_before(report: Report, found: dict[int, list[Failure]], number_: int) -> bool:
    """Whether a line differs from a wrong line before it, and not from the definition."""
    first = max(s.number for s in report.derivation.steps[: number_ + 1] if s.rule is None)
    against = {f.against for f in found[number_]}
    return against == {number_ - 1} and number_ - 1 in found and number_ - 1 != first


def _point(derivation: Derivation, name: str) -> str:
    """Where a generic point is; the hard ones are named for what they are."""
    word, _, count = name.partition(" ")
    if word != "generic":
        return ""
    values = parameters_at(
        derivation, derivation.points(int(count)).values[-1 - _hard(derivation)]
    )
    return f"The point {name!r} is " + ", ".join(
        f"{symbol} = {number(x, 6)}" for symbol, x in values.items()
    )


def _hard(derivation: Derivation) -> int:
    return len(derivation.points(0).names)


def _shown(derivation: Derivation, step: Step, width: int) -> str:
    return _tagged(f"{step.number:>2}", equation(derivation, step, width - 8))


def _tagged(tag: str, formula: str) -> str:
    return f"    {tag}  " + textwrap.indent(formula, " " * 8).lstrip()


def _mended(derivation: Derivation, number_: int, width: int) -> Iterator[str]:
    """The line as it would follow."""
    repairs = mend.repairs(derivation, number_)
    if repairs:
        yield f"  It would follow as {'one of these' if repairs[1:] else 'this'}:"
    for repair in repairs:
        formula = "= " + layout.plain(ex.box(repair.tree))
        yield _tagged(" →", "\n".join(wrap(formula, width - 8, 4)))


def _sentence(failure: Failure) -> str:
    relative = f"relative error {error(failure.error)}"
    match failure.check:
        case "rule":
            return (
                f"The rule is false: its two sides differ by {error(failure.error)} on random "
                f"numbers, where {error(RULE_TOLERANCE)} is allowed."
            )
        case "sampled":
            return (
                f"Sampled: at the point {failure.point!r} the means of independent draws are "
                f"{failure.error:.1f} standard errors off the value {number(failure.want)}, "
                f"where {Z_LIMIT:.0f} are allowed."
            )
        case "pointwise":
            return (
                f"Pointwise: with every expectation replaced by the value at a single point, "
                f"which algebra must survive, the lines differ at the point {failure.point!r} "
                f"({relative}, allowed {error(TOLERANCE['Hessian'])})."
            )
        case "bound":
            return (
                f"Bound: at the point {failure.point!r} the line is {number(failure.got)}, "
                f"more than the {number(failure.want)} of line {failure.against}."
            )
        case _:
            by = f" by {failure.parameter}" if failure.parameter else ""
            return (
                f"{failure.check[0].upper()}{failure.check[1:]}{by}: at the point "
                f"{failure.point!r} it is {number(failure.got)}, and {number(failure.want)} in "
                f"line {failure.against} ({relative}, allowed "
                f"{error(TOLERANCE[failure.check])})."
            )


_RATIOS = {
    -1: "−1: look for a sign",
    2: "2: look for a factor 2 too many, or a half that is missing",
    0.5: "1/2: look for a half too many, or a factor 2 that is missing",
    -2: "−2: look for a sign and a factor 2",
    -0.5: "−1/2: look for a sign and a half",
    4: "4: look for a variance in place of a standard deviation, or a factor 2 twice",
    0.25: "1/4: look for a half taken twice",
    1 / math.log(2): "1/log 2: look for a logarithm to base 2",
    0: "0: look for a term that is lost",
}
_GAPS = {
    1.0: "1",
    0.5: "1/2",
    2.0: "2",
    0.5 * math.log(2 * math.pi): "log(2π)/2",
    math.log(2 * math.pi): "log 2π",
    math.log(2): "log 2",
}


def _hints(found: list[Failure]) -> Iterator[str]:
    """What the pattern of failures says."""
    by_check = {f.check: f for f in found}
    orders = [check for check in TOLERANCE if check in by_check]
    if orders[:1] == ["gradient"]:
        yield (
            f"The values agree: a derivative by {by_check['gradient'].parameter} is lost or "
            "wrong. Look for a stop_gradient, a number where a function of it is meant, or a "
            "wrong derivative rule."
        )
    if orders == ["Hessian"]:
        yield (
            "Values and gradients agree: a second derivative is lost or wrong. Look for a "
            "derivative rule that is right at first order only."
        )
    if set(by_check) == {"pointwise"}:
        yield (
            "The lines agree under this expectation and not under every one: the step uses a "
            "moment, which a rule of algebra does not allow, or two mistakes cancel."
        )
    if set(by_check) == {"sampled"}:
        yield (
            "All lines agree at their nodes, and draws do not: the law and the density that "
            "the line uses are not of the same distribution, or the route has too few nodes."
        )
    if orders and (said := _ratio(by_check[orders[0]])):
        yield said


def _ratio(failure: Failure) -> str:
    """What a simple ratio or difference of the two numbers says."""
    got, want = failure.got, failure.want
    if want and math.isfinite(got):
        for ratio, text in _RATIOS.items():
            if math.isclose(got / want, ratio, rel_tol=1e-7, abs_tol=1e-9):
                return f"It is line {failure.against} times {text}."
    if failure.check == "value":
        for size, text in _GAPS.items():
            if math.isclose(abs(got - want), size, rel_tol=1e-7):
                sign = "more" if got > want else "less"
                return f"It is {text} {sign} than line {failure.against}: look for a constant."
    return ""


# ---- Markdown -------------------------------------------------------------------------------


def _fenced(latex: str) -> str:
    # A fence of its own kind: between dollars, Markdown would read [a](b) as a link.
    return f"```math\n{latex}\n```"


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def grid(head: Sequence[str], *rows: Sequence[str]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * len(head)
    return "\n".join([_cells(*head), rule, *(_cells(*row) for row in rows)])


def markdown(
    derivation: Derivation,
    report: Report,
    kills: Kills | None = None,
    figure: tuple[str, str] | None = None,
) -> str:
    """The page of a derivation, for a forge that shows Markdown with ```math blocks.

    Errors are rounded up to a power of ten and examples to ten digits, so that the page is
    the same on every machine.

    Args:
        derivation: what to tell.
        report: what was measured of it.
        kills: of every kind of altered formula, how many each check sees (`kills_of`).
        figure: file of a figure, and what it shows.
    """
    blocks = [f"# {derivation.title}", derivation.question]
    if derivation.answer:
        blocks.append(derivation.answer)
    if figure is not None:
        path, shows = figure
        blocks += [f"![{shows}]({path})", f"*{shows}*"]
    blocks += ["## Symbols", grid(("symbol", "meaning"), *glossary(derivation))]
    if equations := derivation.definitions():
        blocks += ["where", *(_fenced(layout.latex(box)) for box in equations)]
    blocks += ["## Line by line", *_steps(derivation)]
    blocks += ["## How sharply each line was checked", *_checked(derivation, report)]
    if derivation.mistakes:
        blocks += ["## What people got wrong", *_of_the_museum(derivation)]
    if kills:
        blocks += ["## What a mistake would do", *_mistakes(derivation, kills)]
    return "\n\n".join(blocks) + "\n"


def _of_the_museum(derivation: Derivation) -> Iterator[str]:
    yield "\n".join(
        f"- **{mistake.name}** *({mistake.where})*: {mistake.effect}"
        for mistake in map(museum.get, derivation.mistakes)
    )
    yield "[Their formulas, and which checks see them](museum.md)."


def _steps(derivation: Derivation) -> Iterator[str]:
    for step in derivation.steps:
        rule = step.rule
        if rule is None:
            head = f"**{step.number}. Definition of {step.quantity}.**"
            base = f"It builds on [{step.restates}]({step.restates}.md)."
            yield " ".join(filter(None, [head, step.note, base if step.restates else ""]))
        else:
            source = f" *({rule.source})*"
            yield f"**{step.number}. {_capital(rule.name)}.** {rule.statement}{source}"
            if step.note:
                yield step.note
        yield _fenced(derivation.latex(step))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _checked(derivation: Derivation, report: Report) -> Iterator[str]:
    names = derivation.points().names
    hard = [name for name in names if not name.startswith("generic")]
    example = ", ".join(
        f"{symbol} = {number(x, 6)}" for symbol, x in example_point(derivation).items()
    )
    yield (
        f"Compared with the line before and with the definition, in float64, at "
        f"{len(names) - len(hard)} generic points"
        + (f" and where {_listed(hard)}" if hard else "")
        + f". The numbers are the lines at {example}."
    )
    head = (
        "line",
        "number",
        "value",
        "gradient",
        "Hessian",
        "pointwise",
        "sampled",
        "same bits",
    )
    rows = []
    for step, line in zip(derivation.steps, report.lines, strict=True):
        orders = [getattr(line, check) for check in _ORDERS]
        shown = ["" if x is None else bound(x) for x in orders]
        if step.relation == "≥":
            shown[0] = "≤ the line before"
        z = "" if line.z is None else f"{line.z:.1f}"
        same = "" if line.same_bits is None else f"{line.same_bits:.0%}"
        rows.append((str(step.number), _short(line.example), *shown, z, same))
    limits = [error(x) for x in (*TOLERANCE.values(), TOLERANCE["Hessian"])]
    rows.append(("*allowed*", "", *limits, f"{Z_LIMIT:.0f}", "below 100%"))
    yield grid(head, *rows)
    yield "[How to read this table](README.md#how-to-read-the-tables)."
    for step in derivation.steps:
        for point, reason in step.skip.items():
            yield f"Line {step.number} has no Hessian where {point}: {reason}"


def _short(example: Any) -> str:
    """A number, or the first entry of an array with its shape."""
    example = np.asarray(example)
    if example.ndim == 0:
        return number(example, 10)
    shape = " × ".join(map(str, example.shape))
    return f"{number(example.reshape(-1)[0], 6)} … ({shape})"


def _listed(names: Sequence[str]) -> str:
    said = {
        "q near p": "q is near p",
        "far apart": "the means are far apart",
        "condition 1e4": "the matrices have a condition of 1e4",
    }
    names = [said.get(name, name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, or {names[-1]}"


def _mistakes(derivation: Derivation, kills: Kills) -> Iterator[str]:
    rows = list(kills.values())
    total, seen, proved, alive, *_ = _kill_row(rows)
    yield (
        f"Every line was altered at every place, one mistake at a time: {total} wrong "
        f"formulas, of which the checks see {seen}. "
        + (f"{proved} are the same formula, with a proof below. " if proved != "0" else "")
        + ("None is left." if alive == "0" else f"{alive} are left.")
        + " The last columns say how many each check would see alone."
    )
    head = ("mistake", *_KILL_HEAD)
    order = sorted(kills, key=lambda kind: -kills[kind].get("mutants", 0))
    yield grid(head, *((kind, *_kill_row([kills[kind]])) for kind in order))
    if derivation.same:
        yield "The same formula:"
        yield "\n".join(
            f"- line {same.step}, {same.was} inside {same.inside}: {same.proof}"
            for same in derivation.same
        )


def markdown_table(reports: Sequence[Report], kills: Mapping[str, Kills]) -> str:
    """One row for every derivation, linked to its page."""
    head = ("derivation", "lines", "value", "gradient", "Hessian", "pointwise", "sampled")
    rows = []
    for report in reports:
        name = report.derivation.name
        worst = [bound(report.worst(check)) for check in _ORDERS]
        z = f"{report.worst('z'):.1f}"
        altered = _kill_row(list(kills.get(name, {}).values()))
        cells = (f"[{report.derivation.title}]({name}.md)", str(len(report.lines)), *worst, z)
        rows.append((*cells, f"{altered[1]} of {altered[0]}", altered[2]))
    return grid((*head, "altered formulas seen", "the same formula"), *rows)
