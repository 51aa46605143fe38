"""The objective of a variational autoencoder, as pure functions that cannot be mis-scaled."""
