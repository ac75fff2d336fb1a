"""What comes after the Transformers: common spaces (VATT, section 3.3), classes."""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.models import layers


def unit_norm(x: jax.Array) -> jax.Array:
  """Scales rows to length one, in float32; zero stays zero.  [..., D] -> [..., D]."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


class FacHead(nn.Module):
  """Fine- and coarse-grained spaces: video-audio, and video-text above it.

  video -> (two layers, ReLU between) -> video_audio -> (linear) -> video_text;
  audio -> (linear) -> video_audio; text -> (linear) -> video_text; batch norm
  after every linear layer (equation 3). Rows that are only there to fill the
  batch (no sound, no text) take no part in the batch statistics.

  Attributes:
    video_audio_dim: of the one space.
    video_text_dim: of the other.
    audio_text: embed audio in the video_text space too, by the linear layer that
      takes video there (as in MMV, arXiv 2006.16228, section 3.1).
    release: as the released code has it: batch norm on video's way only, audio's
      and text's linear layers with a bias; a ReLU before video_audio -> video_text.
    norm_momentum: of the moving statistics.
    dtype: compute type of the linear layers.
  """
  video_audio_dim: int = 512
  video_text_dim: int = 256
  audio_text: bool = False
  release: bool = False
  norm_momentum: float = 0.9
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, Any]:
    """Embeds the modalities that are present.

    Args:
      pooled: modality -> [..., D].
      present: modality -> bool [...], False for rows that only fill the batch.
      train: normalise by the batch's statistics, and remember them.
      clips: not used.

    Returns:
      `embed`: space -> modality -> [..., dim] of unit norm.
    """
    del clips

    def norm(x, modality, name):
      mask = present.get(modality)
      if mask is not None:
        # A batch with none of them has no statistics: the fill must do.
        mask = (mask | ~jnp.any(mask))[..., None]
      return nn.BatchNorm(
          use_running_average=not train, momentum=self.norm_momentum, epsilon=1e-5,
          name=f'{name}_norm')(x.astype(jnp.float32), mask=mask)

    def linear(x, dim, modality, name):
      plain = self.release and modality != 'video'
      x = layers.dense(dim, name, self.dtype, use_bias=plain)(x)
      return x if plain else norm(x, modality, name)

    space = {'video_audio': {}, 'video_text': {}}
    coarser = layers.dense(self.video_text_dim, 'video_audio_to_video_text',
                           self.dtype, use_bias=False)
    before = nn.relu if self.release else lambda x: x
    if 'video' in pooled:
      x = linear(pooled['video'], self.video_audio_dim, 'video', 'video_hidden')
      x = linear(nn.relu(x), self.video_audio_dim, 'video', 'video_to_video_audio')
      space['video_audio']['video'] = x
      space['video_text']['video'] = norm(coarser(before(x)), 'video',
                                          'video_audio_to_video_text')
    if 'audio' in pooled:
      x = linear(pooled['audio'], self.video_audio_dim, 'audio', 'audio_to_video_audio')
      space['video_audio']['audio'] = x
      if self.audio_text:
        space['video_text']['audio'] = norm(coarser(before(x)), 'audio',
                                            'audio_in_video_text')
    if 'text' in pooled:
      space['video_text']['text'] = linear(
          pooled['text'], self.video_text_dim, 'text', 'text_to_video_text')
    return dict(embed=jax.tree.map(unit_norm, space))


class Classifier(nn.Module):
  """Dropout and a linear layer on the features of one modality.

  Attributes:
    num_classes: how many.
    dropout_rate: of the features.
    rare: start with scores of -log(C - 1), by sigmoid a share of 1/C for every
      class, as the release does for sound events, which are mostly absent.
    dtype: of the features; the layer itself computes in float32.
  """
  num_classes: int
  dropout_rate: float = 0.0
  rare: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, jax.Array]:
    """Computes class scores before softmax or sigmoid.

    Args:
      pooled: the modality -> [..., D].
      present: not used.
      train: not used.
      clips: for `Dropout` of the features.

    Returns:
      `logits`: [..., num_classes], float32.

    Raises:
      ValueError: more than one modality.
    """
    del present, train
    if len(pooled) != 1:
      raise ValueError(f'a classifier of {", ".join(pooled)}: expected one modality')
    (x,) = pooled.values()
    x = layers.dropout(x.astype(jnp.float32), self.dropout_rate, clips)
    start = -math.log(max(self.num_classes - 1, 1)) if self.rare else 0.0
    return dict(logits=nn.Dense(
        self.num_classes, dtype=jnp.float32, name='logits',
        kernel_init=layers.kernel_init,
        bias_init=nn.initializers.constant(start))(x))
