"""What beta and what decoder variance a VAE loss amounts to: published ones, or your own."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kljax import vae
from vae import command

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class Convention:
    """How a program puts its loss together.

    Attributes:
        name: where it is published.
        error: what the reconstruction is: "cross-entropy", or "squared error" without a half.
        event_size: numbers of one image.
        latent_size: latents.
        reconstruction: "sum" or "mean" over the numbers of an image.
        kl: "sum" or "mean" over the latents.
        kl_weight: what the KL is multiplied by.
    """

    name: str
    error: str
    event_size: int
    latent_size: int
    reconstruction: str
    kl: str
    kl_weight: float

    def beta(self) -> float:
        return vae.effective_beta(
            event_size=self.event_size,
            latent_size=self.latent_size,
            reconstruction=self.reconstruction,  # pyright: ignore[reportArgumentType]
            kl=self.kl,  # pyright: ignore[reportArgumentType]
            kl_weight=self.kl_weight,
        )


# Read in the repositories; both batch reductions are the same everywhere, so they cancel.
PUBLISHED = (
    Convention("pytorch/examples vae/main.py", "cross-entropy", 784, 20, "sum", "sum", 1.0),
    Convention(
        "keras-team/keras-io generative/vae.py", "cross-entropy", 784, 2, "sum", "sum", 1.0
    ),
    Convention("google/flax examples/vae", "cross-entropy", 784, 20, "sum", "sum", 1.0),
    Convention(
        "google/flax nnx_toy_examples/05_vae.py", "cross-entropy", 784, 32, "mean", "mean", 0.1
    ),
    Convention(
        "AntixK/PyTorch-VAE VanillaVAE, kld_weight 0.00025",
        "squared error",
        3 * 64 * 64,
        128,
        "mean",
        "sum",
        0.00025,
    ),
)
HEADER = f"{'loss':50}{'reconstruction':>16}{'KL':>22}{'beta':>8}{'variance':>10}"


def row(convention: Convention) -> str:
    beta = convention.beta()
    squared = convention.error == "squared error" and beta > 0
    variance = f"{vae.equivalent_variance(beta):.4g}" if squared else "-"
    made = f"{convention.reconstruction} of {convention.event_size:,}"
    divergence = f"{convention.kl_weight:g} x {convention.kl} of {convention.latent_size}"
    return f"{convention.name:50}{made:>16}{divergence:>22}{beta:>8.4g}{variance:>10}"


def in_words(convention: Convention) -> str:
    """What the loss is, in two sentences."""
    beta = convention.beta()
    normalized = vae.normalized_beta(
        beta, event_size=convention.event_size, latent_size=convention.latent_size
    )
    stronger = "is the ELBO" if beta == 1 else f"weights the KL {beta:.4g} times"
    text = (
        f"This loss {stronger}; as Higgins et al. (2017) count, beta_norm = {normalized:.4g}."
    )
    if convention.error == "squared error" and beta > 0:
        variance = vae.equivalent_variance(beta)
        text += (
            f"\nIt is the ELBO of a Gaussian decoder of variance {variance:.4g}, a standard "
            f"deviation of {variance**0.5:.4g} in the units of the data."
        )
    return text


def parse(arguments: Sequence[str] | None) -> Convention | None:
    """A convention from flags, or None where none is given."""
    parser = command.Parser(prog="translate_losses.py", description=__doc__)
    parser.add_argument("--event-size", type=int, help="numbers of one image, as 12288")
    parser.add_argument("--latent-size", type=int, help="latents of one image")
    parser.add_argument("--reconstruction", choices=REDUCTIONS, default="sum")
    parser.add_argument("--kl", choices=REDUCTIONS, default="sum")
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument(
        "--error",
        choices=("cross-entropy", "squared error"),
        default="cross-entropy",
        help="the squared error is (x - decoded)^2, without a half",
    )
    given = parser.parse_args(arguments)
    sizes = (given.event_size, given.latent_size)
    if sizes == (None, None):
        if arguments if arguments is not None else sys.argv[1:]:
            parser.error("give --event-size and --latent-size of your loss.")
        return None
    if None in sizes:
        parser.error("give both --event-size and --latent-size.")
    return Convention(
        "yours",
        given.error,
        given.event_size,
        given.latent_size,
        given.reconstruction,
        given.kl,
        given.kl_weight,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    own = parse(arguments)
    shown = PUBLISHED if own is None else (own,)
    try:
        rows = [row(convention) for convention in shown]
    except ValueError as error:
        print(f"translate_losses.py: {error}", file=sys.stderr)
        return 2
    print(HEADER, *rows, sep="\n")
    if own is None:
        print(
            "\nbeta: weight of the KL once both parts are summed over an image; 1 is the ELBO."
            "\nvariance: of the Gaussian decoder whose ELBO a squared error is."
            "\nYour own: --event-size 12288 --latent-size 128 --reconstruction mean "
            "--kl-weight 0.00025 --error 'squared error'"
        )
    else:
        print(in_words(own))
    return 0


if __name__ == "__main__":
    sys.exit(main())
