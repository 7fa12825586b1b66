"""Sparse autoencoders on transformer activations: subjects, nulls, training, latent caches."""
