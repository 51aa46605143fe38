"""Parameters in files, read a slice at a time: .npz, .npy, .safetensors and .parquet.

A parameter is anything with `shape`, `dtype` and slices, as an array is. Slices are read into
fresh memory rather than mapped, since pages of a map count as resident.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kljax.batch import safetensors, tables
from kljax.batch.rows import FileError, Raw, Sequential, damage

SUFFIXES = (".npz", ".safetensors", ".parquet")
# NumPy reads a header as Python.
_NO_HEADER = (
    ValueError,
    TypeError,
    EOFError,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,  # the parser's, of what is nested deeply
)


def read(path: Path) -> dict[str, Any]:
    """The parameters in a file, or in a directory of .npy files, by name; nothing is read yet.

    Raises:
        FileError: if it is not there, truncated or of another format.
    """
    try:
        found = _open(path)
    except OSError as reason:
        where = str(reason.filename or path)  # of a directory the file in it
        raise FileError(f"cannot read {where!r}: {reason.strerror or reason}.") from None
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
            return safetensors.read(path)
        case ".parquet":
            return tables.parquet(path)
    path.stat()  # A file that is not there is the first thing to say.
    raise FileError(
        f"{str(path)!r} is of no known format; give a file {', '.join(SUFFIXES)} or a "
        "directory of .npy files, one a parameter."
    )


# ---- bytes at an offset ---------------------------------------------------------------------


def _npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(file)
        if min(shape, default=0) < 0:
            raise ValueError
    except _NO_HEADER:
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
    raw.check_end(os.path.getsize(path), repr(str(path)))
    return raw


# ---- archives -------------------------------------------------------------------------------


@contextlib.contextmanager
def _damaged(name: str) -> Iterator[None]:
    """What a damaged member raises, as a sentence; every compression has its own errors."""
    try:
        yield
    except Exception as reason:
        of_disk = isinstance(reason, OSError) and reason.errno is not None
        if of_disk or isinstance(reason, (FileError, MemoryError)):
            raise
        raise damage(name, reason) from None


class _Compressed(Sequential):
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
        if not row:
            yield np.empty(self.shape, self.dtype)
            return
        some = max(1, (1 << 20) // row)
        with (
            _damaged(str(self)),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.member) as file,
        ):
            _npy_header(file, str(self))  # pyright: ignore[reportArgumentType]
            while data := file.read(some * row):
                if len(data) % row:
                    raise FileError(f"{self} is truncated.")
                yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        with _damaged(str(self)):
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
    if info.flag_bits & 1:
        raise FileError(f"{name} is encrypted; save it without a password.")
    with _damaged(name), archive.open(info) as file:
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
    raw.check_end(start + info.file_size, name)
    return raw
