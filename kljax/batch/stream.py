"""Any number of pairs: read in chunks, computed on all devices, in bounded memory.

Pairs are taken in blocks of one size, and every device computes one block at a time with the
same compiled program. So the numbers do not depend on how many devices or processes there are,
and no device ever waits for another: the program of a block holds no collective.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljax import divergence
from kljax.batch import fields, matrix

_CHUNK_BYTES = 1 << 24
AXIS = "pairs"


class Chunk(NamedTuple):
    """What was computed for the pairs (or rows) from start to stop; arrays of NumPy."""

    start: int
    stop: int
    values: Any


class Invalid(NamedTuple):
    """Results, and which of them come from invalid values.

    Attributes:
        values: arrays with the block's axis first.
        invalid: for every entry whether a parameter is not finite or a result is nan.
    """

    values: Any
    invalid: Any


class Job(NamedTuple):
    """What to compute for every entry of q.

    Attributes:
        function: of a block of q and of p, jittable; its arrays have the block's axis first.
        paired: whether p is read block by block as q is; if not, it is whole in every block.
    """

    function: Callable[[Any, Any], Any]
    paired: bool


def pairs(*, terms: bool = False) -> Job:
    """KL(q_i ‖ p_i), or the parts of it."""
    return Job(divergence.kl_terms if terms else divergence.kl_divergence, True)


def all_pairs(*, block_bytes: int = _CHUNK_BYTES) -> Job:
    """A row KL(q_i ‖ p_j) of every q_i."""
    return Job(lambda q, p: matrix.pairwise(q, p, block_bytes=block_bytes), False)


def nearest(k: int, *, block_bytes: int = _CHUNK_BYTES) -> Job:
    """The k nearest p of every q_i: divergences and indices."""
    return Job(lambda q, p: matrix.top_k(q, p, k, block_bytes=block_bytes), False)


def marked(job: Job) -> Job:
    """The same job, its results marked where a value is invalid."""

    def function(q: Any, p: Any) -> Invalid:
        values = job.function(q, p)
        leaves = jax.tree.leaves(values)
        bad = [jnp.isnan(a) for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]
        rows = len(leaves[0])
        invalid = jnp.zeros(rows, bool)
        for a in bad:
            invalid |= jnp.any(a.reshape(rows, -1), axis=1)
        for x, whole in ((q, False), (p, not job.paired)):
            for field in dataclasses.fields(x):
                value = getattr(x, field.name)
                if value is not None:
                    wrong = ~jnp.isfinite(value)
                    rank = wrong.ndim if whole else len(field.metadata["event"])
                    axes = tuple(range(wrong.ndim - rank, wrong.ndim))
                    invalid |= jnp.any(wrong, axis=axes)
        return Invalid(values, invalid)

    return Job(function, job.paired)


def evaluate(
    q: Any,
    p: Any,
    /,
    *,
    terms: bool = False,
    chunk_bytes: int = _CHUNK_BYTES,
    devices: Sequence[Any] | None = None,
) -> Any:
    """KL(q_i ‖ p_i) in nats, of any number of pairs, in bounded memory on all devices.

    Args:
        q: distributions with at most one batch axis. Fields are arrays, memory-maps or
            anything with `shape`, `dtype` and slices, and are read a chunk at a time.
        p: distributions of the same number, or a single one for all q.
        terms: `kl_terms` in place of `kl_divergence`.
        chunk_bytes: bytes of parameters that one device is given at a time; about four
            times as many are held in memory for every device.
        devices: local devices; all of them if None.

    Returns:
        NumPy array of shape (n,), or the record of `kl_terms` with such arrays. Where
        `jax.distributed` runs, the part of this process, which reads no other; the parts
        of all processes, in their order, are the whole.

    Raises:
        TypeError: if an argument is no distribution, the pair has no closed form,
            chunk_bytes is no whole number or devices no sequence of devices.
        ValueError: if shapes do not fit together.
    """
    job = pairs(terms=terms)
    source = Source(job, q, p, chunk_bytes, devices)
    out: Any = None
    parts = own_part(source.length, source.block)
    for chunk in source.chunks(*parts):
        if out is None:
            out = jax.tree.map(
                lambda a: np.empty((parts[1] - parts[0], *a.shape[1:]), a.dtype), chunk.values
            )
        at = slice(chunk.start - parts[0], chunk.stop - parts[0])
        jax.tree.map(lambda whole, part, at=at: whole.__setitem__(at, part), out, chunk.values)
    if out is None:
        out = jax.tree.map(lambda a: np.zeros((0, *a.shape[1:]), a.dtype), source.shapes())
    return out


def own_part(
    length: int, block: int, process: int | None = None, processes: int | None = None
) -> tuple[int, int]:
    """Where the part of a process begins and ends: whole blocks, as many for each."""
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    blocks = -(-length // block)
    bounds = (blocks * process // processes, blocks * (process + 1) // processes)
    start, stop = (min(bound * block, length) for bound in bounds)
    return start, stop


def _local(devices: Any) -> list[Any]:
    """The devices that are meant, or a sentence."""
    if devices is None:
        return list(jax.local_devices())
    found = list(devices) if isinstance(devices, Iterable) else [None]
    if not all(isinstance(x, jax.Device) for x in found):
        raise TypeError(f"devices must be some of jax.local_devices(); got {devices!r}.")
    if not found:
        raise ValueError("devices is empty; give at least one, or None for all.")
    return found


class Source:
    """Two distributions whose fields are read block by block, and the program for a block.

    Attributes:
        length: number of pairs, or of rows.
        block: pairs of a block.
    """

    def __init__(
        self,
        job: Job,
        q: Any,
        p: Any,
        chunk_bytes: int = _CHUNK_BYTES,
        devices: Sequence[Any] | None = None,
    ):
        divergence.closed_form("evaluate", q, p)
        chunk_bytes = matrix.byte_count("chunk_bytes", chunk_bytes)
        self._job = job
        self._devices = _local(devices)
        self._types = {"q": type(q), "p": type(p)}
        both = fields.fields_of("q", q, False) + fields.fields_of("p", p, not job.paired)
        self._fields = fields.split_somewhere(both)
        if not any(f.event_bytes for f in self._fields):
            # XLA (jaxlib 0.10.2) cannot map a program without numbers over several devices.
            self._devices = self._devices[:1]
        self.length = fields.common_length(self._fields)
        self.block = self._block_of(chunk_bytes)
        self._program: Any = None

    @property
    def paired(self) -> bool:
        return self._job.paired

    def entry(self, index: int) -> dict[str, Any]:
        """Q and p of one pair, or q of one row and the whole p."""
        values = [
            f.read(index, index + 1, 1)[0] if f.split else f.read_all() for f in self._fields
        ]
        q, p = self._rebuild(values)
        return {"q": q, "p": p}

    def _block_of(self, chunk_bytes: int) -> int:
        """As many pairs as make up the bytes, results included, and at least one."""
        split = [f for f in self._fields if f.split]
        per_pair = sum(f.event_bytes for f in split)
        outputs = jax.tree.leaves(self.shapes(2))
        per_pair += sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in outputs)
        return max(1, min(chunk_bytes // max(per_pair, 1), max(self.length, 1)))

    def _rebuild(self, values: Sequence[Any]) -> tuple[Any, Any]:
        given: dict[str, dict[str, Any]] = {"q": {}, "p": {}}
        for field, value in zip(self._fields, values, strict=True):
            owner, _, name = field.label.partition(".")
            given[owner][name] = value
        q, p = (self._types[name](**values) for name, values in given.items())
        return q, p

    def _call(self, *values: Array) -> Any:
        return self._job.function(*self._rebuild(values))

    def shapes(self, block: int | None = None) -> Any:
        """Shapes and dtypes of what a block gives; raises for what does not fit together."""
        size = self.block if block is None else block
        given = [
            jax.ShapeDtypeStruct((size, *f.event_shape) if f.split else f.value.shape, f.dtype)
            for f in self._fields
        ]
        return jax.eval_shape(self._call, *given)

    def _compiled(self) -> tuple[Any, list[NamedSharding]]:
        if self._program is None:
            mesh = Mesh(np.array(self._devices), (AXIS,))
            specs = [PartitionSpec(AXIS) if f.split else PartitionSpec() for f in self._fields]
            # Mapped over the devices, so that each runs the program of one block by itself.
            mapped = jax.shard_map(
                self._call,
                mesh=mesh,
                in_specs=tuple(specs),
                out_specs=PartitionSpec(AXIS),
                check_vma=False,
            )
            self._program = jax.jit(mapped), [NamedSharding(mesh, s) for s in specs]
        return self._program

    def program_text(self) -> str:
        """The compiled program of a step, in which a test looks for collectives."""
        program, shardings = self._compiled()
        size = self.block * len(self._devices)
        given = [
            jax.ShapeDtypeStruct(
                (size, *f.event_shape) if f.split else f.value.shape, f.dtype, sharding=s
            )
            for f, s in zip(self._fields, shardings, strict=True)
        ]
        return program.lower(*given).compile().as_text()

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Computes the pairs from start (a multiple of `block`) to stop, in order.

        The next chunk is read while one is computed.
        """
        stop = self.length if stop is None else stop
        if start >= stop:
            return
        program, shardings = self._compiled()
        step = self.block * len(self._devices)
        fixed = {
            i: jax.device_put(f.read_all(), s)
            for i, (f, s) in enumerate(zip(self._fields, shardings, strict=True))
            if not f.split
        }

        def load(first: int) -> list[Any]:
            last = min(first + step, stop)
            return [
                None if i in fixed else f.read(first, last, step)
                for i, f in enumerate(self._fields)
            ]

        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(load, start)
            for first in range(start, stop, step):
                host = following.result()
                if first + step < stop:
                    following = reader.submit(load, first + step)
                given = [
                    fixed[i] if a is None else jax.device_put(a, s)
                    for i, (a, s) in enumerate(zip(host, shardings, strict=True))
                ]
                del host
                out = program(*given)
                last = min(first + step, stop)
                count = last - first
                yield Chunk(
                    first, last, jax.tree.map(lambda a, n=count: np.asarray(a)[:n], out)
                )
