"""S3D-G (arXiv 1712.04851): Inception for videos, separable and with gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import convolutions
from vatt_jax.models import layers
from vatt_jax.models.convolutions import BatchNorm
from vatt_jax.models.convolutions import Conv
from vatt_jax.models.convolutions import Features
from vatt_jax.models.convolutions import max_pool

# Numbers of channels of the branches of `Mixed`, and pools (window, strides) between.
_LAYERS = {
    'mixed_3b': (64, 96, 128, 16, 32, 32), 'mixed_3c': (128, 128, 192, 32, 96, 64),
    'pool_4a': ((3, 3, 3), (2, 2, 2)),
    'mixed_4b': (192, 96, 208, 16, 48, 64), 'mixed_4c': (160, 112, 224, 24, 64, 64),
    'mixed_4d': (128, 128, 256, 24, 64, 64), 'mixed_4e': (112, 144, 288, 32, 64, 64),
    'mixed_4f': (256, 160, 320, 32, 128, 128),
    'pool_5a': ((2, 2, 2), (2, 2, 2)),
    'mixed_5b': (256, 160, 320, 32, 128, 128),
    'mixed_5c': (384, 192, 384, 48, 128, 128)}


def space_to_depth(x: jax.Array, block: Sequence[int]) -> jax.Array:
  """Moves the pixels of each block into channels.

  [B, T, H, W, C] -> [B, T / b, H / b, W / b, b * b * b * C]; the block's last side and
  then C are the fastest.
  """
  b, *sides, c = x.shape
  grid = [side // size for side, size in zip(sides, block, strict=True)]
  x = x.reshape(b, *(n for pair in zip(grid, block, strict=True) for n in pair), c)
  return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, *grid, -1)


class Stem(nn.Module):
  """Applies the first convolution, of size 4 x 8 x 8 and stride 2.

  [B, T, H, W, C] -> [B, T / 2, H / 2, W / 2, features]. It is computed on blocks of
  2 x 2 x 2 pixels, as a convolution of size 2 x 4 x 4 and stride 1. Odd sides are
  filled up by a copy of their last place.

  Attributes:
    features: number of output channels.
    still: see `S3DG`.
    dtype: compute type.
  """
  features: int
  still: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', nn.initializers.lecun_normal(),
                        (4, 8, 8, x.shape[-1], self.features))
    block = (2, 2, 2)
    if self.still:
      kernel, block = jnp.sum(kernel, axis=0, keepdims=True), (1, 2, 2)
    x = jnp.pad(x, [(0, 0), *((0, -side % size) for side, size in zip(
        x.shape[1:-1], block, strict=True)), (0, 0)], mode='edge')
    kernel = logical_axes.gathered(kernel.astype(self.dtype))
    kernel = jnp.moveaxis(space_to_depth(jnp.moveaxis(kernel, -1, 0), block), 0, -1)
    return convolutions.convolve(space_to_depth(x, block), kernel, (1, 1, 1))


class Unit(nn.Module):
  """Applies a convolution, batch norm and ReLU, and optionally a gate.

  [B, T, H, W, C] -> [B, T, H, W, features]. A convolution of size 3 is one in space
  and one in time, each with batch norm and ReLU.

  Attributes:
    features: number of output channels.
    size: of the kernel, 1 or 3.
    gate: multiply each channel by a number from 0 to 1, which is computed from the mean
      of all channels.
    still: see `S3DG`.
    dtype: compute type.
  """
  features: int
  size: int
  gate: bool
  still: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    n = self.size
    for i, kernel in enumerate([(1, n, n), (n, 1, 1)][:1 if n == 1 else 2], 1):
      x = Conv(self.features, kernel, sum_time=self.still, dtype=self.dtype,
               name=f'conv_{i}')(x)
      x = nn.relu(BatchNorm(name=f'norm_{i}')(x, mask, train))
    if self.gate:
      mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
      x = x * nn.sigmoid(layers.dense(self.features, 'gate', self.dtype)(mean))
    return x


class Mixed(nn.Module):
  """Applies four branches and joins their channels.  [B, T, H, W, C] -> [..., D].

  Attributes:
    features: numbers of channels: of the branch of size 1; before and after the first
      convolution of size 3; the same of the second; after the pool.
    still: see `S3DG`.
    dtype: compute type.
  """
  features: Sequence[int]
  still: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    def unit(x, features, size, gate, name):
      return Unit(features, size, gate, self.still, self.dtype, name=name)(
          x, mask, train)

    a, b_1, b_2, c_1, c_2, d = self.features
    pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
    return jnp.concatenate([
        unit(x, a, 1, True, 'branch_0'),
        unit(unit(x, b_1, 1, False, 'branch_1_reduced'), b_2, 3, True, 'branch_1'),
        unit(unit(x, c_1, 1, False, 'branch_2_reduced'), c_2, 3, True, 'branch_2'),
        unit(pooled, d, 1, True, 'branch_3')], axis=-1)


class S3DG(nn.Module):
  """Computes features of videos by S3D-G.

  [B, T, H, W, 3] in [-1, 1] -> pooled [B, D], grid [B, t, h, w, D], D = 1024 * width.

  Attributes:
    width: factor of all numbers of channels.
    still: deflate the network for images: kernels are summed over time (MMV, section
      3.2), so that an image has the features of a video that does not change, except
      for the zeros around a video.
    remat: one of `layers.REMAT`.
    dtype: compute type.
  """
  width: float = 1
  still: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, video: jax.Array, mask: jax.Array | None = None,
               train: bool = False) -> Features:
    scaled = lambda features: max(round(features * self.width), 1)
    style = dict(still=self.still, dtype=self.dtype)
    unit, mixed = (convolutions.rematerialized(x, self.remat) for x in (Unit, Mixed))
    x = convolutions.pixels(video, self.dtype)
    x = Stem(scaled(64), **style, name='conv_1a')(x)
    x = nn.relu(BatchNorm(name='norm_1a')(x, mask, train))
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(scaled(64), 1, False, **style, name='conv_2b')(x, mask, train)
    x = unit(scaled(192), 3, True, **style, name='conv_2c')(x, mask, train)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    for name, layer in _LAYERS.items():
      if name.startswith('pool'):
        x = max_pool(x, *layer)
      else:
        x = mixed(tuple(map(scaled, layer)), **style, name=name)(x, mask, train)
        x = logical_axes.split_rows(x)
    return Features(jnp.mean(x, axis=(1, 2, 3)), x)
