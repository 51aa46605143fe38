"""A derivation: lines, each a plain function with the rule that gives it from the line before.

d = Derivation(name="...", parameters={...}, law=lambda t: normal(t.mu, t.sigma))

@d.start("KL(q‖p)")
def _(E, t):
    return E(lambda x: ...)

@d.step(rules.linearity, route=SIGMA)
def _(E, t):
    return ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from kljax.derivations import expression as ex
from kljax.derivations import layout, naming, parameters
from kljax.derivations.expectation import CUBATURE, Law, Route, Symbolic
from kljax.derivations.expression import Expr, Symbol
from kljax.derivations.parameters import Parameter, Points
from kljax.derivations.rules import Rule

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Same(NamedTuple):
    """Mutants of a line that are the same formula, with the proof.

    Attributes:
        step: number of the line.
        was: the part that may be altered.
        inside: how the text of what is around it begins: an expectation, sum or gradient, or
            "the law of" an expectation.
        proof: why it does not matter.
        kind: the kind of mutant, or an empty string for any.
    """

    step: int
    was: str
    inside: str
    proof: str
    kind: str = ""


class Form(NamedTuple):
    """A closed form of the library that a derivation ends in.

    Attributes:
        q: name of the family of the first argument.
        p: name of the family of the second argument.
    """

    q: str
    p: str


@dataclass(frozen=True, eq=False)
class Step:
    """A line of a derivation.

    Attributes:
        number: its place, from 0.
        rule: what gives it from the line before; None for a first line.
        function: (E, t) to the value of the line.
        route: where the line's expectations are evaluated.
        relation: `=`, or `≥` if the line before is at least this one.
        quantity: for a first line, what it is the definition of.
        note: a sentence for the reader.
        skip: names of points where the line is not differentiable, with the reason.
        shipped: whether the line is a function of the library.
        sampled: whether its expectations can be replaced by means of draws.
        restates: name of the derivation whose line this is, if it is another's.
        at_points: whether the step holds with every expectation a value at any one point.
    """

    number: int
    rule: Rule | None
    function: Callable[[Any, Any], Any]
    route: Route
    relation: str = "="
    quantity: str = ""
    note: str = ""
    skip: dict[str, str] = field(default_factory=dict)
    shipped: bool = False
    sampled: bool = True
    restates: str = ""
    at_points: bool = False


@dataclass(eq=False)
class Derivation:
    """A chain of steps from a definition to a formula.

    Attributes:
        name: what the command line calls it.
        title: a line.
        question: what it answers, in plain words.
        parameters: by the names that the steps use.
        law: parameters to the law that E is under.
        partners: which parameter of q goes with which of p, for the points where q is p.
        ends_in: closed forms of the library that its last lines are.
        notation: meanings of symbols that are not parameters, where the usual one does not fit.
        answer: what was shown, in plain words.
        mistakes: names of frequent mistakes that belong here (see `museum`).
        generic: how many generic points are tried.
        far: how far apart the places are at the point of that name.
        same: mutants that are the same formula, with the proof.
    """

    name: str
    title: str
    question: str
    parameters: dict[str, Parameter]
    law: Callable[[Any], Law]
    partners: dict[str, str] = field(default_factory=dict)
    ends_in: tuple[Form, ...] = ()
    notation: dict[str, str] = field(default_factory=dict)
    answer: str = ""
    mistakes: tuple[str, ...] = ()
    generic: int = 12
    far: float = 20.0
    same: tuple[Same, ...] = ()
    steps: list[Step] = field(default_factory=list)

    # ---- writing ----------------------------------------------------------------------------

    def start(
        self,
        quantity: str,
        *,
        route: Route = CUBATURE,
        note: str = "",
        sampled: bool = True,
        restates: str = "",
    ) -> Callable[[_Function], _Function]:
        """A first line: the definition of a quantity. A derivation may have several parts.

        Args:
            quantity: what is defined.
            route: where its expectations are evaluated.
            note: a sentence for the reader.
            sampled: whether its expectations can be replaced by means of draws.
            restates: name of a derivation whose line this is, differentiated perhaps; its
                mistakes are tried there.
        """
        options = {"route": route, "note": note, "sampled": sampled, "restates": restates}
        return self._add(None, quantity=quantity, **options)

    def step(
        self,
        rule: Rule,
        *,
        route: Route = CUBATURE,
        note: str = "",
        skip: dict[str, str] | None = None,
        sampled: bool = True,
        pointwise: bool = False,
    ) -> Callable[[_Function], _Function]:
        """A line that the rule makes equal to the one before.

        Args:
            rule: what allows the step.
            route: where the line's expectations are evaluated.
            note: a sentence for the reader.
            skip: names of points where the line is not differentiable, with the reason.
            sampled: whether its expectations can be replaced by means of draws.
            pointwise: whether the step holds at every single point also where its rule is
                not one of algebra.
        """
        options = {"route": route, "note": note, "sampled": sampled, "skip": skip or {}}
        return self._add(rule, at_points=pointwise or rule.pointwise, **options)

    def bound(
        self, rule: Rule, *, route: Route = CUBATURE, note: str = "", sampled: bool = True
    ) -> Callable[[_Function], _Function]:
        """A line that is at most the one before."""
        return self._add(rule, route=route, relation="≥", note=note, sampled=sampled)

    def shipped(self, rule: Rule, *, note: str = "") -> Callable[[_Function], _Function]:
        """A line that is a function of the library."""
        return self._add(rule, route=CUBATURE, note=note, shipped=True)

    def _add(self, rule: Rule | None, **options: Any) -> Callable[[_Function], _Function]:
        def add(function: _Function) -> _Function:
            self.steps.append(Step(len(self.steps), rule, function, **options))
            return function

        return add

    # ---- reading ----------------------------------------------------------------------------

    def symbols(self) -> dict[str, Symbol]:
        """A symbol for every parameter."""
        return {
            key: ex.symbol(p.symbol, symmetric=p.symmetric)
            for key, p in self.parameters.items()
        }

    def tree(self, step: Step, symbols: dict[str, Symbol]) -> Expr:
        """A line as a tree."""
        t = SimpleNamespace(**symbols)
        return ex.as_expr(step.function(Symbolic(self.law(t)), t))

    def formula(self, step: Step) -> layout.Box:
        """A line as notation."""
        return ex.box(self.tree(step, self.symbols()))

    def definitions(self) -> list[layout.Box]:
        """What the names in the lines stand for, each after those that it uses."""
        symbols = self.symbols()
        trees = (self.tree(step, symbols) for step in self.steps)
        return [op.equation() for op in naming.definitions(trees)]

    def points(self, generic: int | None = None, *, seed: int = 0) -> Points:
        """Where the lines are compared."""
        count = self.generic if generic is None else generic
        return parameters.points(
            self.parameters, self.partners, count, far_factor=self.far, seed=seed
        )

    def parts(self) -> list[list[Step]]:
        """The steps, cut at every first line."""
        out: list[list[Step]] = []
        for step in self.steps:
            if step.rule is None:
                out.append([])
            out[-1].append(step)
        return out

    def latex(self, step: Step) -> str:
        """A line as LaTeX, with what it is the definition of or how it follows."""
        left = f"{layout.text_latex(step.quantity)} = " if step.rule is None else ""
        sign = "" if left else {"=": "= ", "≥": r"\ge "}[step.relation]
        return left + sign + layout.latex(self.formula(step))

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        meaning = [f"- {p.symbol}: {p.meaning}" for p in self.parameters.values()]
        lines = [f"### {self.title}", self.question, "\n".join(meaning)]
        lines += [f"$$\n{layout.latex(box)}\n$$" for box in self.definitions()]
        for step in self.steps:
            if step.rule is not None:
                lines.append(f"{step.number}. **{step.rule.name}.** {step.rule.statement}")
            lines.append(f"$$\n{self.latex(step)}\n$$")
            if step.note:
                lines.append(step.note)
        return "\n\n".join([*lines, self.answer]).strip()
