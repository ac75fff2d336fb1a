"""A batch in parts of every n-th row, so that each device's rows stay on it."""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Part(NamedTuple):
  """Some rows of a batch: from `index` on, every `num_parts`-th."""
  index: jax.typing.ArrayLike = 0
  num_parts: int = 1

  def take(self, batch: Any) -> Any:
    """Of every array of a tree its rows.  [B, ...] -> [B / num_parts, ...]."""
    if self.num_parts == 1:
      return batch
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(
        x.reshape(-1, self.num_parts, *x.shape[1:]), self.index, axis=1,
        keepdims=False), batch)


WHOLE = Part()


def join(batches: Any) -> Any:
  """The arrays of which these are all parts.  [n, B / n, ...] -> [B, ...]."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]),
                      batches)
