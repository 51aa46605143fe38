"""What each term of the KL does to a VAE: predictions of theory, and what training did.

    python examples/kl_terms_study.py            # under 20 minutes on two cores
    python examples/kl_terms_study.py --quick    # under 90 seconds
    python examples/kl_terms_study.py --resume   # what Ctrl-C or worse interrupted

Trains linear VAEs and VAEs of scikit-learn's digits with weights on the terms of their KL, and
prints a table of predictions. Each was fixed before the run, with the rule that decides it
(`study/predictions.py`). The same seed gives the same table. A quick run has a sixteenth of the
steps: what fails there may be short of convergence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax.numpy as jnp

from study import design, report, run
from study.predictions import judge
from study.progress import Progress
from study.store import Store, Unusable, identity
from vae import command, data
from vae.flags import whole_number

PROGRAM = "kl_terms_study.py"


def stop(message: str) -> NoReturn:
    """Ends the program for something that its user can correct."""
    command.stop(PROGRAM, message)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a sixteenth of the steps, in 90 seconds")
    add(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of starts, batches and draws, by default %(default)s",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("runs/kl_terms_study"),
        help="folder for the table, results.json and pictures, by default %(default)s; those "
        "of an earlier run are replaced when this one is finished",
    )
    add("--resume", action="store_true", help="finish the unfinished run in the folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    effort = design.QUICK if options.quick else design.FULL
    try:
        return finish(options, effort)
    except Unusable as error:
        stop(str(error))
    except OSError as error:
        stop(f"--out {options.out}: {error.strerror or error}.")


def finish(options: argparse.Namespace, effort: design.Effort) -> int:
    """Runs the study, or what is left of it; writes and prints what it found."""
    out, seed = options.out, options.seed
    store = Store(out / "unfinished", identity(effort, seed), resume=options.resume)
    images = data.digits()
    train, test = (
        jnp.asarray(x, jnp.float32) / images.levels for x in (images.train, images.test)
    )
    progress = Progress(run.blocks(effort))
    try:
        results = run.study(effort, seed, train, test, store, progress)
    except KeyboardInterrupt:
        progress.close()
        print(f"{PROGRAM}: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    seconds = progress.close()
    judged = judge(results)
    table = report.table(judged, effort, seed, quick=options.quick)
    report.write(out, table, judged, results, effort, seed)
    drawn = report.draw(out, results)
    store.close()
    print(table)
    missing = "" if drawn else " but no pictures, for want of matplotlib,"
    print(f"{seconds:.0f} s; results{missing} in {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
