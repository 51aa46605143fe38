"""The example of the linear VAE: training meets the closed form, and leaves pictures."""

import importlib
import os
import re
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
linear_vae = importlib.import_module("linear_vae")


@pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="trains: KLJAX_FULL=1 runs it")
def test_training_meets_the_closed_form(tmp_path, capsys):
    with jax.numpy_rank_promotion("allow"):
        assert linear_vae.main(["--quick", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert float(re.search(r"largest error of all: (\S+)", text)[1]) < 1e-3
    rows = {run.name: text.split(run.name)[1].split() for run in linear_vae.RUNS}
    active = [int(rows[run.name][0]) for run in linear_vae.RUNS]
    # The last two differ in nothing but where they began.
    assert active[:3] == [5, 4, 6]
    assert set(active[3:]) <= {2, 3, 4}
    for name in ("training.png", "phases.png"):
        picture = matplotlib.image.imread(tmp_path / name)
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_a_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        linear_vae.main(["--out", str(tmp_path / "file")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "file" in error
