"""Parameters in files, read a slice at a time: .npz, .npy, .safetensors and .parquet.

A parameter is anything with `shape`, `dtype` and slices, as an array is. Slices are read into
fresh memory rather than mapped, since pages of a map count as resident.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kljax.batch import tables
from kljax.batch.rows import FileError, Raw, Sequential

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
