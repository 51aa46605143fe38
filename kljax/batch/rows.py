"""Rows of a parameter in a file: at an offset, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class FileError(ValueError):
    """What is wrong with a file, in one sentence."""


def damage(name: str, reason: Exception) -> FileError:
    """What a library says of what it cannot read, as a sentence that names it."""
    what = "cannot be read" if isinstance(reason, NotImplementedError) else "is damaged"
    said = " ".join(str(reason).split()).rstrip(".") or type(reason).__name__
    return FileError(f"{name} {what}: {said}.")


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
        rows = Raw(self.path, self.offset, (1, *self.shape), self.dtype)[:]
        return rows.reshape(self.shape).astype(dtype or self.dtype, copy=False)

    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def check_end(self, size: int, name: str) -> None:
        """Says how much is missing of a file that is so long."""
        if self.end() > size:
            raise FileError(f"{name} is truncated: {self.end() - size:,} bytes are missing.")


class Sequential:
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
