"""Losses of a classifier, over the clips of a batch that have a label."""

import jax
import jax.numpy as jnp
import optax


def softmax(logits: jax.Array, labels: jax.Array, present: jax.Array,
            smoothing: float = 0.0) -> jax.Array:
  """Cross-entropy of one class a clip (VATT, section 4.3).

  Args:
    logits: [B, C].
    labels: [B, C], shares that sum to 1; zero for a clip without a label.
    present: bool [B], False where there is nothing to classify.
    smoothing: alpha; that much of every label is spread over all classes.

  Returns:
    [], the mean over the clips that have both; zero if none has.
  """
  labels, weights = _weigh(labels, present)
  smoothed = optax.smooth_labels(labels, smoothing) if smoothing else labels
  return _mean(optax.softmax_cross_entropy(logits, smoothed), weights)


def sigmoid(logits: jax.Array, labels: jax.Array, present: jax.Array,
            balance: bool = False) -> jax.Array:
  """Binary cross-entropy of several classes a clip, summed over the classes.

  Args:
    logits: [B, C].
    labels: [B, C] in [0, 1]; zero for a clip without a label.
    present: bool [B], False where there is nothing to classify.
    balance: scale a clip's loss by the mean, over its labels, of one over how often
      the label comes in the batch (VATT, section 4.3: "the inverse of the per-batch
      number of repetitive labels it carries"; as its released code counts them).

  Returns:
    [], the mean over the clips that have both; zero if none has.
  """
  labels, weights = _weigh(labels, present)
  loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
  if balance:
    count = jnp.sum(labels * weights[:, None], axis=0)
    share = labels / jnp.maximum(jnp.sum(labels, axis=-1, keepdims=True), 1e-6)
    loss *= jnp.sum(jnp.where(count > 0, share / jnp.where(count > 0, count, 1), 0),
                    axis=-1)
  return _mean(loss, weights)


def _weigh(labels: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Labels as numbers, and 1.0 for each clip that counts.  [B, C], [B]."""
  labels = labels.astype(jnp.float32)
  return labels, (present & jnp.any(labels > 0, axis=-1)).astype(jnp.float32)


def _mean(loss: jax.Array, weights: jax.Array) -> jax.Array:
  return jnp.sum(loss * weights) / jnp.maximum(jnp.sum(weights), 1.0)
