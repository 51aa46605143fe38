"""The derivations that the library ships, one file each; `d` is the derivation of a file."""

from __future__ import annotations

import difflib
import importlib

from kljax.derivations.derivation import Derivation

# In the order in which a student would read them.
NAMES = (
    "univariate",
    "diagonal",
    "full",
    "whitening",
    "vae",
    "gradients",
    "fisher",
    "nonnegativity",
    "entropy",
    "invariance",
    "chain",
    "elbo",
    "surgery",
    "exponential_family",
    "estimators",
    "accuracy",
    "structures",
    "mixes",
    "kronecker",
    "circulant",
    "markov",
    "state_space",
)


def get(name: str) -> Derivation:
    """A derivation by its name.

    Raises:
        ValueError: if there is none of that name; says which is nearest.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}."
        raise ValueError(f"there is no derivation {name!r}; {hint}")
    return importlib.import_module(f"kljax.derivations.catalogue.{name}").d
