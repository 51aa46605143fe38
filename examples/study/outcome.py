"""What a rule answers."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """Numbers in words, and whether the rule passes."""

    found: str
    passed: bool
