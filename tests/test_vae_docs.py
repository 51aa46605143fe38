"""The code of the guide to diagnostics runs, and says what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

NUMBER = r"-?\d+(\.\d+)?[,;.]?"
TEXT = (Path(__file__).parent.parent / "docs/vae_diagnostics.md").read_text()


def test_blocks_run_and_print_what_is_shown():
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    shown = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL).group(1)
    with jax.numpy_rank_promotion("allow"), contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "docs/vae_diagnostics.md", "exec"), {})

    got, want = out.getvalue().split(), shown.split()
    for x, y in zip(got, want, strict=False):
        if re.fullmatch(NUMBER, y):
            # Not to the last digit, which differs between machines.
            assert float(x.rstrip(",;.")) == pytest.approx(float(y.rstrip(",;.")), abs=0.01)
        else:
            assert x == y
    assert len(got) > len(want) > 80
