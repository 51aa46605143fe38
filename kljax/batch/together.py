"""Processes that evaluate together, each its own part."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator

import jax
import numpy as np

from kljax.batch.rows import FileError


class Together:
    """This process among those that evaluate together; alone, if there is no other."""

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count
        self._ended = False

    def wait(self) -> None:
        """Returns when every process is here, raises where one has failed."""
        self._meet(False)

    def failed(self) -> None:
        """Lets the others know, who would else wait for ever."""
        if not self._ended:
            with contextlib.suppress(FileError):  # what failed here first is what is said
                self._meet(True)

    def _meet(self, failed: bool) -> None:
        if self.count == 1:
            return
        from jax.experimental import multihost_utils

        self._ended = True  # for good where a process does not come or has failed
        try:
            states = multihost_utils.process_allgather(np.int32(failed))
        except RuntimeError as reason:
            raise FileError(f"the processes lost each other: {_first_line(reason)}") from None
        self._ended = bool(np.any(states))
        if self._ended and not failed:
            which = ", ".join(map(str, np.flatnonzero(states)))
            raise FileError(f"process {which} failed and has said why.")


def _first_line(reason: Exception) -> str:
    return str(reason).strip().splitlines()[0]


def _check(coordinator: str, index: int, count: int) -> None:
    port = re.fullmatch(r".+:(\d{1,5})", coordinator, re.ASCII)
    if port is None or not 1 <= int(port[1]) <= 65535:
        raise ValueError(
            f"--coordinator {coordinator!r} is no HOST:PORT with a port from 1 to 65535."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"--process-id {index} must be at least 0 and below the {count} of --processes."
        )


@contextlib.contextmanager
def distributed(options: argparse.Namespace) -> Iterator[Together]:
    given = (options.coordinator, options.process_id, options.processes)
    if given == (None, None, None):
        yield Together()
        return
    if options.coordinator is None:
        raise ValueError("--process-id and --processes need --coordinator HOST:PORT.")
    found = options.coordinator == "auto"
    if not found and None in given:
        raise ValueError("--coordinator HOST:PORT needs --process-id and --processes.")
    if not found:
        _check(*given)
    try:
        if found:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(*(given[0], given[2], given[1]))
    except (RuntimeError, ValueError) as reason:
        sentence = _first_line(reason)
        raise ValueError(f"the processes do not find each other: {sentence}") from None
    try:
        yield Together(jax.process_index(), jax.process_count())
    finally:
        jax.distributed.shutdown()
