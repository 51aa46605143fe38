"""The table on the screen, the result as JSON, progress as plain lines."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.design import Effort
from study.outcome import Outcome
from study.predictions import Prediction
from study.results import Found, Results
from study.statistics import LEVEL, interval

WIDTH = 96
Judged = Sequence[tuple[Prediction, Outcome]]


def verdict(outcome: Outcome) -> str:
    return "PASS" if outcome.passed else "FAIL"


def table(judged: Judged, effort: Effort, seed: int, *, quick: bool) -> str:
    """Every prediction: claim, rule, what was found, PASS or FAIL."""
    passed = sum(outcome.passed for _, outcome in judged)
    lines = [
        f"{effort.steps} steps, {effort.seeds} paired seeds from seed {seed}; nats an image; "
        f"mean ± {LEVEL:.0%} t-interval over seeds",
        "",
    ]
    for prediction, outcome in judged:
        head = f"{verdict(outcome)}  {prediction.name:5s} {prediction.claim}"
        lines += textwrap.wrap(head, WIDTH, subsequent_indent=" " * 12)
        for name, text in (("rule", prediction.rule), ("found", outcome.found)):
            lines += textwrap.wrap(
                f"{name}: {text}",
                WIDTH,
                initial_indent=" " * 12,
                subsequent_indent=" " * 14,
            )
    lines += ["", f"{passed} of {len(judged)} predictions pass."]
    if quick:
        lines.append(
            "A quick run: what fails may be short of convergence. Decide by a full run."
        )
    return "\n".join(lines)


def write(
    out: Path, table: str, judged: Judged, results: Results, effort: Effort, seed: int
) -> None:
    """table.txt, and results.json: predictions, and every response of every arm by seed."""
    document = {
        "unit": "nats per image",
        "null": "not finite, or not asked of this arm",
        "seed": seed,
        "effort": {name: getattr(effort, name) for name in effort.__dataclass_fields__},
        "predictions": [
            {
                "name": prediction.name,
                "claim": prediction.claim,
                "rule": prediction.rule,
                "found": outcome.found,
                "passed": bool(outcome.passed),
            }
            for prediction, outcome in judged
        ],
        "linear": results.linear._asdict(),
        "groups": [group(x) for x in (results.eight, results.sixteen, results.full)],
        "mixture": results.mixture,
    }
    text = json.dumps(plain(document), indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "table.txt").write_text(table + "\n", encoding="utf-8")


def group(found: Found) -> dict[str, Any]:
    """One response is one number a seed; those of every image are for pictures."""
    numbers = {name: x for name, x in found.responses.items() if x.ndim == 2}
    return {
        "name": found.group.name,
        "model": found.group.model._asdict(),
        "arms": [
            {
                "name": arm.name,
                "weights": arm.weights,
                "log_variance": arm.log_variance,
                "unit": arm.unit,
                "responses": {
                    name: interval(x[i])._asdict() | {"seeds": x[i]}
                    for name, x in sorted(numbers.items())
                },
            }
            for i, arm in enumerate(found.group.arms)
        ],
    }


def plain(x: Any) -> Any:
    """For JSON, which has neither arrays nor nan: what is not finite is null."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, np.generic):
        return plain(x.item())
    return None if isinstance(x, float) and not math.isfinite(x) else x


def draw(out: Path, results: Results) -> bool:
    """The pictures, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    importlib.import_module("study.pictures").draw(out, results)
    return True
