"""Tokenizers of raw video, audio and text (VATT, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.inputs import clip_keys
from vatt_jax.inputs import spectrograms
from vatt_jax.models import kernels
from vatt_jax.models import layers
from vatt_jax.models import positions

# The number of elements that a TPU processes together along an array's last axis.
_TILE = 128


def patch_order(num_sides: int) -> tuple[int, ...]:
  """Returns the order of a patch's sides in its vector, with channels as one more side.

  From slowest to fastest: the last side, the first ones, channels, the last but one. In
  this order a TPU cuts a video in two cheap transpositions. It is also the fastest
  order on a CPU.
  """
  *first, last = range(num_sides)
  return (last, *first[:-1], num_sides, *first[-1:])


def cut_patches(x: jax.Array, patch: Sequence[int], pad: bool = True) -> jax.Array:
  """Cuts a video, a spectrogram or a waveform into patches.

  Patches follow the sides in order, the last side fastest. The elements of a patch are
  in the order of `patch_order`.

  Args:
    x: [B, sides..., C].
    patch: the size of a patch along each side.
    pad: zero-pad a last patch that is not full (the paper counts ceil(T/t) patches);
      otherwise it is left out, as in the release.

  Returns:
    [B, patches along each side..., product of the patch's sides * C].
  """
  b, *sides, c = x.shape
  if pad:
    x = jnp.pad(x, [(0, 0), *((0, -side % p)
                              for side, p in zip(sides, patch, strict=True)), (0, 0)])
  grid = [size // p for size, p in zip(x.shape[1:-1], patch, strict=True)]
  sides = [n * p for n, p in zip(grid, patch, strict=True)]
  x = x[:, *(slice(side) for side in sides)]
  n = len(grid)
  split = [size for pair in zip(grid[:-1], patch[:-1], strict=True) for size in pair]
  x = x.reshape(b, *split, sides[-1], c)         # [B, n, p, ..., last side, C]
  inner = [2 + 2 * i for i in range(n - 1)]
  x = x.transpose(0, *(1 + 2 * i for i in range(n - 1)), 2 * n - 1, *inner[:-1], 2 * n,
                  *inner[-1:])
  # Without it XLA would merge this transposition with the cut of the last side. The
  # merged one takes a TPU several times as long.
  x = jax.lax.optimization_barrier(x.reshape(-1, sides[-1], c * math.prod(patch[:-1])))
  return x.reshape(b, *grid, -1)


def keep_tokens(keys: jax.Array, num_tokens: int, num_kept: int) -> jax.Array:
  """Draws the tokens that DropToken keeps, in order.  key [B] -> int [B, num_kept].

  Each clip has its own draw, uniform and without replacement.
  """
  noise = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
  return jnp.sort(noise.argsort(axis=1)[:, :num_kept], axis=1)


class Tokens(NamedTuple):
  """Holds the tokens of a modality.

  Attributes:
    x: [B, N, D].
    mask: bool [B, N], False for padding; None for no padding.
    grid: sizes (t, h, w) of the space-time grid, with the product N; None if tokens
      were dropped, and for text.
  """
  x: jax.Array
  mask: jax.Array | None = None
  grid: tuple[int, int, int] | None = None


class PatchProjection(nn.Module):
  """Projects the patches of `cut_patches` linearly.  [B, N, P] -> [B, N, D].

  The kernel has the shape [sides..., D] for any order within a patch. The shape tells
  the size of patches, and is that of the convolution in the release.

  Attributes:
    sides: sizes of a patch, and C; their product is P.
    width: D.
    release: initialize as a convolution, whose fans count every place of a patch.
    dtype: compute type.
  """
  sides: Sequence[int]
  width: int
  release: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, patches: jax.Array) -> jax.Array:
    def init(key, shape):
      start = shape if self.release else (math.prod(self.sides), self.width)
      return layers.kernel_init(key, start).reshape(shape)

    kernel = self.param('kernel', init, (*self.sides, self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    patches, kernel, bias = (x.astype(self.dtype) for x in (patches, kernel, bias))
    order = patch_order(len(self.sides) - 1)
    kernel = logical_axes.gathered(kernel).transpose(*order, -1)
    return kernels.product(patches, kernel.reshape(-1, self.width)) + bias


class RawTokenizer(nn.Module):
  """Computes tokens from patches and positions; base of video and audio tokenizers.

  DropToken comes before the projection, so that dropped tokens are never computed.

  Attributes:
    width: D.
    patch: its size along each side.
    drop_token_rate: of DropToken, in training.
    fill_tiles: round the number of kept tokens, including AGG, to a multiple of 128: a
      TPU takes as long for 785 tokens as for 896.
    release: follow the released code: patches that are not full are left out; the sum
      of positions is normalized; positions are resized by a spline; all examples of a
      batch keep the same tokens, whose number is a fraction of the table's positions.
    pre_projection: apply a linear layer with GELU before adding positions, as in the
      release's modality-agnostic model.
    dropout_rate: of tokens with their positions.
    dtype: compute type.
  """
  width: int
  patch: Sequence[int]
  drop_token_rate: float = 0.0
  fill_tiles: bool = False
  release: bool = False
  pre_projection: bool = False
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  def __post_init__(self):
    if not 0 <= self.drop_token_rate < 1:
      raise ValueError(f'drop_token_rate={self.drop_token_rate}: expected 0 or more, '
                       'less than 1')
    super().__post_init__()

  def _tokens(self, x: jax.Array, tables: Sequence[str], keys: jax.Array | None,
              modality: str) -> Tokens:
    """Computes the tokens of a modality.

    Args:
      x: [B, sides..., C].
      tables: the name of each side's table of positions.
      keys: the clips' keys, in training; None drops nothing.
      modality: 'video' or 'audio', whose draws are independent.
    """
    patches = cut_patches(x, self.patch, pad=not self.release)
    b, *grid, _ = patches.shape
    patches = patches.reshape(b, math.prod(grid), -1)                # [B, N, P*C]
    where, num_places = self._positions(grid, tables)                # [N, D]
    sizes = (*grid, 1, 1)[:3]
    if keys is not None and self.drop_token_rate:
      sizes = None
      n = patches.shape[1]
      num_kept = (int(num_places * (1 - self.drop_token_rate)) if self.release else
                  n - int(n * self.drop_token_rate))
      if self.fill_tiles:
        num_kept = max(round((num_kept + 1) / _TILE), 1) * _TILE - 1
      drop_keys = (self.make_rng('drop_token')[None] if self.release else
                   clip_keys.derive(keys, f'drop_token_{modality}'))
      kept = keep_tokens(drop_keys, n, min(num_kept, n))
      where = where[kept]                                            # [., N', D]
      patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
    x = PatchProjection((*self.patch, x.shape[-1]), self.width, self.release,
                        self.dtype, name='projection')(patches)
    if self.pre_projection:
      x = layers.Projector(self.width, self.dtype, name='pre_projection')(x)
    clips = None if keys is None else clip_keys.numbers(keys)
    x = layers.dropout(x + where.astype(x.dtype), self.dropout_rate, clips)
    return Tokens(x, grid=sizes)

  def _positions(self, grid: Sequence[int], names: Sequence[str]
                 ) -> tuple[jax.Array, int]:
    """Returns the sum of positions of all sides (equation 1), and the table's size.

    The size is the product of the tables' numbers of positions.
    """
    total, num_places = jnp.zeros((), jnp.float32), 1
    for side, (name, size) in enumerate(zip(names, grid, strict=True)):
      table = positions.table(self, name, size, self.width)
      num_places *= len(table)
      table = positions.fit(table, name, size, self.release)
      shape = [1] * len(grid)
      shape[side] = size
      total = total + table.reshape(*shape, self.width)
    total = total.reshape(-1, self.width)
    if self.release:
      total = layers.layer_norm(total, 'position_norm')
    return total, num_places


class VideoTokenizer(RawTokenizer):
  """Projects video patches linearly and adds factored positions.

  [B, T, H, W, C] float in [-1, 1] -> tokens [B, N, D] and no mask. An image is a
  video of one frame, which is repeated to fill a patch (section 4.4.3).
  """
  patch: Sequence[int] = (4, 16, 16)

  @nn.compact
  def __call__(self, video: jax.Array, keys: jax.Array | None = None) -> Tokens:
    if video.shape[1] == 1:
      video = jnp.repeat(video, self.patch[0], axis=1)
    names = [f'{side}_positions' for side in ('time', 'vertical', 'horizontal')]
    return self._tokens(video, names, keys, 'video')


class WaveformTokenizer(RawTokenizer):
  """Projects waveform segments linearly and adds positions.

  [B, S] float in [-1, 1] -> tokens [B, N, D] and no mask.
  """
  patch: Sequence[int] = (128,)

  @nn.compact
  def __call__(self, audio: jax.Array, keys: jax.Array | None = None) -> Tokens:
    return self._tokens(audio[..., None], ['positions'], keys, 'audio')


class SpectrogramTokenizer(RawTokenizer):
  """Projects patches of a log-mel spectrogram linearly and adds factored positions.

  [B, S] float in [-1, 1] -> tokens [B, N, D] and no mask (VATT, section 4.5.1; the
  patch is the release's).

  Attributes:
    spectrogram: computes the spectrogram from its constants.
    spec_augment: masks of the spectrogram, in training; None for no masks. They are
      applied here, since no earlier step has a spectrogram. They are drawn from the
      clips' keys, like DropToken.
  """
  patch: Sequence[int] = (16, 5)
  spectrogram: spectrograms.Spectrogram = spectrograms.Spectrogram(
      **spectrograms.SPECTROGRAMS['vatt'])
  spec_augment: spectrograms.SpecAugment | None = None

  @nn.compact
  def __call__(self, audio: jax.Array, keys: jax.Array | None = None) -> Tokens:
    x = self.spectrogram(audio)                                      # [B, T, F]
    if keys is not None and self.spec_augment:
      x = self.spec_augment(clip_keys.derive(keys, 'spec_augment'), x)
    names = ['time_positions', 'frequency_positions']
    return self._tokens(x[..., None], names, keys, 'audio')


class TextTokenizer(nn.Module):
  """Looks up the vectors of token ids.  int [B, N] -> tokens [B, N, D], mask [B, N].

  Id 0 is padding. The text tower has a relative bias instead of positions. A
  Transformer shared with other modalities has no such bias, so its text gets learnable
  positions.

  Attributes:
    width: D.
    vocabulary_size: number of ids.
    max_tokens: rows of the table of positions; 0 for no positions.
    release: follow the released code: vectors come from a frozen word2vec table of
      `table_width`, which is then D, and the tower projects them. With positions, a
      linear layer with GELU first projects them to `width`, and the positions are
      normalized.
    table_width: width of the release's table.
    word_vectors: the file that the release's table of a new run starts from, read where
      the run starts (`weights.word_vectors`).
    dropout_rate: of tokens with their positions.
    dtype: compute type.
  """
  width: int
  vocabulary_size: int
  max_tokens: int = 0
  release: bool = False
  table_width: int = 300
  word_vectors: str = ''
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  def __post_init__(self):
    if self.word_vectors and not self.release:
      raise ValueError(f"word_vectors={self.word_vectors!r}: only variant='release' "
                       'has a table of frozen vectors; remove the key')
    super().__post_init__()

  @nn.compact
  def __call__(self, text: jax.Array, clips: jax.Array | None = None) -> Tokens:
    x = self._look_up(text)
    if self.max_tokens:
      table = positions.table(self, 'positions', self.max_tokens, self.width)
      if self.release:
        x = layers.Projector(self.width, self.dtype, name='pre_projection')(x)
        table = positions.fit(table, 'positions', text.shape[1], release=True)
        table = layers.layer_norm(table, 'position_norm')
      x = x + table[:text.shape[1]].astype(x.dtype)
      x = layers.dropout(x, self.dropout_rate, clips)
    return Tokens(x, text != 0)

  def _look_up(self, text: jax.Array) -> jax.Array:
    if not self.release:
      return nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype,
                      embedding_init=layers.table_init, name='embedding')(text)
    shape = (self.vocabulary_size, self.table_width)
    table = self.variable('frozen', 'embedding', lambda: layers.small_init(
        self.make_rng('params'), shape))
    return table.value.astype(self.dtype)[text]
