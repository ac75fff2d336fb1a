"""Classification losses over the clips of a batch that have a label."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vatt_jax.losses import base
from vatt_jax.models import multimodal


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classification(base.Loss):
  """Compares class scores with the labels of clips.

  Attributes:
    weight: of this loss in the sum of all.
    label: the column of labels; empty for the only one.
  """
  label: str = ''

  def _loss(self, logits: jax.Array, labels: jax.Array, present: jax.Array
            ) -> jax.Array:
    raise NotImplementedError

  def __call__(self, params: Mapping[str, jax.Array], outputs: Mapping[str, Any],
               batch: base.Batch, memory: Any
               ) -> tuple[jax.Array, base.Metrics, Any]:
    """Computes the loss; see `Loss.__call__`."""
    logits = base.take(outputs, 'outputs', 'logits')
    (modality,) = outputs['pooled']
    present = base.take(multimodal.find_present(batch), 'has', modality)
    column = self.label or _only(base.take(batch, 'batch', 'labels'))
    labels = base.take(batch, 'batch', 'labels', column)
    if isinstance(logits, Mapping):
      logits = base.take(outputs, 'outputs', 'logits', column)
    return self._loss(logits, labels, present), {}, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax(_Classification):
  """Computes the cross-entropy of one class per clip (`softmax`).

  Attributes:
    weight: of this loss in the sum of all.
    label: the column of labels; empty for the only one.
    smoothing: of the labels, 0 to 1.
  """
  smoothing: float = 0.0

  def __post_init__(self):
    if not 0 <= self.smoothing <= 1:
      raise ValueError(f'smoothing={self.smoothing}: expected 0 to 1')

  def _loss(self, logits, labels, present):
    return softmax(logits, labels, present, self.smoothing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BCE(_Classification):
  """Computes the binary cross-entropy of multi-label clips (`binary_cross_entropy`).

  Attributes:
    weight: of this loss in the sum of all.
    label: the column of labels; empty for the only one.
    balance: give rare labels a larger weight.
  """
  balance: bool = False

  def _loss(self, logits, labels, present):
    return binary_cross_entropy(logits, labels, present, self.balance)


def softmax(logits: jax.Array, labels: jax.Array, present: jax.Array,
            smoothing: float = 0.0) -> jax.Array:
  """Computes the cross-entropy of one class per clip (VATT, section 4.3).

  Args:
    logits: [B, C].
    labels: [B, C], probabilities that sum to 1; zero for a clip without a label.
    present: bool [B], False for clips that lack the classified modality.
    smoothing: alpha, the fraction of every label that is spread over all classes.

  Returns:
    [], the mean over the present clips that have a label; zero if none has.
  """
  labels, weights = _weigh(labels, present)
  smoothed = optax.smooth_labels(labels, smoothing) if smoothing else labels
  return _mean(optax.softmax_cross_entropy(logits, smoothed), weights)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, present: jax.Array,
                         balance: bool = False) -> jax.Array:
  """Computes the binary cross-entropy of multi-label clips, summed over classes.

  Args:
    logits: [B, C].
    labels: [B, C] in [0, 1]; zero for a clip without a label.
    present: bool [B], False for clips that lack the classified modality.
    balance: scale a clip's loss by the mean, over its labels, of the inverse of the
      label's count in the batch (VATT, section 4.3: "the inverse of the per-batch
      number of repetitive labels it carries"; counted as in the released code).

  Returns:
    [], the mean over the present clips that have a label; zero if none has.
  """
  labels, weights = _weigh(labels, present)
  loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
  if balance:
    count = jnp.sum(labels * weights[:, None], axis=0)
    share = labels / jnp.maximum(jnp.sum(labels, axis=-1, keepdims=True), 1e-6)
    loss *= jnp.sum(jnp.where(count > 0, share / jnp.where(count > 0, count, 1), 0),
                    axis=-1)
  return _mean(loss, weights)


def _only(labels: Mapping[str, jax.Array]) -> str:
  """Returns the only column of labels; raises ValueError if they have several."""
  if len(labels) > 1:
    raise ValueError(f"label='': expected a column of labels, one of "
                     f'{", ".join(sorted(labels))}')
  (column,) = labels
  return column


def _weigh(labels: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns labels in float32, and 1.0 for each clip that counts.  [B, C], [B]."""
  labels = labels.astype(jnp.float32)
  return labels, (present & jnp.any(labels > 0, axis=-1)).astype(jnp.float32)


def _mean(loss: jax.Array, weights: jax.Array) -> jax.Array:
  return jnp.sum(loss * weights) / jnp.maximum(jnp.sum(weights), 1.0)
