"""What beta, and what decoder variance, a published loss amounts to.

A loss w_r R + w_k K, whose parts are sums or means over event axes and batch, has the minimum
of -log p(x|z) + beta KL with

    beta = (w_k / numbers averaged over in K) / (w_r / numbers averaged over in R),

and for a squared error sum (x - loc)^2 weighted by 1 in the reconstruction, that of an ELBO
with beta = 1 whose Gaussian decoder has the variance beta / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from kljax.vae._inputs import Number, at_least_zero, positive, whole

Reduction = Literal["sum", "mean"]


def effective_beta(
    *,
    event_size: int,
    latent_size: int,
    reconstruction: Reduction,
    kl: Reduction,
    kl_weight: float = 1.0,
    reconstruction_weight: float = 1.0,
    reconstruction_batch: Reduction = "mean",
    kl_batch: Reduction = "mean",
    batch_size: int | None = None,
) -> float:
    """The beta of a loss, once both parts are summed over event axes and averaged over a batch.

    Args:
        event_size: numbers of one event, such as channels x height x width.
        latent_size: latents of one event.
        reconstruction: whether the loss sums or averages over the event axes.
        kl: whether it sums or averages over the latents.
        kl_weight: what the KL is multiplied by, >= 0.
        reconstruction_weight: what the reconstruction is multiplied by, > 0.
        reconstruction_batch: whether the reconstruction is summed or averaged over a batch.
        kl_batch: whether the KL is.
        batch_size: events of a batch, needed where the two differ in that.

    Returns:
        beta >= 0; 1 is the ELBO.

    Raises:
        ValueError: if a size, a weight or a reduction is invalid.
    """
    if batch_size is not None:
        whole("batch_size", batch_size)
    elif reconstruction_batch != kl_batch:
        raise ValueError(
            "reconstruction_batch and kl_batch differ, so beta depends on the batch: give "
            "batch_size."
        )
    batch = batch_size or 1
    pixels = _averaged("reconstruction", reconstruction, whole("event_size", event_size))
    pixels *= _averaged("reconstruction_batch", reconstruction_batch, batch)
    latents = _averaged("kl", kl, whole("latent_size", latent_size))
    latents *= _averaged("kl_batch", kl_batch, batch)
    kl_weight = _known("kl_weight", kl_weight, at_least_zero)
    reconstruction_weight = _known("reconstruction_weight", reconstruction_weight, positive)
    return kl_weight * pixels / (latents * reconstruction_weight)


def _averaged(name: str, reduction: str, size: int) -> int:
    """How many numbers a reduction averages over; a sum over none."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{name} must be 'sum' or 'mean'; got {reduction!r}.")
    return size if reduction == "mean" else 1


def _known(name: str, value: float, check: Callable[[str, Any], Number]) -> float:
    x = check(name, value)
    if not isinstance(x, float):
        raise TypeError(f"{name} must be a number that is known when tracing.")
    return x


def equivalent_variance(beta: float, squared_error_weight: float = 1.0) -> float:
    """The variance of the Gaussian decoder whose ELBO a loss with a squared error is.

    The loss w sum (x - loc)^2 + beta KL has the gradient directions of -log N(x; loc, v) + KL
    with v = beta / (2 w): a fixed noise that nobody chose.

    Args:
        beta: > 0, of both parts summed over event axes (`effective_beta`).
        squared_error_weight: w, > 0; 1 for `sum (x - loc)^2` and 1/2 for half of it.

    Returns:
        v, in squared units of x.
    """
    weight = _known("squared_error_weight", squared_error_weight, positive)
    return _known("beta", beta, positive) / (2 * weight)


def beta_from_normalized(beta_norm: float, *, event_size: int, latent_size: int) -> float:
    """Beta = beta_norm event_size / latent_size.

    Higgins et al. (2017) report beta_norm = beta latents / inputs, by which models of
    different sizes are compared: it is the weight of a KL averaged over latents beside a
    reconstruction averaged over pixels.

    Args:
        beta_norm: >= 0.
        event_size: numbers of one event.
        latent_size: latents of one event.
    """
    sizes = whole("event_size", event_size), whole("latent_size", latent_size)
    return _known("beta_norm", beta_norm, at_least_zero) * sizes[0] / sizes[1]


def normalized_beta(beta: float, *, event_size: int, latent_size: int) -> float:
    """beta_norm = beta latent_size / event_size, the inverse of `beta_from_normalized`."""
    sizes = whole("event_size", event_size), whole("latent_size", latent_size)
    return _known("beta", beta, at_least_zero) * sizes[1] / sizes[0]
