"""Weights of checkpoints: ours, the release's, and word vectors."""
