"""What is done of a run, kept block by block, so that a killed run loses one block at most."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from study.design import Effort

Arrays = dict[str, np.ndarray]
IDENTITY = "run.json"


class Unusable(ValueError):
    """A folder that this run cannot use, with the reason in one sentence."""


class Store:
    """Arrays by the name of their block, in a folder of an unfinished run.

    Args:
        folder: of the checkpoints; made where it is not.
        identity: what a run must share with the one that it continues.
        resume: continue what is there.

    Raises:
        Unusable: if there is a run and it is not to be resumed, or the other way round, or one
            of another identity.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, resume: bool):
        self._folder, path = folder, folder / IDENTITY
        if path.exists():
            _same_run(path, identity, resume=resume)
            # Damage is to be found now, not after minutes.
            for kept in folder.glob("*.npz"):
                self._load(kept)
        elif resume:
            raise Unusable(f"--resume: there is no unfinished run in {folder.parent}.")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, (json.dumps(dict(identity), indent=1) + "\n").encode())

    def read(self, name: str) -> Arrays | None:
        """The arrays of a block, or None if it is not done."""
        path = self._path(name)
        return self._load(path) if path.exists() else None

    def _load(self, path: Path) -> Arrays:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return dict(kept)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise Unusable(
                f"--resume: {path} is damaged; delete {self._folder} to start anew."
            ) from None

    def write(self, name: str, arrays: Arrays) -> None:
        """Keeps a block; whoever kills the program meanwhile leaves the old one."""
        path = self._path(name)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(part, path)

    def close(self) -> None:
        """Forgets the run, since it is finished."""
        shutil.rmtree(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '_')}.npz"


def identity(effort: Effort, seed: int) -> dict[str, str]:
    """Seed, effort, program and machinery, which together decide every number."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    return {
        "seed": str(seed),
        "effort": str(effort),
        "program": sources.hexdigest()[:16],
        "jax": f"{jax.__version__} on {jax.default_backend()}",
    }


def _same_run(path: Path, identity: Mapping[str, str], *, resume: bool) -> None:
    if not resume:
        raise Unusable(
            f"--out {path.parent.parent} has an unfinished run; give --resume to finish it, or "
            "another --out."
        )
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise Unusable(
            f"--resume: {path} is damaged; delete {path.parent} to start anew."
        ) from None
    for name, value in identity.items():
        if not isinstance(found, dict) or found.get(name) != value:
            had = found.get(name) if isinstance(found, dict) else None
            raise Unusable(
                f"--resume: the unfinished run in {path.parent.parent} has another {name}: "
                f"{had}, now {value}."
            )


def _replace(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)
