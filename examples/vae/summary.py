"""What the VAE example has found in the end: summary.json, the pictures, and words."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kljax import vae
from vae import evaluate, pictures, report
from vae.data import Images
from vae.flags import Flags
from vae.objective import BOUNDS_OF_MANY
from vae.report import TERMS, UNITS

INDENT = " " * 26
# A table of more latents than this is left to summary.json.
MOST_LISTED = 32

Array = np.ndarray[Any, Any]


def mean_and_error(values: Array) -> dict[str, float]:
    """Mean over the test images, and the standard error of that mean."""
    values = values.astype(np.float64)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "standard_error": float(error)}


def summarize(
    options: Flags, assessed: Mapping[str, Array], diagnosed: vae.Report
) -> dict[str, Any]:
    """The numbers of summary.json, from what `evaluate.assess` says of every image."""
    # Relative to what is added up, since the terms cancel where q is near the prior.
    size = 0.5 * sum(np.abs(assessed[name]) for name in TERMS)
    difference = np.abs(assessed["kl_from_terms"] - assessed["kl"]) / size
    names = ("minus_elbo", "iw_nll", "reconstruction", "kl", "kl_from_terms", *TERMS)
    return {name: mean_and_error(assessed[name]) for name in names} | {
        "units": UNITS,
        "test_images": len(difference),
        "importance_samples": evaluate.IMPORTANCE_SAMPLES,
        "estimates_not_trusted": int(np.sum(~assessed["trusted"])),
        **largest_tail(assessed["pareto_k"]),
        "least_effective_samples": float(np.min(assessed["effective_samples"])),
        "largest_relative_difference_of_kl_and_its_terms": float(np.max(difference)),
        "kl_per_latent": np.mean(assessed["kl_per_latent"], axis=0).tolist(),
        "kl_per_latent_of": "q" if options.posterior == "diag" else "marginals of q",
        "active_units": int(np.sum(evaluate.active(assessed["loc"]))),
        "weights_of_the_kl": [float(x) for x in vars(diagnosed.weights).values()],
        "verdicts": list(verdicts(options, diagnosed)),
        "scale_residual": [
            x if math.isfinite(x) else None
            for x in np.asarray(diagnosed.numbers.scale_residual).tolist()
        ],
    }


def largest_tail(pareto_k: Array) -> dict[str, Any]:
    """The largest k-hat; JSON has no infinity, so words stand for it."""
    largest = float(np.max(pareto_k))
    if math.isfinite(largest):
        return {"largest_pareto_k": largest}
    why = "a weight is nan" if math.isnan(largest) else "the tail is too long for its floats"
    if largest < 0:
        why = "the largest weights of every image are equal"
    return {"largest_pareto_k": None, "why_no_largest_pareto_k": why}


def diagnose(
    options: Flags, posteriors: evaluate.Posterior, multiplier: vae.ConstraintState
) -> vae.Report:
    """What the posteriors of training images say about training."""
    return vae.report(posteriors, weights=options.objective.final_weights(multiplier))


def verdicts(options: Flags, diagnosed: vae.Report) -> Sequence[str]:
    notes = []
    if options.estimator in BOUNDS_OF_MANY:
        notes.append(
            f"{options.estimator} minimizes no -ELBO, so the scale identity need not hold."
        )
    if options.delta_vae is not None:
        notes.append("A delta-VAE bounds the variances, so the scale identity need not hold.")
    if options.constraint is not None:
        beta = float(diagnosed.weights.trace)
        notes.append(f"The constraint ends at a multiplier that amounts to beta {beta:.3g}.")
    return (*notes, *diagnosed.verdicts)


def print_summary(
    options: Flags,
    images: Images,
    summary: Mapping[str, Any],
    importance: vae.ImportanceNLL,
    diagnosed: vae.Report,
) -> None:
    def mean(name: str) -> float:
        return summary[name]["mean"]

    def with_error(name: str) -> str:
        return f"{mean(name):8.3f} ± {summary[name]['standard_error']:.3f}"

    difference = summary["largest_relative_difference_of_kl_and_its_terms"]
    between = f"\n{INDENT}"
    print(
        f"\n{summary['test_images']} test images, mean ± standard error in\n{UNITS}\n"
        f"  -ELBO                   {with_error('minus_elbo')}\n"
        f"    reconstruction        {with_error('reconstruction')}\n"
        f"    KL                    {with_error('kl')}\n"
        f"  importance-weighted NLL {with_error('iw_nll')}"
        f"   ({summary['importance_samples']} samples per image)\n"
        f"  kl_divergence           {mean('kl'):8.4f}\n"
        f"  KL from its terms       {mean('kl_from_terms'):8.4f} = (trace "
        f"{mean('trace'):.4f} + Mahalanobis {mean('mahalanobis'):.4f}\n{INDENT}"
        f"- dimension {mean('dimension'):.0f} + log-det {mean('log_det'):.4f}) / 2\n"
        f"  their difference        {difference:8.1e} of the terms' size, at most\n"
        + latents_text(options, summary)
        + f"  likelihood              {report.likelihood(images)}\n"
        f"  trust in the NLL        {between.join(textwrap.wrap(importance.verdict(), 72))}\n"
        + diagnostics_text(options, diagnosed)
        + f"  files                   {options.out}"
    )


def diagnostics_text(options: Flags, diagnosed: vae.Report) -> str:
    """The table of the latents, if it is short, and the verdicts."""
    table = str(diagnosed).splitlines()[: -len(diagnosed.verdicts)]
    lines = table if len(table) <= 1 + MOST_LISTED else []
    lines = [*lines, *(f"- {verdict}" for verdict in verdicts(options, diagnosed))]
    wide = [wrapped for line in lines for wrapped in fold(line)]
    return "\nposteriors of the training images\n" + "\n".join(wide) + "\n"


def fold(line: str) -> list[str]:
    """A verdict in lines of a terminal; a row of the table as it is."""
    if not line.startswith("- "):
        return [line]
    return textwrap.wrap(line, 98, subsequent_indent="  ")


def latents_text(options: Flags, summary: Mapping[str, Any]) -> str:
    """KL per latent, ten to a line, and how many latents are in use."""
    kl = summary["kl_per_latent"]
    lines = [
        " ".join(f"{value:6.3f}" for value in kl[i : i + 10]) for i in range(0, len(kl), 10)
    ]
    rest = summary["kl"]["mean"] - sum(kl)
    note = f"they add up to {sum(kl):.3f}"
    if options.posterior == "full":
        note = f"of the marginals of q; the correlations in q make up {rest:.3f} more"
    between = f"\n{INDENT}"
    return (
        f"  KL per latent           {between.join(lines)}{between}({note})\n"
        f"  active units            {summary['active_units']} of {len(kl)} (variance "
        f"of the posterior mean over the images > {evaluate.ACTIVE_VARIANCE})\n"
    )


def finish(
    options: Flags,
    images: Images,
    progress: report.Progress,
    assessed: Mapping[str, Array],
    samples: Array,
    posteriors: evaluate.Posterior,
    multiplier: vae.ConstraintState,
) -> None:
    """Writes summary.json and the pictures, and prints the summary."""
    diagnosed = diagnose(options, posteriors, multiplier)
    summary = summarize(options, assessed, diagnosed)
    report.write_json(options.out / "summary.json", summary)
    pictures.draw_all(options.out, images, progress.rows, assessed, samples)
    print_summary(options, images, summary, evaluate.importance(assessed), diagnosed)
