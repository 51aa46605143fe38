"""What the numbers of `diagnostics` mean, in sentences: one call, to be printed."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jax.core import Tracer

from kljax.families.gaussian import MultivariateNormalDiag
from kljax.vae import _inputs
from kljax.vae._posteriors import Posteriors
from kljax.vae.diagnostics import ACTIVE_INFORMATION, ACTIVE_VARIANCE, Diagnostics, diagnose
from kljax.vae.terms import TermWeights, checked

# More latents than this are counted, not listed.
_NAMED = 12
# Standard deviations of the prior by which the mean of a converged latent may be off.
_SHIFTED = 0.1


@dataclass(frozen=True)
class Report:
    """What `report` found; printed, a table of the latents and the verdicts.

    Attributes:
        numbers: see `Diagnostics`.
        weights: what was trained with.
        effective_beta: what a beta-VAE would call its beta: the log-determinant's weight,
            since a rescaling of the latents turns (a, b, c) into (c, c b / a, c).
        collapsed: which latents are collapsed, of shape (latents,).
        converged: whether every latent meets the scale identity and is centred on the prior.
        verdicts: sentences.
    """

    numbers: Diagnostics
    weights: TermWeights
    effective_beta: float
    collapsed: np.ndarray
    converged: bool
    verdicts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*_table(self.numbers), *(f"- {line}" for line in self.verdicts)])


def report(
    q: Posteriors,
    *,
    prior: MultivariateNormalDiag | None = None,
    weights: TermWeights = TermWeights(),  # noqa: B008
    epsilon: float = 0.01,
    delta: float = 0.01,
    tolerance: float = 0.05,
    log_variance_bounds: tuple[float, float] | None = None,
) -> Report:
    """What the posteriors of a data set say about training, with verdicts in words.

    Args:
        q: as for `diagnose`.
        prior: as for `diagnose`.
        weights: of the terms of the KL in training.
        epsilon: nats below which the KL of a data point counts as collapsed.
        delta: a latent is collapsed if at most this share of the data is not: the (epsilon,
            delta)-collapse of Lucas et al. 2019.
        tolerance: by how much the scale identity may be missed, relative to c; a miss within
            three standard errors never counts.
        log_variance_bounds: as for `diagnose`.

    Returns:
        `Report`; print it.

    Raises:
        TypeError: as for `diagnose`, or if it is called under jit, which has no numbers to
            speak of.
        ValueError: as for `diagnose`.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((q, prior, weights))):
        raise TypeError(
            "report has words for numbers; under jit use diagnose, and report after."
        )
    delta = float(_inputs.at_least_zero("delta", delta))
    tolerance = float(_inputs.positive("tolerance", tolerance))
    options = {"prior": prior, "weights": weights, "epsilon": epsilon}
    measured = diagnose(q, **options, log_variance_bounds=log_variance_bounds)
    numbers: Diagnostics = jax.tree.map(lambda x: np.asarray(x, float), measured)
    collapsed = numbers.collapsed_fraction >= 1 - delta
    c = float(checked(weights)[2])
    allowed = np.maximum(tolerance * c, 3 * np.asarray(numbers.scale_error))
    # Not "> allowed", so that nan is missed too.
    missed = ~(np.abs(numbers.scale_residual) <= allowed)
    shifted = np.abs(numbers.mean) > np.maximum(_SHIFTED, 3 * np.asarray(numbers.mean_error))
    lines = [
        *_not_finite(numbers),
        *_weights(weights),
        *_convergence(numbers, missed, shifted, c),
        *_information(numbers, np.asarray(collapsed)),
        *_bounds(numbers),
    ]
    converged = not (np.any(missed) or np.any(shifted))
    return Report(numbers, weights, c, np.asarray(collapsed), converged, tuple(lines))


def _table(numbers: Diagnostics) -> list[str]:
    head = (
        "latent   KL nats     trace  Mahalanobis   log-det   mean channel  variance channel"
        "  scale residual"
    )
    rows = zip(
        numbers.kl,
        numbers.trace,
        numbers.mahalanobis,
        numbers.log_det,
        numbers.mean_channel,
        numbers.variance_channel,
        numbers.scale_residual,
        strict=True,
    )
    widths = (10, 10, 13, 10, 15, 18, 16)
    return [head] + [
        f"{i:6d}" + "".join(_number(x).rjust(w) for x, w in zip(row, widths, strict=True))
        for i, row in enumerate(rows)
    ]


def _number(x: float) -> str:
    return f"{x:.3f}" if abs(x) < 1e5 else f"{x:.3g}"


def _named(which: np.ndarray) -> str:
    """Latents by number: "latent 3", "latents 0, 2 and 5", or how many."""
    chosen = [str(i) for i in np.flatnonzero(which)]
    if len(chosen) > _NAMED:
        return f"{len(chosen)} of {len(which)} latents"
    if len(chosen) == 1:
        return f"latent {chosen[0]}"
    return f"latents {', '.join(chosen[:-1])} and {chosen[-1]}"


def _not_finite(numbers: Diagnostics) -> list[str]:
    if not numbers.not_finite:
        return []
    share = float(numbers.not_finite)
    return [f"The KL of {share:.2%} of the data is not finite; every mean above is void."]


def _weights(weights: TermWeights) -> list[str]:
    a, b, c = (float(x) for x in checked(weights))
    lines = []
    if (a, b, c) != (1, 1, 1):
        lines.append(f"Effective beta is {c:g}: the weight of the log-determinant.")
    if c == 0:
        lines.append("Without the log-determinant nothing keeps a posterior's variance from 0.")
    if b == 0:
        lines.append("Without the Mahalanobis term nothing keeps the means from infinity.")
    if a == 0 and c > 0:
        lines.append("Without the trace nothing bounds the variance of an unused latent.")
    if a > 0 and b > 2 * a:
        lines.append(
            f"Mahalanobis weighs {b / a:g} times the trace, more than 2: whether a latent "
            "collapses can depend on where training began."
        )
    return lines


def _convergence(
    numbers: Diagnostics, missed: np.ndarray, shifted: np.ndarray, c: float
) -> list[str]:
    if c == 0:
        return []
    residual = np.asarray(numbers.scale_residual)
    if np.any(missed):
        worst = int(np.argmax(np.where(np.isnan(residual), np.inf, np.abs(residual))))
        lines = [
            "Not converged (or variances clamped, free bits in force, layers tied or decayed): "
            f"the scale identity a E[s] + b E[mu^2] = {c:g} is missed by {_named(missed)}; "
            f"latent {worst} has {residual[worst] + c:.4g}."
        ]
    else:
        largest = np.max(np.abs(residual))
        lines = [
            f"Converged by the scale identity: every latent is within {largest:.2g} of {c:g}."
        ]
    if numbers.scale_matrix is not None:
        matrix = np.array(numbers.scale_matrix)
        np.fill_diagonal(matrix, 0)
        off = np.max(np.abs(matrix))
        lines.append(f"Of its matrix form, the largest entry off the diagonal is {off:.2g}.")
    if np.any(shifted):
        lines.append(f"Means are not centred on the prior's: {_named(shifted)}.")
    kl, gap = float(np.sum(numbers.kl)), float(numbers.log_det_gap)
    lines.append(
        f"KL is {kl:.4g} nats, of which its log-determinant term is {kl - gap:.4g}; the rest, "
        f"{gap:.2g}, is 0 at convergence with weights one."
    )
    return lines


def _information(numbers: Diagnostics, collapsed: np.ndarray) -> list[str]:
    total = len(collapsed)
    active, informative = np.asarray(numbers.active), np.asarray(numbers.informative)
    lines = [
        f"{np.sum(active)} of {total} latents are active (variance of the mean > "
        f"{ACTIVE_VARIANCE}), {np.sum(informative)} informative in any unit."
    ]
    if np.all(collapsed):
        lines.append("Every latent is collapsed: the posterior is the prior.")
    elif np.any(collapsed):
        share = np.mean(collapsed)
        lines.append(f"Collapsed: {_named(collapsed)} ({share:.0%}).")
    quiet = informative & (numbers.mean_channel <= ACTIVE_INFORMATION)
    if np.any(quiet):
        lines.append(f"Speaking through the variance alone: {_named(quiet)}.")
    unit = informative & ~active & ~quiet
    if np.any(unit):
        lines.append(f"Small in their unit, not in information: {_named(unit)}.")
    idle = ~collapsed & ~informative
    if np.any(idle):
        lines.append(f"Away from the prior, yet the same for all data: {_named(idle)}.")
    return lines


def _bounds(numbers: Diagnostics) -> list[str]:
    if numbers.clamped is None:
        return []
    at_bound = np.asarray(numbers.clamped) > 0
    if not np.any(at_bound):
        return ["No log-variance is at a bound."]
    most = float(np.max(numbers.clamped))
    return [
        f"Log-variances are at a bound for up to {most:.1%} of the data in {_named(at_bound)}, "
        "which voids the scale identity there."
    ]
