"""Rules about the VAEs of digits; all intervals are over paired seeds."""

from __future__ import annotations

import numpy as np

from kljax.vae.importance import k_limit
from study.design import BASE, BETAS, TO_ZERO, VANISHING
from study.outcome import Outcome
from study.results import Found, Results
from study.statistics import Interval, interval


def scale_identity(x: Results) -> Outcome:
    texts, passed = [], True
    for found in (x.eight, x.sixteen):
        k = found.group.model.latents
        total = found.mean(BASE, "trace").mean + found.mean(BASE, "mahalanobis").mean
        residual = np.mean(found.of(BASE, "scale_residual"))
        early = np.mean(early_residual(found))
        passed &= bool(abs(total / (k / 2) - 1) < 0.03 and residual < early)
        texts.append(f"{total:.3f} of {k / 2:g}, worst latent {early:.2f} -> {residual:.2f}")
    return Outcome("; ".join(texts), passed)


def early_residual(found: Found) -> np.ndarray:
    """|E[s] + E[mu^2] - 1| of the worst latent at a tenth of the run."""
    trace, mahalanobis = found.course(BASE, "trace"), found.course(BASE, "mahalanobis")
    tenth = trace.shape[1] // 10
    return np.max(np.abs(trace[:, tenth] + mahalanobis[:, tenth] - 1), axis=-1)


def scale_matrix(x: Results) -> Outcome:
    k = x.full.group.model.latents
    total = x.full.mean(BASE, "trace").mean + x.full.mean(BASE, "mahalanobis").mean
    off = x.full.mean(BASE, "scale_off_diagonal")
    passed = abs(total / (k / 2) - 1) < 0.03 and off.mean < 0.15
    return Outcome(f"{total:.3f} of {k / 2:g}, off-diagonal {off}", passed)


def kl_is_log_det(x: Results) -> Outcome:
    texts, passed = [], True
    for found in (x.eight, x.sixteen):
        kl, log_det = found.mean(BASE, "kl").mean, found.mean(BASE, "log_det").mean
        passed &= abs(kl / log_det - 1) < 0.02
        texts.append(f"{kl:.3f} / {log_det:.3f}")
    return Outcome("; ".join(texts), bool(passed))


def gauge(x: Results) -> Outcome:
    names = ("nll_fit", "information", "reconstruction")
    texts, passed = [], True
    for arm in ("(4,4,1)", "(.25,.25,1)"):
        found = [x.eight.difference(arm, BASE, name) for name in names]
        passed &= all(abs(d.mean) < 0.5 for d in found)
        texts.append(f"{arm}: " + ", ".join(f"{d.mean:+.2f}" for d in found))
    return Outcome("; ".join(texts), passed)


def rate_falls(x: Results) -> Outcome:
    order = sorted([*BETAS, 1.0])
    arms = [BASE if beta == 1 else f"beta {beta:g}" for beta in order]
    kl, information, used = (
        np.asarray([x.eight.mean(arm, name).mean for arm in arms])
        for name in ("kl", "information", "informative")
    )
    # The information saturates at log N, where equal to rounding is no rise.
    passed = (
        np.all(np.diff(kl) < 0)
        and np.all(np.diff(information) < 0.01)
        and np.all(np.diff(used) <= 0)
    )
    text = "KL " + " ".join(f"{v:.2f}" for v in kl)
    text += ", I " + " ".join(f"{v:.2f}" for v in information)
    return Outcome(text, bool(passed))


def ratio_decides(x: Results) -> Outcome:
    texts, passed = [], True
    for arm, other in (("(4,1,1)", "(1,.25,1)"), ("(.25,1,1)", "(1,4,1)")):
        used = [x.sixteen.mean(name, "informative").mean for name in (arm, other)]
        off = x.sixteen.difference(arm, other, "information")
        passed &= abs(used[0] - used[1]) <= 0.5 and abs(off.mean) < 0.3
        texts.append(f"{used[0]:.1f}/{used[1]:.1f} used, I {off}")
    return Outcome("; ".join(texts), bool(passed))


def no_log_det(x: Results) -> Outcome:
    arm = "(1,1,0)"
    grown = x.eight.mean(arm, "log_det").mean / x.eight.mean(BASE, "log_det").mean
    course = 0.5 * np.sum(x.eight.course(arm, "log_det"), axis=-1)
    later = float(np.min(course[:, -1] - course[:, course.shape[1] // 2]))
    worse = x.eight.difference(arm, BASE, "nll")
    text = f"L x {grown:.2f}, later {later:+.1f}, NLL {worse.mean:+.4g}"
    return Outcome(text, bool(grown > 2 and later > 0 and worse.mean > 10))


def no_mahalanobis(x: Results) -> Outcome:
    arm = "(1,0,1)"
    grown = x.eight.mean(arm, "mahalanobis").mean / x.eight.mean(BASE, "mahalanobis").mean
    worse = x.eight.difference(arm, BASE, "nll_fit")
    text = f"M x {grown:.4g}, fitted NLL {worse}"
    return Outcome(text, bool(grown > 100 and abs(worse.mean) < 10))


def no_trace_used(x: Results) -> Outcome:
    off = x.eight.difference("(0,1,1)", BASE, "nll")
    return Outcome(f"NLL {off}", abs(off.mean) < 0.3)


def no_trace_unused(x: Results) -> Outcome:
    course = np.max(x.sixteen.course("(0,1,1)", "trace"), axis=-1)
    gone = np.any(~np.isfinite(course) | (course > 1e4), axis=1)
    largest = np.max(course, initial=0.0, where=np.isfinite(course))
    return Outcome(f"{gone.sum()} of {len(gone)} seeds, E s to {largest:.1e}", bool(gone.all()))


def mean_channel(x: Results) -> Outcome:
    active = x.sixteen.of("(1,16,1)", "active")
    information = x.sixteen.mean("(1,16,1)", "information")
    text = f"at most {np.max(active):.0f} active, information {information}"
    return Outcome(text, bool(np.max(active) == 0 and information.mean > 0.5))


def quarter(x: Results) -> Outcome:
    found = [y.difference("(1,1,0.25)", "beta 0.25", "nll_fit") for y in (x.eight, x.sixteen)]
    return Outcome("; ".join(str(d) for d in found), all(abs(d.mean) < 0.5 for d in found))


def four(x: Results) -> Outcome:
    return like_beta_four(x, "(1,1,4)")


def four_variance(x: Results) -> Outcome:
    return like_beta_four(x, "(1,1,4) s=c")


def four_unit(x: Results) -> Outcome:
    return like_beta_four(x, "(1,1,4) unit")


def like_beta_four(x: Results, arm: str) -> Outcome:
    off = x.sixteen.difference(arm, "beta 4", "nll_fit")
    recon = x.sixteen.difference(arm, "beta 4", "reconstruction")
    return Outcome(f"NLL {off}, reconstruction {recon}", abs(off.mean) < 0.5)


def variance_law(x: Results) -> Outcome:
    found = x.eight.mean(BASE, "variance_law")
    return Outcome(str(found), found.mean > 0.7)


def alignment(x: Results) -> Outcome:
    diagonal, full = x.eight.of(BASE, "alignment"), x.full.of(BASE, "alignment")
    off = interval(full - diagonal)
    text = f"{np.mean(full):.3f} - {np.mean(diagonal):.3f} = {off}"
    return Outcome(text, off.low > 0)


def components(x: Results) -> Outcome:
    elbo, siwae = (interval(values) for values in x.mixture["components"])
    return Outcome(f"ELBO {elbo}, SIWAE {siwae}", elbo.mean < 1.1 and siwae.mean > 3)


def noise_ratio(x: Results, arm: str, over: str, under: str) -> Interval:
    return interval(x.eight.of(arm, f"noise {over}") / x.eight.of(arm, f"noise {under}"))


def landing(x: Results) -> Outcome:
    ratio = noise_ratio(x, BASE, "sticking_the_landing", "closed_form")
    return Outcome(str(ratio), ratio.mean < 0.5)


def effective_samples(x: Results) -> Outcome:
    effective = [x.eight.mean(arm, "nll_effective").mean for arm in TO_ZERO]
    trusted = [x.eight.mean(arm, "nll_trusted").mean for arm in (BASE, "(1,1,0)")]
    text = "effective " + " ".join(f"{v:.1f}" for v in effective)
    text += f", trusted {trusted[0]:.0%} -> {trusted[1]:.0%}"
    falls = bool(np.all(np.diff(effective) < 0))
    return Outcome(text, falls and trusted[0] > 0.9 and trusted[1] < 0.1)


def defensive(x: Results) -> Outcome:
    arm = "(1,1,0)"
    trusted = x.eight.mean(arm, "nll_defensive_trusted").mean
    mixed, plain = x.eight.mean(arm, "nll_defensive"), x.eight.mean(arm, "nll")
    text = f"trusted {trusted:.0%}; NLL {mixed}, plain {plain}"
    return Outcome(text, trusted < 0.1)


def pareto_tail(x: Results) -> Outcome:
    c = (1.0, *VANISHING)
    k = [x.eight.mean(arm, "nll_pareto_k").mean for arm in TO_ZERO[:-1]]
    text = "k-hat " + " ".join(f"{v:.2f}" for v in k)
    heavy = all(found > 1 - weight for found, weight in zip(k[1:], c[1:], strict=True))
    return Outcome(text, heavy and k[0] < k_limit(x.importance))


def implied_variance(x: Results) -> Outcome:
    arms = TO_ZERO[1:-1]
    gained = [
        interval(x.eight.of(arm, "nll_implied_effective") - x.eight.of(arm, "nll_effective"))
        for arm in arms
    ]
    effective = " ".join(f"{x.eight.mean(a, 'nll_implied_effective').mean:.1f}" for a in arms)
    trusted = [x.eight.mean(arm, "nll_implied_trusted").mean for arm in arms]
    text = f"effective {effective}, trusted " + " ".join(f"{v:.0%}" for v in trusted)
    return Outcome(text, all(d.low > 0 for d in gained) and trusted[1] > 0.5)


def landing_survives(x: Results) -> Outcome:
    ratios = [noise_ratio(x, arm, "sticking_the_landing", "closed_form") for arm in TO_ZERO]
    text = "STL / closed " + " ".join(f"{r.mean:.3f}" for r in ratios)
    less = all(r.high < 1 for r in ratios[:-1])
    return Outcome(text, less and abs(ratios[-1].mean - 1) < 0.1)
