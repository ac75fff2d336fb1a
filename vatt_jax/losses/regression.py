"""Losses between features and those of a network that is not trained."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp

from vatt_jax.losses import base
from vatt_jax.models import multimodal


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1(base.Loss):
  """Computes the mean absolute difference of features from their target.

  The model has the target as `pooled[MODALITY_target]` (`models.deflation`).

  Attributes:
    weight: of this loss in the sum of all.
    modality: of the features.
  """
  modality: str = 'video'

  def __call__(self, params: Mapping[str, Any], outputs: Mapping[str, Any],
               batch: base.Batch, memory: Any) -> tuple[Any, base.Metrics, Any]:
    """Computes the loss over the clips that have the modality; see `Loss.__call__`."""
    features, target = (base.take(outputs, 'outputs', 'pooled', name)
                        for name in (self.modality, f'{self.modality}_target'))
    present = base.take(multimodal.find_present(batch), 'has', self.modality)
    difference = jnp.abs(features.astype(jnp.float32) - target.astype(jnp.float32))
    by_clip = jnp.mean(difference, axis=-1)
    loss = jnp.sum(by_clip * present) / jnp.maximum(jnp.sum(present), 1)
    return loss, {}, memory
