"""How a formula looks: boxes, printed as LaTeX, as MathML or as plain text."""

from __future__ import annotations

import re
from fractions import Fraction
from html import escape
from typing import NamedTuple

# How tightly a box holds together; a looser one gets parentheses inside a tighter one.
RELATION, SUM, PRODUCT, APPLICATION, POWER, ATOM = range(6)

_GREEK = {
    "Γ": r"\Gamma",
    "Δ": r"\Delta",
    "Ω": r"\Omega",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "ζ": r"\zeta",
    "η": r"\eta",
    "θ": r"\theta",
    "ι": r"\iota",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "ξ": r"\xi",
    "π": r"\pi",
    "ρ": r"\rho",
    "σ": r"\sigma",
    "τ": r"\tau",
    "υ": r"\upsilon",
    "φ": r"\varphi",
    "χ": r"\chi",
    "ψ": r"\psi",
    "ω": r"\omega",
    "Λ": r"\Lambda",
    "Σ": r"\Sigma",
    "Φ": r"\Phi",
    "ℓ": r"\ell",
}
# Not \operatorname, which GitHub forbids.
_OPERATORS: dict[str, str] = {
    "−": "-",
    "·": r"\cdot ",
    "×": r"\times ",
    "∘": r"\circ ",
    "⊗": r"\otimes ",
    "‖": r"\parallel ",
    "|": r"\mid ",
    "≥": r"\ge ",
    "≤": r"\le ",
    "≈": r"\approx ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "∫": r"\int ",
    "Σ": r"\sum ",
    "ᵀ": r"\top ",
    "…": r"\dots ",
    "d": r"\thinspace \mathrm{d}",
}
_WORDS: dict[str, str] = {
    **{word: rf"\{word} " for word in ("log", "exp", "det", "sin", "cos", "max", "min")},
    "E": r"\mathbb{E}",
    "N": r"\mathcal{N}",
}
_FENCES = {
    "|": (r"\lvert ", r"\rvert "),
    "‖": (r"\lVert ", r"\rVert "),
    "{": (r"\lbrace ", r"\rbrace "),
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
    """A fraction, with the sign of −1/2 in front."""
    if leads_with_minus(above) and len(above.parts) == 2:
        return row(SUM, operator("−"), fraction(above.parts[1], below))
    return Box("fraction", (above, below), PRODUCT)


def leads_with_minus(box: Box) -> bool:
    return box.kind == "row" and box.parts[0] == operator("−")


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
    return row(ATOM, function, fence(row(SUM, *separated)))


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
            return _latex_name(parts[0])
        case "number":
            return _latex_number(parts[0])
        case "operator":
            return _sign(parts[0])
        case "word":
            return _WORDS.get(parts[0], _upright(parts[0]))
        case "fraction":
            return rf"\frac{{{latex(parts[0])}}}{{{latex(parts[1])}}}"
        case "power" if _is_half(parts[1]):
            return rf"\sqrt{{{latex(bare(parts[0]))}}}"
        case "power":
            return f"{_latex_base(_bare_call(parts[0]), 'index')}^{{{latex(parts[1]).strip()}}}"
        case "index":
            base, below = _flat_index(box)
            return f"{_latex_base(_bare_call(base), 'power').strip()}_{{{latex(below)}}}"
        case "fence":
            return _latex_fence(*parts)
        case "big":
            sign, below, inside = parts
            return rf"{_sign(sign).strip()}_{{{latex(below)}}} {latex(inside)}"
        case _:
            return _latex_row(parts)


def _sign(text: str) -> str:
    return _OPERATORS.get(text, text)


def _flat_index(box: Box) -> tuple[Box, Box]:
    """A base and all its indices: S_1,0 for the entry 0 of row 1 of S."""
    base, below = box.parts
    if base.kind != "index":
        return base, below
    inner, first = _flat_index(base)
    return inner, row(SUM, first, operator(","), below)


def _latex_name(text: str) -> str:
    if text.endswith("\u0304"):
        return rf"\bar{{{_latex_name(text[:-1])}}}"
    if len(text) == 1 or not text.isalpha():
        return _GREEK.get(text) or (text_latex(text) if len(text) > 1 else text)
    return _upright(text)


def _latex_number(text: str) -> str:
    digits, _, exponent = text.partition("e")
    if not exponent:
        return digits
    factor = "" if digits == "1" else rf"{digits} \cdot "
    return f"{factor}10^{{{int(exponent)}}}"


def _upright(text: str) -> str:
    return rf"\mathrm{{{text}}}"


def _code(text: str) -> str:
    """An argument's name, as it is typed."""
    escaped = text.replace("_", r"\_")
    return rf"\mathtt{{{escaped}}}"


def _latex_base(box: Box, other: str) -> str:
    """What a power or an index is written at, in braces unless TeX sees its end."""
    simple = box.kind in ("name", "number", "word", "operator", "fence", other)
    return latex(box) if simple else f"{{{latex(box)}}}"


def _latex_fence(left: str, inside: Box, right: str) -> str:
    opening, closing = _FENCES.get(left, (left, right))
    if _is_tall(inside):
        return rf"\left{opening.strip()} {latex(inside)} \right{closing.strip()}"
    return f"{opening}{latex(inside)} {closing.strip()}".replace(" )", ")").replace(" ]", "]")


def _latex_row(parts: tuple[Box, ...]) -> str:
    out = ""
    for position, part in enumerate(parts):
        following = parts[position + 1] if position + 1 < len(parts) else None
        named = part.kind == "word" and following == operator("=")
        out += _code(part.parts[0]) if named else latex(part)
        if not _is_close(position, part, following):
            out = out.rstrip() + " "
    return out.rstrip()


def _is_close(position: int, part: Box, following: Box | None) -> bool:
    """Whether LaTeX is easier to read without a space there: f(x), -1, (a, b)."""
    if part.kind == "operator":
        return position == 0 and part.parts[0] == "−"
    if following is None or following.kind == "operator":
        return following is not None and following.parts[0] in ",;"
    return following.kind == "fence" and part.kind in ("word", "name", "index", "fence")


def _is_tall(box: Box) -> bool:
    """Whether its parentheses must grow."""
    if box.kind in ("fraction", "big"):
        return True
    return any(isinstance(part, Box) and _is_tall(part) for part in box.parts)


def _is_half(box: Box) -> bool:
    return box == fraction(number(1), number(2))


def bare(box: Box) -> Box:
    """Without its parentheses."""
    if box.kind == "fraction":
        return Box("fraction", box.parts, PRODUCT)
    return box.parts[1] if box.kind == "fence" and box.parts[0] == "(" else box


def _bare_call(box: Box) -> Box:
    """chol(T) for (chol(T)): what is below or above it can belong to nothing else."""
    inside = bare(box)
    call = inside.kind == "row" and [p.kind for p in inside.parts] == ["word", "fence"]
    return inside if call and inside.parts[0] != word("log") else box


def mathml(box: Box) -> str:
    """The element's children; wrap them in <math>."""
    parts = box.parts
    match box.kind:
        case "name":
            return f"<mi>{escape(parts[0])}</mi>"
        case "number":
            return f"<mn>{escape(parts[0])}</mn>"
        case "operator":
            if parts[0] == "d":
                # MathML would put spaces around an operator.
                return '<mi mathvariant="normal">d</mi>'
            return f"<mo>{'⊤' if parts[0] == 'ᵀ' else escape(parts[0])}</mo>"
        case "word":
            return f'<mi mathvariant="normal">{escape(parts[0])}</mi><mo>&#x2061;</mo>'
        case "fraction":
            return f"<mfrac>{_mrow(parts[0])}{_mrow(parts[1])}</mfrac>"
        case "power" if _is_half(parts[1]):
            return f"<msqrt>{mathml(bare(parts[0]))}</msqrt>"
        case "power":
            return f"<msup>{_mrow(_bare_call(parts[0]))}{_mrow(parts[1])}</msup>"
        case "index":
            base, below = _flat_index(box)
            return f"<msub>{_mrow(_bare_call(base))}{_mrow(below)}</msub>"
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
            return "".join(map(_spaced, (None, *parts), parts))


def _spaced(before: Box | None, box: Box) -> str:
    """A box in a row, with the thin space around a function's name that browsers omit."""
    first = box
    while first.kind in ("row", "index"):
        first = first.parts[0]
    named = first.kind == "word" or first.parts == ("d",)
    if before is None or "operator" in (before.kind, "" if named else box.kind):
        return mathml(box)
    apart = named or (before.kind == "word" and box.kind != "fence")
    return ('<mspace width="0.17em"/>' if apart else "") + mathml(box)


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
            simple = parts[1].kind in ("name", "number")
            return plain(parts[0]) + (raised or f"^{exponent if simple else f'({exponent})'}")
        case "index":
            below = plain(parts[1])
            # What holds at a place: [f(x)]_(x = y).
            return f"{plain(parts[0])}_{f'({below})' if ' = ' in below else below}"
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


# ---- short texts ----------------------------------------------------------------------------

_TOKEN = re.compile(r"_?[A-Za-z]+|[0-9]+|_?\S")
_RAISED = {"²": "^{2}", "³": "^{3}", "ᵀ": r"^{\top}", "↦": r"\mapsto"}


def text_latex(text: str) -> str:
    """LaTeX of a short text such as KL(q‖p) or ∂KL/∂l at q = p."""
    out = ""
    for token in _TOKEN.findall(text):
        written = _token_latex(token)
        if written[:1] not in "^_,;)" and out[-1:] not in "(":
            out += " "
        out += written
    out = out.replace(r" } \text{ ", " ").replace(r" } a \text{ ", " a ")
    return out.replace("/ ", "/").replace(" (", "(").strip()


def _token_latex(token: str) -> str:
    if token.startswith("_") and len(token) > 1:
        return f"_{{{_token_latex(token[1:])}}}"
    if token in _RAISED:
        return _RAISED[token]
    if token in _WORDS:
        return _WORDS[token].strip()
    if len(token) == 1 or token.isdigit():
        known = _GREEK.get(token, token if token == "d" else _OPERATORS.get(token, token))
        return known.strip()
    if re.fullmatch("d[a-z]", token):
        return rf"\mathrm{{d}}{token[1]}"
    return rf"\text{{ {token} }}" if token.islower() else _upright(token)
