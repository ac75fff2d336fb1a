"""Interface of models of several modalities."""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.inputs import clip_keys

MODALITIES = ('video', 'audio', 'text')


class MultimodalModel(nn.Module):
  """Computes embeddings, class scores and features of modalities; base of all models.

  A subclass has `encode`, and the fields `modalities` and `head`. The head is None, or
  a module that takes (pooled, present, train, clips) and returns a dict of outputs. A
  subclass keeps rows of absent modalities out of every batch statistic
  (`find_present`). It puts the modality in the name of a modality's module, such as
  `backbones_audio`, so that `modality_of` finds it. The keys of the config's section
  `model` are its fields, or the arguments of its classmethod `from_config`.

  Attributes:
    needs_checkpoint: whether random parameters make no sense (class attribute).
  """
  needs_checkpoint = False

  def __call__(self, batch: Mapping[str, jax.Array], train: bool = False
               ) -> dict[str, Any]:
    """Runs every modality that the batch has.

    Args:
      batch: `video` [B, T, H, W, C] (an image: T = 1) and `audio` [B, S], floats in
        [-1, 1], `text` int [B, K, N], each optional; `has_video`, `has_audio` [B],
        by default all true; in training `key` [B], the random key of each clip
        (`clip_keys.make`).
      train: drop tokens and activations, mask spectrograms, and use the batch's
        statistics. Modules that draw once for the whole batch need the generators
        `drop_token` and `dropout`.

    Returns:
      The outputs of `encode` and of `apply_head`.
    """
    outputs = self.encode(batch, train)
    return outputs | self.apply_head(outputs['pooled'], batch, train)

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False
             ) -> dict[str, Any]:
    """Computes features up to the head, each row independently.

    Args:
      batch: see `__call__`; may be a microbatch.
      train: see `__call__`.

    Returns:
      `tokens[modality]` [B, N, D]; `grid[modality]` [B, t, h, w, D], the space-time map
      of features, unless tokens were dropped; `pooled[modality]` [B, D] (text: with K
      after B); in training `pooled[modality_crops]` [B, n, D] of a modality with crops
      of its map.
    """
    raise NotImplementedError

  def apply_head(self, pooled: Mapping[str, jax.Array], batch: Mapping[str, jax.Array],
                 train: bool = False) -> dict[str, Any]:
    """Computes outputs of the whole batch from pooled features; {} without a head.

    Args:
      pooled: features of `encode`.
      batch: for the rows that are present, and the clips' keys.
      train: see `__call__`.

    Returns:
      Depending on the head: `embed[space][modality]` of unit norm, [B, dim] (text:
      [B, K, dim]), or `logits` [B, classes], by column for two columns of labels or
      more.
    """
    if self.head is None:
      return {}
    clips = clip_keys.numbers(batch['key']) if train else None
    return self.head(pooled, find_present(batch), train, clips)

  def layer_of(self, path: str) -> int:
    """Returns the number of layers between a parameter and the head, for layer decay.

    Args:
      path: of the parameter, such as `backbones_video/block_0/mlp_1/kernel`.
    """
    del path
    return 0

  def num_crops(self) -> dict[str, tuple[tuple[int, int], ...]]:
    """Returns the numbers of large and small crops of each kind, by modality.

    The crops of a kind are adjacent in `pooled[modality_crops]`, large ones first.
    """
    return {}

  def mean_inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a vector [B, D] of the model's input by modality, for figures; or {}."""
    del batch
    return {}

  @property
  def vocabulary_size(self) -> int:
    """Returns the number of ids of text, including padding; 0 for a model without text.
    """
    return 0

  @property
  def title(self) -> str:
    """Returns a name of this kind of model, for figures."""
    return type(self).__name__

  @classmethod
  def fixed_values(cls, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a tower's or head's section that a checkpoint fixes.

    They include the values that a name in the section stands for. A config that starts
    from a checkpoint must have the same ones.
    """
    del section
    return {}

  def check_window(self, window: Any) -> None:
    """Raises UserError if inputs of an `inputs.window.Window` do not fit."""

  def word_tables(self) -> dict[tuple[str, ...], str]:
    """Returns the tables of word vectors that are not trained.

    Returns:
      The path of each table in the variables -> the file that a new run reads it from;
      empty for random vectors.
    """
    return {}

  def adopt(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the variables of another model's checkpoint under this model's names.

    Args:
      variables: collection -> module -> its variables.
    """
    return variables

  def resize(self, path: tuple[str, ...], value: Any, shape: tuple[int, ...]) -> Any:
    """Returns a checkpoint's array in the shape of the model's; None if it cannot.

    Args:
      path: of the variable, such as ('params', 'head', 'kernel').
      value: of the checkpoint.
      shape: of the model's variable, for its inputs.
    """
    del path, value, shape


def find_present(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns masks of the rows that are present and do not only fill the batch.

  Returns:
    `video` and `audio` bool [B], and `text` bool [B, K], False for sentences of padding
    only. A modality without a mask in the batch is left out.
  """
  present = {m: batch[f'has_{m}'] for m in ('video', 'audio') if f'has_{m}' in batch}
  if 'text' in batch:
    present['text'] = jnp.any(batch['text'] != 0, axis=-1)
  return present


def modality_of(path: tuple[Any, ...]) -> str | None:
  """Returns the modality of a variable: the first one in its path.

  Args:
    path: of `jax.tree_util`, such as that of `head/audio_to_video_audio_norm/mean`.
  """
  names = re.split(r'\W|_', '/'.join(
      str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)))
  return next((name for name in names if name in MODALITIES), None)


def keep_absent(new: Any, old: Any, present: Mapping[str, jax.Array]) -> Any:
  """Returns variables after a step, unchanged for modalities that the batch lacks.

  Args:
    new: a model's variables after the step, without the parameters.
    old: the same before the step.
    present: masks of the batch (`find_present`).
  """
  def choose(path, new, old):
    mask = present.get(modality_of(path))
    return new if mask is None or new is old else jnp.where(jnp.any(mask), new, old)
  return jax.tree_util.tree_map_with_path(choose, new, old)
