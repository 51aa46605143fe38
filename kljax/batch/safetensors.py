"""A .safetensors file: length of the header, header in JSON, arrays without a gap.

The format is that of huggingface/safetensors, README, Format.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kljax.batch.rows import FileError, Raw

_DTYPES = {
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


def read(path: Path) -> dict[str, Raw]:
    """The arrays of a file by name; nothing of them is read yet."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, 100_000_000):
            raise FileError(f"{str(path)!r} is not a .safetensors file or is truncated.")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_once)
        entries.pop("__metadata__", None)
        found = {name: _array(path, 8 + length, name, entries[name]) for name in entries}
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FileError(f"the header of {str(path)!r} is not that of safetensors.") from None
    _check_places(path, 8 + length, size, found)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header, in which JSON would let a name stand twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError
    return entries


def _array(path: Path, start: int, name: str, entry: dict[str, Any]) -> Raw:
    dtype = _dtype(entry["dtype"], f"{name!r} in {str(path)!r}")
    begin, end = entry["data_offsets"]
    for number in (begin, end, *entry["shape"]):
        # A bool is an int as well.
        if type(number) is not int or not 0 <= number <= sys.maxsize:
            raise ValueError
    raw = Raw(path, start + begin, tuple(entry["shape"]), dtype)
    if raw.end() != start + end:
        raise ValueError
    return raw


def _check_places(path: Path, start: int, size: int, found: dict[str, Raw]) -> None:
    """Every byte behind the header belongs to one array."""
    at = start
    for raw in sorted(found.values(), key=lambda raw: (raw.offset, raw.end())):
        if raw.offset != at:
            raise FileError(f"the arrays in {str(path)!r} overlap or leave gaps.")
        raw.check_end(size, repr(str(path)))
        at = raw.end()
    if found and at < size:
        raise FileError(f"{str(path)!r} has {size - at:,} bytes that belong to no array.")


def _dtype(name: str, what: str) -> np.dtype:
    if name == "BF16":
        import ml_dtypes  # JAX needs it too.

        return np.dtype(ml_dtypes.bfloat16)
    if name not in _DTYPES:
        raise FileError(f"{what} has dtype {name}; parameters are real numbers.")
    return np.dtype(_DTYPES[name])
