"""Running a model over a source, several views of each clip."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from vatt_jax.distributed import sharding
from vatt_jax.inputs import pipeline

AVERAGES = ('embeddings', 'similarities')

Predict = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]


def by_clip(predict: Predict, state: Any, reader: pipeline.Reader, batch_size: int,
            num_windows: int, num_crops: int,
            pick: Callable[[Any, Mapping[str, Any]], Any],
            augment_seed: int | None = None) -> Any:
  """What a model says of every view of every clip.

  Args:
    predict: `predict(state, batch)` -> outputs (`step.Task.predict`).
    state: of the model.
    reader: the source, N clips.
    batch_size: rows at a time.
    num_windows: spread over each clip.
    num_crops: spread over each window's pictures; V views are all of all windows.
    pick: `pick(outputs, batch)` -> tree of arrays [B, ...], what to keep.
    augment_seed: if given, the windows are random and augmented instead
      (`pipeline.eval_batches`).

  Returns:
    The tree, of arrays [N, V, ...], on every host, though each reads but its share.
  """
  hosts = jax.process_count()
  # Closed at once if `predict` raises: its threads must not outlive the interpreter.
  with contextlib.closing(pipeline.eval_batches(
      reader, batch_size, num_windows, num_crops, jax.process_index(), hosts,
      augment_seed)) as batches:
    rows = [multihost_utils.process_allgather(
        pick(sharding.local_rows(predict(state, batch)), batch)) for batch in batches]
  count, views = len(reader.clips), num_windows * num_crops
  turns = -(-count * num_windows // hosts)    # windows of each host

  def join(*parts: np.ndarray) -> np.ndarray:
    whole = np.concatenate(parts, axis=1)[:, :turns * num_crops]    # the rest fills up
    whole = whole.reshape(hosts, turns, num_crops, *whole.shape[2:]).swapaxes(0, 1)
    whole = whole.reshape(-1, *whole.shape[3:])[:count * views]
    return whole.reshape(count, views, *whole.shape[1:])

  return jax.tree.map(join, *rows)


def mean_over_views(x: np.ndarray, there: np.ndarray) -> np.ndarray:
  """The mean of what is there.  [N, V, D], bool [N, V] -> [N, D], zero for none."""
  total = np.sum(x * there[..., None], axis=1, dtype=np.float32)    # of bfloat16, too
  return total / np.maximum(np.sum(there, axis=1), 1)[:, None]


def of_clips(embed: Mapping[str, Mapping[str, np.ndarray]],
             present: Mapping[str, np.ndarray], average: str = 'embeddings'
             ) -> dict[str, dict[str, np.ndarray]]:
  """Embeddings of clips, whose dot products are their similarities.

  Args:
    embed: space -> modality -> [N, V, D]. VATT's code averages them before they are
      scaled; those of a model here are of length one already.
    present: modality -> bool [N, V].
    average: of the views, one of `AVERAGES`: 'embeddings' (VATT, section 4.3) scales
      their mean to length one; 'similarities' (the other measure of its code) scales
      the views, and leaves their mean as it is: for a product is linear, that of two
      such means is the mean similarity of every view of the one clip with every view
      of the other.

  Returns:
    space -> modality -> [N, D], zero where no view has the modality.
  """
  def of_clip(x, there):
    if average == 'similarities':
      return mean_over_views(unit_norm(x), there)
    return unit_norm(mean_over_views(x, there))

  return {space: {m: of_clip(x, present[m]) for m, x in sides.items()}
          for space, sides in embed.items()}


def nearest_text(sides: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Of a clip's sentences the nearest: modality -> [B, D]; text comes as [B, K, D]."""
  return {m: x[:, 0] if m == 'text' else x for m, x in sides.items()}


def find_present(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Modality -> bool [B], what there is of a batch; of text the nearest sentence."""
  present = {m: batch[f'has_{m}'] for m in pipeline.MODALITIES if f'has_{m}' in batch}
  if 'text' in present:
    present['text'] = np.any(batch['text'][:, 0] != 0, axis=-1)
  return present


def unit_norm(x: np.ndarray) -> np.ndarray:
  """Scales rows to length one; zero stays zero.  [..., D] -> [..., D]."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
