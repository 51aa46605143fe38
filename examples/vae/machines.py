"""Several devices and several processes: the state is everywhere, a batch is divided.

The mesh has one axis, "data". Every device holds the model and all images, and computes its
share of each batch; the mean over the batch, and with it the gradient, is then a sum over
devices. Random numbers do not depend on how an array is divided, so neither do results but for
rounding.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae.flags import Flags, stop

# Seconds to wait for the other processes.
PATIENCE = 60


def connect(options: Flags) -> None:
    """Joins the processes of one run, before anything is computed."""
    if options.coordinator is None or jax.distributed.is_initialized():
        return
    # Where it finds nobody, jaxlib ends the whole process without a word of Python.
    if options.process and not answers(options.coordinator):
        stop(f"--coordinator {options.coordinator}: process 0 does not answer; start it.")
    jax.distributed.initialize(
        options.coordinator,
        options.processes,
        options.process,
        initialization_timeout=PATIENCE,
    )


def answers(address: str) -> bool:
    """Whether somebody listens there, or begins to while one waits."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        time.sleep(0.2)
    return False


def mesh(options: Flags) -> Mesh:
    """The chosen devices of every process, in one row."""
    chosen = []
    for process in range(jax.process_count()):
        mine = [device for device in jax.devices() if device.process_index == process]
        if len(mine) < options.devices:
            stop(
                f"--devices {options.devices}: there are {len(mine)} of {mine[0].platform}; "
                "give fewer (XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of a "
                "CPU)."
            )
        chosen += mine[: options.devices]
    return Mesh(np.array(chosen), ("data",))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device of the mesh, those of other processes too."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(array: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(array)))
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

    return jax.tree.map(place, tree)


def divided(batch: jax.Array, mesh: Mesh) -> jax.Array:
    """Inside a compiled program: a batch of which every device has its share."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))


def undivided(tree: Any, mesh: Mesh) -> Any:
    """Inside a compiled program: arrays that every device has whole."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), tree)


def gathered(tree: Any) -> Any:
    """What is the same everywhere, as arrays of this process."""
    return jax.tree.map(np.asarray, tree)


@contextlib.contextmanager
def one_voice(options: Flags) -> Iterator[Flags]:
    """Lets process 0 alone print and write: the others do so into nothing."""
    if not options.process:
        yield options
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
    ):
        yield replace(options, out=Path(folder))
