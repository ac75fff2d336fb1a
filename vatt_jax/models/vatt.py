"""From raw pixels, samples and words to tokens (VATT, section 3.1)."""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax import parts
from vatt_jax.inputs import spectrograms
from vatt_jax.models import axes
from vatt_jax.models import layers
from vatt_jax.models import positions

# Numbers that a TPU computes with at once, along the last side of an array.
_TILE = 128


def patch_order(num_sides: int) -> tuple[int, ...]:
  """How a patch's sides and its channels, which count as one more, run through it.

  Slowest first: the last side, the first ones, channels, the last but one. So on a
  TPU a video is cut in two cheap transpositions; on a CPU it is the quickest too.
  """
  *first, last = range(num_sides)
  return (last, *first[:-1], num_sides, *first[-1:])


def cut_patches(x: jax.Array, patch: Sequence[int], pad: bool = True) -> jax.Array:
  """Cuts a video, a spectrogram or a waveform into patches.

  Tokens run over the sides in order, the last side fastest; what is in them runs as
  `patch_order` says.

  Args:
    x: [B, sides..., C].
    patch: the size of a patch along each side.
    pad: what does not fill a last patch is zero-padded (the paper counts ceil(T/t)
      of them); otherwise it is left out, as in the release.

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
  # Otherwise XLA joins this with the cut of the last side, into one that takes a TPU
  # several times as long.
  x = jax.lax.optimization_barrier(x.reshape(-1, sides[-1], c * math.prod(patch[:-1])))
  return x.reshape(b, *grid, -1)


def keep_tokens(key: jax.Array, batch_size: int, num_tokens: int, num_kept: int,
                part: parts.Part = parts.WHOLE) -> jax.Array:
  """Which tokens DropToken keeps, in order.  -> int [B, num_kept].

  Every example draws its own, uniformly and without replacement. Those of a part of
  a batch draw what they draw in the whole.
  """
  noise = jax.random.uniform(key, (batch_size * part.num_parts, num_tokens))
  order = part.take(noise).argsort(axis=1)
  return jnp.sort(order[:, :num_kept], axis=1)


class PatchProjection(nn.Module):
  """Linear layer on what `cut_patches` gives.  [B, N, P] -> [B, N, D].

  Its kernel is kept as [sides..., D], whatever the order within a patch: so it says
  what patches it is for, and is the one of the convolution that the release makes of
  it.

  Attributes:
    sides: of a patch, and C; their product is P.
    width: D.
    release: start as a convolution, whose fans count every place of a patch.
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
    kernel = axes.gathered(kernel).transpose(*order, -1)
    return layers.product(patches, kernel.reshape(-1, self.width)) + bias


class RawTokenizer(nn.Module):
  """Patches and their positions -> tokens; the base of those for video and audio.

  DropToken comes before the projection: a token that nobody will see is never
  computed.

  Attributes:
    width: D.
    patch: its size along each side.
    drop_token_rate: of DropToken, in training.
    fill_tiles: of what it would keep, keep the nearest number that is, with AGG, a
      multiple of 128: a TPU computes with 785 tokens as with 896.
    release: as the released code has it: patches that are not full are left out;
      the sum of positions is normalised; they stretch by a spline; the examples of
      a batch keep the same tokens, a share of the table's places.
    pre_projection: a linear layer with GELU before the positions come, as in the
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

  def _tokens(self, x: jax.Array, tables: Sequence[str], train: bool,
              part: parts.Part) -> jax.Array:
    """[B, sides..., C] and a name for each side's positions -> [B, N, D]."""
    patches = cut_patches(x, self.patch, pad=not self.release)
    b, *grid, _ = patches.shape
    patches = patches.reshape(b, math.prod(grid), -1)                # [B, N, P*C]
    where, num_places = self._positions(grid, tables)                # [N, D]
    if train and self.drop_token_rate:
      n = patches.shape[1]
      num_kept = (int(num_places * (1 - self.drop_token_rate)) if self.release else
                  n - int(n * self.drop_token_rate))
      if self.fill_tiles:
        num_kept = max(round((num_kept + 1) / _TILE), 1) * _TILE - 1
      rows, part = (1, parts.WHOLE) if self.release else (b, part)
      kept = keep_tokens(self.make_rng('drop_token'), rows, n, min(num_kept, n), part)
      where = where[kept]                                            # [., N', D]
      patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
    x = PatchProjection((*self.patch, x.shape[-1]), self.width, self.release,
                        self.dtype, name='projection')(patches)
    if self.pre_projection:
      x = layers.Projector(self.width, self.dtype, name='pre_projection')(x)
    return layers.dropout(x + where.astype(x.dtype), self.dropout_rate, train)

  def _positions(self, grid: Sequence[int], names: Sequence[str]
                 ) -> tuple[jax.Array, int]:
    """The sum of a position along each side (equation 1), and the tables' places."""
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
  """Linear projection of video patches plus factored positions.

  [B, T, H, W, C] float in [-1, 1] -> tokens [B, N, D] and no mask. An image is a
  video of one frame, which is repeated to fill a patch (section 4.4.3).
  """
  patch: Sequence[int] = (4, 16, 16)

  @nn.compact
  def __call__(self, video: jax.Array, train: bool = False,
               part: parts.Part = parts.WHOLE):
    if video.shape[1] == 1:
      video = jnp.repeat(video, self.patch[0], axis=1)
    names = [f'{side}_positions' for side in ('time', 'vertical', 'horizontal')]
    return self._tokens(video, names, train, part), None


class WaveformTokenizer(RawTokenizer):
  """Linear projection of waveform segments plus positions.

  [B, S] float in [-1, 1] -> tokens [B, N, D] and no mask.
  """
  patch: Sequence[int] = (128,)

  @nn.compact
  def __call__(self, audio: jax.Array, train: bool = False,
               part: parts.Part = parts.WHOLE):
    return self._tokens(audio[..., None], ['positions'], train, part), None


class SpectrogramTokenizer(RawTokenizer):
  """Linear projection of patches of a log-mel spectrogram plus factored positions.

  [B, S] float in [-1, 1] -> tokens [B, N, D] and no mask (VATT, section 4.5.1; the
  patch is the release's).

  Attributes:
    spectrogram: its constants.
    spec_augment: masks of the spectrogram, in training; None for none. They come here,
      for only here there is a spectrogram, and from the generator of DropToken, for
      they too say what the model will not see.
  """
  patch: Sequence[int] = (16, 5)
  spectrogram: spectrograms.Spectrogram = spectrograms.Spectrogram(
      **spectrograms.SPECTROGRAMS['vatt'])
  spec_augment: spectrograms.SpecAugment | None = None

  @nn.compact
  def __call__(self, audio: jax.Array, train: bool = False,
               part: parts.Part = parts.WHOLE):
    x = self.spectrogram(audio)                                      # [B, T, F]
    if train and self.spec_augment:
      x = self.spec_augment(self.make_rng('drop_token'), x, part)
    names = ['time_positions', 'frequency_positions']
    return self._tokens(x[..., None], names, train, part), None


class TextTokenizer(nn.Module):
  """Vectors of word ids.  int [B, N] -> tokens [B, N, D], mask [B, N].

  Id 0 pads. The text tower has no positions but a relative bias; a Transformer
  shared with other modalities has no such bias, so its text gets learnable
  positions.

  Attributes:
    width: D.
    vocabulary_size: of ids.
    max_words: rows of the table of positions; 0 for no positions.
    release: as the released code has it: words are looked up in a frozen table of
      vectors that came from word2vec (of `table_width`, which is then D; the tower
      projects them); where there are positions, a linear layer with GELU brings
      them to `width` first, and the positions are normalised.
    table_width: of the release's table.
    dropout_rate: of tokens with their positions.
    dtype: compute type.
  """
  width: int
  vocabulary_size: int
  max_words: int = 0
  release: bool = False
  table_width: int = 300
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: jax.Array, train: bool = False,
               part: parts.Part = parts.WHOLE):
    del part    # no words are dropped
    x = self._look_up(text)
    if self.max_words:
      table = positions.table(self, 'positions', self.max_words, self.width)
      if self.release:
        x = layers.Projector(self.width, self.dtype, name='pre_projection')(x)
        table = positions.fit(table, 'positions', text.shape[1], release=True)
        table = layers.layer_norm(table, 'position_norm')
      x = x + table[:text.shape[1]].astype(x.dtype)
      x = layers.dropout(x, self.dropout_rate, train)
    return x, text != 0

  def _look_up(self, text: jax.Array) -> jax.Array:
    if not self.release:
      return nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype,
                      embedding_init=layers.table_init, name='embedding')(text)
    shape = (self.vocabulary_size, self.table_width)
    table = self.variable('frozen', 'embedding', lambda: layers.small_init(
        self.make_rng('params'), shape))
    return table.value.astype(self.dtype)[text]
