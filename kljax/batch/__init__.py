"""Many pairs at once: all pairs of two batches, the nearest ones, and streams of pairs."""

from kljax.batch.matrix import pairwise as pairwise
from kljax.batch.matrix import top_k as top_k
from kljax.batch.stream import evaluate as evaluate
