"""Columns of a .parquet file as parameters: numbers, lists of one length, or loc_0, loc_1."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kljax.batch.rows import FileError, Sequential, damage


class Column(Sequential):
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
        return first, self._read(file, groups, size)

    def _read(self, file: Any, groups: list[int], size: int) -> Iterator[np.ndarray]:
        with _damaged(self.path):
            for batch in file.iter_batches(size, row_groups=groups, columns=[self.name]):
                yield self._values(batch.column(0))

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
        self.dtype = np.result_type(*(column.dtype for column in columns))

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


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """What pyarrow raises where a file is damaged inside, as a sentence that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as reason:
        if isinstance(reason, OSError) and reason.errno is not None:  # the disk's
            raise
        raise damage(repr(str(path)), reason) from None


def _flatten(array: Any, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """All numbers of an array of lists of lists, and the lengths of the lists."""
    import pyarrow

    widths: list[int] = []
    while True:
        if array.null_count:
            raise FileError(f"{name} has missing values.")
        if not hasattr(array.type, "value_type") or pyarrow.types.is_dictionary(array.type):
            break
        widths.append(_width(array, name))
        array = array.flatten()
    if not pyarrow.types.is_primitive(array.type) or pyarrow.types.is_temporal(array.type):
        raise FileError(f"{name} has type {array.type}; parameters are real numbers.")
    return array.to_numpy(zero_copy_only=False), tuple(widths)


def _width(array: Any, name: str) -> int:
    """The length that all lists have."""
    width = getattr(array.type, "list_size", None)
    if width is not None:
        return width
    if not len(array):
        raise FileError(
            f"{name} has no list that shows how long they are; store lists of a fixed size."
        )
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if np.any(lengths != lengths[0]):
        raise FileError(f"{name} has lists of different length.")
    return int(lengths[0])


def parquet(path: Path) -> dict[str, Any]:
    file = _parquet_file(path)
    rows = file.metadata.num_rows
    columns: dict[str, Any] = {}
    with _damaged(path):
        first = _first_row(file)
    for name, values in first:
        column = Column(path, name, (rows,), np.dtype(np.float32))
        if name in columns:
            raise FileError(f"{column} is there twice; keep one of them.")
        numbers, widths = _flatten(values, str(column))
        column.shape, column.dtype = (rows, *widths), numbers.dtype
        columns[name] = column
    return _stacked(columns)


def _first_row(file: Any) -> list[tuple[str, Any]]:
    """Names and values of the first row, or of none where there is none."""
    import pyarrow

    schema = file.schema_arrow
    batch = next(file.iter_batches(1), None) if file.metadata.num_rows else None
    if batch is None:
        return [(field.name, pyarrow.array([], field.type)) for field in schema]
    return list(zip(schema.names, batch.columns, strict=True))


def _stacked(columns: dict[str, Column]) -> dict[str, Any]:
    """Columns loc_0, loc_1, ... become loc."""
    groups: dict[str, dict[int, Column]] = {}
    found: dict[str, Any] = {}
    for name, column in columns.items():
        numbered = re.fullmatch(r"(.+?)_(\d+)", name)
        if numbered and len(column.shape) == 1:
            group = groups.setdefault(numbered[1], {})
            other = group.setdefault(int(numbered[2]), column)
            if other is not column:
                raise FileError(f"{other} and {name!r} have one number; keep one of them.")
        else:
            found[name] = column
    for name, group in groups.items():
        gap = next(i for i in range(len(group) + 1) if i not in group)
        if gap < len(group):
            some = next(iter(group.values()))
            raise FileError(f"{some} has no '{name}_{gap}' beside it.")
        if name in found:
            found |= {column.name: column for column in group.values()}
        else:
            found[name] = Stacked([group[i] for i in range(len(group))])
    return found
