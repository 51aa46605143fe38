"""Checkpoints of the VAE example by orbax, from which a run goes on as if nothing had happened.

A checkpoint holds the parameters, the optimizer, and the metrics so far. Random numbers come
from the seed and the step, so nothing of them is kept. Orbax writes beside the place and then
renames: a killed run leaves whole checkpoints.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vae.data import Images
from vae.flags import Flags, stop

FOLDER = "checkpoints"
KEPT = 2
# What orbax calls a checkpoint that it has not finished.
TEMPORARY = ".orbax-checkpoint-tmp"
# What may differ between a run and the one that resumes it.
FREE = (
    "data",
    "out",
    "checkpoint_every",
    "resume",
    "devices",
    "coordinator",
    "processes",
    "process",
)


@dataclass(frozen=True)
class Snapshot:
    """A run between two epochs.

    Attributes:
        step: gradient steps taken.
        state: of model and optimizer.
        rows: the metrics of every epoch so far.
    """

    step: int
    state: Any
    rows: Sequence[Mapping[str, float]] = ()


def identity(options: Flags, images: Images) -> dict[str, Any]:
    """What a run and the one that resumes it must agree in."""
    flags = {name: value for name, value in asdict(options).items() if name not in FREE}
    content = zlib.crc32(images.test.tobytes(), zlib.crc32(images.train.tobytes()))
    shown = f"{len(images.train)} + {len(images.test)} images {images.shape}, {content:08x}"
    return {name: as_json(value) for name, value in flags.items()} | {"images": shown}


def as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Checkpoints:
    """The checkpoints in the folder of a run."""

    def __init__(self, options: Flags, images: Images):
        self._folder = (options.out / FOLDER).absolute()
        self._identity = identity(options, images)
        self._every = options.checkpoint_every or -(-options.steps // 10)
        self._steps = options.steps

    def _manager(self, **options: Any) -> ocp.CheckpointManager:
        # Each process for itself: the state is the same in all, and the first one writes.
        mine = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process{jax.process_index()}",
        )
        chosen = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=mine,
            **options,
        )
        return ocp.CheckpointManager(self._folder, options=chosen)

    def refuse_strangers(self) -> None:
        """Stops where the folder holds what no run of this program has left."""
        if self._folder.exists() and not self._folder.is_dir():
            stop(f"--out: {self._folder} is no folder; choose another --out.")
        for path in sorted(self._folder.glob("*")):
            whole = path.name.isdecimal() and (path / "about").is_dir()
            if not (whole or TEMPORARY in path.name):
                stop(
                    f"--out: {path} is no checkpoint of this program; move it, or choose "
                    "another --out."
                )

    def clear(self) -> None:
        """Removes the checkpoints of an earlier run."""
        if not jax.process_index() and self._folder.is_dir():
            with self._manager() as manager:
                for step in manager.all_steps():
                    manager.delete(step)

    def offer(self, snapshot: Snapshot, since: int) -> None:
        """Saves a snapshot if one was due after the step `since`."""
        due = snapshot.step // self._every > since // self._every
        if due or snapshot.step == self._steps:
            self.save(snapshot)

    def save(self, snapshot: Snapshot) -> None:
        """Saves a snapshot, unless there is one of its step."""
        if jax.process_index():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        about = {"identity": self._identity, "rows": [dict(row) for row in snapshot.rows]}
        with self._manager() as manager:
            if snapshot.step in manager.all_steps():
                return
            try:
                manager.save(
                    snapshot.step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(named(snapshot.state)),
                        about=ocp.args.JsonSave(about),
                    ),
                )
            # On a full disk tensorstore raises a ValueError, other parts of orbax an OSError.
            except (OSError, ValueError) as error:
                stop(
                    f"--out: the checkpoint {self._folder / str(snapshot.step)} cannot be "
                    f"written ({str(error).splitlines()[0][:60]}); is the disk full?"
                )

    def last(self, like: Any) -> Snapshot:
        """The last snapshot, with a state of the structure of `like`; or stops."""
        if not self._folder.is_dir():
            stop(f"--resume: there are no checkpoints in {self._folder}.")
        with self._manager() as manager:
            step = manager.latest_step()
            if step is None:
                stop(f"--resume: there are no checkpoints in {self._folder}.")
            try:
                about = manager.restore(
                    step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
                )["about"]
                self._check(about["identity"])
                rows = about["rows"]
                shapes = ocp.args.StandardRestore(named(like))
                found = manager.restore(step, args=ocp.args.Composite(state=shapes))["state"]
            # A damaged file makes orbax raise errors of many kinds.
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                stop(
                    f"--resume: the checkpoint {self._folder / str(step)} cannot be read "
                    f"({reason}); remove it to go on from the one before."
                )
        return Snapshot(step, unnamed(found, like), rows)

    def _check(self, stored: Mapping[str, Any]) -> None:
        """Stops where the checkpoint is of another run."""
        for name, mine in self._identity.items():
            if stored.get(name) != mine:
                what = name if name == "images" else "--" + name.replace("_", "-")
                stop(
                    f"--resume: the checkpoints in {self._folder} are of another run, with "
                    f"{what} {stored.get(name)} and not {mine}; nothing was changed."
                )


def named(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state by their paths in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def unnamed(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return jax.tree.unflatten(structure, [arrays[name] for name in names])
