"""`kljax evaluate`: divergences of the distributions in two files, into a third."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kljax
from kljax.batch import fields, files, formats, naming, output, stream, tables
from kljax.batch import meter as meters
from kljax.batch.meter import Meter
from kljax.batch.rows import FileError
from kljax.batch.together import Together, distributed

OK, USAGE, INTERRUPTED = 0, 2, 130
_SECONDS_BETWEEN_JOURNALS = 1.0


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status.

    Raises:
        ValueError, TypeError: what cannot be, in one sentence.
    """
    with distributed(options) as together:
        try:
            return _run(options, together)
        except Exception as mistake:
            together.failed()
            if isinstance(mistake, OSError):
                raise FileError(f"{_failed(mistake)}.") from None
            if isinstance(mistake, (ValueError, TypeError)):
                raise ValueError(" ".join(str(mistake).split())) from None
            raise


def _failed(reason: OSError) -> str:
    where = f" {reason.filename!r}" if reason.filename else ""
    return f"reading or writing{where} failed: {reason.strerror or reason}"


@contextlib.contextmanager
def _left(partial: output.Partial) -> Iterator[None]:
    """What a run that fails leaves: what is finished, or nothing where an input is bad."""
    try:
        yield
    except OSError as reason:
        raise FileError(
            f"{_failed(reason)}; what is finished is in {str(partial.directory)!r}, --resume "
            "goes on."
        ) from None
    except (ValueError, TypeError):
        partial.remove()
        raise


def _run(options: argparse.Namespace, together: Together) -> int:
    for name in (options.q, options.p, options.output):
        if "\0" in name:
            raise FileError(f"{name!r} is no path, since it holds the character 0.")
    path = Path(options.output)
    formats.suffix(path)
    if path.suffix == ".parquet":
        tables.need_pyarrow(path)
    devices = _devices(options.devices)
    runtime = meters.resident()
    if os.path.lexists(path):
        raise FileError(f"{options.output!r} exists already.")
    inputs = [files.read(Path(name)) for name in (options.q, options.p)]
    dtypes = [x.dtype.newbyteorder("=") for side in inputs for x in side.values()]
    double = np.float64 in dtypes
    with jax.enable_x64(double):
        q, p = naming.records(
            *inputs,
            q_file=options.q,
            p_file=options.p,
            q_family=options.q_family,
            p_family=options.p_family,
        )
        source = stream.Source(_job(options), q, p, options.chunk_size, devices)
        shapes = {
            name: ((source.length, *a.shape[1:]), np.dtype(a.dtype))
            for name, a in source.shapes().values.items()
        }
        partial = output.Partial(
            path, shapes, _plan(options, q, p, source), process=together.index
        )
        _begin(options, partial, together)
        columns = 1 if source.paired else shapes["kl"][0][-1]
        if not source.paired and options.top_k:
            columns = fields.length(p)
        meter = Meter(columns, source.length, together.index == 0)
        with contextlib.closing(partial), _told_when_interrupted(partial.directory):
            with _left(partial):
                _compute(source, partial, together, meter)
            partial.close()
            together.wait()
            if together.index == 0:
                _finish(options, partial, source, meter, runtime)
            together.wait()  # Only now is it known whether the result could be written.
            return OK


def _job(options: argparse.Namespace) -> stream.Job:
    if options.pairwise:
        job = stream.all_pairs(block_bytes=options.chunk_size)
    elif options.top_k is not None:
        job = stream.nearest(options.top_k, block_bytes=options.chunk_size)
    else:
        job = stream.pairs(terms=options.terms)
    return stream.marked(stream.Job(lambda q, p: _named(job.function(q, p)), job.paired))


def _named(values: Any) -> dict[str, Any]:
    """The arrays of a result under the names that they have in a file."""
    if dataclasses.is_dataclass(values):
        fields = {f.name: getattr(values, f.name) for f in dataclasses.fields(values)}
        total = getattr(values, "total", None) if hasattr(type(values), "total") else None
        return fields if total is None else {"kl": total, **fields}
    if isinstance(values, tuple):
        return dict(zip(("kl", "index"), values, strict=True))
    return {"kl": values}


def _begin(options: argparse.Namespace, partial: output.Partial, together: Together) -> None:
    """A new state by the first process, or that of an earlier run; open in the end."""
    found = partial.exists() and not (options.resume and partial.unbegun())
    together.wait()
    if found and not options.resume:
        raise FileError(
            f"{str(partial.directory)!r} is the state of an earlier run; --resume goes on with "
            "it, deleting it begins anew."
        )
    if not found and together.index == 0:
        partial.begin()
    together.wait()
    try:
        partial.open()
    except FileError:
        if not found:
            partial.remove()
        raise


def _compute(
    source: stream.Source, partial: output.Partial, together: Together, meter: Meter
) -> None:
    start, stop = stream.own_part(source.length, source.block, together.index, together.count)
    missing = list(partial.missing(start, stop))
    meter.begin(stop - start, sum(end - begin for begin, end in missing))
    written = time.monotonic()
    for begin, end in missing:
        for chunk in source.chunks(begin, end):
            partial.write(chunk.start, *chunk.values)
            if time.monotonic() - written > _SECONDS_BETWEEN_JOURNALS:
                partial.flush()
                written = time.monotonic()
            meter.add(chunk.stop - chunk.start)
    partial.flush()


def _finish(
    options: argparse.Namespace,
    partial: output.Partial,
    source: stream.Source,
    meter: Meter,
    runtime: int,
) -> None:
    partial.count()
    if partial.invalid and options.invalid == "refuse":
        partial.remove()
        raise FileError(_about_invalid(partial, source))
    partial.finish()
    meter.end()
    peak = meters.peak()
    print(
        f"{options.output} is written; peak resident memory {peak / 1e6:,.0f} MB, "
        f"{max(0, peak - runtime) / 1e6:,.0f} MB beyond the runtime's own."
    )


def _about_invalid(partial: output.Partial, source: stream.Source) -> str:
    assert partial.first_invalid is not None
    why = ""
    for name, x in source.entry(partial.first_invalid).items():
        try:
            kljax.check(x)
        except ValueError as reason:
            why = f": {name}'s {str(reason).rstrip('.')}"
            break
    else:
        why = ": its divergence is nan"
    what = "pair has" if partial.invalid == 1 else "pairs have"
    if not source.paired:
        what = "row has" if partial.invalid == 1 else "rows have"
    return (
        f"{partial.invalid:,} of {source.length:,} {what} invalid values, the first at index "
        f"{partial.first_invalid:,}{why}; --invalid nan writes nan there."
    )


# ---- what is to be done ---------------------------------------------------------------------


def _plan(options: argparse.Namespace, q: Any, p: Any, source: stream.Source) -> dict[str, Any]:
    """What must be the same for a run that goes on with the state of an earlier one."""
    return {
        "version of kljax": kljax.__version__,
        "input Q": _fingerprint(Path(options.q)),
        "input P": _fingerprint(Path(options.p)),
        "family": [type(q).__name__, type(p).__name__],
        "set of options": [options.pairwise, options.terms, options.top_k],
        "chunk size": source.block,
    }


def _fingerprint(path: Path) -> list[Any]:
    """Size, time of change and a digest of samples of a file, or of those in a directory."""
    if path.is_dir():
        return [[f.name, *_fingerprint(f)] for f in sorted(path.glob("*.npy"))]
    status, digest = path.stat(), hashlib.sha256()
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(max(0, status.st_size - 4096) * i // 63)
            digest.update(file.read(4096))
    return [status.st_size, status.st_mtime_ns, digest.hexdigest()]


def _devices(count: int | None) -> list[Any]:
    if count is None:
        return jax.local_devices()
    if count < 1:
        raise ValueError(f"--devices must be at least 1; got {count}.")
    with contextlib.suppress(RuntimeError):  # raised where the devices are known already
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.local_devices()
    if count > len(found):
        raise ValueError(f"--devices {count} is more than the {len(found)} there are.")
    return found[:count]


# ---- what is told ---------------------------------------------------------------------------


@contextlib.contextmanager
def _told_when_interrupted(directory: Path) -> Iterator[None]:
    """Ctrl-C ends the process at once, since everything finished is in the journal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        text = f"\nkljax: stopped; what is finished is in {directory}, --resume goes on.\n"
        os.write(2, text.encode(errors="replace"))
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
