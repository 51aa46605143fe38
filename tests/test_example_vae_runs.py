"""The VAE example as a program: objectives, checkpoints, several devices and processes."""

import csv
import dataclasses
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kljax
from kljax import vae

pytestmark = [pytest.mark.light, pytest.mark.usefixtures("usual_broadcasting")]

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
vae_digits = importlib.import_module("vae_digits")
checkpoint = importlib.import_module("vae.checkpoint")
flags = importlib.import_module("vae.flags")
machines = importlib.import_module("vae.machines")
objective = importlib.import_module("vae.objective")
summary = importlib.import_module("vae.summary")


# ---- objectives --------------------------------------------------------------------------

IMAGES = jax.random.randint(jax.random.key(1), (30, 9), 0, 17).astype(float)
KEY = jax.random.key(2)
Objective = objective.Objective


def small_model(posterior: str = "diag") -> Any:
    return vae_digits.VAE(9, 16, 3, posterior, nnx.Rngs(0))


def plain_parts(model: Any, chosen: Any) -> Any:
    estimate = vae.ESTIMATORS[chosen.estimator]
    return estimate(
        model.posterior(IMAGES),
        kljax.standard_normal(3),
        lambda z: model.log_likelihood(z, IMAGES),
        KEY,
        samples=chosen.samples,
    )


def value_and_metrics(model: Any, chosen: Any, step: int = 0) -> tuple[Any, dict[str, Any]]:
    value, parts = vae_digits.loss(model, IMAGES, KEY, chosen, step)
    return value, vae_digits.metrics_of(parts)


# What is minimized, from the means over images and from the terms of every latent.
OBJECTIVES: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Objective(), "diag", lambda x: x.reconstruction + x.kl),
    (Objective(beta=4.0), "diag", lambda x: x.reconstruction + 4 * x.kl),
    (Objective("monte_carlo", 2, beta=3.0), "diag", lambda x: x.reconstruction + 3 * x.kl),
    (Objective("sticking_the_landing"), "diag", lambda x: x.reconstruction + x.kl),
    # At step 50 of 200 a line has gone a quarter of its way.
    (Objective(beta=4.0, schedule=("linear", 200)), "diag", lambda x: x.reconstruction + x.kl),
    (Objective(beta=2.0, capacity=9.0), "diag", lambda x: x.reconstruction + 2 * abs(x.kl - 9)),
    (
        Objective(capacity=9.0, schedule=("linear", 200)),
        "diag",
        lambda x: x.reconstruction + abs(x.kl - 9 / 4),
    ),
    # A multiplier that starts at 1.
    (Objective(constraint=7.0), "diag", lambda x: x.kl + x.reconstruction - 7),
    *(
        (Objective(free_bits=0.1), posterior, lambda x: x.reconstruction + free(x.terms, 0.1))
        for posterior in ("diag", "full")
    ),
    *(
        (
            Objective(weights=(1.0, 0.25, 4.0)),
            posterior,
            lambda x: x.reconstruction + weighted(x.terms, 1.0, 0.25, 4.0),
        )
        for posterior in ("diag", "full")
    ),
]


def free(terms: Any, nats: float) -> Any:
    return np.sum(np.maximum(np.mean(terms.total, axis=0), nats))


def weighted(terms: Any, a: float, b: float, c: float) -> Any:
    each = a * terms.trace + b * terms.mahalanobis + c * (terms.log_det - 1)
    return np.mean(np.sum(each, axis=1)) / 2


@pytest.mark.parametrize(("chosen", "posterior", "expected"), OBJECTIVES)
def test_each_objective_is_what_it_says(chosen, posterior, expected):
    model = small_model(posterior)
    parts = plain_parts(model, chosen)
    value, metrics = value_and_metrics(model, chosen, 50)
    reconstruction, kl = (float(jnp.mean(x)) for x in (parts.reconstruction, parts.kl))
    known = SimpleNamespace(reconstruction=reconstruction, kl=kl, terms=parts.terms)
    assert float(value) == pytest.approx(float(expected(known)), rel=1e-5)
    # Whatever is minimized, the metrics are at weights one.
    assert float(metrics["elbo"]) == pytest.approx(-reconstruction - kl, rel=1e-5)
    assert float(metrics["loss"]) == float(value)


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_bounds_of_many_samples_are_minimized_as_they_are(name):
    model = small_model()
    chosen = Objective(name, 5)
    value, metrics = value_and_metrics(model, chosen)
    assert float(value) == pytest.approx(float(plain_parts(model, chosen).loss), rel=1e-6)
    assert float(value) < -float(metrics["elbo"])


def test_the_report_is_told_the_weights_of_the_end():
    ones, multiplier = vae.TermWeights(1.0, 1.0, 1.0), vae.constraint(2.0)
    for chosen, weights in (
        (Objective(), ones),
        (Objective(beta=4.0, schedule=("cosine", 9)), vae.TermWeights(4.0, 4.0, 4.0)),
        (Objective(weights=(1.0, 2.0, 3.0)), vae.TermWeights(1.0, 2.0, 3.0)),
        (Objective(capacity=9.0, beta=100.0), ones),
        (Objective(constraint=80.0), vae.TermWeights(0.5, 0.5, 0.5)),
    ):
        found, wanted = (
            [x.trace, x.mahalanobis, x.log_det]
            for x in (chosen.final_weights(multiplier), weights)
        )
        assert found == wanted


# ---- what is refused ---------------------------------------------------------------------


def refusal(given: list[str], capsys: Any) -> str:
    """The single line that a refused command line is answered with."""
    with pytest.raises(SystemExit) as stopped:
        vae_digits.main(given)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vae_digits.py: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("--beta=-1", "--beta: got '-1', needs a finite number from 0 on"),
        ("--beta=nan", "--beta: got 'nan'"),
        ("--weights=1,-1,1", "--weights: got '1,-1,1', needs three finite numbers from 0"),
        ("--weights=1,2", "--weights: got '1,2'"),
        ("--weights=1,2,inf", "--weights: got '1,2,inf'"),
        ("--free-bits=-0.1", "--free-bits: got '-0.1'"),
        ("--capacity=many", "--capacity: got 'many'"),
        ("--estimator=best", "--estimator: invalid choice: 'best'"),
        ("--samples=0", "--samples: got '0'"),
        ("--schedule=linear", "--schedule: got 'linear', needs one of linear, cosine"),
        ("--schedule=steep:10", "--schedule: got 'steep:10'"),
        ("--schedule=linear:0", "--schedule: got 'linear:0'"),
        ("--schedule=cyclical:3", "a schedule needs at least 4 steps"),
        ("--schedule=linear:45 --steps=44", "takes 45 steps, more than the run"),
        ("--beta=2 --weights=1,1,1", "--beta and --weights both weigh the KL"),
        ("--free-bits=0 --capacity=0", "--free-bits and --capacity are two objectives"),
        ("--weights=1,1,1 --capacity=3", "--weights and --capacity are two objectives"),
        ("--constraint=-1", "--constraint: got '-1'"),
        ("--constraint=9 --beta=2", "--constraint finds the weight of the KL"),
        ("--constraint=9 --schedule=linear:9", "--constraint finds the weight of the KL"),
        ("--constraint=9 --capacity=3", "--capacity and --constraint are two objectives"),
        ("--estimator=iwae --constraint=9", "--estimator iwae is no sum"),
        ("--delta-vae=0", "--delta-vae: got '0'"),
        ("--delta-vae=1 --posterior=full", "--delta-vae bounds the variances"),
        ("--estimator=iwae --beta=2", "--estimator iwae is no sum"),
        ("--estimator=dreg --schedule=linear:9", "--estimator dreg is no sum"),
        ("--estimator=monte-carlo --free-bits=1", "--free-bits needs the terms"),
        ("--checkpoint-every=0", "--checkpoint-every: got '0'"),
        ("--devices=3", "--batch-size 128 cannot be divided among 3 devices"),
        ("--devices=64", "--devices 64: there are 2 of cpu"),
        ("--processes=2", "need each other"),
        ("--coordinator=localhost:1234", "need each other"),
        ("--coordinator=localhost --processes=2", "--coordinator: got 'localhost'"),
        ("--process=1", "--process 1 is not below --processes"),
        ("--resume", "there are no checkpoints in"),
    ],
)
def test_senseless_flags_are_refused_in_one_line(given, reason, tmp_path, capsys):
    out = tmp_path / "out"
    assert reason in refusal([*given.split(), f"--out={out}"], capsys)
    assert not out.exists()


def test_nobody_at_the_address_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machines, "PATIENCE", 0.5)
    given = ["--processes=2", "--process=1", f"--coordinator=127.0.0.1:{free_port()}"]
    assert "process 0 does not answer" in refusal([*given, f"--out={tmp_path}"], capsys)


# ---- checkpoints -------------------------------------------------------------------------

PIXELS = np.random.default_rng(1).integers(0, 17, (60, 3, 4), np.uint8)
PIXELS[0, 0, :2] = 0, 16


def command(tmp_path: Path, out: str, **given: Any) -> list[str]:
    """A run on few and small images, of 3 steps an epoch."""
    path = tmp_path / "images.npy"
    if not path.exists():
        np.save(path, PIXELS)
    values = {"data": path, "steps": 600, "batch-size": 16, "latents": 2, "seed": 4}
    values |= {"checkpoint-every": 30, "out": tmp_path / out} | given
    return [f"--{name}={value}" for name, value in values.items()]


def start(
    arguments: list[str], devices: int = 1, programs: Path | None = None
) -> subprocess.Popen[str]:
    """Runs the example; what it compiles is kept in, and taken from, the folder `programs`."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Compiled lightly: runs are compared with each other.
    share = f"--xla_force_host_platform_device_count={devices}"
    light = "--xla_backend_optimization_level=0"
    settings = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{share} {light}"}
    if programs:
        settings["JAX_COMPILATION_CACHE_DIR"] = str(programs)
        settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "vae_digits.py"), *arguments],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return printed


def last_state(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the last checkpoint, read without the example."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        assert step is not None
        found = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )["state"]
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.skipif(
    "KLJAX_FULL" not in os.environ, reason="three programs: KLJAX_FULL=1 runs it"
)
def test_a_killed_run_that_is_resumed_equals_the_straight_run_bit_for_bit(tmp_path):
    straight = start(command(tmp_path, "straight", steps=300))
    killed = start(command(tmp_path, "killed", steps=300), programs=tmp_path / "programs")
    folder = tmp_path / "killed" / "checkpoints"
    try:
        while not any(path.name in ("60", "90") for path in folder.glob("[0-9]*")):
            assert killed.poll() is None, killed.communicate()[1]
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        finished(straight)
    finally:
        straight.kill()
        killed.kill()
    whole, part = tmp_path / "straight", tmp_path / "killed"
    text = (whole / "metrics.csv").read_text()
    assert len((part / "metrics.csv").read_text()) < 0.9 * len(text)
    assert not (part / "summary.json").exists()
    again = [*command(tmp_path, "killed", steps=300), "--resume"]
    finished(start(again, programs=tmp_path / "programs"))
    assert (part / "metrics.csv").read_text() == text
    assert (part / "summary.json").read_text() == (whole / "summary.json").read_text()
    ours, theirs = last_state(part), last_state(whole)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run, and its images."""
    folder = tmp_path_factory.mktemp("trained")
    with jax.numpy_rank_promotion("allow"):
        assert vae_digits.main(command(folder, "out", steps=6)) == 0
    return folder


def test_checkpoints_of_another_run_are_refused_and_nothing_changes(trained, capsys):
    before = contents(trained)
    np.save(trained / "others.npy", PIXELS[::-1])
    for given, reason in (
        ({"latents": 3}, "of another run, with --latents 2 and not 3"),
        ({"steps": 7}, "with --steps 6 and not 7"),
        ({"posterior": "full"}, "with --posterior diag and not full"),
        ({"weights": "1,2,1"}, "with --weights None and not [1.0, 2.0, 1.0]"),
        ({"data": trained / "others.npy"}, "with images 48 + 12 images (3, 4)"),
    ):
        again = [*command(trained, "out", **{"steps": 6} | given), "--resume"]
        assert reason in refusal(again, capsys)
    (trained / "others.npy").unlink()
    assert contents(trained) == before


def test_a_finished_run_that_is_resumed_says_the_same(trained, capsys):
    before = contents(trained)
    assert vae_digits.main([*command(trained, "out", steps=6), "--resume"]) == 0
    after = contents(trained)
    for name in ("metrics.csv", "summary.json"):
        assert after[f"out/{name}"] == before[f"out/{name}"]
    assert "posteriors of the training images" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["state", "about"])
def test_a_damaged_checkpoint_is_refused_in_one_line(what, trained, tmp_path, capsys):
    shutil.copytree(trained / "out" / "checkpoints", tmp_path / "out" / "checkpoints")
    shutil.copy(trained / "images.npy", tmp_path / "images.npy")
    for path in (tmp_path / "out" / "checkpoints" / "6" / what).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = contents(tmp_path)
    given = [*command(tmp_path, "out", steps=6), "--resume"]
    assert "6 cannot be read" in refusal(given, capsys)
    assert contents(tmp_path) == before


def test_a_new_run_clears_the_checkpoints_of_the_old_one(trained, tmp_path):
    options = flags.parse(command(trained, "out", steps=6))
    images = vae_digits.data.load(options.data, options.batch_size)
    shutil.copytree(trained / "out", tmp_path / "out")
    saved = checkpoint.Checkpoints(dataclasses.replace(options, out=tmp_path / "out"), images)
    assert (tmp_path / "out" / "checkpoints" / "6").is_dir()
    saved.clear()
    assert not list((tmp_path / "out" / "checkpoints").glob("[0-9]*"))


def test_what_others_have_left_is_not_replaced(tmp_path, capsys):
    (tmp_path / "out" / "checkpoints" / "7" / "weights").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "7" / "weights" / "data").write_text("precious")
    (tmp_path / "out" / "metrics.csv").write_text("precious")
    before = contents(tmp_path)
    reason = refusal([f"--out={tmp_path / 'out'}"], capsys)
    assert "7 is no checkpoint of this program" in reason
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError("RESOURCE_EXHAUSTED: long"), OSError(28, "full")])
def test_a_full_disk_is_one_line(error, tmp_path, capsys, monkeypatch):
    options = flags.parse(command(tmp_path, "out", steps=6))
    images = vae_digits.data.load(options.data, options.batch_size)
    saved = checkpoint.Checkpoints(options, images)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", refuse)
    with pytest.raises(SystemExit) as stopped:
        saved.save(checkpoint.Snapshot(3, {}))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "3 cannot be written" in printed
    assert printed.count("\n") == 1


def test_the_multiplier_falls_where_the_tolerance_is_met():
    model = small_model()
    parts = plain_parts(model, Objective())
    reconstruction = float(jnp.mean(parts.reconstruction))
    for tolerance, sign in ((reconstruction + 10, -1), (reconstruction - 10, 1)):
        moved = Objective(constraint=tolerance).followed(model.multiplier.get_value(), parts)
        assert float(moved.log_multiplier) == pytest.approx(sign * 1e-3, rel=1e-3)
    kept = Objective().followed(model.multiplier.get_value(), parts)
    assert float(kept.log_multiplier) == 0


def test_every_latent_of_a_delta_vae_keeps_its_rate():
    model = vae_digits.VAE(9, 16, 3, "diag", nnx.Rngs(0), 0.7)
    kl = kljax.vae.latent_terms(model.posterior(IMAGES), model.prior()).total
    assert float(jnp.min(kl)) >= 0.7


@pytest.mark.parametrize("largest", [np.inf, -np.inf, np.nan])
def test_words_stand_for_what_json_cannot_hold(largest):
    found = summary.largest_tail(np.array([largest, largest]))
    assert found["largest_pareto_k"] is None
    assert len(found["why_no_largest_pareto_k"]) > 10
    assert summary.largest_tail(np.array([0.2, -np.inf])) == {"largest_pareto_k": 0.2}


# ---- several devices and several processes -----------------------------------------------


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def numbers(folder: Path) -> np.ndarray:
    """The metrics of every epoch, and the means of the summary."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [[float(x) for x in row.values()] for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    means = [item["mean"] for item in summary.values() if type(item) is dict]
    return np.concatenate([np.ravel(rows), means])


@pytest.mark.skipif(
    "KLJAX_FULL" not in os.environ, reason="four programs: KLJAX_FULL=1 runs it"
)
def test_one_device_two_devices_and_two_processes_agree(tmp_path):
    options = {"steps": 30, "checkpoint-every": 15}
    shared = {"processes": 2, "coordinator": f"127.0.0.1:{free_port()}"}
    runs = [
        start(command(tmp_path, "one", **options)),
        start(command(tmp_path, "two", devices=2, **options), devices=2),
    ]
    printed = [finished(run) for run in runs]
    both = [start(command(tmp_path, "both", process=i, **shared, **options)) for i in range(2)]
    try:
        spoken, silent = (finished(run) for run in both)
    finally:
        for run in both:
            run.kill()
    assert "2 in 1 processes, 8 images of a batch each" in printed[1]
    assert "2 in 2 processes, 8 images of a batch each" in spoken
    # The first process speaks for all; what jaxlib's collectives say is not ours.
    assert [line for line in silent.splitlines() if "[Gloo]" not in line] == []
    one, two, processes = (numbers(tmp_path / name) for name in ("one", "two", "both"))
    assert one.size > 100
    np.testing.assert_allclose(two, one, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(processes, one, rtol=2e-5, atol=1e-6)
    for other in ("two", "both"):
        ours, theirs = last_state(tmp_path / "one"), last_state(tmp_path / other)
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@jax.jit
def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(x * x)


def test_a_batch_is_divided_among_the_devices():
    options = flags.parse(["--devices=2", "--batch-size=8"])
    mesh = machines.mesh(options)
    whole = machines.everywhere({"x": np.arange(16.0), "key": KEY}, mesh)
    assert len(whole["x"].sharding.device_set) == 2
    assert whole["x"].is_fully_replicated
    np.testing.assert_array_equal(jax.random.key_data(whole["key"]), jax.random.key_data(KEY))
    batch = jax.jit(lambda x: machines.divided(x[:8], mesh))(whole["x"])
    assert [shard.data.shape for shard in batch.addressable_shards] == [(4,), (4,)]
    assert float(_sum_of_squares(batch)) == np.sum(np.arange(8.0) ** 2)
