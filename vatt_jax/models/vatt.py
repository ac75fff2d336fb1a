"""From raw pixels, samples and words to tokens (VATT, section 3.1)."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

_position_init = nn.initializers.normal(0.02)


def video_patches(video: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
  """Cuts a video into patches.  [B, T, H, W, C] -> [B, N, t*h*w*C].

  Tokens run over time, height and width, width fastest. What does not fill a
  last patch is zero-padded: the paper counts ceil(T/t) of them.
  """
  b, *sides, c = video.shape
  padding = [(0, -side % p) for side, p in zip(sides, patch, strict=True)]
  video = jnp.pad(video, [(0, 0), *padding, (0, 0)])
  t, h, w = (-(-side // p) for side, p in zip(sides, patch, strict=True))
  x = video.reshape(b, t, patch[0], h, patch[1], w, patch[2], c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)          # [B, t, h, w, pt, ph, pw, C]
  return x.reshape(b, t * h * w, -1)


def audio_patches(audio: jax.Array, patch: int) -> jax.Array:
  """Cuts a waveform into segments, the last zero-padded.  [B, S] -> [B, N, patch]."""
  b, s = audio.shape
  audio = jnp.pad(audio, [(0, 0), (0, -s % patch)])
  return audio.reshape(b, -1, patch)


def keep_tokens(key: jax.Array, batch_size: int, num_tokens: int,
                drop_rate: float) -> jax.Array:
  """Which tokens DropToken keeps, in order.  -> int [B, N * (1 - drop_rate)].

  Every example draws its own, uniformly and without replacement.
  """
  num_kept = num_tokens - int(num_tokens * drop_rate)
  order = jax.random.uniform(key, (batch_size, num_tokens)).argsort(axis=1)
  return jnp.sort(order[:, :num_kept], axis=1)


class _RawTokenizer(nn.Module):
  """Patches and their positions -> tokens, DropToken between the two.

  Dropping comes before the projection: a token that nobody will see is never
  computed.
  """
  width: int
  drop_token_rate: float = 0.0
  dtype: Any = jnp.float32

  def _tokens(self, patches: jax.Array, positions: jax.Array, train: bool):
    """[B, N, P], [N, D] -> [B, N', D]."""
    b, n, _ = patches.shape
    if train and self.drop_token_rate:
      kept = keep_tokens(self.make_rng('drop_token'), b, n, self.drop_token_rate)
      patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
      positions = positions[kept]                                  # [B, N', D]
    x = nn.Dense(self.width, dtype=self.dtype, name='projection')(patches)
    return x + positions.astype(x.dtype)


class VideoTokenizer(_RawTokenizer):
  """Linear projection of video patches plus factored positions (equation 1).

  [B, T, H, W, C] float in [-1, 1] -> tokens [B, N, D] and no mask.
  """
  patch: tuple[int, int, int] = (4, 16, 16)

  @nn.compact
  def __call__(self, video: jax.Array, train: bool = False):
    grid = [-(-side // p)
            for side, p in zip(video.shape[1:4], self.patch, strict=True)]
    time, vertical, horizontal = (
        self.param(f'{name}_positions', _position_init, (size, self.width))
        for name, size in zip(('time', 'vertical', 'horizontal'), grid, strict=True))
    positions = (time[:, None, None] + vertical[None, :, None]
                 + horizontal[None, None, :]).reshape(-1, self.width)
    return self._tokens(video_patches(video, self.patch), positions, train), None


class AudioTokenizer(_RawTokenizer):
  """Linear projection of waveform segments plus positions.

  [B, S] float in [-1, 1] -> tokens [B, N, D] and no mask.
  """
  patch: int = 128

  @nn.compact
  def __call__(self, audio: jax.Array, train: bool = False):
    patches = audio_patches(audio, self.patch)
    positions = self.param('positions', _position_init,
                           (patches.shape[1], self.width))
    return self._tokens(patches, positions, train), None


class TextTokenizer(nn.Module):
  """Embedding of word ids.  int [B, N] -> tokens [B, N, D], mask [B, N].

  Id 0 pads. The text tower has no positions but a relative bias; a Transformer
  shared with other modalities has no such bias, so its text gets learnable
  positions (`max_words` of them).
  """
  width: int
  vocabulary_size: int
  max_words: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: jax.Array, train: bool = False):
    del train  # text is short: nothing is dropped
    x = nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype,
                 name='embedding')(text)
    if self.max_words:
      positions = self.param('positions', _position_init,
                             (self.max_words, self.width))
      x = x + positions[:text.shape[1]].astype(x.dtype)
    return x, text != 0
