"""Layers of convolutional networks: convolution, batch norm and pooling."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import layers


class Features(NamedTuple):
  """Holds the features of a modality; see `multimodal.MultimodalModel.encode`.

  Attributes:
    pooled: [B, D], or for text [B, K, D].
    grid: [B, t, h, w, D]; None for text.
  """
  pooled: jax.Array
  grid: jax.Array | None = None


class Conv(nn.Module):
  """Convolves without a bias.  [B, sides..., C] -> [B, sides..., features].

  Attributes:
    features: number of output channels.
    kernel: size along each side: (T, H, W), or (H, W).
    strides: along each side.
    symmetric: pad half a kernel on either side, as PyTorch does. Otherwise pad as
      TensorFlow does, which at stride 2 pads the end by one more than the start.
    sum_time: sum the kernel over time, for a video that does not change.
    dtype: compute type.
  """
  features: int
  kernel: Sequence[int]
  strides: Sequence[int] | int = 1
  symmetric: bool = False
  sum_time: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', nn.initializers.lecun_normal(),
                        (*self.kernel, x.shape[-1], self.features))
    if self.sum_time:
      kernel = jnp.sum(kernel, axis=0, keepdims=True)
    strides = self.strides
    if isinstance(strides, int):
      strides = (strides,) * len(self.kernel)
    kernel = logical_axes.gathered(kernel.astype(self.dtype))
    return convolve(x.astype(self.dtype), kernel, strides, self.symmetric)


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int],
             symmetric: bool = False) -> jax.Array:
  """Convolves in the cheapest form.  [B, sides..., C] -> [B, sides..., features].

  A kernel of one place is a matrix. A kernel of one frame, or of one pixel, needs only
  two sides. XLA has fast code for them on a CPU, unlike for three sides.

  Args:
    x: [B, sides..., C].
    kernel: [sides..., C, features].
    strides: along each side.
    symmetric: see `Conv`.
  """
  *sides, c, features = kernel.shape
  single = [size == 1 for size in sides]
  x = x[:, *(slice(None, None, s if one else 1)
             for s, one in zip(strides, single, strict=True))]
  if all(single):
    return x @ kernel.reshape(c, features)
  strides = [1 if one else s for s, one in zip(strides, single, strict=True)]
  b, *rest, _ = x.shape
  if len(sides) == 3 and single[0]:
    y = convolve(x.reshape(-1, *rest[1:], c), kernel[0], strides[1:], symmetric)
    return y.reshape(b, rest[0], *y.shape[1:])
  if len(sides) == 3 and single[1] and single[2]:
    y = convolve(x.reshape(b, rest[0], -1, c), kernel[:, 0], strides[:2], symmetric)
    return y.reshape(b, -1, *rest[1:], features)
  letters = 'DHW'[-len(sides):]
  padding = [(size // 2, size // 2) for size in sides] if symmetric else 'SAME'
  return jax.lax.conv_general_dilated(
      x, kernel, strides, padding,
      dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'))


class BatchNorm(nn.BatchNorm):
  """Applies batch norm in float32, and returns the input's type.

  [..., C] -> [..., C]. In a step on a mesh the statistics are those of the whole batch.
  """
  momentum: float = 0.9

  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    """Normalizes by the batch's statistics in training, else by the moving ones.

    Args:
      x: [..., C].
      mask: bool of the first axes of x, False for rows that are left out of the
        statistics; None for no such rows. If it leaves out all rows, all count.
      train: see above; also updates the moving statistics.
    """
    if mask is not None:
      mask = (mask | ~jnp.any(mask)).reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
    return super().__call__(x.astype(jnp.float32), not train, mask=mask).astype(x.dtype)


def max_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int],
             symmetric: bool = False) -> jax.Array:
  """Takes the largest of each window.  [B, sides..., C] -> [B, sides..., C].

  One side after the other, by comparing shifted arrays: on a CPU, value and gradient
  take half of the time of XLA's pooling or less. Of equal values, the first gets the
  gradient.

  Args:
    x: [B, sides..., C].
    window: size along each side.
    strides: along each side.
    symmetric: see `Conv`.
  """
  for axis, (size, stride) in enumerate(zip(window, strides, strict=True), 1):
    if symmetric:
      before = after = size // 2
      count = (x.shape[axis] + 2 * before - size) // stride + 1
    else:
      count = -(-x.shape[axis] // stride)
      missing = max((count - 1) * stride + size - x.shape[axis], 0)
      before, after = missing // 2, missing - missing // 2
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, after, 0)
    padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    shifted = (jax.lax.slice_in_dim(padded, i, i + (count - 1) * stride + 1, stride,
                                    axis) for i in range(size))
    x = functools.reduce(lambda a, b: jnp.where(a >= b, a, b), shifted)
  return x


def pixels(video: jax.Array, dtype: Any, mean: float = 0.0, std: float = 1.0
           ) -> jax.Array:
  """Maps colors from [-1, 1] to [0, 1], the range of released networks.

  Then subtracts `mean` and divides by `std`.
  """
  return (((video + 1) / 2 - mean) / std).astype(dtype)


def rematerialized(block: type[nn.Module], remat: str) -> type[nn.Module]:
  """Returns a block of arguments (x, mask, train), recomputed as in `layers.REMAT`."""
  if remat == 'none':
    return block
  return nn.remat(block, static_argnums=(3,), policy=layers.REMAT[remat])
