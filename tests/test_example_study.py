"""The study of the KL terms: responses on known models, runs that resume, refusals."""

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

pytestmark = pytest.mark.light

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
kl_terms_study = importlib.import_module("kl_terms_study")
design = importlib.import_module("study.design")
likelihood = importlib.import_module("study.likelihood")
mixture = importlib.import_module("study.mixture")
networks = importlib.import_module("study.networks")
noise = importlib.import_module("study.noise")
predictions = importlib.import_module("study.predictions")
responses = importlib.import_module("study.responses")
store = importlib.import_module("study.store")
training = importlib.import_module("study.training")

# ---- what rules are told, on models that are known ------------------------------------------

C, VARIANCE = 1 / 16, 0.3
MODEL = design.Model(2, VARIANCE, "diag")


def known_model():
    """A linear decoder with orthogonal columns, and its encoder of stationary variances."""
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.standard_normal((5, 2)))[0] * [2.0, 0.7]
    h = np.sum(columns**2, axis=0) / VARIANCE
    mean = columns / VARIANCE / (1 + h)
    # The encoder sees 2 x - 1.
    kernel = np.concatenate([mean / 2, np.zeros((5, 2))], axis=1)
    bias = np.concatenate([np.sum(mean, axis=0) / 2, np.log(C / (1 + h))])
    layer = networks.Layer
    x = networks.Networks(
        (layer(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)),),
        (layer(jnp.asarray(columns.T, jnp.float32), jnp.zeros(5)),),
    )
    arm = jax.tree.map(lambda v: v[0], training.weighings((design.log_det(C),)))
    return x, arm, columns, rng.random((6, 5)).astype(np.float32)


def test_the_implied_variance_makes_importance_sampling_exact():
    x, arm, columns, images = known_model()
    prior = likelihood.fitted(np.zeros((1, 2)), np.eye(2)[None])
    prior = jax.tree.map(lambda v: v[0], prior)
    effort = design.QUICK
    compiled = jax.jit(
        lambda plan: likelihood.estimate(
            MODEL, x, arm, prior, plan, images, jax.random.key(0), effort
        )
    )
    with jax.numpy_rank_promotion("allow"):
        plain = compiled(likelihood.Plan(0.0, 0.0, 0.0))
        implied, fitted = (compiled(likelihood.Plan(f, 0.0, 1.0)) for f in (0.0, 1.0))
    covariance = columns @ columns.T + VARIANCE * np.eye(5)
    square = np.einsum("ni,ij,nj->n", images, np.linalg.inv(covariance), images)
    truth = 0.5 * np.mean(square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    for found in (implied, fitted):
        assert abs(float(found[""]) - truth) < 1e-4
        assert float(found["_effective"]) > 0.999 * effort.importance
        assert float(found["_trusted"]) == 1
    assert float(plain["_effective"]) < 0.5 * effort.importance


def test_the_law_of_the_variance_holds_where_it_is_exact():
    x, arm, _, images = known_model()
    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(
            lambda x: responses.of_decoder(MODEL, x, arm, images, jax.random.key(0))
        )(x)
    np.testing.assert_allclose(found["log_s_predicted"], found["log_s"], rtol=1e-5)
    assert float(found["alignment"]) < 1e-5


def test_estimators_of_weighted_terms_agree():
    x, _, _, images = known_model()
    keys = jax.random.split(jax.random.key(0), 4000)

    def values(name, c):
        one = lambda key: noise.weighted(name, x.encoder, MODEL, x, c, images, key)  # noqa: E731
        return jax.vmap(one)(keys)

    for c in (0.0, 0.3):
        with jax.numpy_rank_promotion("allow"):
            closed, drawn = (
                jax.jit(values, static_argnums=0)(n, c) for n in ("closed_form", "monte_carlo")
            )
        off = np.asarray(drawn - closed, np.float64)
        error = np.std(off) / np.sqrt(len(off))
        assert abs(np.mean(off)) < 4 * error
        assert error < 0.02


def test_effective_components_are_counted():
    k, each = 2, 5
    model = design.Model(k, 0.1, "mixture")
    bias = np.zeros((2, mixture.COMPONENTS, each), np.float32)
    # Far apart in the second model, all the same in the first.
    bias[1, :, 0] = 100 * np.arange(mixture.COMPONENTS)
    layer = networks.Layer
    width = mixture.COMPONENTS * each
    x = networks.Networks(
        (layer(jnp.zeros((2, 1, 5, width)), jnp.asarray(bias.reshape(2, 1, width))),),
        (layer(jnp.zeros((2, 1, k, 5)), jnp.zeros((2, 1, 5))),),
    )
    with jax.numpy_rank_promotion("allow"):
        found = mixture.assess(model, x, jnp.zeros((3, 5)), jax.random.key(0))
    np.testing.assert_allclose(found["components"][:, 0], [1, mixture.COMPONENTS], rtol=1e-4)
    assert np.all(found["siwae"] >= found["elbo"] - 1e-4)


# ---- runs that are interrupted --------------------------------------------------------------


@pytest.fixture
def any_rank():
    """Rank promotion in all threads; a context would allow it in one."""
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


class Counter:
    """Stands for the progress on the screen; stops the run like Ctrl-C after some blocks."""

    def __init__(self, most=10**9):
        self.blocks, self.most = 0, most

    def advance(self, what):
        self.blocks += 1
        if self.blocks == self.most:
            raise KeyboardInterrupt

    def stop(self):
        self.most = self.blocks + 1

    def close(self):
        return 0.0


def fit(folder, most=10**9, resume=False):
    """A regression with noise, by two step sizes from three keys, in four blocks."""
    effort = dataclasses.replace(design.QUICK, steps=24, record=2, block=3)
    kept = store.Store(folder / "unfinished", {"seed": "0"}, resume=resume)

    def loss(x, arm, images, key):
        error = images @ x - 1 + 0.1 * jax.random.normal(key, (len(images),))
        value = arm * jnp.mean(error**2)
        return value, {"loss": value}

    return training.fit(
        lambda arm, key: arm * jax.random.normal(key, (3,)),
        loss,
        jnp.asarray([1.0, 2.0]),
        jax.random.split(jax.random.key(0), 3),
        jnp.asarray(np.random.default_rng(0).standard_normal((20, 3)), jnp.float32),
        effort,
        "toy",
        kept,
        Counter(most),
    )


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path):
    x, history = fit(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", most=2)
    again, resumed = fit(tmp_path / "broken", resume=True)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(history["loss"], resumed["loss"])
    assert history["loss"].shape == (2, 3, 12)
    assert np.mean(history["loss"][..., -1]) < np.mean(history["loss"][..., 0])


@pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="trains: KLJAX_FULL=1 runs it")
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("any_rank")
def test_a_resumed_study_prints_the_same_table(tmp_path, capsys, monkeypatch):
    tiny = design.Effort(8, 2, 2, 2, 25, 6, 20, 3, 20)
    monkeypatch.setattr(design, "QUICK", tiny)
    tables = {}
    stops = iter([10**9, 20, 10**9])
    monkeypatch.setattr(kl_terms_study, "Progress", lambda _: Counter(next(stops)))
    for name, flags, code in (
        ("straight", [], 0),
        ("broken", [], 130),
        ("broken", ["--resume"], 0),
    ):
        out = tmp_path / name
        assert kl_terms_study.main(["--quick", "--out", str(out), *flags]) == code
        tables[name] = capsys.readouterr().out
    assert tables["straight"] == tables["broken"]
    assert tables["straight"].count("rule:") == len(predictions.PREDICTIONS)
    texts = [(tmp_path / name / "results.json").read_text() for name in tables]
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert [p["name"] for p in found["predictions"]] == [
        p.name for p in predictions.PREDICTIONS
    ]
    for path in (tmp_path / "straight").glob("*.png"):
        picture = matplotlib.image.imread(path)
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20
    assert not (tmp_path / "broken" / "unfinished").exists()


# ---- refusals -------------------------------------------------------------------------------


def refused(capsys, arguments):
    """The one sentence with which a command line is refused."""
    with pytest.raises(SystemExit) as stopped:
        kl_terms_study.main(arguments)
    assert stopped.value.code == 2
    text = capsys.readouterr()
    assert not text.out
    assert text.err.startswith("kl_terms_study.py: error: ")
    assert text.err.count("\n") == 1
    return text.err


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "4294967296"], "--seed"),
        (["--seed", "one"], "'one'"),
        (["--steps", "10"], "--steps"),
        (["--resume"], "no unfinished run"),
    ],
)
def test_bad_flags_are_one_sentence(tmp_path, capsys, flags, word):
    assert word in refused(capsys, ["--out", str(tmp_path / "new"), *flags])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert "file" in refused(capsys, ["--out", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "kept"


def unfinished(folder, **changes):
    identity = store.identity(design.QUICK, 0) | changes
    return store.Store(folder / "unfinished", identity, resume=False)


def test_an_unfinished_run_is_not_overwritten(tmp_path, capsys):
    unfinished(tmp_path).write("linear", {"x": np.ones(3)})
    assert "--resume" in refused(capsys, ["--quick", "--out", str(tmp_path)])
    assert unfinished_block(tmp_path) == [1, 1, 1]


def unfinished_block(folder):
    with np.load(folder / "unfinished" / "linear.npz") as kept:
        return kept["x"].tolist()


@pytest.mark.parametrize(
    ("flags", "changes", "word"),
    [
        (["--seed", "1"], {}, "another seed: 0, now 1"),
        ([], {"effort": "other"}, "another effort"),
        ([], {"program": "other"}, "another program"),
        ([], {"jax": "0"}, "another jax"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, capsys, flags, changes, word):
    unfinished(tmp_path, **changes).write("linear", {"x": np.ones(3)})
    assert word in refused(capsys, ["--quick", "--resume", "--out", str(tmp_path), *flags])
    assert unfinished_block(tmp_path) == [1, 1, 1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"no archive"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, capsys, content):
    unfinished(tmp_path)
    (tmp_path / "unfinished" / "linear.npz").write_bytes(content)
    assert "damaged" in refused(capsys, ["--quick", "--resume", "--out", str(tmp_path)])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"seed": 3}'])
def test_a_damaged_identity_is_one_sentence(tmp_path, capsys, content):
    unfinished(tmp_path)
    (tmp_path / "unfinished" / "run.json").write_text(content)
    refused(capsys, ["--quick", "--resume", "--out", str(tmp_path)])
