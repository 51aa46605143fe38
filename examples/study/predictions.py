"""The predictions of the study, each with the rule that decides it, fixed before any run.

A rule reads the results and answers with what it found and whether that passes. A run that
diverged makes its numbers nan, which no comparison passes, except where divergence is what was
predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from study import linear_rules, network_rules
from study.outcome import Outcome
from study.results import Results


class Prediction(NamedTuple):
    """A claim of theory, its rule in words, and the rule."""

    name: str
    claim: str
    rule: str
    check: Callable[[Results], Outcome]


L, N = linear_rules, network_rules

PREDICTIONS: tuple[Prediction, ...] = (
    Prediction(
        "P1", "linear optimum = closed form, ELBO = log p", "both within 1e-8", L.optimum
    ),
    Prediction("P2a", "scale identity, linear", "largest residual < 1e-8", L.scale_identity),
    Prediction(
        "P2b",
        "scale identity, digits: T + M = k / 2",
        "T + M within 3 %, residual below that at a tenth of the run; 8 and 16 latents",
        N.scale_identity,
    ),
    Prediction(
        "P2c",
        "scale identity, digits, full covariance: E[S] + E[mu mu^T] = I",
        "T + M within 3 %, off-diagonal below 0.15",
        N.scale_matrix,
    ),
    Prediction("P3", "KL = its log-determinant term", "within 2 %; 8 and 16", N.kl_is_log_det),
    Prediction(
        "P4",
        "(t,t,1) is (1,1,1) in another unit",
        "fitted NLL, information, reconstruction differ by < 0.5 nat",
        N.gauge,
    ),
    Prediction(
        "P5a", "linear: active iff eigenvalue > beta v", "counts equal", L.active_counts
    ),
    Prediction(
        "P5b",
        "digits: a larger beta, a lower rate",
        "KL and information fall at every step of beta, informative latents never rise",
        N.rate_falls,
    ),
    Prediction(
        "P6",
        "b / a decides who collapses: (4,1,1) ~ (1,1/4,1), (1/4,1,1) ~ (1,4,1)",
        "informative latents within 0.5, information within 0.3 nat",
        N.ratio_decides,
    ),
    Prediction("P7", "b / a > 2 is bistable", ">= 2 minima reached, each to 1e-8", L.bistable),
    Prediction(
        "P8",
        "c = 0: variances vanish, prior samples fail",
        "L > 2 x base and rising in the second half, NLL > base + 10",
        N.no_log_det,
    ),
    Prediction(
        "P9",
        "b = 0: means run away, the fitted prior survives",
        "M > 100 x base, fitted NLL within 10 of base",
        N.no_mahalanobis,
    ),
    Prediction(
        "P10a",
        "a = 0, every latent used: harmless",
        "8 latents: NLL within 0.3",
        N.no_trace_used,
    ),
    Prediction(
        "P10b",
        "a = 0, latents unused: diverges",
        "16 latents: E s > 1e4 or not finite, every seed",
        N.no_trace_unused,
    ),
    Prediction(
        "P11",
        "heavy M closes the mean channel, not the variance channel",
        "16 latents, (1,16,1): no active unit, information > 0.5",
        N.mean_channel,
    ),
    Prediction(
        "P12a",
        "(1,1,1/4) ~ beta 1/4, started at s = 1",
        "fitted NLL within 0.5; 8 and 16",
        N.quarter,
    ),
    Prediction(
        "P12b", "(1,1,4) ~ beta 4, started at s = 1", "16: fitted NLL within 0.5", N.four
    ),
    Prediction(
        "P12c",
        "the same, started at s = c / a",
        "16: fitted NLL within 0.5",
        N.four_variance,
    ),
    Prediction(
        "P12d",
        "the same, started in the unit sqrt(c / a)",
        "16: fitted NLL within 0.5",
        N.four_unit,
    ),
    Prediction("P13", "s_i = c / (a + h_i)", "R^2 of log s > 0.7", N.variance_law),
    Prediction(
        "P14",
        "a diagonal posterior aligns the Jacobian with the axes",
        "|cos| full - diagonal: interval above 0",
        N.alignment,
    ),
    Prediction(
        "P15",
        "mixture: the ELBO collapses components, SIWAE does not",
        "effective components < 1.1, and > 3 of 4",
        N.components,
    ),
    Prediction(
        "P16a",
        "sticking the landing: no noise where q is exact",
        "linear: largest gradient < 1e-10, closed form > 1e-2",
        L.landing,
    ),
    Prediction(
        "P16b",
        "sticking the landing: less noise near an optimum",
        "8 latents: variance ratio to closed form < 0.5",
        N.landing,
    ),
    Prediction("P17", "learned variance at beta", "relative error < 1e-5", L.learned_variance),
    Prediction(
        "P18a",
        "c -> 0: posteriors too narrow for importance sampling, which says so",
        "effective samples fall with c, trusted images > 90 % at 1 and < 10 % at 0",
        N.effective_samples,
    ),
    Prediction(
        "P18b",
        "c -> 0: weights with a Pareto tail of 1 - c or longer",
        "median k-hat above 1 - c for c < 1 and below its limit for c = 1",
        N.pareto_tail,
    ),
    Prediction(
        "P19a",
        "c = 0: half the draws from the prior do not save it",
        "with the defensive proposal trusted images still < 10 %",
        N.defensive,
    ),
    Prediction(
        "P19b",
        "c > 0: draws of variance s / c do",
        "more effective samples for every c from 1/4 to 1/256, interval above 0; "
        "trusted images > 50 % at 1/16",
        N.implied_variance,
    ),
    Prediction(
        "P20",
        "c -> 0: s falls with c, so the score's noise does not: sticking the landing "
        "keeps its gain until c = 0",
        "variance ratio to closed form: interval below 1 for every c > 0, within 0.1 of 1 at 0",
        N.landing_survives,
    ),
)


def judge(results: Results) -> Sequence[tuple[Prediction, Outcome]]:
    """Every prediction with its outcome; a comparison with nan fails."""
    with np.errstate(all="ignore"):
        return [(x, x.check(results)) for x in PREDICTIONS]
