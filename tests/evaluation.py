"""Files of distributions for the tests of `kljax evaluate`, and the command in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kljax
from kljax import cli

N, D = 1000, 3


def diagonal(seed, n=N):
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal((n, D)).astype(np.float32)
    return {"loc": loc, "scale_diag": np.exp(rng.standard_normal((n, D))).astype(np.float32)}


def as_record(parameters):
    return kljax.MultivariateNormalDiag(**parameters)


def write_pairs():
    """Q and P as .npz in the current directory; returns their divergences."""
    np.savez("q.npz", **diagonal(0))
    np.savez("p.npz", **diagonal(1))
    return np.asarray(kljax.kl_divergence(as_record(diagonal(0)), as_record(diagonal(1))))


def write(kind, name, parameters):
    match kind:
        case "npz":
            np.savez(f"{name}.npz", **parameters)
        case "compressed":
            np.savez_compressed(f"{name}.npz", **parameters)
            return f"{name}.npz"
        case "directory":
            Path(name).mkdir()
            for key, value in parameters.items():
                np.save(f"{name}/{key}.npy", value)
            return name
        case "safetensors":
            pytest.importorskip("safetensors.numpy").save_file(
                parameters, f"{name}.safetensors"
            )
        case "parquet":
            write_table(f"{name}.parquet", parameters)
    return f"{name}.{kind}"


def write_table(path, parameters):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {}
    for key, value in parameters.items():
        flat = value.reshape(len(value), -1)
        columns[key] = pa.array(list(flat)) if value.ndim > 1 else pa.array(value)
    pq.write_table(pa.table(columns), path, row_group_size=300)


def spoil_q(**changed):
    np.savez("q.npz", **{**diagonal(0), **changed})


def negative(rows):
    scale = diagonal(0)["scale_diag"]
    scale[rows, 1] = -1.0
    spoil_q(scale_diag=scale)


def run(capsys, *words):
    status = cli.main(["evaluate", *words])
    out, err = capsys.readouterr()
    return status, out, err


def left():
    return sorted(path.name for path in Path().iterdir())
