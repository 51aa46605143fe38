"""`evaluate` and `kljax evaluate`: the same numbers everywhere, one sentence for a failure."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import kljax
from kljax import batch, cli
from kljax.batch import command, files, output, stream
from kljax.batch.rows import Raw
from kljax.batch.together import Together

ROOT = Path(__file__).parent.parent
N, D = 1000, 3
FULL = bool(os.environ.get("KLJAX_FULL"))


def _diagonal(seed, n=N):
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal((n, D)).astype(np.float32)
    return {"loc": loc, "scale_diag": np.exp(rng.standard_normal((n, D))).astype(np.float32)}


def _as_record(parameters):
    return kljax.MultivariateNormalDiag(**parameters)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Q and P as .npz in the current directory, and their divergences."""
    monkeypatch.chdir(tmp_path)
    np.savez("q.npz", **_diagonal(0))
    np.savez("p.npz", **_diagonal(1))
    return np.asarray(kljax.kl_divergence(_as_record(_diagonal(0)), _as_record(_diagonal(1))))


def _run(capsys, *words):
    status = cli.main(["evaluate", *words])
    out, err = capsys.readouterr()
    return status, out, err


def _left():
    return sorted(path.name for path in Path().iterdir())


# ---- the stream -----------------------------------------------------------------------------


def test_evaluate_is_the_divergence_of_every_pair(data):
    q, p = _diagonal(0), _diagonal(1)
    mapped = {
        name: np.lib.format.open_memmap(f"{name}.npy", "w+", x.dtype, x.shape)
        for name, x in q.items()
    }
    for name, x in q.items():
        mapped[name][:] = x
    got = batch.evaluate(_as_record(mapped), _as_record(p), chunk_bytes=2500)
    np.testing.assert_array_equal(got, data)
    one = batch.evaluate(
        _as_record(q), _as_record(p), chunk_bytes=2500, devices=jax.devices()[:1]
    )
    np.testing.assert_array_equal(one, data)


def test_terms_of_many_against_one():
    q, p = _as_record(_diagonal(0)), kljax.standard_normal(D)
    got = batch.evaluate(q, p, terms=True, chunk_bytes=5000)
    want = kljax.kl_terms(q, p)
    for name, value in vars(want).items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=1e-6)
    assert batch.evaluate(kljax.Normal(0.0, 1.0), kljax.Normal(1.0, 1.0)) == [0.5]


@pytest.mark.parametrize("job", [stream.pairs(), stream.nearest(2)], ids=["pairs", "top-k"])
def test_no_device_waits_for_another(job):
    q = _as_record(_diagonal(0))
    assert len(jax.local_devices()) == 2
    text = stream.Source(job, q, _as_record(_diagonal(1)), 5000).program_text()
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

    q = {name: Rows(value) for name, value in _diagonal(0).items()}
    got = batch.evaluate(_as_record(q), kljax.standard_normal(D), chunk_bytes=3000)
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
    assert _left() == ["out.npy", "p.npz", "q.npz"]


def test_two_processes_end_where_one_fails(data):
    """In the end, when only the first has something left to do, and the other waits."""
    _negative([17])
    first, other = _two_processes()
    assert first[1] == other[1] == 2, (first, other)
    assert first[0].startswith("kljax: 1 of 1,000 pair has invalid values")
    assert other[0] == "kljax: process 0 failed and has said why.\n"
    assert len(first[0].splitlines()) == 1
    assert _left() == ["p.npz", "q.npz"]


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


def _write(kind, name, parameters):
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
            _write_table(f"{name}.parquet", parameters)
    return f"{name}.{kind}"


def _write_table(path, parameters):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {}
    for key, value in parameters.items():
        flat = value.reshape(len(value), -1)
        columns[key] = pa.array(list(flat)) if value.ndim > 1 else pa.array(value)
    pq.write_table(pa.table(columns), path, row_group_size=300)


@pytest.mark.parametrize("kind", ["npz", "compressed", "directory", "safetensors", "parquet"])
def test_every_format_is_read_in_slices(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((N, 2, 2)).astype(np.float32)
    given = {"loc": rng.standard_normal((N, 2)), "scale_tril": matrices}
    read = files.read(Path(_write(kind, "q", given)))
    assert set(read) == set(given)
    for rows in (slice(0, 10), slice(10, 700), slice(950, N), slice(3, 5)):
        for name, value in given.items():
            got = read[name][rows]
            np.testing.assert_array_equal(np.reshape(got, value[rows].shape), value[rows])
            assert got.dtype == value.dtype


def test_either_byte_order_and_a_single_pair(data, capsys):
    np.savez("big.npz", **{name: x.astype(">f4") for name, x in _diagonal(0).items()})
    assert _run(capsys, "big.npz", "p.npz", "--output", "big.npy")[0] == 0
    np.testing.assert_array_equal(np.load("big.npy"), data)
    np.savez("wide.npz", **{name: x.astype(">f8") for name, x in _diagonal(0).items()})
    assert _run(capsys, "wide.npz", "p.npz", "--output", "wide.npy")[0] == 0
    assert np.load("wide.npy").dtype == np.float64
    np.savez("one.npz", loc=np.float32(1), scale=np.float32(2))
    assert _run(capsys, "one.npz", "one.npz", "--output", "one.npy")[0] == 0
    np.testing.assert_array_equal(np.load("one.npy"), [0])


def test_numbered_columns_are_a_vector(data, capsys):
    pytest.importorskip("pyarrow")
    q = _diagonal(0)
    _write_table("q.parquet", {f"{k}_{i}": v[:, i] for k, v in q.items() for i in range(D)})
    status, _, err = _run(capsys, "q.parquet", "p.npz", "--output", "out.parquet")
    assert status == 0, err
    got = files.read(Path("out.parquet"))["kl"][0:N]
    np.testing.assert_array_equal(got, data)


def _as_parquet(name, x):
    fields = {k: np.asarray(v) for k, v in vars(x).items() if v is not None}
    _write_table(name, fields)


def test_matrices_of_a_table_are_squares_or_nested(tmp_path, monkeypatch, capsys):
    """One list a row tells the sizes of squares; others are refused with what to do."""
    monkeypatch.chdir(tmp_path)
    loc = np.arange(18.0).reshape(3, 2, 3)
    q = kljax.MatrixNormal(loc, np.tile(np.eye(2), (3, 1, 1)), np.tile(np.eye(3), (3, 1, 1)))
    _as_parquet("q.parquet", q)
    np.savez("p.npz", **{k: v for k, v in vars(q).items() if v is not None} | {"loc": loc + 1})
    status, _, err = _run(capsys, "q.parquet", "p.npz", "--output", "out.npy")
    assert status == 0, err
    np.testing.assert_allclose(np.load("out.npy"), 3)

    blocks = kljax.BlockDiagonalNormal(np.zeros((3, 4)), np.ones((3, 2, 2, 2)))
    _as_parquet("q.parquet", blocks)
    status, _, err = _run(capsys, "q.parquet", "q.parquet", "--output", "blocks.npy")
    assert status == 2
    assert "write matrices as lists of lists" in err


def test_tables_without_rows(data, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), D)
    none = pa.table({name: pa.array([], kind) for name in _diagonal(0)})
    pq.write_table(none, "none.parquet")
    assert _run(capsys, "none.parquet", "none.parquet", "--output", "each.npy")[0] == 0
    assert np.load("each.npy").shape == (0,)
    words = ("none.parquet", "p.npz", "--pairwise", "--output", "out.parquet")
    assert _run(capsys, *words)[0] == 0
    assert files.read(Path("out.parquet"))["kl"].shape == (0, N)


def test_compressed_arrays_without_numbers(data, capsys):
    np.savez_compressed("none.npz", loc=np.zeros((5, 0)), scale_diag=np.zeros((5, 0)))
    assert _run(capsys, "none.npz", "none.npz", "--output", "out.npy")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.zeros(5))


def _load(path):
    if path.endswith(".npy"):
        return {"kl": np.load(path)}
    return {name: value[0:N] for name, value in files.read(Path(path)).items()}


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "parquet"])
def test_every_format_is_written(data, capsys, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    status, out, err = _run(capsys, "q.npz", "p.npz", "--output", f"out.{suffix}")
    assert status == 0, err
    assert f"out.{suffix} is written; peak resident memory" in out
    assert f"{N:,} pairs in" in err
    np.testing.assert_array_equal(_load(f"out.{suffix}")["kl"], data)
    if suffix == "safetensors":
        library = pytest.importorskip("safetensors.numpy")
        np.testing.assert_array_equal(library.load_file("out.safetensors")["kl"], data)
    assert _left() == [f"out.{suffix}", "p.npz", "q.npz"]


def test_all_pairs_nearest_and_terms(data, capsys):
    few = _diagonal(1, 20)
    np.savez("few.npz", **few)
    q, p = _as_record(_diagonal(0)), _as_record(few)
    # A float64 file is evaluated in float64.
    np.savez("one.npz", loc=np.zeros(D), log_variance=np.zeros(D))
    for words in ("few.npz --pairwise", "few.npz --top-k 3", "one.npz --terms"):
        name = words.split()[1].strip("-")
        status, _, err = _run(capsys, "q.npz", *words.split(), "--output", f"{name}.npz")
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
    np.savez("q.npz", **_diagonal(0, 80_000))
    np.savez("p.npz", **_diagonal(1, 80_000))
    words = ["evaluate", "q.npz", "p.npz", "--chunk-size", "600", "--output", "out.npy"]
    process = _begin_slowly(words)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = "out.npy.partial"
    assert not Path("out.npy").exists()

    refused, _, err = _run(capsys, *words[1:])
    assert (refused, len(err.splitlines())) == (2, 1)
    assert "--resume goes on" in err
    other, _, err = _run(capsys, *words[1:], "--resume", "--chunk-size", "900")
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
    status, _, err = _run(capsys, *words[1:], "--resume")
    assert status == 0, err
    got = Path("out.npy").read_bytes()
    assert got[128:132] == b"\0\0\0\0"
    Path("out.npy").unlink()
    assert _run(capsys, *words[1:])[0] == 0
    assert Path("out.npy").read_bytes() == got[:128] + true + got[132:]

    Path(state).mkdir()
    Path(state, "plan").write_text("{}")
    status, _, err = _run(capsys, "q.npz", "p.npz", "--output", "out.npy", "--resume")
    assert (status, "exists already" in err) == (2, True)


def test_a_state_without_a_plan_begins_anew(data, capsys):
    words = ("q.npz", "p.npz", "--output", "out.npy", "--resume")
    state = Path("out.npy.partial")
    state.mkdir()
    (state / "data").touch()
    assert _run(capsys, *words)[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), data)

    Path("out.npy").unlink()
    state.mkdir()
    (state / "letters").touch()  # another's, which must stay
    assert _run(capsys, *words)[0] == 2
    assert (state / "letters").exists()


def test_a_changed_input_is_not_gone_on_with(data, capsys):
    words = ("q.npz", "p.npz", "--output", "out.npy")
    shapes = {"kl": ((N,), np.dtype(np.float32))}
    output.Partial(Path("out.npy"), shapes, {"input Q": "another"}).begin()
    status, _, err = _run(capsys, *words, "--resume")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "was begun with another input Q" in err


# ---- one sentence ---------------------------------------------------------------------------


def _truncate(path, by=100):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-by])


def _spoil_q(**changed):
    np.savez("q.npz", **{**_diagonal(0), **changed})


def _negative(rows):
    scale = _diagonal(0)["scale_diag"]
    scale[rows, 1] = -1.0
    _spoil_q(scale_diag=scale)


def _truncated_directory():
    _write("directory", "dir", _diagonal(0))
    _truncate("dir/loc.npy")


def _truncated_tensors():
    _write("safetensors", "q", _diagonal(0))
    _truncate("q.safetensors")


_LOC = b'"loc": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}'


def _tensors(entries, data=b"\0" * 12, text=None):
    """A .safetensors file of numbers that begin and end there."""
    head = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": list(ends)}
        for name, (shape, ends) in entries.items()
    }
    text = json.dumps(head).encode() if text is None else text
    Path("q.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def _table_of(columns, names=None):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns, names=names), "q.parquet")


def _no_lists(size=-1):
    pa = pytest.importorskip("pyarrow")
    return pa.array([], pa.list_(pa.float32(), size))


def _damaged_table():
    _write_table("q.parquet", _diagonal(0))
    content = bytearray(Path("q.parquet").read_bytes())
    content[4:60] = b"\xff" * 56  # the header of the first page
    Path("q.parquet").write_bytes(content)


def _header(text):
    """A .npy array with this in place of its header."""
    Path("dir").mkdir()
    begin = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    Path("dir/loc.npy").write_bytes(begin + text.encode())


def _dangling():
    _write("directory", "dir", _diagonal(0))
    Path("dir/variance.npy").symlink_to("nowhere")


def _encrypted():
    content = bytearray(Path("q.npz").read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    Path("q.npz").write_bytes(content)


def _damaged_lzma(at):
    with zipfile.ZipFile("q.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, x in _diagonal(0).items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, x)
    content = bytearray(Path("q.npz").read_bytes())
    content[at : at + 40] = b"\xff" * 40
    Path("q.npz").write_bytes(content)


def _missing_in_a_table(row):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    loc = list(_diagonal(0)["loc"])
    loc[row] = None
    scale = list(_diagonal(0)["scale_diag"])
    pq.write_table(pa.table({"loc": loc, "scale_diag": scale}), "q.parquet")


def _damaged_archive():
    np.savez_compressed("q.npz", **_diagonal(0))
    content = bytearray(Path("q.npz").read_bytes())
    content[8000] ^= 255  # in the middle of the first array
    Path("q.npz").write_bytes(content)


def _foreign(name):
    return lambda: Path(name).write_bytes(b"\x10" * 400)


FAILURES = {
    "not there": (lambda: None, "none.npz p.npz --output out.npy", "No such file"),
    "unknown format": (_foreign("q.csv"), "q.csv p.npz --output out.npy", "no known format"),
    "truncated npz": (lambda: _truncate("q.npz"), None, "is not a .npz file or is truncated"),
    "truncated npy": (
        _truncated_directory,
        "dir p.npz --output out.npy",
        "100 bytes are missing",
    ),
    "truncated safetensors": (
        _truncated_tensors,
        "q.safetensors p.npz --output out.npy",
        "100 bytes are missing",
    ),
    "foreign npz": (_foreign("q.npz"), None, "is not a .npz file"),
    "foreign safetensors": (
        _foreign("q.safetensors"),
        "q.safetensors p.npz --output out.npy",
        "is not a .safetensors file",
    ),
    "foreign parquet": (
        _foreign("q.parquet"),
        "q.parquet p.npz --output out.npy",
        "is not a .parquet file",
    ),
    "numbers differ": (
        lambda: np.savez("p.npz", **_diagonal(1, 999)),
        None,
        "q.loc has 1,000 entries and p.loc has 999",
    ),
    "event sizes differ": (
        lambda: np.savez("p.npz", loc=np.zeros((N, 2)), variance=np.ones((N, 2))),
        None,
        "event sizes must be equal",
    ),
    "a parameter is missing": (
        lambda: np.savez("q.npz", loc=np.zeros((N, D))),
        None,
        "'q.npz' has loc, which is no family; the nearest: Normal: loc, scale | log_variance",
    ),
    "a foreign parameter": (
        lambda: _spoil_q(weights=np.zeros(N)),
        None,
        "has 'weights', which is no parameter; the nearest: MultivariateNormalDiag: loc, "
        "scale_diag | log_variance | variance.",
    ),
    "a name mistyped": (
        lambda: _spoil_q(scale_dig=np.ones(N)),
        None,
        "has 'scale_dig', which is no parameter; did you mean 'scale_diag'?",
    ),
    "a gap between columns": (
        lambda: _write_table("q.parquet", {f"loc_{i}": np.zeros(N) for i in (0, 2)}),
        "q.parquet p.npz --output out.npy",
        "column 'loc_0' of 'q.parquet' has no 'loc_1' beside it",
    ),
    "a missing value far down": (
        lambda: _missing_in_a_table(700),
        "q.parquet p.npz --output out.npy --chunk-size 600",
        "column 'loc' of 'q.parquet' has missing values",
    ),
    "a damaged archive": (
        lambda: _damaged_archive(),
        "q.npz p.npz --output out.npy --chunk-size 600",
        "'loc.npy' in 'q.npz' is damaged: ",
    ),
    "a damaged lzma": (lambda: _damaged_lzma(60), None, "'loc.npy' in 'q.npz' is damaged: "),
    "a damaged lzma further down": (
        lambda: _damaged_lzma(9000),
        None,
        "'loc.npy' in 'q.npz' is damaged: ",
    ),
    "encrypted": (_encrypted, None, "'loc.npy' in 'q.npz' is encrypted"),
    "an array's header": (
        lambda: _header("("),
        "dir p.npz --output out.npy",
        "'dir/loc.npy' is not a .npy array",
    ),
    "an array's header deep": (
        lambda: _header("-" * 9000 + "1"),
        "dir p.npz --output out.npy",
        "'dir/loc.npy' is not a .npy array",
    ),
    "an array's shape": (
        lambda: _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3)}"),
        "dir p.npz --output out.npy",
        "'dir/loc.npy' is not a .npy array",
    ),
    "a dangling link": (
        _dangling,
        "dir p.npz --output out.npy",
        "cannot read 'dir/variance.npy': No such file",
    ),
    "a path": (lambda: None, "q\0.npz p.npz --output out.npy", "'q\\x00.npz' is no path"),
    "a ragged column": (
        lambda: _table_of({"loc": [[1.0, 2], [1], [1, 2, 3]], "scale_diag": [[1.0, 1]] * 3}),
        "q.parquet q.parquet --output out.npy",
        "column 'loc' of 'q.parquet' has lists of different length",
    ),
    "a ragged matrix": (
        lambda: _table_of(
            {"loc": [[1.0, 2]] * 2, "scale_tril": [[[1.0, 2], [3, 4]], [[1.0], [2, 3, 4]]]}
        ),
        "q.parquet q.parquet --output out.npy",
        "column 'scale_tril' of 'q.parquet' has lists of different length",
    ),
    "a damaged table": (
        _damaged_table,
        "q.parquet p.npz --output out.npy",
        "'q.parquet' is damaged: ",
    ),
    "a number twice": (
        lambda: _table_of({key: [1.0] for key in ("loc_0", "loc_00", "loc_1")}),
        "q.parquet p.npz --output out.npy",
        "column 'loc_0' of 'q.parquet' and 'loc_00' have one number",
    ),
    "a column twice": (
        lambda: _table_of([_no_lists(D)] * 2, ["loc"] * 2),
        "q.parquet p.npz --output out.npy",
        "column 'loc' of 'q.parquet' is there twice",
    ),
    "lists of no rows": (
        lambda: _table_of({"loc": _no_lists(), "scale_diag": _no_lists()}),
        "q.parquet p.npz --output out.npy",
        "column 'loc' of 'q.parquet' has no list that shows how long they are",
    ),
    "no p in a table": (
        lambda: np.savez("p.npz", **_diagonal(1, 0)),
        "q.npz p.npz --output out.parquet --pairwise",
        "cannot hold lists of length 0",
    ),
    "a shape below 0": (
        lambda: _tensors({"loc": ([-1, -3], (0, 12))}),
        "q.safetensors p.npz --output out.npy",
        "the header of 'q.safetensors' is not that of safetensors",
    ),
    "offsets below 0": (
        lambda: _tensors({"loc": ([3], (-12, 0))}),
        "q.safetensors p.npz --output out.npy",
        "the header of 'q.safetensors' is not that of safetensors",
    ),
    "tensors that overlap": (
        lambda: _tensors({"loc": ([3], (0, 12)), "scale": ([2], (4, 12))}),
        "q.safetensors p.npz --output out.npy",
        "the arrays in 'q.safetensors' overlap or leave gaps",
    ),
    "tensors with a gap": (
        lambda: _tensors({"loc": ([1], (0, 4)), "scale": ([1], (8, 12))}),
        "q.safetensors p.npz --output out.npy",
        "the arrays in 'q.safetensors' overlap or leave gaps",
    ),
    "bytes of no tensor": (
        lambda: _tensors({"loc": ([2], (0, 8))}),
        "q.safetensors p.npz --output out.npy",
        "'q.safetensors' has 4 bytes that belong to no array",
    ),
    "a tensor twice": (
        lambda: _tensors({}, text=b"{" + _LOC + b"," + _LOC + b"}"),
        "q.safetensors p.npz --output out.npy",
        "the header of 'q.safetensors' is not that of safetensors",
    ),
    "a deep header": (
        lambda: _tensors({}, text=b"[" * 100_000),
        "q.safetensors p.npz --output out.npy",
        "the header of 'q.safetensors' is not that of safetensors",
    ),
    "ranks": (
        lambda: np.savez("q.npz", loc=np.zeros((2, 2, N)), scale=np.zeros((2, 2, N))),
        None,
        "one axis of distributions at most",
    ),
    "no numbers": (lambda: _spoil_q(loc=np.full((N, D), "x")), None, "q.loc has dtype <U1"),
    "bool": (lambda: _spoil_q(loc=np.zeros((N, D), bool)), None, "q.loc has dtype bool"),
    "times": (
        lambda: _spoil_q(loc=np.zeros((N, D), "m8[s]")),
        None,
        "q.loc has dtype timedelta64[s]; parameters are real numbers",
    ),
    "dates": (
        lambda: _spoil_q(loc=np.zeros((N, D), "M8[s]")),
        None,
        "q.loc has dtype datetime64[s]; parameters are real numbers",
    ),
    "objects": (
        lambda: _spoil_q(loc=np.full((N, D), None)),
        None,
        "holds Python objects",
    ),
    "invalid values": (
        lambda: _negative([17, 400, 999]),
        None,
        "3 of 1,000 pairs have invalid values, the first at index 17: q's "
        "MultivariateNormalDiag.scale_diag must be positive and finite; got -1",
    ),
    "infinite values": (
        lambda: _spoil_q(loc=np.where(np.arange(N)[:, None] == 5, np.inf, np.zeros((N, D)))),
        None,
        "1 of 1,000 pair has invalid values, the first at index 5: q's",
    ),
    "exists already": (lambda: Path("out.npy").touch(), None, "'out.npy' exists already"),
    "unwritable": (lambda: None, "q.npz p.npz --output none/out.npy", "cannot write"),
    "output suffix": (lambda: None, "q.npz p.npz --output out.txt", "must end in .npy"),
    "terms in npy": (
        lambda: None,
        "q.npz p.npz --output out.npy --terms",
        "a .npy file holds one array",
    ),
    "devices": (
        lambda: None,
        "q.npz p.npz --output out.npy --devices 9",
        "--devices 9 is more than the 2",
    ),
    "chunk size": (
        lambda: None,
        "q.npz p.npz --output out.npy --chunk-size 16X",
        "is no number of bytes",
    ),
    "k": (lambda: None, "q.npz p.npz --output out.npz --top-k 2000", "between 1 and the 1000"),
    "family": (
        lambda: None,
        "q.npz p.npz --output out.npy --q-family Gauss",
        "there is no family 'Gauss'",
    ),
    "processes": (
        lambda: None,
        "q.npz p.npz --output out.npy --processes 2",
        "need --coordinator",
    ),
    "no port": (
        lambda: None,
        "q.npz p.npz --output out.npy --coordinator foo --processes 2 --process-id 0",
        "--coordinator 'foo' is no HOST:PORT with a port from 1 to 65535",
    ),
    "a port too high": (
        lambda: None,
        "q.npz p.npz --output out.npy --coordinator a:65536 --processes 2 --process-id 0",
        "--coordinator 'a:65536' is no HOST:PORT",
    ),
    "process id": (
        lambda: None,
        "q.npz p.npz --output out.npy --coordinator a:1 --processes 2 --process-id 2",
        "--process-id 2 must be at least 0 and below the 2",
    ),
}
if np.dtype(np.longdouble).itemsize > 8:  # not on every machine
    FAILURES["long numbers"] = (
        lambda: _spoil_q(loc=np.zeros((N, D), np.longdouble)),
        None,
        "q.loc has dtype float",
    )


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_one_sentence(data, capsys, name):
    spoil, words, said = FAILURES[name]
    spoil()
    before = _left()
    words = (words or "q.npz p.npz --output out.npy").split()
    status, out, err = _run(capsys, *words)
    assert status == 2, err
    assert said in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert _left() == before


def test_invalid_values_may_stay_nan(data, capsys):
    _negative([17])
    words = ("q.npz", "p.npz", "--output", "out.npy", "--invalid", "nan")
    status, _, err = _run(capsys, *words)
    assert status == 0, err
    np.testing.assert_array_equal(np.isnan(np.load("out.npy")), np.arange(N) == 17)


def test_full_disk(data, capsys, monkeypatch):
    """Found out before any work: the room for the result is taken first."""

    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for suffix in ("npy", "npz"):
        status, _, err = _run(capsys, "q.npz", "p.npz", "--output", f"out.{suffix}")
        assert status == 2
        assert "No space left on device; it needs 4," in err
        assert len(err.splitlines()) == 1
        assert _left() == ["p.npz", "q.npz"]


def test_no_room_for_a_journal(data, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "flock", full)
    status, _, err = _run(capsys, "q.npz", "p.npz", "--output", "out.npy")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "No space left on device" in err
    assert _left() == ["p.npz", "q.npz"]


def test_a_disk_that_fails_leaves_what_is_finished(data, capsys, monkeypatch):
    words = ("q.npz", "p.npz", "--output", "out.npy", "--chunk-size", "600")
    whole = Raw.__getitem__

    def failing(self, rows):
        if rows.start > 500:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Raw, "__getitem__", failing)
        status, _, err = _run(capsys, *words)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "Input/output error; what is finished is in 'out.npy.partial', --resume" in err
    assert _run(capsys, *words, "--resume")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), data)
    assert _left() == ["out.npy", "p.npz", "q.npz"]


def test_a_file_size_limit_is_no_traceback(data, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        status, _, err = _run(capsys, "q.npz", "p.npz", "--output", "out.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "File too large" in err
    assert _left() == ["p.npz", "q.npz"]


def test_pyarrow_missing_is_said(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, _, err = _run(capsys, "q.npz", "p.npz", "--output", "out.parquet")
    assert status == 2
    assert "needs pyarrow: pip install 'kljax[files]'" in err


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
        status, _, err = _run(capsys, *line.split()[2:])
        assert status == 0, err
    for line in commands:
        assert cli._parser().parse_args(line.split()[1:]).command == "evaluate"
