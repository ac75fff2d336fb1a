"""Combines the embeddings of a clip's views, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vatt_jax.inputs.window import MODALITIES

AVERAGES = ('embeddings', 'similarities')


def mean_over_views(x: np.ndarray, present: np.ndarray) -> np.ndarray:
  """Averages the views that are present; zero for a clip without any.

  [N, V, D], bool [N, V] -> [N, D].
  """
  # A sum in bfloat16 would lose too many digits.
  total = np.sum(x * present[..., None], axis=1, dtype=np.float32)
  return total / np.maximum(np.sum(present, axis=1), 1)[:, None]


def of_clips(embed: Mapping[str, Mapping[str, np.ndarray]],
             present: Mapping[str, np.ndarray], average: str = 'embeddings'
             ) -> dict[str, dict[str, np.ndarray]]:
  """Returns embeddings of clips whose dot products are the clips' similarities.

  Args:
    embed: space -> modality -> [N, V, D]. VATT's code averages them before
      normalization; embeddings of the models here already have unit length.
    present: modality -> bool [N, V].
    average: how to average the views, one of `AVERAGES`. 'embeddings' (VATT, section
      4.3) scales the mean of the views to unit length. 'similarities' (the other
      measure of VATT's code) scales each view and keeps the mean as it is. The dot
      product is linear: with two such means it is the mean similarity over all pairs
      of views.

  Returns:
    space -> modality -> [N, D], zero where no view has the modality.
  """
  def of_clip(x, mask):
    if average == 'similarities':
      return mean_over_views(unit_norm(x), mask)
    return unit_norm(mean_over_views(x, mask))

  return {space: {m: of_clip(x, present[m]) for m, x in sides.items()}
          for space, sides in embed.items()}


def nearest_text(sides: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Keeps the nearest caption of each clip: text [B, K, D] -> [B, D]."""
  return {m: x[:, 0] if m == 'text' else x for m, x in sides.items()}


def find_present(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns modality -> bool [B], which rows have it; for text the nearest caption."""
  present = {m: batch[f'has_{m}'] for m in MODALITIES if f'has_{m}' in batch}
  if 'text' in present:
    present['text'] = np.any(batch['text'][:, 0] != 0, axis=-1)
  return present


def unit_norm(x: np.ndarray) -> np.ndarray:
  """Scales rows to length one; zero stays zero.  [..., D] -> [..., D]."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
