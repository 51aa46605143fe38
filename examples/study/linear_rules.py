"""Rules about the linear VAE, whose every stationary point is known."""

from __future__ import annotations

import numpy as np

from study.exact import CASES, EIGENVALUES, ESTIMATORS, FIXED, LATENTS, LEARNED, VARIANCE
from study.outcome import Outcome
from study.results import Results

EXACT = 1e-8


def optimum(x: Results) -> Outcome:
    found = float(np.max(x.linear.error))
    one = x.case("(1,1,1)")
    gap = abs(float(x.linear.elbo[one] - x.linear.log_likelihood[one]))
    text = f"{len(CASES)} trainings: {found:.1e}; ELBO - log p {gap:.1e}"
    return Outcome(text, found < EXACT and gap < EXACT)


def scale_identity(x: Results) -> Outcome:
    found = float(np.max(x.linear.scale_residual))
    return Outcome(f"{found:.1e}", found < EXACT)


def active_counts(x: Results) -> Outcome:
    pairs = []
    for name in ("beta 0.5", "(1,1,1)", "beta 3", "beta 8"):
        place = x.case(name)
        above = sum(value > CASES[place].weights[0] * VARIANCE for value in EIGENVALUES)
        pairs.append((int(x.linear.active[place]), min(above, LATENTS)))
    text = ", ".join(f"{found} of {theory}" for found, theory in pairs)
    return Outcome(text, all(found == theory for found, theory in pairs))


def bistable(x: Results) -> Outcome:
    places = [i for i, case in enumerate(FIXED) if case.weights == (1, 8, 1)]
    reached = {int(x.linear.active[i]) for i in places}
    error = max(float(x.linear.error[i]) for i in places)
    stable = set(np.flatnonzero(x.linear.stable[places[0]]).tolist())
    objectives = ", ".join(f"{x.linear.objective[i]:.4f}" for i in places)
    text = f"{sorted(reached)} active, J = {objectives} nats; error {error:.1e}"
    return Outcome(text, len(reached) >= 2 and reached <= stable and error < EXACT)


def learned_variance(x: Results) -> Outcome:
    places = [x.case(case.name) for case in LEARNED]
    off = np.abs(x.linear.noise[places] / x.linear.theory[places] - 1)
    values = ", ".join(f"{x.linear.noise[i]:.6f}" for i in places)
    return Outcome(f"{values}; error {np.max(off):.1e}", bool(np.max(off) < 1e-5))


def landing(x: Results) -> Outcome:
    found = dict(zip(ESTIMATORS, x.linear.gradients.tolist(), strict=True))
    stl, closed = found["sticking_the_landing"], found["closed_form"]
    return Outcome(f"{stl:.1e}; closed form {closed:.2g}", stl < 1e-10 and closed > 1e-2)
