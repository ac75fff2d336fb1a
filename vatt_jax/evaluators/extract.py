"""Runs a model over a source, with several views of each clip."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from vatt_jax.distributed import sharding
from vatt_jax.inputs.batches import eval_batches
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import MODALITIES

AVERAGES = ('embeddings', 'similarities')

Predict = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]


def by_clip(predict: Predict, state: Any, reader: Reader, batch_size: int,
            num_windows: int, num_crops: int,
            pick: Callable[[Any, Mapping[str, Any]], Any],
            augment_seed: int | None = None) -> Any:
  """Returns a model's outputs for every view of every clip.

  Args:
    predict: `predict(state, batch)` returns outputs (`train_step.Task.predict`).
    state: the model's state.
    reader: reads the N clips of the source.
    batch_size: rows per batch.
    num_windows: windows spread over each clip.
    num_crops: crops spread over the frames of each window. A clip has
      V = num_windows * num_crops views.
    pick: `pick(outputs, batch)` returns the tree of arrays [B, ...] to keep.
    augment_seed: if given, the windows are random and augmented instead
      (`eval_batches`).

  Returns:
    The tree of arrays [N, V, ...] on every host, although each reads only its share.
  """
  hosts = jax.process_count()
  # Close at once if `predict` raises: its threads must not outlive the interpreter.
  with contextlib.closing(eval_batches(
      reader, batch_size, num_windows, num_crops, jax.process_index(), hosts,
      augment_seed)) as batches:
    rows = [multihost_utils.process_allgather(
        pick(sharding.local_rows(predict(state, batch)), batch)) for batch in batches]
  count, views = len(reader.clips), num_windows * num_crops
  turns = -(-count * num_windows // hosts)    # windows of each host

  def join(*parts: np.ndarray) -> np.ndarray:
    whole = np.concatenate(parts, axis=1)[:, :turns * num_crops]    # less padding
    whole = whole.reshape(hosts, turns, num_crops, *whole.shape[2:]).swapaxes(0, 1)
    whole = whole.reshape(-1, *whole.shape[3:])[:count * views]
    return whole.reshape(count, views, *whole.shape[1:])

  return jax.tree.map(join, *rows)


def mean_over_views(x: np.ndarray, there: np.ndarray) -> np.ndarray:
  """Averages the views that are present; zero for a clip without any.

  [N, V, D], bool [N, V] -> [N, D].
  """
  # A sum in bfloat16 would lose too many digits.
  total = np.sum(x * there[..., None], axis=1, dtype=np.float32)
  return total / np.maximum(np.sum(there, axis=1), 1)[:, None]


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
