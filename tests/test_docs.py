"""The code of the documentation runs as it stands, and says what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import truth
from truth import Spread

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


GUIDES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/vae.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS + GUIDES, ids=lambda code: code.splitlines()[-1][:40])
def test_code_runs(code):
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert out.returncode == 0, out.stderr
    assert not out.stderr


def test_readme_digits_are_right():
    """The number printed in the first example, from the exact float32 inputs."""
    loc, log_variance = np.full(4, 1e-4, np.float32), np.full(4, 1e-3, np.float32)
    prior = Spread("scale", np.ones(4))
    want = truth.gaussian(loc, Spread("log_variance", log_variance), np.zeros(4), prior)
    printed = float(re.search(r"# (\S+) nats", BLOCKS[0]).group(1))
    np.testing.assert_allclose(printed, float(want.kl), rtol=1e-7)
