"""The examples on the digits: the rate-distortion plane, and the comparison with others."""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx

from kljax import vae

pytestmark = [pytest.mark.light, pytest.mark.usefixtures("usual_broadcasting")]

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
compare_digits = importlib.import_module("compare_digits")
plane_picture = importlib.import_module("vae.plane_picture")
schedules = importlib.import_module("schedules")


# ---- the rate-distortion plane -----------------------------------------------------------


def test_no_schedule_outlasts_the_run_and_each_ends_at_what_it_is_named_for():
    for arm in schedules.arms(100):
        for schedule in (arm.beta, arm.capacity or arm.beta):
            vae.check_schedule(schedule, 100)
        asked = schedules.knobs(arm, 100)
        assert {x.shape for x in asked} == {(100,)}
        end = asked.capacity[-1] if arm.kind == "capacity" else asked.beta[-1]
        named = {"beta": arm.name.removeprefix("beta "), "schedule": "1", "free bits": "1"}
        assert float(end) == float(named.get(arm.kind) or arm.name.split()[-2])
        assert bool(asked.holds[0]) == (arm.kind == "capacity")


def test_one_loss_serves_every_arm():
    images = jax.random.randint(jax.random.key(1), (8, 9), 0, 17).astype(float)
    model = schedules.VAE(9, 16, 3, "diag", nnx.Rngs(0))
    key = jax.random.key(2)
    parts = schedules.parts_of(model, images, key, 1)
    expected = {
        "beta 4": vae.with_beta(parts, 4.0),
        "linear warm-up to 1": vae.with_beta(parts, 0.5),
        "1 nats of each latent free": vae.with_free_bits(parts, 1.0),
        "capacity rising to 10 nats": vae.with_capacity(parts, 5.0, gamma=schedules.GAMMA),
    }
    found = {}
    for arm in schedules.arms(100):
        if arm.name in expected:
            # A quarter of the run, half of the way.
            now = jax.tree.map(lambda x: x[25], schedules.knobs(arm, 100))
            value, point = schedules.loss(model, images, key, now)
            found[arm.name] = float(value)
            assert float(point[0]) == pytest.approx(float(jnp.mean(parts.kl)), rel=1e-6)
    assert found == pytest.approx({k: float(x.loss) for k, x in expected.items()}, rel=1e-5)


def arms_found(tmp_path: Path) -> list[Any]:
    chosen, generator = schedules.arms(100), np.random.default_rng(0)
    shape = (len(chosen), 40)
    rate = generator.uniform(5, 25, (len(chosen), 1)) + generator.normal(size=shape)
    distortion = generator.normal(90, 1, shape) - rate
    return schedules.summarize(chosen, rate, distortion, generator.normal(size=(*shape, 12)))


def test_the_table_compares_with_the_elbo_image_by_image(tmp_path, capsys):
    found = arms_found(tmp_path)
    base = next(x for x in found if x.name == "beta 1")
    assert (base.difference, base.difference_error) == (0, 0)
    for x in found:
        assert x.minus_elbo == pytest.approx(x.rate + x.distortion)
        assert x.difference == pytest.approx(x.minus_elbo - base.minus_elbo, abs=1e-9)
        assert x.active == 12
    schedules.show(found)
    printed = capsys.readouterr().out
    assert all(f"{x.rate:.2f}" in printed for x in found)


def test_the_plane_is_drawn(tmp_path):
    paths = np.random.default_rng(1).uniform(0, 20, (16, 10, 2))
    plane_picture.draw(arms_found(tmp_path), paths, 100, tmp_path / "plane.png")
    picture = matplotlib.image.imread(tmp_path / "plane.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


@pytest.mark.parametrize("program", [schedules, compare_digits], ids=["plane", "comparison"])
def test_a_folder_that_cannot_be_is_one_line(program, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        program.main(["--out", str(tmp_path / "file")])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="trains: KLJAX_FULL=1 runs it")
@pytest.mark.timeout(600)
def test_a_larger_beta_has_a_smaller_rate(tmp_path):
    assert schedules.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "schedules.json").read_text())
    rates = [x["rate"] for x in found if x["kind"] == "beta"]
    assert rates == sorted(rates, reverse=True)
    assert (tmp_path / "plane.png").exists()


# ---- beside published figures ------------------------------------------------------------


def test_the_protocols_split_all_digits():
    ordered, stratified = compare_digits.in_order(), compare_digits.stratified()
    everything = compare_digits.digits()
    assert [len(x) for x in (ordered.train, ordered.stop, ordered.test)] == [1000, 350, 447]
    np.testing.assert_array_equal(np.concatenate(ordered[1:4]), everything)
    assert (len(stratified.train), len(stratified.test)) == (1347, 450)
    both = np.concatenate([stratified.train, stratified.test])
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(everything, axis=0))


def test_training_stops_as_published_and_the_best_model_counts(monkeypatch):
    bounds = iter([100.0, 90.0, 95.0, 89.0, *[99.0] * 50])
    asked = []

    def train_epoch(_: Any, state: Any, *rest: Any, steps: int, batch_size: int) -> Any:
        asked.append((steps, batch_size))
        return jax.tree.map(lambda x: x + 1, state), {}

    monkeypatch.setattr(compare_digits, "train_epoch", train_epoch)
    monkeypatch.setattr(compare_digits, "test_metrics", lambda *_: {"elbo": -next(bounds)})
    protocol = compare_digits.in_order()
    model, step = compare_digits.fit(protocol, 0)
    # The fourth epoch is the best; 21 more without a better one end training.
    assert step == 4 * 15
    assert asked == [(15, 64)] * 25
    start = compare_digits.VAE(64, 16, 16, "diag", nnx.Rngs(0))
    assert float(model.log_scale[0]) == float(start.log_scale[0]) + 4


def test_a_result_says_whether_its_limit_is_reached(capsys):
    result = {
        name: {
            "mean": mean,
            "standard_error_over_images": 0.5,
            "standard_error_over_seeds": None,
            "limit": limit,
            "reached": None if limit is None else mean <= limit,
        }
        for name, mean, limit in (("minus_elbo", 90.0, None), ("nll", 64 * np.log(2), 44.0))
    }
    compare_digits.show("in order", result | {"estimates": 450, "not_trusted": 400})
    bound, nll, trust = capsys.readouterr().out.splitlines()
    assert "-ELBO   90.00 ± 0.50 over images" in bound
    assert "PASS" not in bound
    assert "(1.000 bits a pixel)   at most 44.0: FAIL" in nll
    assert "NLL: 400 of 450 estimates are not to be trusted" in trust
