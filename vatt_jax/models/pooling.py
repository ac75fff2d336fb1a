"""Pooling of feature maps over space and time, and crops of them (STiCA).

STiCA (arXiv 2103.10211) averages a map over space, and pools time by a Transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import config
from vatt_jax.models import attention

_MAX_STEPS = 64    # of a Transformer with positions, as in the released code
_KINDS = ('space_large', 'space_small', 'time_large', 'time_small')    # of `Crops`
_INIT = nn.initializers.normal(0.02)


class Average(nn.Module):
  """Averages over all places.  [B, t, ..., D] -> [B, D]."""

  def __call__(self, x: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """Returns the mean; `start` is not used."""
    del start
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


class Max(nn.Module):
  """Takes the largest of each channel over all places.  [B, t, ..., D] -> [B, D].

  GDT retrieves videos by it (arXiv 2003.04298, appendix A.3).

  Attributes:
    steps: length of windows of time; 0 for the whole map. The result has the largest
      values of all windows and places of space, [B, n * ... * D]. STiCA classifies
      audio with 3 (arXiv 2103.10211, appendix 6.1).
    stride: of the windows; STiCA has 2.
  """
  steps: int = 0
  stride: int = 1

  def __call__(self, x: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """Returns the largest values; `start` is not used."""
    del start
    if not self.steps:
      return jnp.max(x, axis=tuple(range(1, x.ndim - 1)))
    if self.steps > x.shape[1]:
      raise ValueError(f'steps={self.steps}: expected at most {x.shape[1]}, the length '
                       'of the map; set a longer window')
    flat = x.reshape(*x.shape[:2], -1)
    windows = nn.max_pool(flat, (self.steps,), (self.stride,))
    return windows.reshape(len(x), -1)


class TransformerPooling(nn.Module):
  """Applies a Transformer to the steps of time, and returns the output of the first.

  [B, t, ..., D] -> [B, D], after an average over space. The layers normalize after each
  sum.

  Attributes:
    depth: number of layers.
    num_heads: number of attention heads.
    mlp_dim: width of the hidden layer.
    variant: 'paper' adds learned positions to the steps and projects values and
      outputs of the attention. 'release' has neither, as the paper's numbers of
      parameters say (Table 1d), so it cannot tell the order of the later steps.
    dtype: compute type.
  """
  depth: int = 2
  num_heads: int = 4
  mlp_dim: int = 2048
  variant: str = 'paper'
  dtype: Any = jnp.float32

  def __post_init__(self):
    config.choose(config.VARIANTS, self.variant, 'variant')
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """Pools the steps.

    Args:
      x: [B, t, ..., D].
      start: int [B], the place in the clip of the first step of each row.
    """
    x = jnp.mean(x, axis=tuple(range(2, x.ndim - 1)))
    t, d = x.shape[1:]
    if d % self.num_heads:
      raise ValueError(f'num_heads={self.num_heads}: expected a divisor of the width, '
                       f'{d}')
    x = x.astype(self.dtype)
    if self.variant == 'paper':
      if t > _MAX_STEPS:
        raise ValueError(f'{t} steps of time: expected at most {_MAX_STEPS}')
      table = self.param('positions', _INIT, (_MAX_STEPS, d))
      place = jnp.asarray(start)[..., None] + jnp.arange(t)
      x = x + table.astype(self.dtype)[place]
    for number in range(self.depth):
      x = _Block(self.num_heads, self.mlp_dim, self.variant == 'paper', self.dtype,
                 name=f'block_{number}')(x)
    return x[:, 0]


class _Block(nn.Module):
  """Applies a Transformer block that normalizes after each sum."""
  num_heads: int
  mlp_dim: int
  project: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype,
                                            kernel_init=_INIT, name=name)
    norm = lambda y, name: nn.LayerNorm(epsilon=1e-12, name=name)(
        y.astype(jnp.float32)).astype(self.dtype)
    attend = _Attention(self.num_heads, self.project, self.dtype, name='attention')
    x = norm(x + attend(x), 'norm_1')
    y = nn.gelu(dense(self.mlp_dim, 'mlp_1')(x), approximate=False)
    y = dense(x.shape[-1], 'mlp_2')(y)
    return norm(x + y, 'norm_2')


class _Attention(nn.Module):
  """Applies self-attention. Without `project` its values are the inputs themselves."""
  num_heads: int
  project: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    heads = self.num_heads, x.shape[-1] // self.num_heads
    dense = lambda features, name, axis=-1: nn.DenseGeneral(
        features, axis, dtype=self.dtype, kernel_init=_INIT, name=name)
    q, k = dense(heads, 'query')(x), dense(heads, 'key')(x)
    v = dense(heads, 'value')(x) if self.project else x.reshape(*x.shape[:-1], *heads)
    y = attention.attend(q * heads[1] ** -0.5, k, v)
    return (dense(x.shape[-1], 'out', (-2, -1))(y) if self.project else
            y.reshape(x.shape))


# name -> module: (x [B, t, ..., D], start) -> [B, D].
POOLINGS = {'average': Average, 'max': Max, 'transformer': TransformerPooling}


@dataclasses.dataclass(frozen=True)
class Crops:
  """Describes crops of a feature map (STiCA, section 3.2 and appendix 6.1).

  A crop is a box of space over the whole time, or a box of time over the whole space.
  Each attribute has the number of crops and their size in places of the map. A clip's
  key sets the places of its crops.

  Attributes:
    space_large: large crops of space.
    space_small: small crops of space.
    time_large: large crops of time.
    time_small: small crops of time.
    variant: 'paper' crops anywhere. 'release' never reaches the last place if it can
      avoid it, and stretches crops of time to the length of the map before they are
      pooled. (Its crops are the same for all clips of a replica; here each clip has its
      own.)
  """
  space_large: tuple[int, int] = (2, 6)
  space_small: tuple[int, int] = (4, 4)
  time_large: tuple[int, int] = (2, 3)
  time_small: tuple[int, int] = (1, 2)
  variant: str = 'paper'

  def __post_init__(self):
    config.choose(config.VARIANTS, self.variant, 'variant')
    for name in _KINDS:
      count, size = getattr(self, name)
      if count < 0 or size < 1:
        raise ValueError(f'{name}={getattr(self, name)}: expected a number of crops, '
                         'and their size')
    if not self.space_large[0] + self.time_large[0]:
      raise ValueError('space_large, time_large: expected a large crop of one of them')

  @property
  def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the numbers of large and small crops of space, and of time."""
    return ((self.space_large[0], self.space_small[0]),
            (self.time_large[0], self.time_small[0]))

  def starts(self, keys: jax.Array, sides: Sequence[int]) -> dict[str, jax.Array]:
    """Draws the first places of the crops.

    Args:
      keys: [B], random keys of the clips.
      sides: t, h, w of the map.

    Returns:
      Attribute -> int32 [B, n, 2] (row, column) of space, [B, n, 1] of time.

    Raises:
      ValueError: a crop is larger than the map.
    """
    starts = {}
    for number, name in enumerate(_KINDS):
      count, size = getattr(self, name)
      along = np.array(sides[1:] if name.startswith('space') else sides[:1])
      if count and size > along.min():
        raise ValueError(f'{name}={getattr(self, name)}: expected a size of at most '
                         f'{along.min()} places; the map has {tuple(sides)}')
      places = np.maximum(along - size + (self.variant == 'paper'), 1)
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      draw = functools.partial(jax.random.randint, shape=(count, len(along)), minval=0,
                               maxval=places)
      starts[name] = jax.vmap(draw)(own)
    return starts

  def __call__(self, keys: jax.Array, grid: jax.Array, pool: nn.Module) -> jax.Array:
    """Pools the crops.

    Args:
      keys: [B], random keys of the clips.
      grid: [B, t, h, w, D].
      pool: of `POOLINGS`.

    Returns:
      [B, n, D]: large and small crops of space, then large and small crops of time.
    """
    t = grid.shape[1]
    whole, pooled = jnp.mean(grid, axis=(2, 3)), []                  # [B, t, D]
    for name, start in self.starts(keys, grid.shape[1:4]).items():
      count, size = getattr(self, name)
      if not count:
        continue
      if name.startswith('space'):
        crops, begin = _cut_space(grid, start, size), jnp.zeros_like(start[..., 0])
      else:
        crops, begin = _cut_time(whole, start[..., 0], size), start[..., 0]
        if self.variant == 'release':
          crops, begin = adaptive_bins(crops, t), jnp.zeros_like(begin)
      flat = crops.reshape(-1, *crops.shape[2:])                     # [B * n, t, D]
      pooled.append(pool(flat, begin.reshape(-1)).reshape(*crops.shape[:2], -1))
    return jnp.concatenate(pooled, axis=1)


def _cut_space(grid: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """Averages boxes of space.  [B, t, h, w, D], int [B, n, 2] -> [B, n, t, D]."""
  def box(start, length):
    place = jnp.arange(length)
    first = start[..., None]
    return ((place >= first) & (place < first + size)).astype(grid.dtype)

  rows, columns = (box(start[..., i], grid.shape[2 + i]) for i in (0, 1))
  return jnp.einsum('bthwd,bnh,bnw->bntd', grid, rows, columns) / size ** 2


def _cut_time(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """Cuts boxes of time.  [B, t, D], int [B, n] -> [B, n, size, D]."""
  cut = lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, size)
  return jax.vmap(jax.vmap(cut, in_axes=(None, 0)))(x, start)


def adaptive_bins(x: jax.Array, steps: int) -> jax.Array:
  """Averages over `steps` bins of time, which overlap if they are more than the steps.

  [..., t, D] -> [..., steps, D]. Bin o covers floor(o t / steps) to
  ceil((o + 1) t / steps), as in PyTorch's adaptive average pooling.
  """
  t = x.shape[-2]
  number, place = np.arange(steps)[:, None], np.arange(t)
  covered = (place >= number * t // steps) & (place < -(-(number + 1) * t // steps))
  weights = covered / covered.sum(axis=1, keepdims=True)
  return jnp.matmul(jnp.asarray(weights, x.dtype), x,
                    precision=jax.lax.Precision.HIGHEST)
