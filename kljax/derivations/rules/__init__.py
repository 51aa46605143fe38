"""The rules that allow a step."""

from kljax.derivations.rules.algebra import affine as affine
from kljax.derivations.rules.algebra import bayes as bayes
from kljax.derivations.rules.algebra import by_log_ratio as by_log_ratio
from kljax.derivations.rules.algebra import conditional as conditional
from kljax.derivations.rules.algebra import diagonal_matrices as diagonal_matrices
from kljax.derivations.rules.algebra import expand_square as expand_square
from kljax.derivations.rules.algebra import expectation as expectation
from kljax.derivations.rules.algebra import exponential_family as exponential_family
from kljax.derivations.rules.algebra import factors as factors
from kljax.derivations.rules.algebra import insert as insert
from kljax.derivations.rules.algebra import linearity as linearity
from kljax.derivations.rules.algebra import log_product as log_product
from kljax.derivations.rules.algebra import log_ratio as log_ratio
from kljax.derivations.rules.algebra import normal_density as normal_density
from kljax.derivations.rules.algebra import one_half_outside as one_half_outside
from kljax.derivations.rules.algebra import rearrange as rearrange
from kljax.derivations.rules.algebra import root as root
from kljax.derivations.rules.algebra import spectral as spectral
from kljax.derivations.rules.algebra import trace_is_linear as trace_is_linear
from kljax.derivations.rules.algebra import trace_trick as trace_trick
from kljax.derivations.rules.bounds import data_processing as data_processing
from kljax.derivations.rules.bounds import jensen as jensen
from kljax.derivations.rules.bounds import phi_nonnegative as phi_nonnegative
from kljax.derivations.rules.bounds import two_means as two_means
from kljax.derivations.rules.calculus import factor_gradient as factor_gradient
from kljax.derivations.rules.calculus import inverse_gradient as inverse_gradient
from kljax.derivations.rules.calculus import log_det_gradient as log_det_gradient
from kljax.derivations.rules.calculus import quadratic_form as quadratic_form
from kljax.derivations.rules.calculus import scalar_derivative as scalar_derivative
from kljax.derivations.rules.calculus import shipped as shipped
from kljax.derivations.rules.moments import affinity as affinity
from kljax.derivations.rules.moments import bonnet as bonnet
from kljax.derivations.rules.moments import centered as centered
from kljax.derivations.rules.moments import covariance as covariance
from kljax.derivations.rules.moments import equal_mass as equal_mass
from kljax.derivations.rules.moments import fourth_moment as fourth_moment
from kljax.derivations.rules.moments import full_formula as full_formula
from kljax.derivations.rules.moments import gaussian_information as gaussian_information
from kljax.derivations.rules.moments import information as information
from kljax.derivations.rules.moments import marginal as marginal
from kljax.derivations.rules.moments import mean_parameters as mean_parameters
from kljax.derivations.rules.moments import mixture as mixture
from kljax.derivations.rules.moments import one_coordinate as one_coordinate
from kljax.derivations.rules.moments import price as price
from kljax.derivations.rules.moments import score as score
from kljax.derivations.rules.moments import second_order_at_equality as second_order_at_equality
from kljax.derivations.rules.moments import (
    spread_about_another_point as spread_about_another_point,
)
from kljax.derivations.rules.moments import tower as tower
from kljax.derivations.rules.moments import univariate_mean as univariate_mean
from kljax.derivations.rules.moments import variance as variance
from kljax.derivations.rules.moments import whitening as whitening
from kljax.derivations.rules.rule import Rule as Rule
from kljax.derivations.rules.structured import fourier as fourier
from kljax.derivations.rules.structured import kronecker as kronecker
from kljax.derivations.rules.structured import matrix_of_a_vector as matrix_of_a_vector


def catalogue() -> dict[str, Rule]:
    """Every rule by its name in Python."""
    return {key: value for key, value in globals().items() if isinstance(value, Rule)}
