"""How far a run is, and how much memory it took."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path


class Meter:
    """How far it is: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, pairs_per_row: int, rows: int, shown: bool):
        self._per_row, self._rows, self._shown = pairs_per_row, rows, shown
        self._bar = shown and sys.stderr.isatty()
        self._start = self._said = time.monotonic()
        self._total = self._before = self._now = 0

    def begin(self, rows: int, missing: int) -> None:
        self._start = self._said = time.monotonic()
        self._total, self._before = rows, rows - missing
        if self._shown and self._before:
            done = self._before * self._per_row
            print(f"going on after {done:,} pairs", file=sys.stderr, flush=True)

    def add(self, rows: int) -> None:
        self._now += rows
        now = time.monotonic()
        if not self._shown or now - self._said < (0.1 if self._bar else 10.0):
            return
        self._said = now
        self._say(now - self._start)

    def _say(self, seconds: float) -> None:
        done = self._before + self._now
        rate = self._now / max(seconds, 1e-9)
        left = (self._total - done) / max(rate, 1e-9)
        text = (
            f"{100 * done // max(self._total, 1)} %, {rate * self._per_row:,.3g} pairs/s, "
            f"{_clock(left)} left"
        )
        if self._bar:
            filled = 24 * done // max(self._total, 1)
            text = f"\r{'█' * filled}{'░' * (24 - filled)} {text}\x1b[K"
        print(text, end="" if self._bar else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if not self._shown:
            return
        seconds = time.monotonic() - self._start
        pairs = self._now * self._per_row
        clear = "\r\x1b[K" if self._bar else ""
        rate = f"{pairs / max(seconds, 1e-9):,.3g} pairs/s"
        print(f"{clear}{pairs:,} pairs in {seconds:.1f} s, {rate}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """The resident memory of this process now: that of Python, JAX and its devices."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak()
    return pages * os.sysconf("SC_PAGE_SIZE")
