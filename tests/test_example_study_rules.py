"""The rules of the study pass what agrees with a prediction and fail what contradicts it."""

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
design = importlib.import_module("study.design")
exact = importlib.import_module("study.exact")
predictions = importlib.import_module("study.predictions")
results = importlib.import_module("study.results")
statistics = importlib.import_module("study.statistics")
SEEDS, RECORDS = 5, 20


def linear_results():
    names = [case.name for case in exact.CASES]
    active = dict(zip(names, [5, 6, 4, 2, 6, 3, 2, 6, 6, 5, 4], strict=True))
    one = np.ones(len(names))
    stable = np.zeros((len(names), exact.LATENTS + 1), bool)
    stable[:, [2, 3]] = True
    return exact.Linear(
        active=np.asarray(list(active.values())),
        error=1e-12 * one,
        scale_residual=1e-12 * one,
        elbo=-3 * one,
        log_likelihood=-3 * one,
        noise=0.5 * one,
        theory=0.5 * one,
        objective=one,
        stable=stable,
        gradients=np.asarray([1.0, 1e-15]),
    )


def group_results(group):
    k, arms = group.model.latents, group.arms
    shape = (len(arms), SEEDS)
    jitter = 1e-3 * np.linspace(-1, 1, SEEDS)
    index = {arm.name: i for i, arm in enumerate(arms)}

    def filled(value):
        return np.full(shape, float(value)) + jitter

    found = {
        name: filled(value)
        for name, value in {
            "trace": 0.3, "mahalanobis": k / 2 - 0.3, "log_det": 10, "kl": 10,
            "scale_residual": 0.05, "scale_off_diagonal": 0.05, "active": 4, "informative": 4,
            "information": 5, "reconstruction": -20, "nll": -10, "nll_fit": -10,
            "alignment": 0.15 if group.model.posterior == "diag" else 0.25,
            "variance_law": 0.8, "nll_defensive": -10, "nll_defensive_trusted": 0.01,
            "nll_implied_trusted": 0.9, "nll_implied_effective": 90, "noise closed_form": 1,
            "noise sticking_the_landing": 0.3,
        }.items()
    }  # fmt: skip
    for arm, i in index.items():
        a, b, c = arms[i].weights
        if a == b == c:
            for name in ("kl", "information"):
                found[name][i] -= np.log(c)
            found["log_det"][i] -= np.log(c)
        if arm in design.TO_ZERO:
            found.setdefault("nll_effective", filled(0))[i] += 5 + 80 * c
            found.setdefault("nll_pareto_k", filled(0))[i] += 1.2 - 0.9 * c
            found.setdefault("nll_trusted", filled(0))[i] += 0.01 + 0.95 * c
    course = {name: np.full((*shape, RECORDS, k), 0.3) for name in ("trace", "mahalanobis")}
    course["log_det"] = np.full((*shape, RECORDS, k), 2.0) * np.linspace(1, 2, RECORDS)[:, None]
    for arm, name, value in (
        ("(1,1,0)", "log_det", 60),
        ("(1,1,0)", "nll", 30),
        ("(1,0,1)", "mahalanobis", 1e3),
        ("(1,16,1)", "active", 0),
    ):
        if arm in index:
            found[name][index[arm]] = value + jitter
    if "(1,1,0)" in index:
        found["noise sticking_the_landing"][index["(1,1,0)"]] = 1.01
        found["active"][index["(1,16,1)"]] = 0
    if k == 16:
        found["active"][index["(1,16,1)"]] = 0
        course["trace"][index["(0,1,1)"], :, -1] = 1e9
    return results.Found(group, found, course)


def as_predicted():
    """Results that agree with every prediction."""
    components = np.stack([np.full(SEEDS, 1.0), np.linspace(3.4, 3.6, SEEDS)])
    return results.Results(
        linear_results(),
        *(group_results(group) for group in design.GAUSSIAN_GROUPS),
        {"components": components},
        25,
        256,
    )


def set_linear(name, value):
    def change(x):
        array = np.array(getattr(x.linear, name))
        array[...] = value
        return dataclasses.replace(x, linear=x.linear._replace(**{name: array}))

    return change


def add(group, arm, name, value):
    """Adds to a response of an arm."""

    def change(x):
        found = getattr(x, group)
        found.responses[name][found.index(arm)] += value
        return x

    return change


def set_course(group, arm, name, value):
    def change(x):
        found = getattr(x, group)
        found.trajectories[name][found.index(arm)] = value
        return x

    return change


def set_components(objective, value):
    def change(x):
        x.mixture["components"][objective] = value
        return x

    return change


# What contradicts a prediction, by its name.
CONTRADICTIONS = [
    ("P1", set_linear("error", 1e-7)),
    ("P1", set_linear("elbo", -3.1)),
    ("P2a", set_linear("scale_residual", 1e-7)),
    ("P2b", add("eight", "base", "trace", 0.2)),
    ("P2b", add("sixteen", "base", "mahalanobis", -0.3)),
    ("P2b", add("sixteen", "base", "scale_residual", 0.5)),
    ("P2c", add("full", "base", "mahalanobis", 0.2)),
    ("P2c", add("full", "base", "scale_off_diagonal", 0.2)),
    ("P3", add("sixteen", "base", "kl", 0.3)),
    ("P4", add("eight", "(4,4,1)", "nll_fit", 0.6)),
    ("P4", add("eight", "(.25,.25,1)", "information", -0.6)),
    ("P5a", set_linear("active", 3)),
    ("P5b", add("eight", "beta 4", "kl", 3)),
    ("P5b", add("eight", "beta 4", "information", 3)),
    ("P5b", add("eight", "beta 4", "informative", 1)),
    ("P6", add("sixteen", "(4,1,1)", "informative", 1)),
    ("P6", add("sixteen", "(1,4,1)", "information", 0.4)),
    ("P7", set_linear("active", 2)),
    ("P7", set_linear("error", 1e-7)),
    ("P7", set_linear("stable", False)),
    ("P8", add("eight", "(1,1,0)", "log_det", -45)),
    ("P8", add("eight", "(1,1,0)", "nll", -35)),
    ("P8", set_course("eight", "(1,1,0)", "log_det", 30.0)),
    ("P9", add("eight", "(1,0,1)", "mahalanobis", -900)),
    ("P9", add("eight", "(1,0,1)", "nll_fit", 11)),
    ("P10a", add("eight", "(0,1,1)", "nll", 0.4)),
    ("P10b", set_course("sixteen", "(0,1,1)", "trace", 1.0)),
    ("P11", add("sixteen", "(1,16,1)", "active", 1)),
    ("P11", add("sixteen", "(1,16,1)", "information", -4.8)),
    ("P12a", add("eight", "(1,1,0.25)", "nll_fit", 0.6)),
    ("P12a", add("sixteen", "(1,1,0.25)", "nll_fit", -0.6)),
    ("P12b", add("sixteen", "(1,1,4)", "nll_fit", 0.6)),
    ("P12c", add("sixteen", "(1,1,4) s=c", "nll_fit", 0.6)),
    ("P12d", add("sixteen", "(1,1,4) unit", "nll_fit", -0.6)),
    ("P13", add("eight", "base", "variance_law", -0.2)),
    ("P14", add("full", "base", "alignment", -0.1)),
    ("P14", add("full", "base", "alignment", np.asarray([-0.3, 0.3, -0.2, 0.2, 0.0]))),
    ("P15", set_components(0, 1.2)),
    ("P15", set_components(1, 2.9)),
    ("P16a", set_linear("gradients", 1.0)),
    ("P16a", set_linear("gradients", 1e-15)),
    ("P16b", add("eight", "base", "noise sticking_the_landing", 0.3)),
    ("P17", set_linear("noise", 0.50001)),
    ("P18a", add("eight", "(1,1,0.25)", "nll_effective", 80)),
    ("P18a", add("eight", "base", "nll_trusted", -0.1)),
    ("P18a", add("eight", "(1,1,0)", "nll_trusted", 0.2)),
    ("P18b", add("eight", "base", "nll_pareto_k", 0.4)),
    ("P18b", add("eight", "(1,1,0.0625)", "nll_pareto_k", -0.4)),
    ("P19a", add("eight", "(1,1,0)", "nll_defensive_trusted", 0.2)),
    ("P19b", add("eight", "(1,1,0.015625)", "nll_implied_effective", -88)),
    ("P19b", add("eight", "(1,1,0.0625)", "nll_implied_trusted", -0.5)),
    ("P20", add("eight", "(1,1,0.00390625)", "noise sticking_the_landing", 0.8)),
    ("P20", add("eight", "(1,1,0)", "noise sticking_the_landing", -0.3)),
]


def test_results_as_predicted_pass_every_rule():
    failed = [(p.name, o.found) for p, o in predictions.judge(as_predicted()) if not o.passed]
    assert not failed


@pytest.mark.parametrize(
    "place", range(len(CONTRADICTIONS)), ids=lambda i: f"{i}-{CONTRADICTIONS[i][0]}"
)
def test_a_contradiction_fails(place):
    name, change = CONTRADICTIONS[place]
    failed = {p.name for p, o in predictions.judge(change(as_predicted())) if not o.passed}
    assert name in failed


def test_every_rule_is_contradicted():
    assert {name for name, _ in CONTRADICTIONS} == {p.name for p in predictions.PREDICTIONS}


def test_divergence_fails_all_but_the_prediction_of_it():
    x = as_predicted()
    for found in (x.eight, x.sixteen, x.full):
        for array in (*found.responses.values(), *found.trajectories.values()):
            array[...] = np.nan
    x.mixture["components"][...] = np.nan
    of_networks = predictions.network_rules.__name__
    passed = {
        p.name
        for p, o in predictions.judge(x)
        if o.passed and p.check.__module__ == of_networks
    }
    assert passed == {"P10b"}


def test_an_interval_is_students():
    found = statistics.interval(np.asarray([1.0, 2.0, 3.0, 4.0]))
    assert found.mean == 2.5
    # 3.182446 standard errors of 0.645497.
    assert abs(found.half - 2.054260) < 1e-5
    assert np.isnan(statistics.interval(np.asarray([1.0, np.inf])).mean)


def test_the_page_has_every_claim_and_rule():
    page = " ".join((ROOT / "docs/studies/kl_terms.md").read_text(encoding="utf-8").split())
    for x in predictions.PREDICTIONS:
        assert f"{x.name} {x.claim} rule: {x.rule} found: " in page
