"""The objective of a variational autoencoder, as pure functions that cannot be mis-scaled.

Event axes are summed and batches averaged, everywhere; there is no other default.
"""

from kljax.vae import likelihoods as likelihoods
from kljax.vae import linear as linear
from kljax.vae import schedules as schedules
from kljax.vae.aggregate import AggregatedLogProb as AggregatedLogProb
from kljax.vae.aggregate import Decomposition as Decomposition
from kljax.vae.aggregate import aggregated_log_prob as aggregated_log_prob
from kljax.vae.aggregate import decompose as decompose
from kljax.vae.diagnostics import Diagnostics as Diagnostics
from kljax.vae.diagnostics import diagnose as diagnose
from kljax.vae.estimators import ESTIMATORS as ESTIMATORS
from kljax.vae.estimators import ElboParts as ElboParts
from kljax.vae.estimators import closed_form as closed_form
from kljax.vae.estimators import dreg as dreg
from kljax.vae.estimators import iwae as iwae
from kljax.vae.estimators import monte_carlo as monte_carlo
from kljax.vae.estimators import sticking_the_landing as sticking_the_landing
from kljax.vae.importance import ImportanceNLL as ImportanceNLL
from kljax.vae.importance import ImportanceWarning as ImportanceWarning
from kljax.vae.importance import importance_nll as importance_nll
from kljax.vae.importance import pareto_k as pareto_k
from kljax.vae.minibatch import MinibatchWeights as MinibatchWeights
from kljax.vae.minibatch import decompose_minibatch as decompose_minibatch
from kljax.vae.minibatch import minibatch_weights as minibatch_weights
from kljax.vae.multiplier import ConstraintState as ConstraintState
from kljax.vae.multiplier import constraint as constraint
from kljax.vae.multiplier import update_constraint as update_constraint
from kljax.vae.multiplier import with_constraint as with_constraint
from kljax.vae.schedules import ScheduleWarning as ScheduleWarning
from kljax.vae.schedules import check_schedule as check_schedule
from kljax.vae.shaping import delta_vae_log_variance as delta_vae_log_variance
from kljax.vae.shaping import delta_vae_rate as delta_vae_rate
from kljax.vae.shaping import with_beta as with_beta
from kljax.vae.shaping import with_capacity as with_capacity
from kljax.vae.shaping import with_capacity_per_sample as with_capacity_per_sample
from kljax.vae.shaping import with_free_bits as with_free_bits
from kljax.vae.shaping import with_free_bits_per_sample as with_free_bits_per_sample
from kljax.vae.shaping import with_term_weights as with_term_weights
from kljax.vae.terms import LatentTerms as LatentTerms
from kljax.vae.terms import TermWeights as TermWeights
from kljax.vae.terms import latent_terms as latent_terms
from kljax.vae.terms import weighted_kl as weighted_kl
from kljax.vae.translate import beta_from_normalized as beta_from_normalized
from kljax.vae.translate import effective_beta as effective_beta
from kljax.vae.translate import equivalent_variance as equivalent_variance
from kljax.vae.translate import normalized_beta as normalized_beta
from kljax.vae.verdicts import Report as Report
from kljax.vae.verdicts import report as report
