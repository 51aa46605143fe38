"""The script that makes reference vectors writes what the library is then held against."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import kljax
from checks import definition

SCRIPT = Path(__file__).parent / "reference" / "make_reference.py"


def _load():
    spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["normal", "gaussian_full_covariance"])
def test_makes_vectors(family, tmp_path):
    out = tmp_path / "vectors.json"
    assert _load().main([family, "--out", str(out)]) == 0
    made = json.loads(out.read_text())
    assert made["cases_in_file"] == len(made["cases"]) == 15
    assert made["cases"][-1]["kl"] == "0.0"
    cls = kljax.Normal if family == "normal" else kljax.MultivariateNormal
    for case in made["cases"][:9]:
        q, p = (
            cls(**{k: np.asarray(v).astype(np.float32) for k, v in case[side].items()})
            for side in "qp"
        )
        np.testing.assert_allclose(float(case["kl"]), definition(q, p), rtol=1e-9)
