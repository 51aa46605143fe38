"""Strict settings for every test: no rank promotion; float32 unless a test asks otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

hypothesis.settings.register_profile(
    "kljax",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("KLJAX_HYPOTHESIS_EXAMPLES", "60")),
)
hypothesis.settings.load_profile("kljax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lightly compiled tests first: between the two kinds everything is compiled anew."""
    items.sort(key=lambda item: "light" not in item.keywords)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `light` compiles with few optimizations, its fixtures too."""
    light = "light" in item.keywords
    if light != jax.config.read("jax_disable_most_optimizations"):
        # Or the others would run what this one has compiled.
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", light)
    return (yield)


@pytest.fixture
def usual_broadcasting() -> Iterator[None]:
    """An example is a user's program, which broadcasts as NumPy does."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for the test that asks for it."""
    with jax.enable_x64(True):
        yield
