"""Processes that evaluate together, each its own part."""

from __future__ import annotations

import argparse
import contextlib
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
            self._meet(True)

    def _meet(self, failed: bool) -> None:
        if self.count == 1:
            return
        from jax.experimental import multihost_utils

        states = multihost_utils.process_allgather(np.int32(failed))
        if np.any(states):
            self._ended = True
            if not failed:
                which = ", ".join(map(str, np.flatnonzero(states)))
                raise FileError(f"process {which} failed and has said why.")


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
    try:
        if found:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(*(given[0], given[2], given[1]))
    except (RuntimeError, ValueError) as reason:
        sentence = str(reason).strip().splitlines()[0]
        raise ValueError(f"the processes do not find each other: {sentence}") from None
    try:
        yield Together(jax.process_index(), jax.process_count())
    finally:
        jax.distributed.shutdown()
