"""Writes docs/derivations: a page and a figure for every derivation, and the index.

python docs/make_derivations.py               checks everything anew: minutes
python docs/make_derivations.py univariate    checks these anew
python docs/make_derivations.py --text        rewrites the pages from the stored numbers
python docs/make_derivations.py --check       exit status 1 if a page is not what it would write
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kljax.derivations import catalogue, check, layout, museum, render
from kljax.derivations import expression as ex
from kljax.derivations.derivation import Derivation
from kljax.derivations.kill import kill_table
from kljax.derivations.verify import LineReport, Report, verify

FOLDER = Path(__file__).parent / "derivations"
MEASURED = FOLDER / "measured.json"

INDEX = """\
# Why the formulas are true

A derivation begins at a definition and ends at the function that the library runs. Every line
is one Python function. The page prints it as mathematics, JAX evaluates and differentiates it,
and the checks alter it to see whether they would notice; nothing is written twice.

```sh
kljax derive                # lists them
kljax derive univariate     # walks through one, line by line
kljax verify                # checks all
kljax verify --mutants      # and alters every line at every place
```

{table}

The columns are the largest errors over all lines of a derivation.

## How to read the tables

Two lines that are equal have the same value, the same gradient and the same Hessian by every
parameter, wherever they are evaluated. So each line is compared with the one before it and with
the definition, in float64, at random points and at named hard ones: q = p, q near p, far apart,
matrices with a condition of 1e4.

| column | what it says |
|---|---|
| number | the line at one and the same point: it does not change down the page |
| value | largest relative error of the value; at most {value} is allowed |
| gradient | largest error of the derivative by any parameter; at most {gradient} |
| Hessian | largest error of any second derivative; at most {hessian} |
| pointwise | the same with every expectation replaced by the value at a point; {hessian} |
| sampled | standard errors between the line and means of random draws; at most {z} |
| same bits | share of the points where both lines agree in every bit |

Algebra under an expectation must hold at every single point, whatever the expectation is; that
is the column *pointwise*. Lines that agree in all bits everywhere would be one computation done
twice, which proves nothing. Errors are rounded up to a power of ten. A point where a line is
not differentiable is named below its table, with the reason.

Expectations are not sampled, except in the column that says so. The logarithm of the ratio of
two Gaussians is a quadratic, and a few well-chosen points integrate it exactly; lines next to
each other use different points wherever they can, so that an error cannot be on both sides.

Agreement at random points to fifteen digits, at three orders of derivative, is strong evidence
and not a proof. How strong is counted: {seen} of {altered} formulas with one mistake each were
seen by at least one check, and {proved} are the same formula in another form.

People made real mistakes in these formulas: [a museum of them](museum.md), each with the checks
that see it. And a formula of yours is derived and checked in the same way:
[a derivation of your own](your-own.md).
"""

MUSEUM = """\
# A museum of mistakes

{count} formulas of KL(q‖p) for independent coordinates that people published, used or asked
about. The right one is

```math
{right}
```

with the means μ and ν and the standard deviations σ and τ of q and p, and with k coordinates.
In the wrong ones clip(a, −1, 1) is a inside of the interval and its nearer end outside,
max(a, b) the larger of both, and sg(a) is a without a derivative.

Value, gradient and Hessian are what `kljax verify` compares. The last three columns are what
people check instead: that it is 0 at q = p, that it is never negative, and that it agrees with
samples within 10 %. Each of these lets some mistakes through.

{table}

{mistakes}

---

`kljax verify --mutants` prints the table; the formulas are in
[museum.py](../../kljax/derivations/museum.py).

[all derivations](README.md)
"""

OWN = """\
# A derivation of your own

A family of yours, its closed form, and the derivation that ends in it: one file.

```python
{code}```

A line is a function of an expectation `E` and the parameters `t`. What it may contain is in
`kljax.derivations.words`: functions (`log`, `exp`, ...), vectors and matrices (`dot`, `tr`,
`inv`, `sum_over`, ...), laws (`normal`, `gaussian`, `exponential`, `uniform`, `finite`, ...)
and routes, which say how a line's expectations are computed: a few nodes that are exact for
polynomials (`CUBATURE`, the default; `cubature(n)` for polynomials of degree 2 n − 1), or a
fine grid (`GRID`). `named("W", ...)` gives a part of a formula a name. Parameters come from
`kljax.derivations.parameters`.

A rule says what allows a step. Many are in `kljax.derivations.rules`; one of your own needs a
name, a statement, a kind, a source, and a function that evaluates both of its sides on random
numbers, so that a false rule is found before any line that cites it. Its kind is `algebra` if
it holds at every single point, so under any expectation, and `moment` if it is about the law
at hand; algebra is then tested at single points too.

The last line is `shipped_kl`: what users of the library will call.

## One line of pytest

```python
import kljax.derivations
from own_family import d


def test_exponential():
    kljax.derivations.check(d)
```

It compares value, gradient and Hessian of every line with the line before and with the
definition, in float64, at random points and at hard ones. Then it alters every line at every
place, {altered} formulas with one mistake each, and fails if one goes unseen. An altered
formula that is the same one is listed in `Derivation(same=...)`, with the proof. In a notebook,
`d` shows itself.

## A mistake, and how to find it

Let the third line have a wrong sign:

```python
{wrong}```

The test then says

```text
{report}
```

Read it from the top. Line 2, and no line before it, is wrong; line 3 follows from it, agrees
with the definition, and so is right. It is wrong in its value already, so it is not a lost
derivative, and wrong at a single point too, so no moment was used too early. Both lines are
printed one below the other: they differ in the sign before (λ − κ). And each change that
makes line 2 follow is listed: the second is what was meant, the others are the same sign in
another place. With that sign mended, the test passes.

[all derivations](README.md)
"""
OWN_CODE = Path(__file__).parent / "own_family.py"
OWN_KEY = "your-own"


def own_wrong(code: str) -> tuple[str, str]:
    """The third line with a wrong sign, and the file with it."""
    right = next(step for step in code.split("\n\n\n") if "rules.linearity" in step)
    wrong = right.replace(" - (t.rate", " + (t.rate") + "\n"
    return wrong, code.replace(right + "\n", wrong)


def own_report() -> dict[str, Any]:
    """What is said about the wrong file, and how many mutants the right one has."""
    code = OWN_CODE.read_text()
    right, wrong = ({"__name__": "own_family"} for _ in range(2))
    exec(code, right)
    exec(own_wrong(code)[1], wrong)
    try:
        check(wrong["d"])
    except AssertionError as said:
        return {"report": str(said).strip(), "altered": len(kill_table(right["d"]).fates)}
    raise SystemExit("the wrong sign in docs/own_family.py went unseen.")


def measured() -> dict[str, Any]:
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}


def measure(derivation: Derivation) -> dict[str, Any]:
    """Checks a derivation and returns what the pages show, rounded to what they show."""
    report = verify(derivation)
    if not report.ok:
        raise SystemExit(render.failures(report))
    return {
        "lines": [_stored(line) for line in report.lines],
        "kills": render.kills_of(kill_table(derivation)),
    }


def _stored(line: LineReport) -> dict[str, Any]:
    rounded = {
        key: None if value is None else float(f"{value:.0e}")
        for key, value in line._asdict().items()
        if key in ("value", "gradient", "hessian", "pointwise")
    }
    return {
        **rounded,
        "z": None if line.z is None else round(line.z, 1),
        "same_bits": None if line.same_bits is None else round(line.same_bits, 2),
        "example": json.loads(json.dumps(_rounded(line.example))),
    }


def _rounded(x: Any) -> Any:
    x = np.asarray(x)
    return [_rounded(row) for row in x] if x.ndim else float(f"{float(x):.11g}")


def report_of(derivation: Derivation, stored: dict[str, Any]) -> Report:
    """The report behind stored numbers.

    Raises:
        ValueError: if the derivation has more or fewer lines than were measured.
    """
    if len(stored["lines"]) != len(derivation.steps):
        raise ValueError(
            f"{derivation.name} has {len(derivation.steps)} lines and {len(stored['lines'])} "
            f"were measured; run python docs/make_derivations.py {derivation.name}."
        )
    lines = tuple(
        LineReport(step=n, **{**line, "example": np.asarray(line["example"])})
        for n, line in enumerate(stored["lines"])
    )
    return Report(derivation, lines, ())


def pages(numbers: dict[str, Any]) -> dict[str, str]:
    """File names and texts of all pages that were measured."""
    names = [name for name in catalogue.NAMES if name in numbers]
    reports = {name: report_of(catalogue.get(name), numbers[name]) for name in names}
    out = {}
    for name, report in reports.items():
        # The captions are with the figures, which need matplotlib; they are stored.
        caption = numbers[name].get("figure")
        figure = (f"{name}.svg", caption) if caption else None
        text = render.markdown(report.derivation, report, numbers[name]["kills"], figure)
        out[f"{name}.md"] = text + _links(name, names)
    out["museum.md"] = _museum()
    if OWN_KEY in numbers:
        code = OWN_CODE.read_text()
        out["your-own.md"] = OWN.format(code=code, wrong=own_wrong(code)[0], **numbers[OWN_KEY])
    out["README.md"] = _index(list(reports.values()), numbers)
    return out


def _links(name: str, names: list[str]) -> str:
    """The foot of a page: how to run it, and the pages beside it."""
    place = names.index(name)
    links = ["[all derivations](README.md)"]
    if place:
        links.insert(0, f"[← {catalogue.get(names[place - 1]).title}]({names[place - 1]}.md)")
    if place + 1 < len(names):
        links.append(f"[{catalogue.get(names[place + 1]).title} →]({names[place + 1]}.md)")
    code = f"`kljax derive {name}` tells it in a terminal; its source is "
    source = f"../../kljax/derivations/catalogue/{name}.py"
    return f"\n---\n\n{code}[{name}.py]({source}).\n\n{' · '.join(links)}\n"


def _museum() -> str:
    sightings = museum.visit()
    return MUSEUM.format(
        count=len(sightings),
        right=layout.latex(ex.box(museum.RIGHT.line())),
        table=render.grid(*render.museum_rows(sightings)),
        mistakes="\n\n".join(_mistake(s.mistake) for s in sightings),
    )


def _mistake(mistake: museum.Mistake) -> str:
    where = "Common." if mistake.where == "common" else f"Seen at {mistake.where}."
    links = [
        f"[{catalogue.get(name).title}]({name}.md)"
        for name in catalogue.NAMES
        if mistake.name in catalogue.get(name).mistakes
    ]
    formula = f"```math\n{layout.latex(ex.box(mistake.line()))}\n```"
    return f"## {mistake.name}\n\n{formula}\n\n{mistake.effect} {where}\n\n{' · '.join(links)}"


def _index(reports: list[Report], numbers: dict[str, Any]) -> str:
    kills = {
        report.derivation.name: numbers[report.derivation.name]["kills"] for report in reports
    }
    rows = [row for kinds in kills.values() for row in kinds.values()]

    def total(key: str) -> str:
        return f"{sum(row.get(key, 0) for row in rows):,}"

    limits = [render.error(x) for x in render.TOLERANCE.values()]
    return INDEX.format(
        table=render.markdown_table(reports, kills),
        **dict(zip(("value", "gradient", "hessian"), limits, strict=True)),
        z=f"{render.Z_LIMIT:.0f}",
        altered=total("mutants"),
        seen=total("seen"),
        proved=total("proved"),
    )


def stale(numbers: dict[str, Any]) -> list[str]:
    """Names of the pages that differ from what would be written, and of those left over."""
    wanted = pages(numbers)
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    changed = [name for name, text in wanted.items() if written.get(name) != text]
    return sorted(changed + [name for name in written if name not in wanted])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--text", action="store_true", help="use the stored numbers")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    numbers = measured()
    if options.check:
        changed = stale(numbers)
        print("\n".join(f"docs/derivations/{name} is stale." for name in changed))
        return bool(changed)
    import derivation_figures as figures

    FOLDER.mkdir(exist_ok=True)
    for name in options.names or catalogue.NAMES:
        if not options.text:
            print(f"{name} ...", file=sys.stderr, flush=True)
            numbers[name] = measure(catalogue.get(name))
        if name in figures.FIGURES and name in numbers:
            numbers[name]["figure"] = figures.FIGURES[name][1]
            figures.write(name, FOLDER)
    if not options.text or OWN_KEY not in numbers:
        numbers[OWN_KEY] = own_report()
    numbers = {name: numbers[name] for name in (*catalogue.NAMES, OWN_KEY) if name in numbers}
    MEASURED.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    for name, text in pages(numbers).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
