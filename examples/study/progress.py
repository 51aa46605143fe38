"""How far a run is: a bar on a terminal, a line for every block elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import threading
import time
from typing import Any

SHAPE = "{n_fmt}/{total_fmt} |{bar}| {remaining} left  {desc}"


class Stopped(Exception):
    """Another part of the run was interrupted."""


class Progress:
    """On stderr, so that stdout has the table and no times.

    Args:
        blocks: how many there will be.
    """

    def __init__(self, blocks: int):
        self._began, self._done, self._blocks = time.perf_counter(), 0, blocks
        self._lock, self._stopped = threading.Lock(), False
        self._bar: Any = None
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            # tqdm draws nothing on a terminal that does not know its width.
            width = shutil.get_terminal_size().columns
            self._bar = importlib.import_module("tqdm").tqdm(
                total=blocks, ncols=width, bar_format=SHAPE
            )

    def advance(self, what: str) -> None:
        """One more block is done; raises `Stopped` once `stop` was called."""
        with self._lock:
            self._done += 1
            self._show(what)
            if self._stopped:
                raise Stopped

    def stop(self) -> None:
        """Ends every thread with the block that it is at."""
        self._stopped = True

    def _show(self, what: str) -> None:
        if self._bar is None:
            seconds = time.perf_counter() - self._began
            print(
                f"[{seconds:6.1f} s] {self._done:3d}/{self._blocks} {what}",
                file=sys.stderr,
                flush=True,
            )
        else:
            self._bar.set_description_str(what, refresh=False)
            self._bar.update(1)
            self._bar.refresh()

    def close(self) -> float:
        """Leaves the terminal to others, and says how many seconds it took."""
        if self._bar is not None:
            self._bar.close()
        return time.perf_counter() - self._began
