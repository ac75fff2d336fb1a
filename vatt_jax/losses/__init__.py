"""Training losses: a table from a config's loss name to its class, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vatt_jax import config
from vatt_jax.losses import classification
from vatt_jax.losses import contrastive
from vatt_jax.losses import gdt
from vatt_jax.losses import regression
from vatt_jax.losses import stica
from vatt_jax.losses.base import Batch
from vatt_jax.losses.base import Loss
from vatt_jax.losses.base import Metrics
from vatt_jax.losses.base import MissingOutput

__all__ = ['LOSSES', 'Loss', 'MissingOutput', 'build', 'init_memory', 'total_loss']

LOSSES: dict[str, type[Loss]] = {
    'nce': contrastive.NCE, 'mil_nce': contrastive.MilNCE, 'siglip': contrastive.SigLIP,
    'gdt': gdt.GDT, 'stica': stica.STiCA, 'softmax': classification.Softmax,
    'bce': classification.BCE, 'l1': regression.L1}


def build(section_name: str, section: config.Settings, **rows: Any) -> Loss:
  """Builds the loss of a config section.

  Args:
    section_name: the section's key under `config.losses`. It names the loss's metrics
      and parameters, and is the default of a field `pair`.
    section: `name`, a key of `LOSSES`, and fields of that class.
    **rows: how rows belong to clips, for a loss that has fields of these names:
      `num_shifts` and `num_views` of the window (`inputs.window`), and `num_copies` of
      the augmentation (`inputs.augment`); and `crops`, the crops of features of a row
      (`models.multimodal.MultimodalModel.num_crops`).

  Raises:
    UserError: names the key that is unknown, missing or out of range.
  """
  if not (isinstance(section, Mapping) and 'pair' in section):
    rows['pair'] = section_name
  return config.build(f'losses.{section_name}', LOSSES, section, **rows)


def init_memory(losses: Mapping[str, Loss], num_clips: int) -> dict[str, Any] | None:
  """Returns the memory of each loss that keeps one, by section; None if none does."""
  memory = {name: loss.init_memory(num_clips) for name, loss in losses.items()}
  return {name: arrays for name, arrays in memory.items() if arrays is not None} or None


def total_loss(losses: Mapping[str, Loss], params: Mapping[str, Any],
               outputs: Mapping[str, Any], batch: Batch,
               memory: Mapping[str, Any] | None = None
               ) -> tuple[jax.Array, Metrics, Any]:
  """Computes the weighted sum of the losses (VATT, equation 6).

  Args:
    losses: by section name.
    params: section name -> the loss's parameters, for losses that have any.
    outputs: of the model (`models.multimodal`).
    batch: normalized inputs.
    memory: section name -> the loss's memory, for losses that keep one.

  Returns:
    The sum [] in float32; metrics `loss_SECTION`, and `METRIC_SECTION` for each other
    metric; the memory after the step.

  Raises:
    MissingOutput: the model or the batch lacks an array that a loss needs.
  """
  total, metrics = jnp.zeros((), jnp.float32), {}
  memory, new_memory = memory or {}, {}
  for name, loss in losses.items():
    value, more, new_memory[name] = loss(params.get(name, {}), outputs, batch,
                                         memory.get(name))
    metrics |= {f'loss_{name}': value, **{f'{k}_{name}': v for k, v in more.items()}}
    total += loss.weight * value
  return total, metrics, {k: v for k, v in new_memory.items() if v is not None} or None
