"""The study of what each KL term does to a VAE: design, training, responses, predictions."""
