"""What `kljax evaluate` cannot do is said in one sentence, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from evaluation import (
    D,
    N,
    diagonal,
    left,
    negative,
    run,
    spoil_q,
    write,
    write_pairs,
    write_table,
)
from kljax.batch.rows import Raw


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Q and P in the current directory, and their divergences."""
    monkeypatch.chdir(tmp_path)
    return write_pairs()


def _truncate(path, by=100):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-by])


def _truncated_directory():
    write("directory", "dir", diagonal(0))
    _truncate("dir/loc.npy")


def _truncated_tensors():
    write("safetensors", "q", diagonal(0))
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
    write_table("q.parquet", diagonal(0))
    content = bytearray(Path("q.parquet").read_bytes())
    content[4:60] = b"\xff" * 56  # the header of the first page
    Path("q.parquet").write_bytes(content)


def _header(text):
    """A .npy array with this in place of its header."""
    Path("dir").mkdir()
    begin = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    Path("dir/loc.npy").write_bytes(begin + text.encode())


def _dangling():
    write("directory", "dir", diagonal(0))
    Path("dir/variance.npy").symlink_to("nowhere")


def _encrypted():
    content = bytearray(Path("q.npz").read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    Path("q.npz").write_bytes(content)


def _damaged_lzma(at):
    with zipfile.ZipFile("q.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, x in diagonal(0).items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, x)
    content = bytearray(Path("q.npz").read_bytes())
    content[at : at + 40] = b"\xff" * 40
    Path("q.npz").write_bytes(content)


def _missing_in_a_table(row):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    loc = list(diagonal(0)["loc"])
    loc[row] = None
    scale = list(diagonal(0)["scale_diag"])
    pq.write_table(pa.table({"loc": loc, "scale_diag": scale}), "q.parquet")


def _damaged_archive():
    np.savez_compressed("q.npz", **diagonal(0))
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
        lambda: np.savez("p.npz", **diagonal(1, 999)),
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
        lambda: spoil_q(weights=np.zeros(N)),
        None,
        "has 'weights', which is no parameter; the nearest: MultivariateNormalDiag: loc, "
        "scale_diag | log_variance | variance.",
    ),
    "a name mistyped": (
        lambda: spoil_q(scale_dig=np.ones(N)),
        None,
        "has 'scale_dig', which is no parameter; did you mean 'scale_diag'?",
    ),
    "a gap between columns": (
        lambda: write_table("q.parquet", {f"loc_{i}": np.zeros(N) for i in (0, 2)}),
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
        lambda: np.savez("p.npz", **diagonal(1, 0)),
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
    "no numbers": (lambda: spoil_q(loc=np.full((N, D), "x")), None, "q.loc has dtype <U1"),
    "bool": (lambda: spoil_q(loc=np.zeros((N, D), bool)), None, "q.loc has dtype bool"),
    "times": (
        lambda: spoil_q(loc=np.zeros((N, D), "m8[s]")),
        None,
        "q.loc has dtype timedelta64[s]; parameters are real numbers",
    ),
    "dates": (
        lambda: spoil_q(loc=np.zeros((N, D), "M8[s]")),
        None,
        "q.loc has dtype datetime64[s]; parameters are real numbers",
    ),
    "objects": (
        lambda: spoil_q(loc=np.full((N, D), None)),
        None,
        "holds Python objects",
    ),
    "invalid values": (
        lambda: negative([17, 400, 999]),
        None,
        "3 of 1,000 pairs have invalid values, the first at index 17: q's "
        "MultivariateNormalDiag.scale_diag must be positive and finite; got -1",
    ),
    "infinite values": (
        lambda: spoil_q(loc=np.where(np.arange(N)[:, None] == 5, np.inf, np.zeros((N, D)))),
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
        lambda: spoil_q(loc=np.zeros((N, D), np.longdouble)),
        None,
        "q.loc has dtype float",
    )


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_one_sentence(data, capsys, name):
    spoil, words, said = FAILURES[name]
    spoil()
    before = left()
    words = (words or "q.npz p.npz --output out.npy").split()
    status, out, err = run(capsys, *words)
    assert status == 2, err
    assert said in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert left() == before


def test_invalid_values_may_stay_nan(data, capsys):
    negative([17])
    words = ("q.npz", "p.npz", "--output", "out.npy", "--invalid", "nan")
    status, _, err = run(capsys, *words)
    assert status == 0, err
    np.testing.assert_array_equal(np.isnan(np.load("out.npy")), np.arange(N) == 17)


def test_full_disk(data, capsys, monkeypatch):
    """Found out before any work: the room for the result is taken first."""

    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for suffix in ("npy", "npz"):
        status, _, err = run(capsys, "q.npz", "p.npz", "--output", f"out.{suffix}")
        assert status == 2
        assert "No space left on device; it needs 4," in err
        assert len(err.splitlines()) == 1
        assert left() == ["p.npz", "q.npz"]


def test_no_room_for_a_journal(data, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "flock", full)
    status, _, err = run(capsys, "q.npz", "p.npz", "--output", "out.npy")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "No space left on device" in err
    assert left() == ["p.npz", "q.npz"]


def test_a_disk_that_fails_leaves_what_is_finished(data, capsys, monkeypatch):
    words = ("q.npz", "p.npz", "--output", "out.npy", "--chunk-size", "600")
    whole = Raw.__getitem__

    def failing(self, rows):
        if rows.start > 500:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Raw, "__getitem__", failing)
        status, _, err = run(capsys, *words)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "Input/output error; what is finished is in 'out.npy.partial', --resume" in err
    assert run(capsys, *words, "--resume")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), data)
    assert left() == ["out.npy", "p.npz", "q.npz"]


def test_a_file_size_limit_is_no_traceback(data, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        status, _, err = run(capsys, "q.npz", "p.npz", "--output", "out.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "File too large" in err
    assert left() == ["p.npz", "q.npz"]


def test_pyarrow_missing_is_said(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, _, err = run(capsys, "q.npz", "p.npz", "--output", "out.parquet")
    assert status == 2
    assert "needs pyarrow: pip install 'kljax[files]'" in err
