"""Compiles a training step for a TPU slice and predicts its time."""
