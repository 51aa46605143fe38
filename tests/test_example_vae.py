"""The VAE example: what it computes, what it leaves behind and what it refuses."""

import csv
import dataclasses
import functools
import gzip
import importlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import kljax

pytestmark = [pytest.mark.light, pytest.mark.usefixtures("usual_broadcasting")]

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
vae_digits = importlib.import_module("vae_digits")
data = importlib.import_module("vae.data")
evaluate = importlib.import_module("vae.evaluate")
flags = importlib.import_module("vae.flags")
pictures = importlib.import_module("vae.pictures")
report = importlib.import_module("vae.report")


LATENTS = 4
TERMS = ("trace", "mahalanobis", "dimension", "log_det")
FLOAT32 = float(np.finfo(np.float32).eps)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items()} for row in rows]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def kl_from_terms(means: dict[str, float], prefix: str = "") -> float:
    trace, mahalanobis, dimension, log_det = (means[prefix + name] for name in TERMS)
    return (trace + mahalanobis - dimension + log_det) / 2


# ---- whole runs --------------------------------------------------------------------------


def test_a_run_of_the_digits_whole_and_interrupted(tmp_path, capsys, monkeypatch):
    # The same optimizer for the same options, so that both runs take the same programs.
    for name in ("cosine_decay_schedule", "adamw"):
        monkeypatch.setattr(optax, name, functools.cache(getattr(optax, name)))
    whole, part = tmp_path / "made" / "by the run", tmp_path / "part"
    given = {"posterior": "diag", "data": None}
    check_run(given | {"out": str(whole)}, capsys, "they add up to")

    record = report.Progress.record

    def interrupted(self: Any, *row: Any) -> None:
        record(self, *row)
        if len(self.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(report.Progress, "record", interrupted)
    part.mkdir()
    (part / "summary.json").write_text("of an earlier run")
    assert vae_digits.main(command_line(given | {"out": str(part)})) == 130
    assert "interrupted; metrics so far" in capsys.readouterr().out.splitlines()[-1]
    assert not (part / "summary.json").exists()
    # The seed fixes every digit, so what was written is the same text.
    lines = (whole / "metrics.csv").read_text().splitlines()
    assert (part / "metrics.csv").read_text().splitlines() == lines[:3]
    # It goes on from the checkpoint that the interruption left.
    monkeypatch.setattr(report.Progress, "record", record)
    again = [*command_line(given | {"out": str(part)}), "--resume"]
    assert vae_digits.main(again) == 0
    for name in ("metrics.csv", "summary.json"):
        assert (part / name).read_text() == (whole / name).read_text()


@pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="slow; KLJAX_FULL=1 runs it")
def test_a_run_of_a_file_with_full_covariance(tmp_path, capsys):
    digits: Any = load_digits()
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=digits.data, y_train=digits.target)
    given = {"posterior": "full", "data": str(path), "out": str(tmp_path)}
    check_run(given, capsys, "of the marginals of q; the correlations")


RUN = {"steps": 44, "latents": LATENTS, "seed": 3}


def command_line(given: dict[str, Any]) -> list[str]:
    values = RUN | given
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def check_run(given: dict[str, Any], capsys: Any, words: str) -> None:
    assert vae_digits.main(command_line(given)) == 0
    out = Path(given["out"])
    summary = read_json(out / "summary.json")
    check_config(read_json(out / "config.json"), RUN | given)
    check_metrics(read_metrics(out))
    check_summary(summary, given["posterior"])
    check_pictures(out)
    printed = capsys.readouterr().out
    for expected in (
        "discretized logistic on the pixel values 0..16",
        "nats per image: event axes (pixels, latents) are summed, the images are averaged",
        f"{summary['minus_elbo']['mean']:.3f}",
        f"± {summary['iw_nll']['standard_error']:.3f}",
        f"active units            {summary['active_units']} of {LATENTS}",
        "512 samples per image",
        "objective   reconstruction + KL; closed form, 1 draw an image",
        "trust in the NLL",
        *(verdict[:40] for verdict in summary["verdicts"]),
        words,
    ):
        assert expected in printed


def check_config(config: dict[str, Any], given: dict[str, Any]) -> None:
    defaults = vars(flags.parse([])) | given
    assert config["flags"] == defaults | {"batch_size": 128, "learning_rate": 2e-3}
    versions = config["versions"]
    assert versions["jax"] == jax.__version__
    assert versions["flax"] == flax.__version__
    assert versions["kljax"] == kljax.__version__
    assert config["device"].startswith(jax.devices()[0].platform)
    assert (config["images"]["train"], config["images"]["test"]) == (1437, 360)


def check_metrics(rows: list[dict[str, float]]) -> None:
    assert [row["step"] for row in rows] == [11, 22, 33, 44]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        for part in ("train_", "test_"):
            elbo, kl = row[part + "elbo"], row[part + "kl"]
            assert elbo == pytest.approx(-(row[part + "reconstruction"] + kl), rel=1e-6)
            size = sum(abs(row[part + name]) for name in TERMS) / 2
            assert abs(kl_from_terms(row, part) - kl) < 4 * FLOAT32 * size
            assert row[part + "dimension"] == LATENTS
            assert kl > 0.1
    assert rows[-1]["test_elbo"] > rows[0]["test_elbo"] + 20
    assert rows[-1]["train_elbo"] > rows[0]["train_elbo"] + 40


def check_summary(summary: dict[str, Any], posterior: str) -> None:
    mean = {name: item["mean"] for name, item in summary.items() if type(item) is dict}
    error = summary["minus_elbo"]["standard_error"]
    assert summary["test_images"] == 360
    assert 0.1 < error < 10
    assert mean["minus_elbo"] == pytest.approx(mean["reconstruction"] + mean["kl"])
    # The bound of many draws is tighter, but cannot be tighter than a perfect posterior.
    assert mean["minus_elbo"] - mean["kl"] < mean["iw_nll"] + error
    assert mean["iw_nll"] < mean["minus_elbo"] + error
    assert mean["kl_from_terms"] == pytest.approx(kl_from_terms(mean), rel=1e-6)
    assert mean["kl_from_terms"] == pytest.approx(mean["kl"], rel=4 * FLOAT32)
    difference = summary["largest_relative_difference_of_kl_and_its_terms"]
    assert 0 < difference < 4 * FLOAT32
    each = summary["kl_per_latent"]
    assert len(each) == LATENTS
    assert min(each) > 0
    if posterior == "diag":
        assert sum(each) == pytest.approx(mean["kl"], rel=1e-5)
    else:
        assert sum(each) < mean["kl"] - 1e-3
    assert summary["active_units"] == LATENTS


def check_pictures(out: Path) -> None:
    for name in (
        "terms.png",
        "reconstructions.png",
        "samples.png",
        "latent_space.png",
        "kl_per_latent.png",
    ):
        check_picture(out / name)


def check_picture(path: Path) -> None:
    picture = matplotlib.image.imread(path)
    height, width, _ = picture.shape
    assert height > 200
    assert width > 500
    assert np.all(np.isfinite(picture))
    colors = np.unique(picture[::2, ::2, :3] @ np.array([1, 256, 256**2]))
    assert len(colors) > 16
    assert picture[..., :3].min() < 0.2
    assert picture[..., :3].max() > 0.9
    # Something is drawn in the middle, not only around it.
    middle = picture[height // 4 : -height // 4, width // 4 : -width // 4, :3]
    assert np.ptp(middle) > 0.5


def test_the_last_epoch_is_as_long_as_the_steps_that_are_left(tmp_path, monkeypatch):
    taken = []

    def train_epoch(_: Any, state: Any, *__: Any, steps: int, batch_size: int) -> Any:
        taken.append((steps, batch_size))
        return state, dict.fromkeys(report.METRICS, 1.0)

    means = dict.fromkeys(report.METRICS, 2.0)
    monkeypatch.setattr(vae_digits, "train_epoch", train_epoch)
    monkeypatch.setattr(vae_digits, "test_metrics", lambda *_: means)
    options = flags.parse(["--steps", "25", "--out", str(tmp_path)])
    images, key = data.load(None, 128), jax.random.key(0)
    progress = vae_digits.train(small_model("diag"), options, images, key)
    assert taken == [(11, 128), (11, 128), (3, 128)]
    assert [row["step"] for row in progress.rows] == [11, 22, 25]
    assert [row["train_elbo"] for row in progress.rows] == [1.0] * 3
    assert [row["test_kl"] for row in progress.rows] == [2.0] * 3


def test_help_explains_every_flag_from_any_folder(tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "vae_digits.py"), "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    for field in dataclasses.fields(flags.Flags):
        assert f"--{field.name.replace('_', '-')}" in printed
    assert "by default runs/vae_digits" in printed
    assert "MNIST-style IDX file" in printed
    assert "by default None" not in printed


# ---- the model and its evaluation --------------------------------------------------------


def small_model(posterior: str, levels: int = 16) -> Any:
    return vae_digits.VAE(9, levels, LATENTS, posterior, nnx.Rngs(0))


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_the_likelihood_is_the_mass_of_a_rounded_logistic(levels):
    model = vae_digits.VAE(1, levels, LATENTS, "diag", nnx.Rngs(0))
    every_value = jnp.arange(levels + 1.0)[:, None]
    latents = 3 * jax.random.normal(jax.random.key(0), (20, 1, LATENTS))
    mass = jnp.exp(model.log_likelihood(latents, every_value))
    assert mass.shape == (20, levels + 1)
    edges = (np.arange(levels) + 0.5) / levels
    below = jax.nn.sigmoid(10 * (edges - model.decode(latents)[:, 0]))
    np.testing.assert_allclose(jnp.cumsum(mass, axis=1)[:, :-1], below, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(mass, axis=1), 1, atol=1e-5)


def test_the_likelihood_of_extreme_decodings_stays_finite():
    model, latents = small_model("diag"), jnp.zeros(LATENTS)
    model.center.bias[...] = jnp.full(9, 1e4)
    assert model.log_likelihood(latents, jnp.full(9, 16.0)) == 0
    for value in (0.0, 15.0):
        unlikely = model.log_likelihood(latents, jnp.full(9, value))
        assert unlikely == pytest.approx(-9 * 10 * 1e4, rel=1e-3)
    gradient = jax.grad(model.log_likelihood)(latents, jnp.arange(9.0))
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("posterior", ["diag", "full"])
def test_the_posterior_starts_near_the_identity(posterior):
    images = jax.random.randint(jax.random.key(1), (50, 9), 0, 17)
    covariance = kljax.covariance(small_model(posterior).posterior(images))
    assert covariance.shape == (50, LATENTS, LATENTS)
    np.testing.assert_allclose(
        covariance, np.broadcast_to(np.eye(LATENTS), covariance.shape), atol=0.25
    )


@jax.jit
def loss_and_its_parts(images: jax.Array, key: jax.Array) -> tuple[Any, ...]:
    model = small_model("full")
    q = model.posterior(images)
    reconstruction = -model.log_likelihood(kljax.sample(q, key), images)
    kl = kljax.kl_divergence(q, kljax.standard_normal(LATENTS))
    value, parts = vae_digits.loss(model, images, key)
    return value, vae_digits.metrics_of(parts), reconstruction, kl


def test_the_loss_is_the_mean_over_the_images():
    images = jax.random.randint(jax.random.key(1), (30, 9), 0, 17).astype(float)
    value, metrics, reconstruction, kl = loss_and_its_parts(images, jax.random.key(2))
    assert reconstruction.shape == kl.shape == (30,)
    np.testing.assert_allclose(value, jnp.mean(reconstruction + kl), rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], -value, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl"], jnp.mean(kl), rtol=1e-5)


class Tractable:
    """x = z + noise with z and noise N(0, I), whose evidence N(x; 0, 2 I) is known."""

    def __init__(self, shift: jax.Array):
        self.shift = shift

    def prior(self) -> Any:
        return kljax.standard_normal(3)

    def posterior(self, images: jax.Array) -> Any:
        loc = images / 2 + self.shift
        return kljax.MultivariateNormalDiag(loc, variance=jnp.full(3, 0.5))

    def decode(self, latents: jax.Array) -> jax.Array:
        return latents

    def log_likelihood(self, latents: jax.Array, images: jax.Array) -> jax.Array:
        noise = kljax.MultivariateNormalDiag(latents, jnp.ones(3))
        return kljax.log_prob(noise, images)


def test_importance_weights_give_the_evidence():
    image = jnp.array([0.3, -1.2, 2.0])
    evidence = kljax.MultivariateNormalDiag(jnp.zeros(3), variance=jnp.full(3, 2.0))
    nll = -float(kljax.log_prob(evidence, image))
    assess = jax.jit(lambda shift, key: evaluate.assess(Tractable(shift), image, key))
    exact = assess(0.0, jax.random.key(0))
    assert float(exact["iw_nll"]) == pytest.approx(nll, rel=1e-5)
    assert float(exact["minus_elbo"]) == pytest.approx(nll, abs=0.2)
    # KL of the shifted from the exact posterior: 3 * 0.5^2 / (2 * 0.5) nats.
    wrong = assess(0.5, jax.random.key(0))
    assert float(wrong["minus_elbo"]) == pytest.approx(nll + 0.75, abs=0.2)
    assert float(wrong["iw_nll"]) == pytest.approx(nll, abs=0.3)


def test_images_are_evaluated_in_order_whatever_the_chunk(monkeypatch):
    images = jnp.arange(23 * 4).reshape(23, 4)
    for floats in (1, 256 * 5, 2**23):
        monkeypatch.setattr(evaluate, "CHUNK_FLOATS", floats)
        sums = evaluate.over_images(lambda image, _: jnp.sum(image), images, jax.random.key(0))
        np.testing.assert_array_equal(sums, images.sum(axis=1))


def test_active_latents_move_with_the_image():
    moving = np.linspace(-1, 1, 50)
    means = np.stack([moving, 0.05 * moving, np.full(50, 7.0)], axis=1)
    np.testing.assert_array_equal(evaluate.active(means), [True, False, False])


# ---- files of images ---------------------------------------------------------------------


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    swapped = values.astype(values.dtype.newbyteorder(">"))
    return bytes([0, 0, kind, values.ndim]) + sizes + swapped.tobytes()


def npy(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


BYTES = np.random.default_rng(1).integers(0, 256, (60, 4, 5), np.uint8)
BYTES[0, 0, :2] = 0, 255
CLASSES = np.arange(60) % 3


def load(path: Path) -> Any:
    return data.load(path, 16)


def everything(images: Any) -> np.ndarray:
    """All pixels of both parts, sorted by row, whatever the split."""
    return np.array(sorted(map(tuple, np.concatenate([images.train, images.test]))))


def sorted_rows(values: np.ndarray) -> np.ndarray:
    return np.array(sorted(map(tuple, values.reshape(len(values), -1))))


@pytest.mark.parametrize(
    ("values", "levels", "stored"),
    [
        (BYTES, 255, BYTES),
        (BYTES.reshape(60, 20), 255, BYTES),
        (BYTES[..., None], 255, BYTES),
        (BYTES.astype(np.int64), 255, BYTES),
        (BYTES.astype(np.float64), 255, BYTES),
        (BYTES // 15, 16, np.minimum(BYTES // 15, 16)),
        (BYTES > 99, 1, BYTES > 99),
        ((BYTES > 99).astype(np.float32), 1, BYTES > 99),
        (BYTES / 255, 255, BYTES),
        ((BYTES / 255).astype(np.float32), 255, BYTES),
    ],
    ids=[
        "bytes",
        "rows",
        "one channel",
        "integers",
        "whole floats",
        "sixteen levels",
        "booleans",
        "binary floats",
        "floats",
        "single floats",
    ],
)
def test_arrays_become_whole_levels(values, levels, stored, tmp_path):
    if levels == 16:
        values = np.minimum(values, 16)
    np.save(tmp_path / "images.npy", values)
    images = load(tmp_path / "images.npy")
    assert images.levels == levels
    assert images.train.dtype == np.uint8
    assert images.shape == values.shape[1:]
    assert (len(images.train), len(images.test)) == (48, 12)
    np.testing.assert_array_equal(everything(images), sorted_rows(stored))


@pytest.mark.parametrize("image_name", ["images", "x", "x_train", "data", "other"])
@pytest.mark.parametrize("label_name", ["labels", "y", "y_train", None])
def test_archives_are_read_by_the_names_of_their_arrays(image_name, label_name, tmp_path):
    labels = {} if label_name is None else {label_name: CLASSES}
    (tmp_path / "archive.npz").write_bytes(npz(**{image_name: BYTES}, **labels))
    images = load(tmp_path / "archive.npz")
    np.testing.assert_array_equal(everything(images), sorted_rows(BYTES))
    assert images.stratified == (label_name is not None)
    if label_name is not None:
        assert images.classes == ("0", "1", "2")
        np.testing.assert_array_equal(np.bincount(images.test_labels), [4, 4, 4])
        by_row = {tuple(row.ravel()): c for row, c in zip(BYTES, CLASSES, strict=True)}
        found = [by_row[tuple(row)] for row in images.test]
        np.testing.assert_array_equal(images.test_labels, found)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("name", "label_name"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images.idx3-ubyte.gz", "t10k-labels.idx1-ubyte.gz"),
    ],
)
def test_idx_files_bring_the_labels_beside_them(name, label_name, pack, tmp_path):
    (tmp_path / name).write_bytes(pack(idx(BYTES)))
    assert load(tmp_path / name).test_labels is None
    (tmp_path / label_name).write_bytes(pack(idx(CLASSES.astype(np.uint8))))
    images = load(tmp_path / name)
    np.testing.assert_array_equal(everything(images), sorted_rows(BYTES))
    np.testing.assert_array_equal(np.bincount(images.test_labels), [4, 4, 4])


@pytest.mark.parametrize(
    ("kind", "dtype"), [(0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_values_are_big_endian(kind, dtype, tmp_path):
    (tmp_path / "images").write_bytes(idx(BYTES.astype(dtype), kind))
    images = load(tmp_path / "images")
    np.testing.assert_array_equal(everything(images), sorted_rows(BYTES))


def test_the_split_is_the_same_for_every_seed_and_keeps_every_image():
    images = data.load(None, 128)
    again = data.load(None, 64)
    np.testing.assert_array_equal(images.test, again.test)
    assert (images.levels, images.shape) == (16, (8, 8))
    assert len(images.train) + len(images.test) == 1797
    assert images.stratified
    shares = np.bincount(images.test_labels) / 360
    np.testing.assert_allclose(shares, 0.1, atol=0.005)


def test_names_are_labels_and_rare_classes_are_not_stratified(tmp_path):
    names = np.array(["cat"] * 59 + ["dog"])
    (tmp_path / "a.npz").write_bytes(npz(images=BYTES, labels=names))
    images = load(tmp_path / "a.npz")
    assert images.classes == ("cat", "dog")
    assert not images.stratified


DAMAGED = npy(BYTES)
WITH_NAN = np.where(np.arange(60)[:, None, None] == 3, np.nan, BYTES / 255)
ANY_LABELS = np.zeros(60)
BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "no such file"),
    "empty": (b"", "empty"),
    "foreign": (b"%PDF-1.7 and so on", "none of .npy, .npz, IDX"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "none of .npy"),
    "text": (b"0,1,2\n3,4,5\n", "none of .npy"),
    "npy truncated": (DAMAGED[:-7], "numpy cannot read"),
    "npy magic only": (DAMAGED[:6], "numpy cannot read"),
    "npy header cut": (DAMAGED[:40], "numpy cannot read"),
    "npy header broken": (DAMAGED.replace(b"shape", b"sh(pe"), "numpy cannot read"),
    "npy huge": (DAMAGED.replace(b"(60, 4, 5)", b"(1<<60,4,)"), "numpy cannot read"),
    "npy objects": (npy(np.array([{}, 1]), allow_pickle=True), "allow_pickle"),
    "npy words": (npy(np.full((60, 4, 5), "a")), "dtype <U1"),
    "npy complex": (npy(BYTES * 1j), "dtype complex128"),
    "npy records": (npy(np.zeros((60, 4), [("a", "f4")])), "dtype"),
    "scalar": (npy(np.array(3)), "shape ()"),
    "one axis": (npy(np.arange(60)), "shape (60,)"),
    "five axes": (npy(np.zeros((60, 2, 2, 2, 2))), "shape (60, 2, 2, 2, 2)"),
    "no pixels": (npy(np.zeros((60, 0, 5))), "shape (60, 0, 5)"),
    "channels first": (npy(np.zeros((60, 3, 8, 8))), "1, 3 or 4 channels"),
    "no images": (npy(BYTES[:0]), "there are 0 images"),
    "few images": (npy(BYTES[:19]), "at least 20"),
    "fewer than a batch": (npy(BYTES[:20]), "--batch-size 17 exceeds the 16"),
    "nan": (npy(WITH_NAN), "nan or infinite"),
    "infinite": (npy(np.where(WITH_NAN > 0.9, np.inf, 0.5)), "nan or infinite"),
    "negative": (npy(BYTES.astype(int) - 1), "from -1 to 254"),
    "sixteen bits": (npy(BYTES.astype(np.uint16) * 256), "rescale"),
    "floats over 1": (npy(BYTES / 100), "scale them to [0, 1]"),
    "floats under 0": (npy(BYTES / 255 - 0.5), "from -0.5 to 0.5"),
    "constant": (npy(np.full((60, 4, 5), 9)), "every pixel is 9"),
    "zip broken": (b"PK\x03\x04" + bytes(40), "numpy cannot read"),
    "zip truncated": (npz(images=BYTES)[:-30], "numpy cannot read"),
    "zip without arrays": (npz(), "no array named"),
    "zip of strangers": (npz(one=BYTES, two=BYTES), "no array named"),
    "zip of labels": (npz(labels=CLASSES), "no array named"),
    "zip of objects": (npz(images=np.array([{}, 1])), "allow_pickle"),
    "labels of others": (npz(images=BYTES, labels=CLASSES[:50]), "labels have shape"),
    "labels in rows": (npz(images=BYTES, labels=np.eye(60)), "labels have shape"),
    "label scalar": (npz(images=BYTES, labels=3), "labels have shape"),
    "labels of parts": (npz(images=BYTES, labels=ANY_LABELS + 0.5), "whole numbers"),
    "labels of nan": (npz(images=BYTES, labels=ANY_LABELS * np.nan), "whole numbers"),
    "idx of two bytes": (b"\x00\x00", "an IDX file begins with"),
    "idx of unknown type": (idx(BYTES, 0x07), "an IDX file begins with"),
    "idx truncated": (idx(BYTES)[:-1], "announces 1,216 bytes, the file has 1,215"),
    "idx header only": (idx(BYTES)[:9], "the file has 9"),
    "idx too long": (idx(BYTES) + b"\x00", "the file has 1,217"),
    "idx of labels": (idx(CLASSES.astype(np.uint8)), "shape (60,)"),
    "gzip truncated": (gzip.compress(idx(BYTES))[:-20], "gzip stream is damaged"),
    "gzip broken": (b"\x1f\x8b\x08" + bytes(40), "gzip stream is damaged"),
    "gzip of text": (gzip.compress(b"hello, world"), "an IDX file begins with"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_without_images_is_refused_in_one_line(name, tmp_path, capsys):
    content, reason = BAD_FILES[name]
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    given = ["--data", str(path), "--batch-size", "17", "--out", str(out)]
    message = refusal(given, capsys)
    assert reason in message
    assert str(path) in message or "--batch-size" in message
    assert not out.exists()


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


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", idx(CLASSES)[:-1]])
def test_unusable_labels_beside_idx_images_are_refused(content, tmp_path, capsys):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(BYTES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    message = refusal(["--data", str(path)], capsys)
    assert "train-labels-idx1-ubyte are unusable" in message


def test_a_folder_is_no_file_of_images(tmp_path, capsys):
    assert "cannot be read" in refusal(["--data", str(tmp_path)], capsys)


# ---- flags -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--steps", "0"], "--steps: got '0', needs a whole number"),
        (["--steps", "ten"], "--steps: got 'ten'"),
        (["--latents", "-3"], "--latents: got '-3'"),
        (["--latents", "2.5"], "--latents: got '2.5'"),
        (["--batch-size", "0"], "--batch-size: got '0'"),
        (["--batch-size", "2000"], "exceeds the 1437 training images"),
        (["--learning-rate", "0"], "--learning-rate: got '0', needs a finite number"),
        (["--learning-rate", "nan"], "--learning-rate: got 'nan'"),
        (["--learning-rate", "inf"], "--learning-rate: got 'inf'"),
        (["--seed", "-1"], "--seed: got '-1', needs a whole number from 0 to 4294967295"),
        (["--seed", "4294967296"], "--seed: got '4294967296'"),
        (["--posterior", "banana"], "--posterior: invalid choice: 'banana'"),
        (["--step", "5"], "unrecognized arguments"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_a_senseless_flag_is_refused_in_one_line(given, reason, tmp_path, capsys):
    assert reason in refusal([*given, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("here already")
    message = refusal(["--out", str(tmp_path / "file")], capsys)
    assert "the folder cannot be written" in message


def test_a_diverging_elbo_is_refused(tmp_path, capsys):
    options = flags.parse(["--out", str(tmp_path)])
    good = dict.fromkeys(report.METRICS, 1.0)
    with report.Progress(options) as progress:
        progress.record(11, good, good)
        with pytest.raises(SystemExit) as stopped:
            progress.record(22, good, good | {"elbo": math.nan})
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "the ELBO is 1 in training and nan in testing after step 22" in message
    assert message.count("\n") == 1
    assert len(read_metrics(tmp_path)) == 2


# ---- console and pictures ----------------------------------------------------------------


def test_the_bar_shows_every_metric(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    values = dict(zip(report.METRICS, range(11, 18), strict=True))
    with report.Progress(flags.parse(["--steps", "5", "--out", str(tmp_path)])) as shown:
        shown.record(5, values, values)
    for words in (
        "5/5",
        "ELBO 11.0",
        "reconstruction 12.0",
        "KL 13.0",
        "trace 14.000",
        "Mahalanobis 15.00",
        "log-det 17.00",
    ):
        assert words in screen.getvalue()


def images_like(shape: tuple[int, ...], classes: int | None) -> Any:
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (70, math.prod(shape)), np.uint8)
    return data.Images(
        train=pixels,
        test=pixels[:50],
        test_labels=None if classes is None else np.arange(50) % classes,
        classes=() if classes is None else tuple(f"class {i}" for i in range(classes)),
        levels=255,
        shape=shape,
        source="a test",
        stratified=False,
    )


@pytest.mark.parametrize(
    ("shape", "classes", "latents"),
    [((6, 6, 1), 12, 1), ((4, 6, 3), 40, 2), ((7,), None, 50)],
)
def test_pictures_of_every_kind_of_image(shape, classes, latents, tmp_path):
    images, generator = images_like(shape, classes), np.random.default_rng(3)
    assessed = {
        "decoded": generator.uniform(size=images.test.shape),
        "loc": generator.normal(size=(50, latents)) * ([1.0] + [0.01] * (latents - 1)),
        "kl": generator.uniform(1, 2, 50),
        "kl_per_latent": generator.uniform(1, 2, (50, latents)),
    }
    metrics = {f"{part}_{name}": 2.0 for part in report.PARTS for name in report.METRICS}
    metrics |= {f"{part}_elbo": -4.0 for part in report.PARTS}
    samples = generator.uniform(size=(64, images.pixels))
    pictures.draw_all(tmp_path, images, [{"step": 5} | metrics], assessed, samples)
    check_pictures(tmp_path)


def test_flat_images_are_drawn_as_squares_where_they_can_be():
    draw: Callable[..., np.ndarray] = pictures.as_pictures
    assert draw(np.zeros((2, 16)), (16,)).shape == (2, 4, 4)
    assert draw(np.zeros((2, 15)), (15,)).shape == (2, 1, 15)
    assert draw(np.zeros((2, 12)), (2, 2, 3)).shape == (2, 2, 2, 3)
    assert draw(np.zeros((2, 4)), (2, 2, 1)).shape == (2, 2, 2)
