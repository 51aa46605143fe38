"""Parameters in files, read a slice at a time: .npz, .npy, .safetensors and .parquet.

A parameter is anything with `shape`, `dtype` and slices, as an array is. Slices are read into
fresh memory rather than mapped, since pages of a map count as resident.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

SUFFIXES = (".npz", ".safetensors", ".parquet")

_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


class FileError(ValueError):
    """What is wrong with a file, in one sentence."""


def read(path: Path) -> dict[str, Any]:
    """The parameters in a file, or in a directory of .npy files, by name; nothing is read yet.

    Raises:
        FileError: if it is not there, truncated or of another format.
    """
    try:
        found = _open(path)
    except OSError as reason:
        raise FileError(f"cannot read {str(path)!r}: {reason.strerror or reason}.") from None
    if not found:
        raise FileError(f"{str(path)!r} has no parameters in it.")
    return found


def _open(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}
    match path.suffix:
        case ".npz":
            return _npz(path)
        case ".safetensors":
            return _safetensors(path)
        case ".parquet":
            return _parquet(path)
    path.stat()  # A file that is not there is the first thing to say.
    raise FileError(
        f"{str(path)!r} is of no known format; give a file {', '.join(SUFFIXES)} or a "
        "directory of .npy files, one a parameter."
    )


# ---- bytes at an offset ---------------------------------------------------------------------


class Raw:
    """Rows that lie in a file one after the other."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:])
        with open(self.path, "rb") as file:
            file.seek(self.offset + start * row * self.dtype.itemsize)
            values = np.fromfile(file, self.dtype, (stop - start) * row)
        if values.size != (stop - start) * row:
            raise FileError(f"{str(self.path)!r} became shorter while it was read.")
        return values.reshape(stop - start, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        values = Raw(self.path, self.offset, (1, *self.shape), self.dtype)[:][0]
        return values if dtype is None else values.astype(dtype)

    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def _npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(file)
    except (ValueError, EOFError, struct.error):
        raise FileError(f"{name} is not a .npy array or is truncated.") from None
    if dtype.hasobject:
        raise FileError(f"{name} holds Python objects; parameters are arrays of numbers.")
    if fortran and len(shape) > 1:
        raise FileError(
            f"{name} is stored column by column; save np.ascontiguousarray of it instead."
        )
    return shape, dtype


def _npy(path: Path) -> Raw:
    with open(path, "rb") as file:
        shape, dtype = _npy_header(file, repr(str(path)))
        raw = Raw(path, file.tell(), shape, dtype)
    _check_end(raw, os.path.getsize(path), repr(str(path)))
    return raw


def _check_end(raw: Raw, size: int, name: str) -> None:
    if raw.end() > size:
        raise FileError(f"{name} is truncated: {raw.end() - size:,} bytes are missing.")


def _safetensors(path: Path) -> dict[str, Any]:
    """Header length, header in JSON, arrays (huggingface/safetensors, README, Format)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, 100_000_000):
            raise FileError(f"{str(path)!r} is not a .safetensors file or is truncated.")
        text = file.read(length)
    found: dict[str, Any] = {}
    try:
        for name, entry in json.loads(text).items():
            if name == "__metadata__":
                continue
            dtype = _safetensors_dtype(entry["dtype"], f"{name!r} in {str(path)!r}")
            begin, end = entry["data_offsets"]
            found[name] = Raw(path, 8 + length + begin, tuple(entry["shape"]), dtype)
            if found[name].end() != 8 + length + end:
                raise KeyError(name)
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        if isinstance(reason, FileError):
            raise
        raise FileError(f"the header of {str(path)!r} is not that of safetensors.") from None
    for raw in found.values():
        _check_end(raw, size, repr(str(path)))
    return found


def _safetensors_dtype(name: str, what: str) -> np.dtype:
    if name == "BF16":
        import ml_dtypes  # JAX needs it too.

        return np.dtype(ml_dtypes.bfloat16)
    if name not in _SAFETENSORS:
        raise FileError(f"{what} has dtype {name}; parameters are real numbers.")
    return np.dtype(_SAFETENSORS[name])


# ---- archives -------------------------------------------------------------------------------


class _Sequential:
    """Rows that can only be read from the beginning; a slice behind the last one is cheap."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(self) -> None:
        self._rows: Iterator[np.ndarray] | None = None
        self._at = 0
        self._rest = np.empty(0)

    def _batches(self, start: int) -> tuple[int, Iterator[np.ndarray]]:
        """A number of rows not above start, and arrays of rows from there on."""
        raise NotImplementedError

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        if self._rows is None or start < self._at:
            self._at, self._rows = self._batches(start)
            self._rest = np.empty((0, *self.shape[1:]), self.dtype)
        while self._at < start:
            self._take(start - self._at)
        pieces = []
        while self._at < stop:
            pieces.append(self._take(stop - self._at))
        if not pieces:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _take(self, most: int) -> np.ndarray:
        """Some of the next rows, at most so many."""
        if not len(self._rest):
            assert self._rows is not None
            self._rest = next(self._rows, self._rest)
            if not len(self._rest):
                raise FileError(f"{self} ends after {self._at:,} rows.")
        taken, self._rest = self._rest[:most], self._rest[most:]
        self._at += len(taken)
        return taken


class _Compressed(_Sequential):
    """A compressed member of an archive."""

    def __init__(self, path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype):
        super().__init__()
        self.path, self.member, self.shape, self.dtype = path, member, shape, dtype

    def __str__(self) -> str:
        return f"{self.member!r} in {str(self.path)!r}"

    def _batches(self, start: int) -> tuple[int, Iterator[np.ndarray]]:
        return 0, self._read()

    def _read(self) -> Iterator[np.ndarray]:
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        some = max(1, (1 << 20) // max(row, 1))
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _npy_header(file, str(self))  # pyright: ignore[reportArgumentType]
            while data := file.read(some * row):
                if len(data) % row:
                    raise FileError(f"{self} is truncated.")
                yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        values = np.load(self.path)[self.member.removesuffix(".npy")]
        return values if dtype is None else values.astype(dtype)


def _npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info)
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, struct.error, NotImplementedError):
        raise FileError(f"{str(path)!r} is not a .npz file or is truncated.") from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Raw | _Compressed:
    name = f"{info.filename!r} in {str(path)!r}"
    with archive.open(info) as file:
        shape, dtype = _npy_header(file, name)  # pyright: ignore[reportArgumentType]
        header = file.tell()
    if info.compress_type != zipfile.ZIP_STORED:
        return _Compressed(path, info.filename, shape, dtype)
    with open(path, "rb") as file:
        # The lengths of name and extra field in front of the data may differ from the
        # directory's, so they are read where they stand.
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name_length + extra_length
    raw = Raw(path, start + header, shape, dtype)
    _check_end(raw, start + info.file_size, name)
    return raw


# ---- columns --------------------------------------------------------------------------------


class Column(_Sequential):
    """A column of numbers, or of lists of one length; rows of a matrix one after the other."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype):
        super().__init__()
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype

    def __str__(self) -> str:
        return f"column {self.name!r} of {str(self.path)!r}"

    def _batches(self, start: int) -> tuple[int, Iterator[np.ndarray]]:
        file = _parquet_file(self.path)
        first, group = 0, 0
        while group < file.num_row_groups:
            rows = file.metadata.row_group(group).num_rows
            if first + rows > start:
                break
            first, group = first + rows, group + 1
        groups = list(range(group, file.num_row_groups))
        size = max(1, (1 << 20) // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        batches = file.iter_batches(size, row_groups=groups, columns=[self.name])
        return first, (self._values(batch.column(0)) for batch in batches)

    def _values(self, array: Any) -> np.ndarray:
        count = len(array)
        values, widths = _flatten(array, str(self))
        if widths != self.shape[1:] and count:
            raise FileError(f"{self} has lists of different length.")
        return values.astype(self.dtype, copy=False).reshape(count, *self.shape[1:])


class Stacked:
    """Columns name_0, name_1, ... as one parameter."""

    def __init__(self, columns: list[Column]):
        self.columns = columns
        self.shape = (*columns[0].shape, len(columns))
        self.dtype = columns[0].dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([column[rows] for column in self.columns], axis=-1)


class Matrices(NamedTuple):
    """A parameter whose matrices are stored as one long list each."""

    rows: Any
    event_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.shape[0], *self.event_shape)

    @property
    def dtype(self) -> np.dtype:
        return self.rows.dtype

    def __getitem__(self, rows: Any) -> Any:
        return self.rows[rows].reshape(-1, *self.event_shape)


def need_pyarrow(path: Path) -> None:
    """Says what a .parquet file needs and is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise FileError(f"{str(path)!r} needs pyarrow: pip install 'kljax[files]'.") from None


def _parquet_file(path: Path) -> Any:
    need_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        # Page by page: a file may be one row group of any size.
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as reason:
        if isinstance(reason, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise FileError(f"{str(path)!r} is not a .parquet file or is truncated.") from None


def _flatten(array: Any, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """All numbers of an array of lists of lists, and the lengths of the lists."""
    import pyarrow

    widths: list[int] = []
    count = len(array)
    while True:
        if array.null_count:
            raise FileError(f"{name} has missing values.")
        if not hasattr(array.type, "value_type") or pyarrow.types.is_dictionary(array.type):
            break
        array = array.flatten()
        width = len(array) // max(count, 1)
        if width * count != len(array):
            raise FileError(f"{name} has lists of different length.")
        widths.append(width)
        count = len(array)
    if not pyarrow.types.is_primitive(array.type) or pyarrow.types.is_temporal(array.type):
        raise FileError(f"{name} has type {array.type}; parameters are real numbers.")
    return array.to_numpy(zero_copy_only=False), tuple(widths)


def _parquet(path: Path) -> dict[str, Any]:
    file = _parquet_file(path)
    rows = file.metadata.num_rows
    names = file.schema_arrow.names
    columns: dict[str, Any] = {}
    first = next(file.iter_batches(1), None) if rows else None
    for name in names:
        column = Column(path, name, (rows,), np.dtype(np.float32))
        if first is not None:
            values, widths = _flatten(first.column(names.index(name)), str(column))
            column.shape, column.dtype = (rows, *widths), values.dtype
        columns[name] = column
    return _stacked(columns)


def _stacked(columns: dict[str, Column]) -> dict[str, Any]:
    """Columns loc_0, loc_1, ... become loc."""
    groups: dict[str, dict[int, Column]] = {}
    found: dict[str, Any] = {}
    for name, column in columns.items():
        numbered = re.fullmatch(r"(.+?)_(\d+)", name)
        if numbered and len(column.shape) == 1:
            groups.setdefault(numbered[1], {})[int(numbered[2])] = column
        else:
            found[name] = column
    for name, group in groups.items():
        if sorted(group) != list(range(len(group))) or name in found:
            found |= {column.name: column for column in group.values()}
        else:
            found[name] = Stacked([group[i] for i in range(len(group))])
    return found
