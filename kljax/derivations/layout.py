"""How a formula looks: boxes, printed as LaTeX, as MathML or as plain text."""

from __future__ import annotations

from fractions import Fraction
from html import escape
from typing import NamedTuple

# How tightly a box holds together; a looser one gets parentheses inside a tighter one.
RELATION, SUM, PRODUCT, APPLICATION, POWER, ATOM = range(6)

_GREEK = {
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "ζ": r"\zeta",
    "η": r"\eta",
    "θ": r"\theta",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "π": r"\pi",
    "ρ": r"\rho",
    "σ": r"\sigma",
    "τ": r"\tau",
    "φ": r"\varphi",
    "ψ": r"\psi",
    "ω": r"\omega",
    "Λ": r"\Lambda",
    "Σ": r"\Sigma",
    "Φ": r"\Phi",
}
_OPERATORS = {
    "−": "-",
    "·": r"\cdot ",
    "×": r"\times ",
    "‖": r"\,\|\,",
    "≥": r"\ge ",
    "≤": r"\le ",
    "∇": r"\nabla ",
    "Σ": r"\sum ",
    "ᵀ": r"\top ",
    "…": r"\dots ",
    ",": ",\\,",
    ";": ";\\,",
}


class Box(NamedTuple):
    """A piece of a formula.

    Attributes:
        kind: `name`, `number`, `operator`, `word`, `row`, `fraction`, `power`, `index`,
            `fence` or `big` (a sum sign over an index).
        parts: boxes, or the text of a leaf.
        level: how tightly it holds together.
    """

    kind: str
    parts: tuple
    level: int = ATOM


def name(text: str) -> Box:
    """A symbol such as μ, or μ_1 with an index after the underscore."""
    base, _, below = text.partition("_")
    box = Box("name", (base,))
    return Box("index", (box, Box("name", (below,)))) if below else box


def number(value: float) -> Box:
    """A number; halves, thirds and the like as fractions."""
    if value < 0:
        return row(SUM, operator("−"), number(-value))
    exact = Fraction(value).limit_denominator(12)
    if exact.denominator > 1 and float(exact) == value:
        return fraction(number(exact.numerator), number(exact.denominator))
    return Box("number", (f"{value:g}",))


def operator(text: str) -> Box:
    return Box("operator", (text,))


def word(text: str) -> Box:
    """An upright name: log, tr, KL."""
    return Box("word", (text,))


def row(level: int, *parts: Box) -> Box:
    return Box("row", parts, level)


def fraction(above: Box, below: Box) -> Box:
    return Box("fraction", (above, below), PRODUCT)


def power(base: Box, exponent: Box) -> Box:
    return Box("power", (hold(base, ATOM), exponent), POWER)


def index(base: Box, below: Box) -> Box:
    return Box("index", (hold(base, ATOM), below))


def fence(inside: Box, left: str = "(", right: str = ")") -> Box:
    return Box("fence", (left, inside, right))


def big(sign: str, below: Box, inside: Box) -> Box:
    """A sum sign over an index, then what is summed."""
    return Box("big", (sign, below, hold(inside, PRODUCT)), PRODUCT)


def hold(box: Box, level: int) -> Box:
    """The box, in parentheses if it would come apart."""
    return box if box.level >= level else fence(box)


def call(function: Box, *arguments: Box) -> Box:
    separated: list[Box] = []
    for argument in arguments:
        separated += [operator(","), argument] if separated else [argument]
    return row(APPLICATION, function, fence(row(SUM, *separated)))


def prefix(function: Box, argument: Box) -> Box:
    """Log x, with parentheses around anything longer than a name or a fraction."""
    if argument.kind == "fraction":
        return row(APPLICATION, function, Box("fraction", argument.parts, ATOM))
    return row(APPLICATION, function, hold(argument, ATOM))


# ---- printers -------------------------------------------------------------------------------


def latex(box: Box) -> str:
    """LaTeX for display mode."""
    parts = box.parts
    match box.kind:
        case "name":
            text = parts[0] if len(parts[0]) == 1 else _text(parts[0])
            return _GREEK.get(parts[0], text)
        case "number":
            return parts[0]
        case "operator":
            return _OPERATORS.get(parts[0], parts[0])
        case "word":
            known = {"log": r"\log ", "exp": r"\exp ", "det": r"\det ", "sin": r"\sin "}
            return known.get(parts[0], rf"\operatorname{{{parts[0]}}}")
        case "fraction":
            return rf"\frac{{{latex(parts[0])}}}{{{latex(parts[1])}}}"
        case "power":
            return rf"{{{latex(parts[0])}}}^{{{latex(parts[1])}}}"
        case "index":
            return rf"{{{latex(parts[0])}}}_{{{latex(parts[1])}}}"
        case "fence":
            left, inside, right = parts
            return rf"\left{_bar(left)} {latex(inside)} \right{_bar(right)}"
        case "big":
            sign, below, inside = parts
            return rf"{_OPERATORS.get(sign, sign)}_{{{latex(below)}}} {latex(inside)}"
        case _:
            return " ".join(map(latex, parts))


def _bar(text: str) -> str:
    return {"‖": r"\|", "|": "|"}.get(text, text)


def _text(text: str) -> str:
    return rf"\mathrm{{{text}}}"


def mathml(box: Box) -> str:
    """The element's children; wrap them in <math>."""
    parts = box.parts
    match box.kind:
        case "name":
            return f"<mi>{escape(parts[0])}</mi>"
        case "number":
            return f"<mn>{escape(parts[0])}</mn>"
        case "operator":
            return f"<mo>{escape(parts[0])}</mo>"
        case "word":
            return f'<mi mathvariant="normal">{escape(parts[0])}</mi><mo>&#x2061;</mo>'
        case "fraction":
            return f"<mfrac>{_mrow(parts[0])}{_mrow(parts[1])}</mfrac>"
        case "power":
            return f"<msup>{_mrow(parts[0])}{_mrow(parts[1])}</msup>"
        case "index":
            return f"<msub>{_mrow(parts[0])}{_mrow(parts[1])}</msub>"
        case "fence":
            left, inside, right = parts
            return (
                f'<mrow><mo fence="true">{escape(left)}</mo>{_mrow(inside)}'
                f'<mo fence="true">{escape(right)}</mo></mrow>'
            )
        case "big":
            sign, below, inside = parts
            return f"<munder><mo>{escape(sign)}</mo>{_mrow(below)}</munder>{_mrow(inside)}"
        case _:
            return "".join(map(mathml, parts))


def _mrow(box: Box) -> str:
    return f"<mrow>{mathml(box)}</mrow>"


_SUPERSCRIPT = {"2": "²", "3": "³", "ᵀ": "ᵀ", "−1": "⁻¹"}
_TIGHT = {"(", ")", ",", ";"}


def plain(box: Box) -> str:
    """One line of Unicode, for a terminal."""
    parts = box.parts
    match box.kind:
        case "name" | "number" | "word":
            return parts[0]
        case "operator":
            return parts[0]
        case "fraction":
            text = f"{_plain_held(parts[0], PRODUCT)}/{_plain_held(parts[1], POWER)}"
            return f"({text})" if box.level == ATOM else text
        case "power":
            exponent = plain(parts[1])
            raised = _SUPERSCRIPT.get(exponent)
            return plain(parts[0]) + (raised or f"^{_plain_held(parts[1], ATOM)}")
        case "index":
            return f"{plain(parts[0])}_{plain(parts[1])}"
        case "fence":
            left, inside, right = parts
            return f"{left}{plain(inside)}{right}"
        case "big":
            sign, below, inside = parts
            return f"{sign}_{plain(below)} {plain(inside)}"
        case _:
            return _plain_row(box)


def _plain_held(box: Box, level: int) -> str:
    # A fraction inside a fraction needs its parentheses back on one line.
    loose = box.level < level or (box.kind == "fraction" and level > PRODUCT)
    return f"({plain(box)})" if loose else plain(box)


def _plain_row(box: Box) -> str:
    out = ""
    for position, part in enumerate(box.parts):
        text = plain(part)
        if part.kind == "operator" and part.parts[0] in "+−=≥≤‖" and position:
            out += f" {text} "
        elif part.kind == "operator" and part.parts[0] in ",;":
            out += f"{text} "
        elif position and box.parts[position - 1].kind == "operator":
            out += text
        elif part.kind == "word" or (out and _sticks(out[-1], text[:1])):
            out += (" " if out and out[-1].isalnum() else "") + text
        elif out and box.parts[position - 1].kind == "word" and part.kind != "fence":
            out += f" {text}"
        else:
            out += text
    return out


def _sticks(before: str, after: str) -> bool:
    """Two names in a row need a space between them."""
    return (before.isalnum() or before in "²³ᵀ⁻¹)]") and (after.isalnum() or after in "Σ∇")
