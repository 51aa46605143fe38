"""One HTML page of a derivation of two normals: a reader moves them and every line follows.

The page needs nothing but itself. Its script evaluates the lines from JavaScript that is
printed from the same trees that print the notation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from importlib import resources

import numpy as np

from kljax.derivations import expression as ex
from kljax.derivations import layout, naming
from kljax.derivations.derivation import Derivation, Step
from kljax.derivations.expectation import ExpectationOp, Route, log_normal
from kljax.derivations.expression import Constant, Expr, Op, Symbol

_INFIX: dict[Op, str] = {ex.add: "+", ex.subtract: "-", ex.multiply: "*", ex.divide: "/"}
_CALLS: dict[Op, str] = {
    ex.raise_to: "Math.pow",
    ex.log: "Math.log",
    ex.exp: "Math.exp",
    ex.expm1: "Math.expm1",
    ex.log1p: "Math.log1p",
    ex.sqrt: "Math.sqrt",
}
# What the library ships is not a tree; the page's script has it by hand.
_SHIPPED = {"kl_divergence(Normal(loc, scale), Normal(loc, scale))": "klNormal"}

_OWNERS = {"mu": "q", "sigma": "q", "nu": "p", "tau": "p"}


def javascript(x: Expr, names: Mapping[Symbol, str], route: Route) -> str:
    """A formula as a JavaScript expression; `names` are the variables of its symbols.

    Raises:
        NotImplementedError: if the formula has an operation that is not known there.
    """
    if isinstance(x, Symbol):
        return names[x]
    if isinstance(x, Constant):
        return f"({float(x.value)!r})"
    if x.op is log_normal:
        return javascript(log_normal.compute(*x.args), names, route)
    if isinstance(x.op, ExpectationOp) and x.op.base == "normal":
        return _expectation(x, x.op, names, route)
    arguments = [] if x.bound else [javascript(a, names, route) for a in x.args]
    if x.op in _INFIX:
        return f"({arguments[0]} {_INFIX[x.op]} {arguments[1]})"
    if x.op is ex.negative:
        return f"(-{arguments[0]})"
    function = _CALLS.get(x.op) or _SHIPPED.get(x.op.name)
    if function is None:
        raise NotImplementedError(f"no JavaScript is known for the operation {x.op.name!r}.")
    return f"{function}({', '.join(arguments)})"


def _expectation(x: Expr, op: ExpectationOp, names: Mapping[Symbol, str], route: Route) -> str:
    assert x.bound is not None
    variable = f"x{len(names)}"
    loc, scale = (javascript(a, names, route) for a in x.args[:2])
    body = javascript(x.args[2], {**names, x.bound: variable}, route)
    if op.integral or route.kind == "grid":
        return f"integral({loc}, {scale}, {variable} => {body})"
    nodes, weights = np.polynomial.hermite_e.hermegauss(max(3, route.nodes))
    rule = np.stack([nodes, weights / weights.sum()], 1).tolist()
    return f"expectation({rule}, {loc}, {scale}, {variable} => {body})"


def page(derivation: Derivation) -> str:
    """The page of a derivation whose parameters are mu, sigma, nu and tau.

    Raises:
        NotImplementedError: if it has other parameters, or a formula the page cannot evaluate.
    """
    if set(derivation.parameters) != set(_OWNERS):
        raise NotImplementedError(
            f"the page moves {', '.join(_OWNERS)}; the derivation {derivation.name!r} has "
            f"{', '.join(derivation.parameters)}."
        )
    parts = {
        "title": escape(derivation.title),
        "question": escape(derivation.question),
        "symbols": _symbols(derivation),
        "controls q": _controls(derivation, "q"),
        "controls p": _controls(derivation, "p"),
        "handles": _handles(derivation),
        "steps": "\n".join(_step(derivation, step) for step in derivation.steps),
        "generated": _script(derivation),
        **{f"math {name}": _math(box) for name, box in _small_formulas(derivation).items()},
    }
    template = resources.files("kljax.derivations").joinpath("page.html").read_text("utf-8")
    return re.sub(r"\{\{([\w ]+)\}\}", lambda match: parts[match[1]], template)


# ---- the script -----------------------------------------------------------------------------


def _script(derivation: Derivation) -> str:
    """Functions of the four parameters: the lines, the density and the integrand."""
    symbols = derivation.symbols()
    names = {symbol: key for key, symbol in symbols.items()}
    trees = [(s, naming.bare(derivation.tree(s, symbols))[0]) for s in derivation.steps]
    lines = [javascript(tree, names, step.route) for step, tree in trees]
    x, loc, scale = (ex.symbol(name) for name in ("x", "loc", "scale"))
    density = ex.exp(log_normal(x, loc, scale**2))
    first, definition = trees[0]
    if not isinstance(definition.op, ExpectationOp) or definition.bound is None:
        raise NotImplementedError("the first line of a page is an integral or an expectation.")
    names_there = {**names, definition.bound: "x"}
    log_ratio = javascript(definition.args[-1], names_there, first.route)
    arguments = ", ".join(symbols)
    return "\n".join(
        [
            "const density = (x, loc, scale) =>",
            f"  {javascript(density, {x: 'x', loc: 'loc', scale: 'scale'}, first.route)};",
            f"const logRatio = (x, {arguments}) =>",
            f"  {log_ratio};",
            "const lines = [",
            *(f"  ({arguments}) => {line}," for line in lines),
            "];",
        ]
    )


# ---- the text -------------------------------------------------------------------------------


def _math(box: layout.Box, display: str = "inline") -> str:
    return f'<math display="{display}">{layout.mathml(box)}</math>'


def _small_formulas(derivation: Derivation) -> dict[str, layout.Box]:
    """What the names of the terms and slopes stand for."""
    t = derivation.symbols()
    mu, sigma, nu, tau = t["mu"], t["sigma"], t["nu"], t["tau"]
    formulas = {
        "trace": sigma**2 / tau**2,
        "mahalanobis": (mu - nu) ** 2 / tau**2,
        "log det": ex.log(tau**2 / sigma**2),
        "slope mean": (mu - nu) / tau**2,
        "slope trace": sigma**2 / (2 * tau**2),
        "slope log det": ex.as_expr(-1 / 2),
        "slope both": (sigma**2 - tau**2) / (2 * tau**2),
    }
    return {name: ex.box(formula) for name, formula in formulas.items()}


def _symbols(derivation: Derivation) -> str:
    return "\n".join(
        f'<div class="{_OWNERS[key]}"><dt>{_math(layout.name(p.symbol))}</dt>'
        f"<dd>{escape(p.meaning)}</dd></div>"
        for key, p in derivation.parameters.items()
    )


def _controls(derivation: Derivation, owner: str) -> str:
    """A slider and a number box for each parameter of q or of p."""
    return "\n".join(
        f'<div class="control"><label for="{key}"><i>{escape(p.symbol)}</i> '
        f"<span>{escape(p.meaning)}</span></label>"
        f'<input type="range" id="{key}" data-key="{key}">'
        f'<input type="number" id="{key}-box" data-key="{key}" step="any" '
        f'inputmode="decimal" aria-label="{escape(p.meaning)}, as a number"></div>'
        for key, p in derivation.parameters.items()
        if _OWNERS[key] == owner
    )


def _handles(derivation: Derivation) -> str:
    """What can be dragged in the plot of the densities; q's lie on top, with p's around."""
    radius = {"q": 6, "p": 8.5}
    return "\n".join(
        f'<g class="handle {owner}" data-key="{key}" role="slider" tabindex="0" '
        f'aria-label="{escape(p.meaning)}"><circle class="reach" r="20"/>'
        f'<circle class="dot" r="{radius[owner]}"/></g>'
        for owner in ("p", "q")
        for key, p in derivation.parameters.items()
        if _OWNERS[key] == owner
    )


def _step(derivation: Derivation, step: Step) -> str:
    note = f'<p class="note">{escape(step.note)}</p>' if step.note else ""
    rule = f"<b>{escape(step.quantity)}</b>"
    if step.rule is not None:
        rule = f"<b>{escape(step.rule.name)}</b> {escape(step.rule.statement)}"
    formula = layout.row(
        layout.RELATION, layout.operator(step.relation), derivation.formula(step)
    )
    return (
        f'<li><p class="rule">{rule}</p>{note}'
        f'<div class="reading"><div class="formula" role="group" '
        f'aria-label="line {step.number}">{_math(formula, "block")}</div>'
        f'<span class="line" data-name="line-{step.number}"></span></div></li>'
    )
