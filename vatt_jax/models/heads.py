"""Projections to the common spaces (VATT, section 3.3, equation 3)."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def unit_norm(x: jax.Array) -> jax.Array:
  """Scales rows to length one, in float32; zero stays zero.  [..., D] -> [..., D]."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


def keep_absent(new: Mapping[str, Any], old: Mapping[str, Any],
                present: Mapping[str, jax.Array]) -> dict[str, Any]:
  """Batch statistics after a step; of a modality that the batch lacks, the old ones.

  Args:
    new: of the head's norms, by name, which begins with the modality's.
    old: before the step.
    present: modality -> bool [...], as for the head.
  """
  def choose(name):
    there = present.get(name.split('_')[0])
    if there is None:
      return new[name]
    return jax.tree.map(lambda n, o: jnp.where(jnp.any(there), n, o), new[name],
                        old[name])
  return {name: choose(name) for name in new}


class FacHead(nn.Module):
  """Fine- and coarse-grained spaces: video-audio, and video-text above it.

  video -> (two layers, ReLU between) -> video_audio -> (linear) -> video_text;
  audio -> (linear) -> video_audio; text -> (linear) -> video_text; batch norm
  after every linear layer. Rows that are only there to fill the batch (no
  sound, no text) take no part in the batch statistics.
  """
  video_audio_dim: int = 512
  video_text_dim: int = 256
  norm_momentum: float = 0.9
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False
               ) -> dict[str, dict[str, jax.Array]]:
    """Embeds what is there.

    Args:
      pooled: modality -> [..., D].
      present: modality -> bool [...], False for rows that only fill the batch.
      train: normalise by the batch's statistics, and remember them.

    Returns:
      space -> modality -> [..., dim] of unit norm.
    """
    def linear(x, dim, modality, name):
      x = nn.Dense(dim, use_bias=False, dtype=self.dtype, name=name)(x)
      mask = present.get(modality)
      if mask is not None:
        # A batch with none of them has no statistics: the fill must do.
        mask = (mask | ~jnp.any(mask))[..., None]
      return nn.BatchNorm(
          use_running_average=not train, momentum=self.norm_momentum,
          dtype=jnp.float32, name=f'{name}_norm')(x, mask=mask)

    space = {'video_audio': {}, 'video_text': {}}
    if 'video' in pooled:
      x = linear(pooled['video'], self.video_audio_dim, 'video', 'video_hidden')
      x = linear(nn.relu(x), self.video_audio_dim, 'video', 'video_to_video_audio')
      space['video_audio']['video'] = x
      space['video_text']['video'] = linear(
          x, self.video_text_dim, 'video', 'video_audio_to_video_text')
    if 'audio' in pooled:
      space['video_audio']['audio'] = linear(
          pooled['audio'], self.video_audio_dim, 'audio', 'audio_to_video_audio')
    if 'text' in pooled:
      space['video_text']['text'] = linear(
          pooled['text'], self.video_text_dim, 'text', 'text_to_video_text')
    return jax.tree.map(unit_norm, space)
