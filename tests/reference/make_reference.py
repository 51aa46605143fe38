"""Regenerates reference vectors from mpmath: python tests/reference/make_reference.py FAMILY.

Draws new pairs of the family (easy, near from 1e-1 to 1e-6, extreme, equal) whose inputs are
exactly float32 numbers, and writes value, terms and gradients in the format of the files beside
this one. Without --out it prints. A stored file is checked, not rewritten, by
tests/test_accuracy_reference.py, which recomputes all of its digits with the same functions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import accuracy
import truth
from accuracy import Case

FAMILIES = {
    "normal": ("scale", "scale"),
    "normal_log_variance": ("log_variance", "log_variance"),
    "gaussian_diagonal": ("scale", "scale"),
    "gaussian_diagonal_log_variance": ("log_variance", "log_variance"),
    "gaussian_full_scale_tril": ("scale_tril", "scale_tril"),
    "gaussian_full_covariance": ("covariance_matrix", "covariance_matrix"),
    "gaussian_full_precision": ("precision_matrix", "precision_matrix"),
    "gaussian_diagonal_full": ("scale", "covariance_matrix"),
    "gaussian_full_diagonal": ("covariance_matrix", "scale"),
}
REGIMES = (*["generic"] * 8, "1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "equal")
SIZES = (1, 2, 4, 8)
KL_DIGITS, GRADIENT_DIGITS = 40, 30


def _draw(family: str, regime: str, size: int, seed: int) -> Case:
    kinds = FAMILIES[family]
    named = "1e-1" if regime == "equal" else regime
    if set(kinds) <= set(truth.DIAGONAL_KINDS):
        case = next(accuracy.diagonal_cases(kinds, named, size, 1, seed))
    else:
        named = "far" if named == "generic" else named
        case = next(accuracy.matrix_cases(kinds, named, size, 1, 10.0, seed))
    return case._replace(q_loc=case.p_loc, q=case.p) if regime == "equal" else case


def _text(x: Any, digits: int) -> Any:
    """Numbers as decimal strings, arrays as nested lists of them."""
    if isinstance(x, np.ndarray) and x.ndim:
        return [_text(entry, digits) for entry in x]
    return mpmath.nstr(x if isinstance(x, mpmath.mpf) else x[()], digits, strip_zeros=True)


def _input(x: np.ndarray) -> Any:
    """Every float32 in full, so that reading it back rounds nothing."""
    return [_input(entry) for entry in x] if np.ndim(x) else _text(truth.exact(x), 60)


def _entry(family: str, index: int, regime: str) -> dict[str, Any]:
    scalar = family.startswith("normal")
    case = _draw(family, regime, 1 if scalar else SIZES[index % len(SIZES)], index)
    want = truth.gaussian(*case)

    def shape(x: np.ndarray) -> np.ndarray:
        return x[0] if scalar else x

    size = len(case.q_loc)
    near = regime not in ("generic", "equal")
    terms = {
        "trace": want.trace,
        "mahalanobis": want.mahalanobis,
        "dimension": mpmath.mpf(size),
        "log_det": want.log_det,
        "dispersion": want.dispersion,
        "location": want.location,
    }
    by_p = want.grad_p_dispersion + want.grad_p_location
    gradients = {
        "q": {"loc": want.grad_loc, case.q.kind: want.grad_q},
        "p": {"loc": -want.grad_loc, case.p.kind: by_p},
    }
    return {
        "id": f"{family}/{index:02d}",
        "tag": "easy" if regime == "generic" else "near" if near else "equal",
        **({"separation": regime} if near else {}),
        "q": {"loc": _input(shape(case.q_loc)), case.q.kind: _input(shape(case.q.value))},
        "p": {"loc": _input(shape(case.p_loc)), case.p.kind: _input(shape(case.p.value))},
        "kl": _text(mpmath.mpf(want.kl), KL_DIGITS),
        "terms": {name: _text(mpmath.mpf(x), KL_DIGITS) for name, x in terms.items()},
        "grad": {
            side: {name: _text(shape(x), GRADIENT_DIGITS) for name, x in entries.items()}
            for side, entries in gradients.items()
        },
    }


def make(family: str) -> dict[str, Any]:
    """One file of vectors as a JSON object."""
    cases = [_entry(family, index, regime) for index, regime in enumerate(REGIMES)]
    return {"family": family, "cases_in_file": len(cases), "cases": cases}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    args = parser.parse_args(argv)
    text = json.dumps(make(args.family), indent=1) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
