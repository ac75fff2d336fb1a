"""Text towers beside the Transformer: a bag of words."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.models import layers
from vatt_jax.models.convolutions import Features


class WordBag(nn.Module):
  """Computes features of sentences from frozen word vectors (MMV, section 3.1).

  int [..., N] -> pooled [..., width]: the largest of each channel over all words, after
  a linear layer and a ReLU. As in the release, padding counts like a word.

  Attributes:
    vocabulary_size: number of ids.
    table_width: width of the vectors.
    width: number of output channels.
    word_vectors: a file of vectors, which a new run starts from
      (`weights.word_vectors`); the module does not read it.
    dtype: compute type.
  """
  vocabulary_size: int = 2 ** 16
  table_width: int = 300
  width: int = 2048
  word_vectors: str = ''
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: jax.Array, mask: jax.Array | None = None,
               train: bool = False) -> Features:
    del mask, train
    shape = (self.vocabulary_size, self.table_width)
    table = self.variable('frozen', 'embedding', lambda: layers.small_init(
        self.make_rng('params'), shape))
    x = table.value.astype(self.dtype)[text]                         # [..., N, 300]
    x = nn.relu(layers.dense(self.width, 'projection', self.dtype)(x))
    return Features(jnp.max(x, axis=-2))
