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
