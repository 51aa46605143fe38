"""The linear VAE with a weight on each term of its KL: every stationary point in closed form.

    x = W z + noise of variance v,   q(z | x) = N(V x, diag s),   data of mean 0, covariance C,
    J = E[-log p(x | z)] + (a sum s + b E|V x|^2 - c sum log s - c k) / 2.

A latent whose column of W is w times an eigenvector of C, of eigenvalue l, has

    s = c / (a + u),   encoder = w / (w^2 + b v),   u = w^2 / v,   r = l / v,
    c u^2 - b (r - 2 c) u - b (r a - c b) = 0   or   u = 0,
    J = J(u = 0) + (c log(1 + u / a) - r u / (u + b)) / 2.

- u = 0, the collapsed latent, is stable iff l < (b / a) c v.
- b / a <= 2: one more point from there on, stable, which begins at u = 0.
- b / a > 2: two more from l = 4 c v (1 - a / b) on, the upper one stable, the lower one a
  saddle; so collapsed and active are both stable from there to (b / a) c v.
- In the whole model a point is a minimum iff its active latents follow the eigenvectors of the
  largest eigenvalues, one each, on the upper root, and its other latents are stable where they
  are. Every other stationary point is a saddle, also those with columns that are no
  eigenvectors.

docs/vae_diagnostics.md derives all of it. For a = b = c = 1 it is probabilistic PCA (Tipping
and Bishop 1999, "Probabilistic principal component analysis"; Lucas et al. 2019, arXiv
1911.02469, has its stationary points).
"""

from kljax.vae.linear.latent import Branch as Branch
from kljax.vae.linear.latent import Branches as Branches
from kljax.vae.linear.latent import Thresholds as Thresholds
from kljax.vae.linear.latent import stationary_points as stationary_points
from kljax.vae.linear.latent import thresholds as thresholds
from kljax.vae.linear.model import PPCA as PPCA
from kljax.vae.linear.model import LinearVAE as LinearVAE
from kljax.vae.linear.model import Parts as Parts
from kljax.vae.linear.model import log_likelihood as log_likelihood
from kljax.vae.linear.model import parts as parts
from kljax.vae.linear.model import ppca as ppca
from kljax.vae.linear.optimum import Minima as Minima
from kljax.vae.linear.optimum import minima as minima
from kljax.vae.linear.optimum import noise_variance as noise_variance
from kljax.vae.linear.optimum import solution as solution
