"""The command line.

`kljax derive` tells why a formula is true, `kljax verify` checks it, `kljax evaluate` computes
divergences of the distributions in files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# What costs time to import is imported by the command that needs it.
if TYPE_CHECKING:
    from kljax.derivations.derivation import Derivation
    from kljax.derivations.kill import KillTable
    from kljax.derivations.verify import Report

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class _Mistaken(Exception):
    """Something that the user can put right; the message is one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; {self.prog} --help says more.\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from kljax import __version__

        print(f"kljax {__version__}")
        parser.exit(OK)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kljax", description=__doc__)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    derive = commands.add_parser("derive", help="list the derivations, or walk through one")
    derive.description = "Without a name: lists the derivations. With one: checks and tells it."
    derive.add_argument("name", nargs="?", metavar="NAME")
    form = derive.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print an align* block, unchecked")
    form.add_argument("--markdown", action="store_true", help="print the page of the docs")
    form.add_argument(
        "--html", metavar="FILE", help="write a page to play with that needs no network"
    )
    derive.set_defaults(run=_derive)

    verify = commands.add_parser("verify", help="check every line of every derivation")
    verify.description = "Checks the derivations; exit status 1 says that a check failed."
    verify.add_argument("names", nargs="*", metavar="NAME", help="which ones; without: all")
    verify.add_argument(
        "--mutants", action="store_true", help="also alter every line at every place"
    )
    verify.set_defaults(run=_verify)
    _add_evaluate(commands)
    return parser


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("evaluate", help="divergences of distributions in files")
    evaluate.description = (
        "Writes KL(q ‖ p) in nats of the distributions in two files: .npz, .safetensors, "
        ".parquet or a directory of .npy files, one array a parameter (loc, scale, ...). "
        "A single p serves all q."
    )
    evaluate.add_argument("q", metavar="Q", help="file of the q")
    evaluate.add_argument("p", metavar="P", help="file of the p")
    evaluate.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="a new file: .npy, .npz, .safetensors or .parquet",
    )
    what = evaluate.add_mutually_exclusive_group()
    what.add_argument("--pairwise", action="store_true", help="every q against every p")
    what.add_argument("--terms", action="store_true", help="also the parts of the divergence")
    what.add_argument("--top-k", metavar="K", type=int, help="of every q the K nearest p")
    evaluate.add_argument("--q-family", metavar="NAME", help="where names are ambiguous")
    evaluate.add_argument("--p-family", metavar="NAME", help="where names are ambiguous")
    evaluate.add_argument(
        "--invalid",
        choices=("refuse", "nan"),
        default="refuse",
        help="what to do about invalid values: write nothing, or nan in their place",
    )
    evaluate.add_argument("--devices", metavar="N", type=int, help="how many; without: all")
    evaluate.add_argument(
        "--chunk-size",
        metavar="BYTES",
        type=_byte_count,
        default=1 << 24,
        help="how much a device is given at a time, such as 16M",
    )
    evaluate.add_argument("--resume", action="store_true", help="go on with an earlier run")
    evaluate.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="evaluate with other processes; `auto` on a cluster that JAX knows",
    )
    evaluate.add_argument("--process-id", metavar="I", type=int, help="which of them this is")
    evaluate.add_argument("--processes", metavar="N", type=int, help="how many there are")
    evaluate.set_defaults(run=_evaluate)


def _byte_count(text: str) -> int:
    """A number of bytes: 1000000, 64K, 16M, 1G."""
    units = {"K": 10, "M": 20, "G": 30}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or int(number) < 1 or (unit and unit not in units):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes such as 16M")
    return int(number) << units.get(unit, 0)


def run() -> int:
    """`main` as a process, which Ctrl-C ends at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # A KeyboardInterrupt may be raised inside a callback of JAX, which swallows it.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        arguments: words of the command line, those of the process if None.

    Returns:
        0; 1 if a check failed; 2 if something was asked for that cannot be; 130 after Ctrl-C.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    _accept_any_letter()
    try:
        return options.run(options)
    except _Mistaken as mistake:
        print(f"kljax: {mistake}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader, `head` say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED


def _accept_any_letter() -> None:
    """A terminal that has no Greek letters shows question marks, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]


def _color(stream: object) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR")


def _is_terminal(stream: object) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _get(name: str) -> Derivation:
    from kljax.derivations import catalogue

    try:
        return catalogue.get(name)
    except ValueError as unknown:
        raise _Mistaken(str(unknown)) from None


def _checked(derivation: Derivation) -> Report:
    from kljax.derivations.verify import verify

    try:
        return verify(derivation)
    except ValueError as invalid:
        raise _Mistaken(str(invalid)) from None


# ---- derive ---------------------------------------------------------------------------------


def _derive(options: argparse.Namespace) -> int:
    if options.name is None:
        if options.latex or options.markdown or options.html is not None:
            raise _Mistaken("which derivation is meant? `kljax derive` alone lists the names.")
        return _list()
    derivation = _get(options.name)
    if options.latex:
        print(_align(derivation))
        return OK
    if options.html is not None:
        return _html(derivation, options.html)
    return _walk(derivation, options.markdown)


def _list() -> int:
    from kljax.derivations import catalogue

    width = max(map(len, catalogue.NAMES))
    for name in catalogue.NAMES:
        print(f"{name.ljust(width)}  {catalogue.get(name).title}")
    print("\nkljax derive NAME walks through one.")
    return OK


def _align(derivation: Derivation) -> str:
    """The lines as LaTeX to paste; every part begins at its definition."""
    from kljax.derivations import layout

    equations = (layout.latex(box).partition("= ") for box in derivation.definitions())
    lines = [f"{left}&{equals}{right}" for left, equals, right in equations]
    for step in derivation.steps:
        latex = derivation.latex(step)
        left, equals, right = latex.partition("= ") if step.rule is None else ("", "", latex)
        why = rf" && \text{{{step.rule.name}}}" if step.rule is not None else ""
        lines.append(f"{left}&{equals}{right}{why}")
    body = " \\\\\n".join(lines)
    return f"\\begin{{align*}}\n{body}\n\\end{{align*}}"


def _html(derivation: Derivation, file: str) -> int:
    from kljax.derivations import page

    try:
        text = page.page(derivation)
    except (ValueError, NotImplementedError) as unsupported:
        raise _Mistaken(str(unsupported)) from None
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as reason:
        raise _Mistaken(f"cannot write {file!r}: {reason.strerror or reason}.") from None
    print(f"{file} is written; open it in a browser.")
    return OK


def _walk(derivation: Derivation, markdown: bool) -> int:
    from kljax.derivations import render

    print(f"checking {len(derivation.steps)} lines ...", file=sys.stderr, flush=True)
    report = _checked(derivation)
    if markdown:
        print(render.markdown(derivation, report), end="")
    else:
        # Lines longer than a page are hard to read, whatever the window's width.
        width = min(shutil.get_terminal_size((96, 24)).columns, 110)
        print(render.terminal(derivation, report, width=width, color=_color(sys.stdout)))
    return _outcome([report])


def _outcome(reports: Sequence[Report]) -> int:
    from kljax.derivations import render

    wrong = [report for report in reports if not report.ok]
    for report in wrong:
        print("\n" + render.failures(report))
    return FAILED if wrong else OK


# ---- evaluate -------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from kljax.batch import command

    try:
        return command.run(options)
    except ValueError as mistake:
        raise _Mistaken(str(mistake)) from None


# ---- verify ---------------------------------------------------------------------------------


class _Progress:
    """A line on stderr for everything that is done; on a terminal a bar as well."""

    def __init__(self, total: int):
        self._total = total
        self._done = 0
        self._bar = _is_terminal(sys.stderr)
        self._width = 0

    def run(self, what: str, job: Callable[[], tuple[str, bool]]) -> None:
        self._draw(what)
        start = time.monotonic()
        said, passed = job()
        self._done += 1
        seconds = time.monotonic() - start
        self._clear()
        mark = "ok" if passed else "FAILED"
        if _color(sys.stderr):
            mark = f"\x1b[{32 if passed else 31}m{mark}\x1b[0m"
        count = f"[{self._done}/{self._total}]"
        print(f"{count} {what}: {said}, {mark}, {seconds:.1f} s", file=sys.stderr, flush=True)

    def _draw(self, what: str) -> None:
        if self._bar:
            filled = 20 * self._done // self._total
            text = f"{'█' * filled}{'░' * (20 - filled)} {self._done}/{self._total} {what}"
            self._width = len(text)
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._bar:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr)


def _foundation(progress: _Progress) -> list[str]:
    """Checks what all derivations stand on; a sentence for everything that fails."""
    from kljax.derivations import anchors, render, rules

    found: list[anchors.Anchor] = []
    errors: dict[str, float] = {}

    def hold() -> tuple[str, bool]:
        found.extend(anchors.check())
        return f"{len(found)} comparisons", all(anchor.ok for anchor in found)

    def test() -> tuple[str, bool]:
        errors.update({rule.name: rule.error() for rule in rules.catalogue().values()})
        return f"{len(errors)} tested", not render.foundation_failures((), errors)

    progress.run("anchors", hold)
    progress.run("rules", test)
    print(render.anchors_line(found))
    print(render.rules_line(errors) + "\n")
    return render.foundation_failures(found, errors)


def _verify(options: argparse.Namespace) -> int:
    from kljax.derivations import catalogue, museum, render

    names = list(dict.fromkeys(options.names)) or list(catalogue.NAMES)
    derivations = [_get(name) for name in names]
    reports: list[Report] = []
    tables: list[KillTable] = []

    def check(derivation: Derivation) -> tuple[str, bool]:
        reports.append(_checked(derivation))
        return f"{len(derivation.steps)} lines", reports[-1].ok

    def alter(derivation: Derivation) -> tuple[str, bool]:
        from kljax.derivations.kill import kill_table

        tables.append(kill_table(derivation))
        alive = len(tables[-1].survivors)
        return f"{len(tables[-1].fates):,} altered formulas, {alive} unseen", not alive

    whole = not options.names
    progress = _Progress(len(names) * (2 if options.mutants else 1) + 2 * whole)
    unfounded = _foundation(progress) if whole else []
    for derivation in derivations:
        progress.run(derivation.name, lambda d=derivation: check(d))
        if options.mutants:
            progress.run(f"{derivation.name}, altered", lambda d=derivation: alter(d))
    print(render.table(reports))
    for sentence in unfounded:
        print("\n" + sentence)
    if options.mutants:
        print(
            "\n" + render.kill_summary({t.derivation.name: render.kills_of(t) for t in tables})
        )
        print("\nMistakes that people made, and which check sees them:\n")
        print(render.museum_table(museum.visit()))
    status = max(_outcome(reports), FAILED if unfounded else OK)
    for table in tables:
        if table.survivors:
            print("\n" + render.survivors(table))
            status = FAILED
    return status
