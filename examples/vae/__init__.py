"""What the VAE example needs around its model: data, flags, evaluation and reports."""
