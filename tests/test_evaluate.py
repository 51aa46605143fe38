"""`evaluate` and `kljax evaluate`: the same numbers everywhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import kljax
from evaluation import (
    D,
    N,
    as_record,
    diagonal,
    left,
    negative,
    run,
    write,
    write_pairs,
    write_table,
)
from kljax import batch, cli
from kljax.batch import command, files, output, stream
from kljax.batch.together import Together

ROOT = Path(__file__).parent.parent
FULL = bool(os.environ.get("KLJAX_FULL"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Q and P in the current directory, and their divergences."""
    monkeypatch.chdir(tmp_path)
    return write_pairs()


# ---- the stream -----------------------------------------------------------------------------


def test_evaluate_is_the_divergence_of_every_pair(data):
    q, p = diagonal(0), diagonal(1)
    mapped = {
        name: np.lib.format.open_memmap(f"{name}.npy", "w+", x.dtype, x.shape)
        for name, x in q.items()
    }
    for name, x in q.items():
        mapped[name][:] = x
    got = batch.evaluate(as_record(mapped), as_record(p), chunk_bytes=2500)
    np.testing.assert_array_equal(got, data)
    one = batch.evaluate(
        as_record(q), as_record(p), chunk_bytes=2500, devices=jax.devices()[:1]
    )
    np.testing.assert_array_equal(one, data)


def test_terms_of_many_against_one():
    q, p = as_record(diagonal(0)), kljax.standard_normal(D)
    got = batch.evaluate(q, p, terms=True, chunk_bytes=5000)
    want = kljax.kl_terms(q, p)
    for name, value in vars(want).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-6)
    assert batch.evaluate(kljax.Normal(0.0, 1.0), kljax.Normal(1.0, 1.0)) == [0.5]


@pytest.mark.parametrize("job", [stream.pairs(), stream.nearest(2)], ids=["pairs", "top-k"])
def test_no_device_waits_for_another(job):
    q = as_record(diagonal(0))
    assert len(jax.local_devices()) == 2
    text = stream.Source(job, q, as_record(diagonal(1)), 5000).program_text()
    assert "num_partitions=2" in text
    for word in ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter"):
        assert word not in text


def test_only_a_chunk_is_read_at_a_time():
    read = []

    class Rows:
        shape, dtype = (N, D), np.dtype(np.float32)

        def __init__(self, value):
            self.value = value

        def __getitem__(self, rows):
            read.append(rows.stop - rows.start)
            return self.value[rows]

    q = {name: Rows(value) for name, value in diagonal(0).items()}
    got = batch.evaluate(as_record(q), kljax.standard_normal(D), chunk_bytes=3000)
    assert got.shape == (N,)
    assert max(read) * D * 4 * 2 <= 3000 * len(jax.local_devices())


def test_parts_of_processes_are_whole_blocks():
    for length, block, processes in ((1000, 32, 3), (5, 8, 2), (64, 8, 4)):
        parts = [stream.own_part(length, block, i, processes) for i in range(processes)]
        assert parts[0][0] == 0
        assert parts[-1][1] == length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        assert all(start % block == 0 or start == length for start, _ in parts)


_DEVICES = """
import sys, numpy as np
from kljax import cli
words = "evaluate q.npz p.npz --chunk-size 4K --output".split()
for count in (8, 1):
    assert cli.main([*words, f"{count}.npy", "--devices", str(count)]) == 0
"""


def _process(*words, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **more,
    )


def test_same_numbers_on_one_and_eight_devices(data):
    done = _process("-c", _DEVICES)
    _, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    assert Path("1.npy").read_bytes() == Path("8.npy").read_bytes()
    np.testing.assert_array_equal(np.load("8.npy"), data)


def _two_processes(*more):
    """The command on two processes: what each of them said and its exit status."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["-m", "kljax", "evaluate", "q.npz", "p.npz", "--output", "out.npy"]
    words += ["--chunk-size", "4K", "--processes", "2", *more]
    both = [
        _process(*words, "--coordinator", f"localhost:{port}", "--process-id", str(i))
        for i in range(2)
    ]
    try:
        return [(process.communicate(timeout=60)[1], process.returncode) for process in both]
    finally:
        for process in both:
            process.kill()


def test_two_processes(data):
    for err, status in _two_processes():
        assert status == 0, err
    np.testing.assert_array_equal(np.load("out.npy"), data)
    assert left() == ["out.npy", "p.npz", "q.npz"]


def test_two_processes_end_where_one_fails(data):
    """In the end, when only the first has something left to do, and the other waits."""
    negative([17])
    first, other = _two_processes()
    assert first[1] == other[1] == 2, (first, other)
    assert first[0].startswith("kljax: 1 of 1,000 pair has invalid values")
    assert other[0] == "kljax: process 0 failed and has said why.\n"
    assert len(first[0].splitlines()) == 1
    assert left() == ["p.npz", "q.npz"]


def test_whatever_fails_is_told_to_the_other_processes(monkeypatch):
    def fails(*_):
        raise RuntimeError("of a device")

    told, together = [], Together(0, 2)
    monkeypatch.setattr(together, "_meet", told.append)
    monkeypatch.setattr(command, "distributed", lambda _: contextlib.nullcontext(together))
    monkeypatch.setattr(command, "_run", fails)
    with pytest.raises(RuntimeError, match="of a device"):
        command.run(None)
    assert told == [True]


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "compressed", "directory", "safetensors", "parquet"])
def test_every_format_is_read_in_slices(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((N, 2, 2)).astype(np.float32)
    given = {"loc": rng.standard_normal((N, 2)), "scale_tril": matrices}
    read = files.read(Path(write(kind, "q", given)))
    assert set(read) == set(given)
    for rows in (slice(0, 10), slice(10, 700), slice(950, N), slice(3, 5)):
        for name, value in given.items():
            got = read[name][rows]
            np.testing.assert_array_equal(np.reshape(got, value[rows].shape), value[rows])
            assert got.dtype == value.dtype


@pytest.mark.parametrize("kind", ["npz", "directory", "safetensors", "parquet"])
def test_one_pair_from_every_format(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    q, p = write(kind, "q", diagonal(0, 1)), write(kind, "p", diagonal(1, 1))
    status, _, err = run(capsys, q, p, "--output", "out.npy")
    assert status == 0, err
    expected = kljax.kl_divergence(as_record(diagonal(0, 1)), as_record(diagonal(1, 1)))
    np.testing.assert_allclose(np.load("out.npy"), expected, rtol=1e-6)


def test_either_byte_order_and_a_single_pair(data, capsys):
    np.savez("big.npz", **{name: x.astype(">f4") for name, x in diagonal(0).items()})
    assert run(capsys, "big.npz", "p.npz", "--output", "big.npy")[0] == 0
    np.testing.assert_array_equal(np.load("big.npy"), data)
    np.savez("wide.npz", **{name: x.astype(">f8") for name, x in diagonal(0).items()})
    assert run(capsys, "wide.npz", "p.npz", "--output", "wide.npy")[0] == 0
    assert np.load("wide.npy").dtype == np.float64
    np.savez("one.npz", loc=np.float32(1), scale=np.float32(2))
    assert run(capsys, "one.npz", "one.npz", "--output", "one.npy")[0] == 0
    np.testing.assert_array_equal(np.load("one.npy"), [0])


def test_numbered_columns_are_a_vector(data, capsys):
    pytest.importorskip("pyarrow")
    q = diagonal(0)
    write_table("q.parquet", {f"{k}_{i}": v[:, i] for k, v in q.items() for i in range(D)})
    status, _, err = run(capsys, "q.parquet", "p.npz", "--output", "out.parquet")
    assert status == 0, err
    got = files.read(Path("out.parquet"))["kl"][0:N]
    np.testing.assert_array_equal(got, data)


def _as_parquet(name, x):
    fields = {k: np.asarray(v) for k, v in vars(x).items() if v is not None}
    write_table(name, fields)


def test_matrices_of_a_table_are_squares_or_nested(tmp_path, monkeypatch, capsys):
    """One list a row tells the sizes of squares; others are refused with what to do."""
    monkeypatch.chdir(tmp_path)
    loc = np.arange(18.0).reshape(3, 2, 3)
    q = kljax.MatrixNormal(loc, np.tile(np.eye(2), (3, 1, 1)), np.tile(np.eye(3), (3, 1, 1)))
    _as_parquet("q.parquet", q)
    np.savez("p.npz", **{k: v for k, v in vars(q).items() if v is not None} | {"loc": loc + 1})
    status, _, err = run(capsys, "q.parquet", "p.npz", "--output", "out.npy")
    assert status == 0, err
    np.testing.assert_allclose(np.load("out.npy"), 3)

    blocks = kljax.BlockDiagonalNormal(np.zeros((3, 4)), np.ones((3, 2, 2, 2)))
    _as_parquet("q.parquet", blocks)
    status, _, err = run(capsys, "q.parquet", "q.parquet", "--output", "blocks.npy")
    assert status == 2
    assert "write matrices as lists of lists" in err


def test_tables_without_rows(data, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), D)
    none = pa.table({name: pa.array([], kind) for name in diagonal(0)})
    pq.write_table(none, "none.parquet")
    assert run(capsys, "none.parquet", "none.parquet", "--output", "each.npy")[0] == 0
    assert np.load("each.npy").shape == (0,)
    words = ("none.parquet", "p.npz", "--pairwise", "--output", "out.parquet")
    assert run(capsys, *words)[0] == 0
    assert files.read(Path("out.parquet"))["kl"].shape == (0, N)


def test_compressed_arrays_without_numbers(data, capsys):
    np.savez_compressed("none.npz", loc=np.zeros((5, 0)), scale_diag=np.zeros((5, 0)))
    assert run(capsys, "none.npz", "none.npz", "--output", "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.zeros(5))


def _load(path):
    if path.endswith(".npy"):
        return {"kl": np.load(path)}
    return {name: value[0:N] for name, value in files.read(Path(path)).items()}


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet"])
def test_every_format_is_written(data, capsys, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    status, out, err = run(capsys, "q.npz", "p.npz", "--output", f"out.{suffix}")
    assert status == 0, err
    assert f"out.{suffix} is written; peak resident memory" in out
    assert f"{N:,} pairs in" in err
    np.testing.assert_array_equal(_load(f"out.{suffix}")["kl"], data)
    if suffix == "safetensors":
        library = pytest.importorskip("safetensors.numpy")
        np.testing.assert_array_equal(library.load_file("out.safetensors")["kl"], data)
    assert left() == [f"out.{suffix}", "p.npz", "q.npz"]


def test_all_pairs_nearest_and_terms(data, capsys):
    few = diagonal(1, 20)
    np.savez("few.npz", **few)
    q, p = as_record(diagonal(0)), as_record(few)
    # A float64 file is evaluated in float64.
    np.savez("one.npz", loc=np.zeros(D), log_variance=np.zeros(D))
    for words in ("few.npz --pairwise", "few.npz --top-k 3", "one.npz --terms"):
        name = words.split()[1].strip("-")
        status, _, err = run(capsys, "q.npz", *words.split(), "--output", f"{name}.npz")
        assert status == 0, err
    full = np.asarray(batch.pairwise(q, p))
    np.testing.assert_allclose(np.load("pairwise.npz")["kl"], full, rtol=5e-7)
    nearest = np.load("top-k.npz")
    np.testing.assert_array_equal(nearest["index"], np.argsort(full, 1, kind="stable")[:, :3])
    terms = np.load("terms.npz")
    assert terms["kl"].dtype == np.float64
    np.testing.assert_allclose(terms["dispersion"] + terms["location"], terms["kl"])
    assert set(terms) == {"kl", *vars(kljax.kl_terms(q, kljax.standard_normal(D)))}


def test_families_are_found_by_names():
    from kljax.batch import naming

    def found(q, p, **names):
        of_q, of_p = naming.records(q, p, q_file="q", p_file="p", **names)
        return type(of_q).__name__, type(of_p).__name__

    numbers, vectors, matrices = np.ones(7), np.ones((7, 2)), np.ones((7, 2, 2))
    normal = {"loc": numbers, "scale": numbers}
    diagonal = {"loc": vectors, "variance": vectors}
    full = {"loc": vectors, "covariance_matrix": matrices}
    assert found(normal, {"loc": np.ones(()), "variance": np.ones(())}) == ("Normal", "Normal")
    assert found(diagonal, full) == ("MultivariateNormalDiag", "MultivariateNormal")
    single = {"loc": np.ones(2), "variance": np.ones(2)}
    assert found(full, single) == ("MultivariateNormal", "MultivariateNormalDiag")
    ambiguous = {"loc": numbers, "variance": numbers}
    assert found(ambiguous, ambiguous) == ("Normal", "Normal")
    named = {"q_family": "MultivariateNormalDiag", "p_family": "MultivariateNormalDiag"}
    assert found(ambiguous, ambiguous, **named) == ("MultivariateNormalDiag",) * 2


# ---- kill and resume ------------------------------------------------------------------------


def _begin_slowly(words):
    """Starts the command on many small chunks and returns when some are in the journal."""
    process = _process("-m", "kljax", *words)
    journal = Path("out.npy.partial/journal-0")
    limit = time.monotonic() + 100
    while not journal.exists() or '"stop"' not in journal.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    return process


def test_killed_and_resumed_is_the_identical_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("q.npz", **diagonal(0, 80_000))
    np.savez("p.npz", **diagonal(1, 80_000))
    words = ["evaluate", "q.npz", "p.npz", "--chunk-size", "600", "--output", "out.npy"]
    process = _begin_slowly(words)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = "out.npy.partial"
    assert not Path("out.npy").exists()

    refused, _, err = run(capsys, *words[1:])
    assert (refused, len(err.splitlines())) == (2, 1)
    assert "--resume goes on" in err
    other, _, err = run(capsys, *words[1:], "--resume", "--chunk-size", "900")
    assert (other, len(err.splitlines())) == (2, 1)
    assert "was begun with another chunk size" in err

    # Interrupted from the keyboard it says what to do.
    process = _process("-m", "kljax", *words, "--resume")
    while process.poll() is None and "going on after" not in process.stderr.readline():
        pass
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert f"what is finished is in {state}, --resume goes on" in err

    # What is finished is not computed again: it is spoilt here, and stays so.
    with open(f"{state}/data", "r+b") as file:
        file.seek(128)
        true = file.read(4)
        file.seek(128)
        file.write(b"\0\0\0\0")
    status, _, err = run(capsys, *words[1:], "--resume")
    assert status == 0, err
    got = Path("out.npy").read_bytes()
    assert got[128:132] == b"\0\0\0\0"
    Path("out.npy").unlink()
    assert run(capsys, *words[1:])[0] == 0
    assert Path("out.npy").read_bytes() == got[:128] + true + got[132:]

    Path(state).mkdir()
    Path(state, "plan").write_text("{}")
    status, _, err = run(capsys, "q.npz", "p.npz", "--output", "out.npy", "--resume")
    assert (status, "exists already" in err) == (2, True)


def test_a_state_without_a_plan_begins_anew(data, capsys):
    words = ("q.npz", "p.npz", "--output", "out.npy", "--resume")
    state = Path("out.npy.partial")
    state.mkdir()
    (state / "data").touch()
    assert run(capsys, *words)[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), data)

    Path("out.npy").unlink()
    state.mkdir()
    (state / "letters").touch()  # another's, which must stay
    assert run(capsys, *words)[0] == 2
    assert (state / "letters").exists()


def test_a_changed_input_is_not_gone_on_with(data, capsys):
    words = ("q.npz", "p.npz", "--output", "out.npy")
    shapes = {"kl": ((N,), np.dtype(np.float32))}
    output.Partial(Path("out.npy"), shapes, {"input Q": "another"}).begin()
    status, _, err = run(capsys, *words, "--resume")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "was begun with another input Q" in err


# ---- the guide ------------------------------------------------------------------------------


def test_the_guide_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/evaluate.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    assert names["matrix"].shape == names["jeffreys"].shape == (1000, 200)
    assert names["divergences"].shape == names["indices"].shape == (1000, 5)
    commands = re.findall(r"```sh\n(kljax .*?)```", text, re.DOTALL)[0].splitlines()
    for line in commands if FULL else commands[:1]:
        status, _, err = run(capsys, *line.split()[2:])
        assert status == 0, err
    for line in commands:
        assert cli._parser().parse_args(line.split()[1:]).command == "evaluate"
