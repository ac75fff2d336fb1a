"""Loads weights: checkpoints of vatt_jax, released checkpoints, word vectors."""
