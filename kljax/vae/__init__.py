"""The objective of a variational autoencoder, as pure functions that cannot be mis-scaled.

Event axes are summed and batches averaged, everywhere; there is no other default.
"""

from kljax.vae.terms import LatentTerms as LatentTerms
from kljax.vae.terms import TermWeights as TermWeights
from kljax.vae.terms import latent_terms as latent_terms
from kljax.vae.terms import weighted as weighted
from kljax.vae.terms import weighted_kl as weighted_kl
