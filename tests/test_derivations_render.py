"""Derivations as text: formulas parse, symbols are explained, failures can be mended."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import latex2mathml.converter
import numpy as np
import pytest

from kljax.derivations import catalogue, layout, mend, museum, naming, render, rules
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import SIGMA, normal
from kljax.derivations.expression import box, exp, log, stop_gradient, symbol
from kljax.derivations.parameters import positive, real
from kljax.derivations.verify import Failure, LineReport, Report, Trees

# What GitHub's MathJax and KaTeX both know; \operatorname is forbidden on GitHub.
MACROS = {
    rf"\{name}"
    for names in (
        "frac sqrt left right mathbb mathcal mathrm mathtt text thinspace _ lvert rvert lVert",
        "rVert lbrace rbrace log exp det sin cos max min cdot times circ otimes parallel mid",
        "ge le approx partial nabla int sum top dots mapsto alpha beta gamma delta varepsilon",
        "zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon varphi chi psi",
        "omega Gamma Delta Omega Lambda Sigma Phi ell bar",
    )
    for name in names.split()
}
DERIVATIONS = [catalogue.get(name) for name in catalogue.NAMES]


@pytest.fixture(params=DERIVATIONS, ids=lambda d: d.name)
def derivation(request) -> Derivation:
    return request.param


# ---- formulas -------------------------------------------------------------------------------


def test_latex_parses(derivation):
    for step in derivation.steps:
        latex = derivation.latex(step)
        assert set(re.findall(r"\\(?:[A-Za-z]+|.)", latex)) <= MACROS, latex
        # Raises for an unbalanced brace, \left without \right, or two indices at one base.
        ElementTree.fromstring(latex2mathml.converter.convert(latex))
    for definition in derivation.definitions():
        latex = layout.latex(definition)
        assert set(re.findall(r"\\(?:[A-Za-z]+|.)", latex)) <= MACROS, latex
        ElementTree.fromstring(latex2mathml.converter.convert(latex))


@pytest.mark.parametrize("mistake", museum.MISTAKES, ids=lambda m: m.name)
def test_latex_of_the_museum_parses(mistake):
    latex = layout.latex(box(mistake.line()))
    assert set(re.findall(r"\\(?:[A-Za-z]+|.)", latex)) <= MACROS, latex
    ElementTree.fromstring(latex2mathml.converter.convert(latex))


def test_names_are_defined_once_and_before_they_are_used(derivation):
    known = {p.symbol for p in derivation.parameters.values()}
    symbols = derivation.symbols()
    found = naming.definitions(derivation.tree(step, symbols) for step in derivation.steps)
    for op in found:
        assert op.name not in known
        used = {x.op.name for x in render._nodes(op.right) if isinstance(x.op, naming.NameOp)}
        assert used <= known
        known.add(op.name)
    text = "\n".join(render._symbols(derivation, 10_000).splitlines())
    for op in found:
        assert text.count(f"  {layout.plain(op.equation())}") == 1


def test_mathml_is_well_formed(derivation):
    arity = {"mfrac": 2, "msup": 2, "msub": 2, "munder": 2}
    for step in derivation.steps:
        root = ElementTree.fromstring(f"<math>{layout.mathml(derivation.formula(step))}</math>")
        for element in root.iter():
            assert len(element) == arity.get(element.tag, len(element))
            leaf = element.tag in ("mi", "mn", "mo")
            assert not leaf or (element.text and not len(element))


def test_plain_text_has_balanced_brackets(derivation):
    for step in derivation.steps:
        text = layout.plain(derivation.formula(step))
        for left, right in ("()", "[]"):
            assert text.count(left) == text.count(right), text


def test_every_symbol_is_explained(derivation):
    assert render.undefined(derivation) == set()
    assert all(meaning for _, meaning in render.glossary(derivation))


def test_a_symbol_without_meaning_is_found():
    d = _mine()
    d.parameters = {**d.parameters, "mu": d.parameters["mu"]._replace(symbol="?")}

    @d.step(rules.rearrange)
    def _(E, t):
        return E(lambda x: x) + 0 * t.mu

    assert render.undefined(d) == set()
    name = layout.name("ζ")
    object.__setattr__(d.steps[-1], "function", lambda *_: _named(name))
    assert render.undefined(d) == {"ζ"}


def _named(box):
    from kljax.derivations import expression as ex

    return ex.Expr(ex.Op("odd", lambda: None, lambda: box), ())


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("KL(q‖p)", r"\mathrm{KL}(q \parallel p)"),
        ("∂²KL/∂m² at q = p", r"\partial^{2} \mathrm{KL} /\partial m^{2} \text{ at } q = p"),
        ("log p(x)", r"\log p(x)"),
        ("E_q[x]ᵀ", r"\mathbb{E}_{q} [ x ]^{\top}"),
    ],
)
def test_short_texts(text, latex):
    assert layout.text_latex(text) == latex


def test_latex_details():
    base = layout.index(layout.index(layout.name("S"), layout.number(1)), layout.number(0))
    assert layout.latex(base) == "S_{1, 0}"
    half = layout.fraction(layout.number(1), layout.number(2))
    assert layout.latex(layout.power(base, half)) == r"\sqrt{S_{1, 0}}"
    assert layout.latex(layout.number(1e-6)) == "10^{-6}"
    assert layout.latex(layout.number(2.5e-7)) == r"2.5 \cdot 10^{-7}"


@pytest.mark.parametrize("width", [30, 60, 100])
def test_wrapped_formulas_lose_nothing(derivation, width):
    for step in derivation.steps:
        whole = render.equation(derivation, step)
        lines = render.equation(derivation, step, width).splitlines()
        assert "".join(lines).replace(" ", "") == whole.replace(" ", "")
        signs = [
            s for line in lines if len(line) > width for s in (" + ", " − ", ", ") if s in line
        ]
        assert not signs or width < 60


# ---- names ----------------------------------------------------------------------------------


def _with_a_name(change=lambda ratio: ratio) -> Derivation:
    d = _mine()

    @d.step(rules.rearrange)
    def _(E, t):
        ratio = naming.named("r", t.sigma**2 / t.tau**2)
        square = naming.named("s", lambda x, y: (x - y) ** 2, t.mu, t.nu) / t.tau**2
        return (change(ratio) - 1 - log(ratio) + square) / 2

    return d


def test_a_name_stands_for_a_part():
    d = _with_a_name()
    assert render.equation(d, d.steps[-1]) == "= (r − 1 − log r + s(μ, ν)/τ²)/2"
    assert [layout.plain(box) for box in d.definitions()] == [
        "r = σ²/τ²",
        "s(x, y) = (x − y)²",
    ]
    assert ("y", "argument of s(x, y)") in render.glossary(d)
    assert naming.named("r", 2.0) == 2.0
    assert naming.named("r", lambda x: x + 1, 2.0) == 3.0


def test_mutants_and_repairs_reach_under_a_name():
    trees = Trees(_with_a_name())
    assert repr(trees.lines[-1]) == "(σ²/τ² − 1 − log (σ²/τ²) + (μ − ν)²/τ²)/2"
    # What was not altered keeps its name.
    line, names = trees.lines[-1], trees.names[-1]
    assert repr(naming.spelled(line, names)) == "(r − 1 − log r + s(μ, ν)/τ²)/2"
    repairs = mend.repairs(_with_a_name(lambda ratio: 2 * ratio), 5)
    assert "(r − 1 − log r + s(μ, ν)/τ²)/2" in [repr(repair.tree) for repair in repairs]


def test_a_name_for_two_formulas_is_refused():
    d = _with_a_name()

    @d.step(rules.rearrange)
    def _(E, t):
        return naming.named("r", t.sigma / t.tau)

    with pytest.raises(ValueError, match="'r' stands for two formulas: r = σ²/τ² and r = σ/τ"):
        d.definitions()


def test_signs_stand_in_front():
    x = symbol("x")
    assert repr(-1 / (2 * x)) == "−1/(2 x)"
    assert repr(-x / 2 + -x) == "−x/2 + (−x)"
    assert repr(3 - -2 * x) == "3 − (−2 x)"
    assert repr(exp(log(x / 2))) == "x/2"


# ---- numbers --------------------------------------------------------------------------------


def test_numbers():
    assert render.number(-1 / 3) == "−0.333333333333"
    assert render.number(np.array([[1.0, 2.5], [0.0, -1.0]])) == "[[1, 2.5], [0, −1]]"
    assert [render.error(x) for x in (None, 0.0, 2.3e-16, 4e2)] == ["", "0", "2e-16", "4e+2"]
    assert [render.bound(x) for x in (0.0, 2.3e-16, 1e-3)] == ["0", "1e-15", "1e-3"]


# ---- what failed ----------------------------------------------------------------------------


def _mine(change=lambda t, a, b: log(t.tau / t.sigma) - a + b) -> Derivation:
    """Five lines; `change` writes the third from its two expectations."""
    d = Derivation(
        name="mine",
        title="Mine",
        question="How far apart are they?",
        parameters={
            "mu": real("μ", "mean of q"),
            "sigma": positive("σ", "standard deviation of q"),
            "nu": real("ν", "mean of p"),
            "tau": positive("τ", "standard deviation of p"),
        },
        partners={"mu": "nu", "sigma": "tau"},
        law=lambda t: normal(t.mu, t.sigma),
    )

    @d.start("KL(q‖p)")
    def _(E, t):
        q, p = normal(t.mu, t.sigma), normal(t.nu, t.tau)
        return E(lambda x: q.log_density(x) - p.log_density(x))

    @d.step(rules.log_ratio, route=SIGMA)
    def _(E, t):
        own, other = (x_minus(t.mu, t.sigma), x_minus(t.nu, t.tau))
        return E(lambda x: log(t.tau / t.sigma) - own(x) + other(x))

    @d.step(rules.linearity)
    def _(E, t):
        return change(t, E(x_minus(t.mu, t.sigma)), E(x_minus(t.nu, t.tau)))

    @d.step(rules.variance, route=SIGMA)
    def _(E, t):
        return log(t.tau / t.sigma) - 1 / 2 + E(x_minus(t.nu, t.tau))

    @d.step(rules.variance)
    def _(E, t):
        square = t.sigma**2 + (t.mu - t.nu) ** 2
        return log(t.tau / t.sigma) - 1 / 2 + square / (2 * t.tau**2)

    return d


def x_minus(loc, scale):
    return lambda x: (x - loc) ** 2 / (2 * scale**2)


def _lines(d: Derivation) -> tuple[LineReport, ...]:
    return tuple(
        LineReport(s.number, 1e-16, 1e-15, 1e-14, None, None, 0.3, np.float64(1.25))
        for s in d.steps
    )


def _report(d: Derivation, *found: tuple) -> Report:
    return Report(d, _lines(d), tuple(Failure(*f) for f in found))


def test_nothing_failed_nothing_said():
    assert render.failures(_report(_mine())) == ""


def test_a_wrong_sign_can_be_mended_from_the_report():
    d = _mine(lambda t, a, b: log(t.tau / t.sigma) + a + b)
    found = (
        (2, "value", 1, "", "generic 2", 1.25, 0.25, 1.0),
        (3, "value", 2, "", "q = p", 0, 1, 1),
    )
    text = render.failures(_report(d, *found))
    assert "mine, line 2 (linearity of the expectation)" in text
    assert "at the point 'generic 2' it is 1.25, and 0.25 in line 1" in text
    assert "The point 'generic 2' is μ = " in text
    assert render.equation(d, d.steps[1]) in text
    assert render.equation(d, d.steps[2]) in text
    assert "→  = log (τ/σ) − E_q[(x − μ)²/(2 σ²)] + E_q[(x − ν)²/(2 τ²)]" in text
    # The line after the mistake is right, and the report says so.
    assert "mine, line 3 (second central moment):\n  It agrees with the definition" in text


def test_a_lost_derivative_is_named():
    d = _mine(lambda t, a, b: log(t.tau / stop_gradient(t.sigma)) - a + b)
    text = render.failures(_report(d, (2, "gradient", 1, "σ", "generic 1", 0.5, -0.5, 1.0)))
    assert "Gradient by σ" in text
    assert "The values agree: a derivative by σ is lost" in text
    assert "→  = log (τ/σ) − E_q[(x − μ)²/(2 σ²)] + E_q[(x − ν)²/(2 τ²)]" in text
    assert "times −1: look for a sign" in text


def test_a_right_line_needs_no_mending():
    repairs = mend.repairs(_mine(), 2)
    assert all("1.01" not in m.now for m in repairs)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ((2, "Hessian", 1, "σ, σ", "q = p", 2.0, 1.0, 1.0), "Values and gradients agree"),
        ((2, "Hessian", 1, "σ, σ", "q = p", 2.0, 1.0, 1.0), "times 2: look for a factor"),
        ((2, "value", 1, "", "q = p", 1.5, 1.0, 0.5), "1/2 more than line 1"),
        ((2, "pointwise", 1, "", "q = p", np.nan, np.nan, 0.1), "agree under this expectation"),
        ((2, "sampled", 2, "", "generic 1", np.nan, 1.0, 9.5), "9.5 standard errors"),
        ((2, "rule", 2, "", "linearity", 0.5, 0.0, 0.5), "The rule is false"),
        ((2, "bound", 1, "", "q = p", 2.0, 1.0, 0.5), "more than the 1 of line 1"),
        ((4, "value", 0, "", "q = p", 2.0, 1.0, 0.5), "follows from line 3 and inherits"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[1],
)
def test_every_check_has_its_sentence(failure, said):
    assert said in " ".join(render.failures(_report(_mine(), failure)).split())


# ---- the walk, the tables, the page ---------------------------------------------------------


def test_a_line_that_proves_nothing_is_marked():
    d = _mine()
    copies = tuple(line._replace(same_bits=1.0) for line in _lines(d))
    text = render.terminal(d, Report(d, copies, ()))
    assert text.count("same bits everywhere: proves nothing") == 4
    assert "proves nothing" not in render.terminal(d, _report(d))


def test_the_walk_has_everything():
    d = _mine()
    text = render.terminal(d, _report(d), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for parameter in d.parameters.values():
        assert re.search(rf"^  {parameter.symbol} +{parameter.meaning}$", text, re.MULTILINE)
    for step in d.steps[1:]:
        assert step.rule.name in text
    assert text.count("1.25") == 5
    assert "\x1b" not in text
    assert "\x1b[1m" in render.terminal(d, _report(d), color=True)


def test_the_table_names_the_verdict():
    d = _mine()
    wrong = _report(d, (2, "value", 1, "", "q = p", 2.0, 1.0, 0.5))
    rows = render.table([_report(d), wrong]).splitlines()
    assert rows[0].split()[:2] == ["derivation", "lines"]
    assert rows[1].split()[-1] == "ok"
    assert rows[2].split()[-2:] == ["1", "failed"]
    assert rows[3].split()[0] == "allowed"


def test_markdown_shows_without_a_site_builder(derivation):
    report = Report(derivation, _lines(derivation), ())
    kills = {"sign": {"mutants": 3, "seen": 3, "value": 2}}
    text = render.markdown(derivation, report, kills)
    blocks = re.findall(r"^```math\n(.+)\n```$", text, re.MULTILINE)
    definitions = [layout.latex(box) for box in derivation.definitions()]
    assert blocks == definitions + [derivation.latex(step) for step in derivation.steps]
    assert not re.search(r"<[a-zA-Z/]", text)
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1, table


def test_a_notebook_shows_the_derivation(derivation):
    text = derivation._repr_markdown_()
    assert text.startswith(f"### {derivation.title}")
    assert text.count("$$") == 2 * len(derivation.steps + derivation.definitions())
