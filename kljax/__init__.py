"""The Kullback-Leibler divergence for JAX: accurate to the last digits, proven and fast."""

from kljax import batch as batch
from kljax import special as special
from kljax import vae as vae
from kljax._record import param as param
from kljax._record import record as record
from kljax.distribution import check as check
from kljax.distribution import covariance as covariance
from kljax.distribution import cross_entropy as cross_entropy
from kljax.distribution import entropy as entropy
from kljax.distribution import log_prob as log_prob
from kljax.distribution import mean as mean
from kljax.distribution import register_distribution as register_distribution
from kljax.distribution import sample as sample
from kljax.distribution import variance as variance
from kljax.divergence import ClosedForm as ClosedForm
from kljax.divergence import closed_forms as closed_forms
from kljax.divergence import kl_divergence as kl_divergence
from kljax.divergence import kl_terms as kl_terms
from kljax.divergence import register_kl as register_kl
from kljax.families.block_diagonal import BlockDiagonalNormal as BlockDiagonalNormal
from kljax.families.block_tridiagonal import BlockTridiagonalNormal as BlockTridiagonalNormal
from kljax.families.circulant import CirculantNormal as CirculantNormal
from kljax.families.gauss_markov import GaussMarkov as GaussMarkov
from kljax.families.gauss_markov import MarkovTerms as MarkovTerms
from kljax.families.gaussian import GaussianTerms as GaussianTerms
from kljax.families.gaussian import MultivariateNormal as MultivariateNormal
from kljax.families.gaussian import MultivariateNormalDiag as MultivariateNormalDiag
from kljax.families.gaussian import Normal as Normal
from kljax.families.gaussian import standard_normal as standard_normal
from kljax.families.gaussian_process import gaussian_process_kl as gaussian_process_kl
from kljax.families.isotropic import IsotropicNormal as IsotropicNormal
from kljax.families.low_rank import LowRankMultivariateNormal as LowRankMultivariateNormal
from kljax.families.matrix_normal import MatrixNormal as MatrixNormal
from kljax.families.state_space import LinearGaussianStateSpace as LinearGaussianStateSpace
from kljax.families.state_space import StateSpaceTerms as StateSpaceTerms
from kljax.families.state_space_laws import (
    LinearGaussianObservations as LinearGaussianObservations,
)
from kljax.families.state_space_laws import LinearGaussianPosterior as LinearGaussianPosterior

__version__ = "0.1.0"
