"""R(2+1)D (arXiv 1711.11248): convolutions in space, then in time."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import convolutions
from vatt_jax.models.convolutions import BatchNorm
from vatt_jax.models.convolutions import Conv
from vatt_jax.models.convolutions import Features


def middle_width(inputs: int, outputs: int) -> int:
  """Returns the channels between space and time: a 3D kernel has as many parameters."""
  return 27 * inputs * outputs // (9 * inputs + 3 * outputs)


class Conv2Plus1D(nn.Module):
  """Convolves in space, and after batch norm and ReLU in time.

  [B, T, H, W, C] -> [B, t, h, w, features].

  Attributes:
    features: number of output channels.
    middle: number of channels in between.
    size: of the kernel in space; 3 in time.
    strides: in time and in space.
    dtype: compute type.
  """
  features: int
  middle: int
  size: int = 3
  strides: tuple[int, int] = (1, 1)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    time, space = self.strides
    conv = lambda features, kernel, strides, name: Conv(
        features, kernel, strides, symmetric=True, dtype=self.dtype, name=name)
    x = conv(self.middle, (1, self.size, self.size), (1, space, space), 'space')(x)
    x = nn.relu(BatchNorm(name='norm')(x, mask, train))
    return conv(self.features, (3, 1, 1), (time, 1, 1), 'time')(x)


class Block(nn.Module):
  """Applies a residual block of two convolutions.  [B, T, H, W, C] -> [..., D].

  Attributes:
    features: D.
    stride: of the first convolution and of the shortcut.
    torchvision: see `R2Plus1D18`.
    dtype: compute type.
  """
  features: int
  stride: int
  torchvision: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    y, d = x, self.features
    for i, stride in enumerate((self.stride, 1), 1):
      middle = middle_width((x if self.torchvision else y).shape[-1], d)
      y = Conv2Plus1D(d, middle, strides=(stride, stride), dtype=self.dtype,
                      name=f'conv_{i}')(y, mask, train)
      y = BatchNorm(name=f'norm_{i}')(y, mask, train)
      y = nn.relu(y) if i == 1 else y
    if self.stride > 1:
      x = Conv(d, (1, 1, 1), self.stride, dtype=self.dtype, name='shortcut')(x)
      x = BatchNorm(name='shortcut_norm')(x, mask, train)
    return logical_axes.split_rows(nn.relu(x + y))


class R2Plus1D18(nn.Module):
  """Computes features of videos by R(2+1)D-18.

  [B, T, H, W, 3] in [-1, 1] -> pooled [B, D], grid [B, t, h, w, D], D = 512 * width.

  Attributes:
    width: factor of all numbers of channels.
    torchvision: both convolutions of a block have the middle width of the first one, as
      in torchvision's network and GDT's; otherwise each has its own, as in its authors'
      code, whose number of parameters MMV reports: 33.3 M with a classifier.
    mean: subtracted from colors in [0, 1]; GDT's code has 0.45.
    std: by which the difference is divided; GDT's code has 0.225.
    remat: one of `layers.REMAT`.
    dtype: compute type.
  """
  width: float = 1
  torchvision: bool = False
  mean: float = 0.0
  std: float = 1.0
  remat: str = 'none'
  dtype: Any = jnp.float32
  num_blocks = (2, 2, 2, 2)    # of each stage; no key of the config

  @nn.compact
  def __call__(self, video: jax.Array, mask: jax.Array | None = None,
               train: bool = False) -> Features:
    base, middle = round(64 * self.width), round(45 * self.width)
    x = convolutions.pixels(video, self.dtype, self.mean, self.std)
    x = Conv2Plus1D(base, middle, 7, (1, 2), self.dtype, name='stem')(x, mask, train)
    x = nn.relu(BatchNorm(name='norm')(x, mask, train))
    block = convolutions.rematerialized(Block, self.remat)
    for stage, count in enumerate(self.num_blocks):
      for i in range(count):
        x = block(base * 2 ** stage, 2 if stage and not i else 1, self.torchvision,
                  self.dtype, name=f'stage_{stage}_block_{i}')(x, mask, train)
    return Features(jnp.mean(x, axis=(1, 2, 3)), x)


class R2Plus1D34(R2Plus1D18):
  """Computes features of videos by R(2+1)D-34; see `R2Plus1D18`."""
  num_blocks = (3, 4, 6, 3)
