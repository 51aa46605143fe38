"""What the KL of kljax costs in the training of a VAE, and what a compiled epoch gains.

    python tests/benchmarks/training_step.py

The same model, optimizer and batches everywhere; rounds interleaved, ratios of the times of
one round, with the 95 % interval of their median:

1. a jitted step with `kljax.kl_divergence`, against the same step with the KL written inline;
2. an epoch as one compiled scan, against a Python loop of the jitted steps;
3. and against the same model in torch, eager and compiled, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

Program = Callable[[], Any]


class Size(NamedTuple):
    """Perceptrons of these layers, and their reverse."""

    pixels: int
    hidden: tuple[int, ...]
    latents: int
    batch: int
    steps: int


SIZES = {
    "digits": Size(64, (256, 256), 8, 128, 20),
    "mnist": Size(784, (500,), 20, 128, 20),
}
LEARNING_RATE = 1e-3


def images(size: Size) -> np.ndarray:
    """Batches of gray images in [0, 1], shape (steps, batch, pixels)."""
    shape = size.steps, size.batch, size.pixels
    return np.random.default_rng(0).random(shape, np.float32)


# ---- JAX ------------------------------------------------------------------------------------


def jax_programs(size: Size) -> dict[str, Program]:
    """An epoch each, by name."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import kljax

    def layers(*sizes: int) -> nnx.Sequential:
        linear = [nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(sizes)]
        hidden = [part for layer in linear[:-1] for part in (layer, nnx.relu)]
        return nnx.Sequential(*hidden, linear[-1])

    def with_kljax(loc: Any, log_variance: Any) -> Any:
        q = kljax.MultivariateNormalDiag(loc, log_variance=log_variance)
        return kljax.kl_divergence(q, kljax.standard_normal(size.latents))

    def inline(loc: Any, log_variance: Any) -> Any:
        terms = jnp.exp(log_variance) + loc * loc - 1 - log_variance
        return 0.5 * jnp.sum(terms, axis=-1)

    rngs = nnx.Rngs(0)
    model = nnx.Dict(
        encoder=layers(size.pixels, *size.hidden, 2 * size.latents),
        decoder=layers(size.latents, *reversed(size.hidden), size.pixels),
    )
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    graph, start = nnx.split((model, optimizer))
    batches, keys = jnp.asarray(images(size)), jax.random.split(jax.random.key(0), size.steps)

    def step_with(kl: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        def loss(model: Any, x: Any, key: Any) -> Any:
            loc, log_variance = jnp.split(model.encoder(x), 2, axis=-1)
            noise = jax.random.normal(key, loc.shape)
            logits = model.decoder(loc + jnp.exp(0.5 * log_variance) * noise)
            missed = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, x), axis=-1)
            return jnp.mean(missed + kl(loc, log_variance))

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            model, optimizer = nnx.merge(graph, state)
            value, gradient = nnx.value_and_grad(loss)(model, *batch)
            optimizer.update(model, gradient)
            return nnx.state((model, optimizer)), value

        return step

    def loop(step: Callable[..., Any]) -> Program:
        one = jax.jit(step)
        rows = [(batches[i], keys[i]) for i in range(size.steps)]

        def epoch() -> None:
            state = start
            for row in rows:
                state, value = one(state, row)
            value.block_until_ready()

        return epoch

    def scan(step: Callable[..., Any]) -> Program:
        whole = jax.jit(lambda state: jax.lax.scan(step, state, (batches, keys))[1])
        return lambda: whole(start).block_until_ready()

    return {
        "kljax": loop(step_with(with_kljax)),
        "inline": loop(step_with(inline)),
        "compiled epoch": scan(step_with(with_kljax)),
    }


# ---- torch, in a process of its own ---------------------------------------------------------


def torch_programs(size: Size) -> dict[str, Program]:
    import torch
    from torch import nn

    def layers(*sizes: int) -> nn.Sequential:
        linear = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
        hidden = [part for layer in linear[:-1] for part in (layer, nn.ReLU())]
        return nn.Sequential(*hidden, linear[-1])

    batches = torch.from_numpy(images(size))

    def program(compiled: bool) -> Program:
        encoder = layers(size.pixels, *size.hidden, 2 * size.latents)
        decoder = layers(size.latents, *reversed(size.hidden), size.pixels)
        weights = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(weights, LEARNING_RATE, fused=True)

        def loss(x: torch.Tensor) -> torch.Tensor:
            loc, log_variance = encoder(x).chunk(2, -1)
            latents = loc + torch.exp(0.5 * log_variance) * torch.randn_like(loc)
            missed = nn.functional.binary_cross_entropy_with_logits(
                decoder(latents), x, reduction="none"
            ).sum(-1)
            kl = 0.5 * (log_variance.exp() + loc * loc - 1 - log_variance).sum(-1)
            return (missed + kl).mean()

        objective: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(loss) if compiled else loss
        )

        def epoch() -> None:
            for x in batches:
                optimizer.zero_grad()
                objective(x).backward()
                optimizer.step()

        return epoch

    return {"torch": program(False), "torch.compile": program(True)}


def _serve(size: Size, connection: Connection) -> None:
    programs = torch_programs(size)
    for name in iter(connection.recv, None):
        connection.send(_time(programs[name]))


class Elsewhere:
    """The programs of torch, whose thread pool would disturb that of JAX in one process."""

    def __init__(self, size: Size, limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(size, theirs), daemon=True)
        self._process.start()
        self._limit = limit

    def time(self, name: str) -> float:
        self._connection.send(name)
        if not self._connection.poll(self._limit):
            raise TimeoutError(f"{name} gave no answer within {self._limit:g} s")
        return self._connection.recv()

    def end(self) -> None:
        self._connection.send(None)
        self._process.join(5)
        self._process.kill()


# ---- comparison -----------------------------------------------------------------------------


def _time(program: Program) -> float:
    begin = time.perf_counter()
    program()
    return time.perf_counter() - begin


def rounds(size: Size, count: int, limit: float) -> Iterator[dict[str, float]]:
    """The seconds of every program, once a round; the order turns from round to round."""
    here = jax_programs(size)
    clocks: dict[str, Callable[[], float]] = {
        name: lambda program=program: _time(program) for name, program in here.items()
    }
    elsewhere = None
    if importlib.util.find_spec("torch") is not None:
        elsewhere = Elsewhere(size, limit)
        for name in ("torch", "torch.compile"):
            clocks[name] = lambda name=name: elsewhere.time(name)
    try:
        for name in list(clocks):
            try:
                clocks[name](), clocks[name]()
            except (TimeoutError, EOFError) as error:
                print(f"  {name}: {error or 'ended'}", file=sys.stderr)
                del clocks[name]
        for i in range(count):
            order = list(clocks) if i % 2 else list(reversed(clocks))
            yield {name: clocks[name]() for name in order}
    finally:
        if elsewhere is not None:
            elsewhere.end()


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that hold it with 95 %."""
    ordered, n = sorted(ratios), len(ratios)
    reach = 0.98 * n**0.5  # 1.96 standard deviations of a binomial count
    low, high = max(0, int(n / 2 - reach)), min(n - 1, int(n / 2 + reach + 1))
    return statistics.median(ordered), ordered[low], ordered[high]


COMPARED = (
    ("a step with kljax over one with the KL inline", "kljax", "inline"),
    ("a Python loop of jitted steps over the compiled epoch", "kljax", "compiled epoch"),
    ("torch, eager, over the compiled epoch", "torch", "compiled epoch"),
    ("torch, compiled, over the compiled epoch", "torch.compile", "compiled epoch"),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--limit", type=float, default=120, help="seconds before it hangs")
    args = parser.parse_args(argv)
    for name in args.sizes:
        size = SIZES[name]
        found = list(rounds(size, args.rounds, args.limit))
        layers = "-".join(map(str, (size.pixels, *size.hidden, size.latents)))
        print(
            f"{name}: {layers}, batches of {size.batch}, epochs of {size.steps} steps, "
            f"{args.rounds} rounds"
        )
        for program in found[0]:
            middle = statistics.median(times[program] for times in found) / size.steps
            print(f"  {program:16}{1e3 * middle:8.3f} ms a step")
        for sentence, above, below in COMPARED:
            if above in found[0]:
                ratios = [times[above] / times[below] for times in found]
                middle, low, high = interval(ratios)
                print(f"  {sentence}: {middle:.3f} (95 %: {low:.3f} to {high:.3f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
