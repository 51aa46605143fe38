"""A result written in pieces: resumable after a kill, renamed to its name when it is whole.

FILE.partial/ holds the numbers in `data`, each where it will stand in the end, and beside them
a journal of every process: what is computed (`plan`), then a line for every finished piece,
added only when its numbers are on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kljax.batch import formats
from kljax.batch.rows import FileError


class Partial:
    """The state of a result that is being computed.

    Attributes:
        arrays: what is to be written.
        done: finished ranges of rows, of all processes.
        invalid: how many of them have invalid values.
        first_invalid: the first of these, or None.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, tuple[tuple[int, ...], np.dtype]],
        plan: dict[str, Any],
        *,
        process: int = 0,
    ):
        self.path = path
        self.directory = path.with_name(path.name + ".partial")
        self._header, self.arrays = formats.layout(path, shapes)
        self._plan, self._process = plan, process
        self.done: list[tuple[int, int]] = []
        self.invalid, self.first_invalid = 0, None
        self._data = self._journal = -1
        self._waiting: list[dict[str, Any]] = []

    # ---- beginning --------------------------------------------------------------------------

    def exists(self) -> bool:
        return self.directory.exists()

    def unbegun(self) -> bool:
        """Whether a kill left the directory before it had a plan, hence nothing in it."""
        if not self.directory.is_dir():
            return False
        return {file.name for file in self.directory.iterdir()} <= {"data", "assembled"}

    def begin(self) -> None:
        """Makes the directory and takes the room that the result needs."""
        if self.unbegun():
            self.remove()
        try:
            self.directory.mkdir()
        except OSError as reason:
            raise FileError(
                f"cannot write {str(self.path)!r}: {reason.strerror or reason}."
            ) from None
        size = self.arrays[-1].end
        try:
            data = os.open(self.directory / "data", os.O_CREAT | os.O_WRONLY, 0o666)
            with _closing(data):
                _reserve(data, size)
                _write(data, self._header, 0)
            if self._assembled():
                other = os.open(self.directory / "assembled", os.O_CREAT | os.O_WRONLY, 0o666)
                with _closing(other):
                    _reserve(other, size + (1 << 16))
            plan = os.open(self.directory / "plan", os.O_CREAT | os.O_WRONLY, 0o666)
            with _closing(plan):
                _write(plan, json.dumps(self._plan).encode(), 0)
                os.fsync(plan)
        except OSError as reason:
            self.remove()
            raise FileError(
                f"cannot write {str(self.path)!r}: {reason.strerror or reason}; it needs "
                f"{size:,} bytes."
            ) from None

    def open(self) -> None:
        """Reads what is finished, and opens the files to go on."""
        try:
            plan = json.loads((self.directory / "plan").read_text())
        except (OSError, ValueError):
            raise FileError(
                f"{str(self.directory)!r} is no state of an earlier run; delete it to begin "
                "anew."
            ) from None
        if plan != self._plan:
            changed = [k for k in {**plan, **self._plan} if plan.get(k) != self._plan.get(k)]
            raise FileError(
                f"{str(self.directory)!r} was begun with another {' and '.join(changed)}; "
                "delete it to begin anew."
            )
        try:
            self._data = os.open(self.directory / "data", os.O_WRONLY)
            name = self.directory / f"journal-{self._process}"
            self._journal = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A line cut short by a kill would spoil the next one.
            _write(self._journal, b"\n", None)
        except BlockingIOError:
            raise FileError(f"another run is writing {str(self.path)!r}.") from None
        except OSError as reason:
            raise FileError(
                f"cannot go on with {str(self.directory)!r}: {reason.strerror or reason}."
            ) from None
        self.count()

    def count(self) -> None:
        """Reads what all processes have finished."""
        self.done, self.invalid, self.first_invalid = [], 0, None
        for name in sorted(self.directory.glob("journal-*")):
            for line in name.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    if line:
                        self._count(json.loads(line))
        self.done.sort()

    def _count(self, entry: dict[str, Any]) -> None:
        self.done.append((entry["start"], entry["stop"]))
        self.invalid += entry["invalid"]
        if entry["first"] is not None:
            known = entry["first"] if self.first_invalid is None else self.first_invalid
            self.first_invalid = min(known, entry["first"])

    # ---- going on ---------------------------------------------------------------------------

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are not finished."""
        for begin, end in sorted(self.done):
            if begin > start:
                yield start, min(begin, stop)
            start = max(start, end)
            if start >= stop:
                return
        if start < stop:
            yield start, stop

    def write(self, start: int, values: dict[str, np.ndarray], invalid: np.ndarray) -> None:
        """Writes the rows from start on; they count as finished after `flush`."""
        for array in self.arrays:
            rows = np.ascontiguousarray(values[array.name], array.dtype)
            _write(
                self._data,
                rows.reshape(-1).view(np.uint8).data,
                array.offset + start * array.row_bytes,
            )
        wrong = np.flatnonzero(invalid)
        self._waiting.append(
            {
                "start": start,
                "stop": start + len(invalid),
                "invalid": len(wrong),
                "first": start + int(wrong[0]) if len(wrong) else None,
            }
        )

    def flush(self) -> None:
        """Makes sure that what was written is on the disk, then says so in the journal."""
        if not self._waiting:
            return
        os.fsync(self._data)
        text = "".join(json.dumps(entry) + "\n" for entry in self._waiting)
        _write(self._journal, text.encode(), None)
        os.fsync(self._journal)
        for entry in self._waiting:
            self._count(entry)
        self._waiting = []

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        for file in (self._data, self._journal):
            if file >= 0:
                os.close(file)
        self._data = self._journal = -1

    def finish(self) -> None:
        """The whole result under its name; by one process, when all are done."""
        self.count()
        source = self.directory / "data"
        if self._assembled():
            source = self.directory / "assembled"
            writer = formats.write_npz if self.path.suffix == ".npz" else formats.write_parquet
            writer(source, self.directory / "data", self.arrays)
        with open(source, "rb+") as file:
            os.fsync(file.fileno())
        if os.path.lexists(self.path):
            raise FileError(f"{str(self.path)!r} exists already.")
        os.replace(source, self.path)
        self.remove()
        _sync_directory(self.path.parent)

    def remove(self) -> None:
        """Leaves nothing behind."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _assembled(self) -> bool:
        return self.path.suffix in (".npz", ".parquet")


@contextlib.contextmanager
def _closing(file: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(file)


def _reserve(file: int, size: int) -> None:
    """Takes the room at once, so that a disk too small is found out before any work."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _write(file: int, data: bytes | memoryview, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        count = os.write(file, view) if offset is None else os.pwrite(file, view, offset)
        view = view[count:]
        offset = None if offset is None else offset + count


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    with _closing(file):
        os.fsync(file)
