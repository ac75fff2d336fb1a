"""VATT: a tokenizer for each modality, one Transformer each or one for all, a head."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax import parts
from vatt_jax.models import axes
from vatt_jax.models import heads
from vatt_jax.models import layers

MODALITIES = ('video', 'audio', 'text')


class Vatt(nn.Module):
  """Video, audio and text in, embeddings in common spaces or class scores out.

  Attributes:
    tokenizers: modality -> module, raw input -> (tokens, mask); a tower alone has
      but one.
    backbones: modality -> Transformer, or for text `layers.WordMean`, or 'shared' ->
      the one Transformer of the modality-agnostic model.
    projectors: modality -> module, what the release's modality-agnostic model
      applies to the Transformer's output; none otherwise.
    head: pooled features -> embeddings, or class scores; None for neither.
  """
  tokenizers: Mapping[str, nn.Module]
  backbones: Mapping[str, nn.Module]
  projectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  head: nn.Module | None = None

  def setup(self):
    self.aggregators = {m: layers.Aggregator() for m in self.tokenizers}

  def __call__(self, batch: Mapping[str, jax.Array], train: bool = False
               ) -> dict[str, Any]:
    """Runs every modality that the batch has.

    Args:
      batch: `video` [B, T, H, W, C] (an image: T = 1) and `audio` [B, S], floats in
        [-1, 1], `text` int [B, K, N], each optional; `has_audio` [B], where absent
        all true.
      train: drop tokens and mask spectrograms (needs the `drop_token` generator),
        drop activations (needs `dropout`), use the batch's statistics in the head.

    Returns:
      `tokens[modality]` [B, N, D], `pooled[modality]` [B, D] (text: [B, K, D]), and
      by the head `embed[space][modality]` of unit norm, [B, dim] (text: [B, K,
      dim]), or `logits` [B, classes].
    """
    tokens, pooled = self.encode(batch, train)
    return dict(tokens=tokens, pooled=pooled) | self.conclude(pooled, batch, train)

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False,
             part: parts.Part = parts.WHOLE
             ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The first half of a call, up to the head: `tokens` and `pooled`.

    Args:
      batch: as for a call, or the rows of a part of one.
      train: as for a call.
      part: which rows these are; what is drawn for them is as in the whole batch,
        but for the dropout of activations.
    """
    tokens, pooled = {}, {}
    for modality, lead, x, mask in self._tokenized(batch, train, part):
      tower = self._backbone(modality)
      if not isinstance(tower, layers.WordMean):
        x = self.aggregators[modality](x)
        if mask is not None:
          mask = jnp.pad(mask, [(0, 0), (1, 0)], constant_values=True)  # AGG is seen
      x = tower(x, mask, train)
      if modality in self.projectors:
        x = self.projectors[modality](x)
      x = x.reshape(*lead, *x.shape[1:])
      pooled[modality], tokens[modality] = x[..., 0, :], x[..., 1:, :]
    return tokens, pooled

  def conclude(self, pooled: Mapping[str, jax.Array], batch: Mapping[str, jax.Array],
               train: bool = False) -> dict[str, Any]:
    """The second half of a call: what the head makes of `pooled`; {} without one.

    Of the batch only what says which rows are there is used (`find_present`).
    """
    if self.head is None:
      return {}
    name = 'logits' if isinstance(self.head, heads.Classifier) else 'embed'
    return {name: self.head(pooled, find_present(batch), train)}

  def mean_inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean of the tokens that enter the Transformer (VATT, section 4.4.6).

    Args:
      batch: as for a call.

    Returns:
      modality -> [B, D] (text: [B, K, D], of words that are no padding).
    """
    means = {}
    for modality, lead, x, mask in self._tokenized(batch):
      there = jnp.ones(x.shape[:2], bool) if mask is None else mask    # [B, N]
      total = jnp.einsum('bnd,bn->bd', x, there.astype(x.dtype))
      mean = total / jnp.maximum(there.sum(axis=1), 1)[:, None].astype(x.dtype)
      means[modality] = mean.reshape(*lead, -1)
    return means

  def _tokenized(self, batch, train=False, part=parts.WHOLE):
    """Of every modality that is there: name, lead ([B] or [B, K]), tokens, mask."""
    for modality in MODALITIES:
      if modality not in batch or modality not in self.tokenizers:
        continue
      x = batch[modality]
      lead = x.shape[:-1] if modality == 'text' else x.shape[:1]
      if modality == 'text':
        x = x.reshape(-1, x.shape[-1])                                # [B*K, N]
      tokens, mask = self.tokenizers[modality](x, train, part)
      yield modality, lead, axes.split_rows(tokens), mask

  def _backbone(self, modality: str) -> nn.Module:
    return self.backbones['shared' if 'shared' in self.backbones else modality]


def find_present(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """What is there and does not only fill the batch.

  Returns:
    `video` and `audio` bool [B], and `text` bool [B, K], sentences that are more than
    padding; a modality of which nothing is known is left out.
  """
  present = {m: batch[f'has_{m}'] for m in ('video', 'audio') if f'has_{m}' in batch}
  if 'text' in batch:
    present['text'] = jnp.any(batch['text'] != 0, axis=-1)
  return present
