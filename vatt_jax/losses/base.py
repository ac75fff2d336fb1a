"""Interface of losses, and their access to a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class MissingOutput(KeyError):
  """Reports that the model's outputs and the batch lack an array that a loss needs.

  Attributes:
    needed: path of the array, such as `outputs.embed.video_text.text`.
    available: paths of the arrays that exist beside it.
  """

  def __init__(self, needed: str, available: list[str]):
    super().__init__(needed)
    self.needed = needed
    self.available = available


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Computes a term of the training loss; subclasses are rows of `losses.LOSSES`.

  The fields are the keys of the config's section.

  Attributes:
    weight: of this loss in the sum of all.
  """
  weight: float = 1.0

  def init(self, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the loss's own parameters, which the optimizer trains."""
    del key
    return {}

  def init_memory(self, num_clips: int) -> Any:
    """Returns the arrays that the loss keeps between steps; None for none.

    Args:
      num_clips: size of the dataset. An array of that many rows is split over
        the mesh like the batch.
    """
    del num_clips

  def clip_params(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the parameters within their bounds; called after every update."""
    return params

  def __call__(self, params: Mapping[str, jax.Array], outputs: Mapping[str, Any],
               batch: Batch, memory: Any) -> tuple[jax.Array, Metrics, Any]:
    """Computes the loss of a batch.

    Args:
      params: the loss's own parameters (`init`).
      outputs: of the model (`models.multimodal`).
      batch: for masks, labels and ids.
      memory: the loss's own memory (`init_memory`).

    Returns:
      The loss [] in float32, more metrics by name, and the memory after the step.

    Raises:
      MissingOutput: the model or the batch lacks an array that is needed.
    """
    raise NotImplementedError


def take(tree: Mapping[str, Any], root: str, *path: str) -> Any:
  """Returns `tree[path[0]][path[1]]...`.

  Args:
    tree: nested dicts of arrays.
    root: name of the tree, for the message.
    *path: keys.

  Raises:
    MissingOutput: a key is missing.
  """
  value: Any = tree
  for key in path:
    if not isinstance(value, Mapping) or key not in value:
      raise MissingOutput('.'.join((root, *path)), _beside(tree, root, path[0]))
    value = value[key]
  return value


def _beside(tree: Mapping[str, Any], root: str, first: str) -> list[str]:
  """Returns the paths of the arrays below a key, or the keys if it is missing."""
  if first in tree:
    return sorted(_paths(tree[first], f'{root}.{first}'))
  return [f'{root}.{key}' for key in sorted(tree)]


def _paths(tree: Any, prefix: str) -> Iterator[str]:
  if not isinstance(tree, Mapping):
    yield prefix
    return
  for key, branch in tree.items():
    yield from _paths(branch, f'{prefix}.{key}')
