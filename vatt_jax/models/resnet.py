"""ResNets: MMV's for videos with a temporal shift and for audio, GDT's for audio.

MMV's release (arXiv 2006.16228) has version 2 of ResNet-50, whose norms come before the
convolutions (arXiv 1603.05027). GDT and STiCA (arXiv 2003.04298, 2103.10211) have
version 1 of ResNet-9 and ResNet-18, whose norms come after them.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.inputs import clip_keys
from vatt_jax.inputs import spectrograms
from vatt_jax.models import convolutions
from vatt_jax.models.convolutions import BatchNorm
from vatt_jax.models.convolutions import Conv
from vatt_jax.models.convolutions import Features

_NUM_BLOCKS = (3, 4, 6, 3)    # of each unit
_SHIFTED = 8    # one of 8 channels moves in either direction


def shift(x: jax.Array, num_frames: int, still: bool = False) -> jax.Array:
  """Shifts an eighth of the channels by a frame, and as much the other way (TSM).

  [B * T, H, W, C] -> [B * T, H, W, C]. The last channels come from the next frame and
  the first ones from the previous frame; zeros come from outside the clip. As in the
  release, and unlike in TSM's own code (arXiv 1811.08383), the two groups also change
  places.

  Args:
    x: frames of a clip in order.
    num_frames: T.
    still: only let the two groups change places: shifts a video that does not change.
  """
  n = x.shape[-1] // _SHIFTED
  x = x.reshape(-1, num_frames, *x.shape[1:])
  first, middle, last = x[..., :n], x[..., n:-n or None], x[..., x.shape[-1] - n:]
  if not still:
    move = lambda y, before, after: jnp.pad(
        y, [(0, 0), (before, after), *[(0, 0)] * (y.ndim - 2)])
    last = move(last[:, 1:], 0, 1)
    first = move(first[:, :-1], 1, 0)
  x = jnp.concatenate([last, middle, first], axis=-1)
  return x.reshape(-1, *x.shape[2:])


class Bottleneck(nn.Module):
  """Applies a residual block of three convolutions.  [N, H, W, C] -> [N, h, w, D].

  Attributes:
    features: D; the middle layer has a quarter of it.
    stride: of the middle layer.
    project: apply a linear layer to the shortcut.
    num_frames: T, of a shift in front of the first convolution; 0 for no shift.
    still: see `shift`.
    dtype: compute type.
  """
  features: int
  stride: int
  project: bool
  num_frames: int
  still: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    conv = lambda features, size, name, stride=1: Conv(
        features, (size, size), stride, dtype=self.dtype, name=name)
    norm = lambda y, name: nn.relu(BatchNorm(name=name)(y, mask, train))
    y = norm(x, 'norm_1')
    if self.project:
      x = conv(self.features, 1, 'shortcut', self.stride)(y)
    if self.num_frames:
      y = shift(y, self.num_frames, self.still)
    y = conv(self.features // 4, 1, 'conv_1')(y)
    y = conv(self.features // 4, 3, 'conv_2', self.stride)(norm(y, 'norm_2'))
    y = conv(self.features, 1, 'conv_3')(norm(y, 'norm_3'))
    return logical_axes.split_rows(x + y)


class ResNet50(nn.Module):
  """Applies a ResNet-50 to images.  [N, H, W, C] -> [N, h, w, 2048 * width].

  The output is that of the last convolution, before the last norm and ReLU.

  Attributes:
    width: factor of all numbers of channels.
    num_frames: see `Bottleneck`.
    still: see `shift`.
    remat: one of `layers.REMAT`.
    dtype: compute type.
  """
  width: float = 1
  num_frames: int = 0
  still: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
               ) -> jax.Array:
    base = round(64 * self.width)
    x = Conv(base, (7, 7), 2, dtype=self.dtype, name='stem')(x)
    x = convolutions.max_pool(x, (3, 3), (2, 2))
    block = convolutions.rematerialized(Bottleneck, self.remat)
    for unit, count in enumerate(_NUM_BLOCKS):
      for i in range(count):
        stride = 2 if unit and not i else 1
        x = block(base * 4 * 2 ** unit, stride, not i, self.num_frames, self.still,
                  self.dtype, name=f'unit_{unit}_block_{i}')(x, mask, train)
    return x


class TSMResNet50(nn.Module):
  """Computes features of videos by a ResNet-50 with a temporal shift in every block.

  [B, T, H, W, 3] in [-1, 1] -> pooled [B, D], grid [B, T, h, w, D], D = 2048 * width.

  Attributes:
    width: 1, or 2 for the network "x2".
    still: deflate the network for images: no channel moves in time (section 3.2).
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
    b, t = video.shape[:2]
    x = convolutions.pixels(video, self.dtype).reshape(b * t, *video.shape[2:])
    mask = None if mask is None else jnp.repeat(mask, t)
    x = ResNet50(self.width, t, self.still, self.remat, self.dtype, name='resnet')(
        x, mask, train)
    x = nn.relu(BatchNorm(name='norm')(x, mask, train))
    x = x.reshape(b, t, *x.shape[1:])
    return Features(jnp.mean(x, axis=(1, 2, 3)), x)


class AudioResNet50(nn.Module):
  """Computes features of waveforms by a ResNet-50 on their log-mel spectrograms.

  [B, S] in [-1, 1] -> pooled [B, D], grid [B, t, f, 1, D], D = 2048 * width.

  Attributes:
    spectrogram: computes the spectrogram from its constants.
    width: factor of all numbers of channels.
    last_conv: return the output of the last convolution, before its norm and ReLU. The
      paper classifies audio by it (section 4.1).
    remat: one of `layers.REMAT`.
    dtype: compute type.
  """
  spectrogram: spectrograms.Spectrogram
  width: float = 1
  last_conv: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, audio: jax.Array, mask: jax.Array | None = None,
               train: bool = False) -> Features:
    x = self.spectrogram(audio)[..., None]                           # [B, T, F, 1]
    x = ResNet50(self.width, remat=self.remat, dtype=self.dtype, name='resnet')(
        x, mask, train)
    normed = nn.relu(BatchNorm(name='norm')(x, mask, train))
    x = x if self.last_conv else normed
    return Features(jnp.mean(x, axis=(1, 2)), x[:, :, :, None])


class BasicBlock(nn.Module):
  """Applies a residual block of two convolutions.  [N, H, W, C] -> [N, h, w, D].

  Attributes:
    features: D.
    stride: of the first convolution and of the shortcut.
    dtype: compute type.
  """
  features: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    conv = lambda x, size, stride, name: Conv(
        self.features, (size, size), stride, symmetric=True, dtype=self.dtype,
        name=name)(x)
    norm = lambda x, name: BatchNorm(name=name)(x, mask, train)
    y = nn.relu(norm(conv(x, 3, self.stride, 'conv_1'), 'norm_1'))
    y = norm(conv(y, 3, 1, 'conv_2'), 'norm_2')
    if self.stride > 1:
      x = norm(conv(x, 1, self.stride, 'shortcut'), 'shortcut_norm')
    return logical_axes.split_rows(nn.relu(x + y))


class AudioResNet18(nn.Module):
  """Computes features of waveforms by a ResNet-18 on their log-mel spectrograms.

  [B, S] in [-1, 1] -> pooled [B, D], grid [B, t, f, 1, D], D = 512 * width.

  Attributes:
    spectrogram: computes the spectrogram from its constants.
    spec_augment: masks of the spectrogram, in training; None for no masks.
    width: factor of all numbers of channels.
    remat: one of `layers.REMAT`.
    dtype: compute type.
  """
  spectrogram: spectrograms.Spectrogram
  spec_augment: spectrograms.SpecAugment | None = None
  width: float = 1
  remat: str = 'none'
  dtype: Any = jnp.float32
  num_blocks = (2, 2, 2, 2)    # of each stage; no key of the config

  @nn.compact
  def __call__(self, audio: jax.Array, mask: jax.Array | None = None,
               train: bool = False, keys: jax.Array | None = None) -> Features:
    """Computes features.

    Args:
      audio: [B, S].
      mask: bool [B], False for rows that stay out of the batch statistics.
      train: see `BatchNorm`.
      keys: key [B] of the clips (`clip_keys.make`), for `spec_augment`.
    """
    base = round(64 * self.width)
    x = self.spectrogram(audio)                                      # [B, T, F]
    if keys is not None and self.spec_augment:
      x = self.spec_augment(clip_keys.derive(keys, 'spec_augment'), x)
    x = Conv(base, (7, 7), 2, symmetric=True, dtype=self.dtype, name='stem')(
        x[..., None])
    x = nn.relu(BatchNorm(name='norm')(x, mask, train))
    x = convolutions.max_pool(x, (3, 3), (2, 2), symmetric=True)
    block = convolutions.rematerialized(BasicBlock, self.remat)
    for stage, count in enumerate(self.num_blocks):
      for i in range(count):
        x = block(base * 2 ** stage, 2 if stage and not i else 1, self.dtype,
                  name=f'stage_{stage}_block_{i}')(x, mask, train)
    return Features(jnp.mean(x, axis=(1, 2)), x[:, :, :, None])


class AudioResNet9(AudioResNet18):
  """Computes features of waveforms by a ResNet-9, GDT's; see `AudioResNet18`."""
  num_blocks = (1, 1, 1, 1)
