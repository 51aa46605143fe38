"""How a result lies in a file of each format."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kljax.batch.rows import FileError, Raw

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")
_SAFETENSORS = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}


class Array(NamedTuple):
    """One array of the result: its name, shape, dtype and offset in the data."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.offset + self.shape[0] * self.row_bytes


def suffix(path: Path) -> str:
    """The format that is meant, or a sentence."""
    if path.suffix not in SUFFIXES:
        raise FileError(f"{str(path)!r} must end in {', '.join(SUFFIXES)}.")
    return path.suffix


def layout(
    path: Path, shapes: dict[str, tuple[tuple[int, ...], np.dtype]]
) -> tuple[bytes, list[Array]]:
    """What stands in front of the data, and where each array lies."""
    kind = suffix(path)
    if kind == ".npy":
        if len(shapes) > 1:
            raise FileError(
                f"a .npy file holds one array and there are {', '.join(shapes)}; write .npz, "
                ".safetensors or .parquet."
            )
        ((shape, dtype),) = shapes.values()
        buffer = io.BytesIO()
        entry = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, entry)
        header = buffer.getvalue()
    elif kind == ".parquet" and any(0 in shape[1:] for shape, _ in shapes.values()):
        raise FileError(
            "a .parquet file cannot hold lists of length 0, the result without any p; write "
            ".npy, .npz or .safetensors."
        )
    elif kind == ".safetensors":
        header = _safetensors_header(shapes)
    else:
        header = b""
    arrays, offset = [], len(header)
    for name, (shape, dtype) in shapes.items():
        arrays.append(Array(name, shape, dtype, offset))
        offset = arrays[-1].end
    return header, arrays


def _safetensors_header(shapes: dict[str, tuple[tuple[int, ...], np.dtype]]) -> bytes:
    entries, begin = {}, 0
    for name, (shape, dtype) in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        kind = _SAFETENSORS[dtype.name]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(data: Path, array: Array, rows: int) -> Iterator[np.ndarray]:
    raw = Raw(data, array.offset, array.shape, array.dtype)
    for start in range(0, array.shape[0], rows):
        yield raw[start : start + rows]


def write_npz(path: Path, data: Path, arrays: list[Array]) -> None:
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for array in arrays:
            # A fixed date, so that equal numbers are an equal file.
            info = zipfile.ZipInfo(f"{array.name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                entry = {
                    "descr": array.dtype.str,
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(member, entry)
                for rows in _pieces(data, array, max(1, (1 << 22) // max(array.row_bytes, 1))):
                    member.write(rows.data)


def write_parquet(path: Path, data: Path, arrays: list[Array]) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = []
    for array in arrays:
        kind = pyarrow.from_numpy_dtype(array.dtype)
        width = math.prod(array.shape[1:])
        listed = pyarrow.list_(kind, width) if len(array.shape) > 1 else kind
        fields.append(pyarrow.field(array.name, listed))
    schema = pyarrow.schema(fields)
    rows = max(1, (1 << 23) // max(1, sum(array.row_bytes for array in arrays)))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for pieces in zip(*(_pieces(data, array, rows) for array in arrays), strict=True):
            columns = []
            for piece, field in zip(pieces, fields, strict=True):
                flat = pyarrow.array(piece.reshape(-1))
                if piece.ndim > 1:
                    flat = pyarrow.FixedSizeListArray.from_arrays(flat, type=field.type)
                columns.append(flat)
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
