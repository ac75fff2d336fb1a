"""What the device does to a batch before the model sees it."""

from collections.abc import Mapping
import dataclasses

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf


def normalize(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Video uint8 -> float32 in [-1, 1]; audio int16 -> float32 in [-1, 1]."""
  batch = dict(batch)
  if 'video' in batch:
    batch['video'] = batch['video'].astype(jnp.float32) / 127.5 - 1
  if 'audio' in batch:
    batch['audio'] = batch['audio'].astype(jnp.float32) / 32768
  return batch


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training changes at random; in all frames of a clip alike (section 4.3).

  Attributes:
    flip_rate: the share of clips that are mirrored, left and right.
    color_rate: the share of clips whose colours change: brightness, saturation,
      contrast and hue, in this order; then they are clipped to [0, 1].
    brightness: most that is added to values in [0, 1].
    saturation: most by which the factor differs from 1.
    contrast: likewise.
    hue: most that is added to an angle in [0, 1).
  """
  flip_rate: float = 0.0
  color_rate: float = 0.0
  brightness: float = 32 / 255
  saturation: float = 0.4
  contrast: float = 0.4
  hue: float = 0.2

  def __call__(self, key: jax.Array, batch: Mapping[str, jax.Array]
               ) -> dict[str, jax.Array]:
    """The batch, normalised (`normalize`) and changed."""
    batch = normalize(batch)
    if 'video' in batch and (self.flip_rate or self.color_rate):
      keys = jax.random.split(key, len(batch['video']))
      batch['video'] = jax.vmap(self._change)(keys, batch['video'])
    return batch

  def _change(self, key: jax.Array, video: jax.Array) -> jax.Array:
    """One clip, [T, H, W, C] in [-1, 1]."""
    draws = jax.random.uniform(key, (6,))
    around = lambda i, most: most * (2 * draws[i] - 1)
    video = jnp.where(draws[0] < self.flip_rate, video[:, :, ::-1], video)
    if not self.color_rate:
      return video
    with jax.numpy_dtype_promotion('standard'):    # PIX multiplies by truth values
      x = pix.adjust_brightness((video + 1) / 2, around(2, self.brightness))
      x = pix.adjust_saturation(x, 1 + around(3, self.saturation))
      x = pix.adjust_contrast(x, 1 + around(4, self.contrast))
      x = jnp.clip(pix.adjust_hue(x, around(5, self.hue)), 0, 1)
    return jnp.where(draws[1] < self.color_rate, 2 * x - 1, video)


def log_mel(audio: jax.Array, audio_hz: int, mel_bins: int, window_seconds: float,
            step_seconds: float) -> jax.Array:
  """Log-mel spectrogram of whole Hann windows, from 0 Hz to half the sample rate.

  Args:
    audio: [B, S], float.
    audio_hz: its sample rate.
    mel_bins: F.
    window_seconds: of the short-time Fourier transform.
    step_seconds: between windows.

  Returns:
    [B, T, F], log(mel-weighted magnitude + 1e-6).
  """
  window, step = round(window_seconds * audio_hz), round(step_seconds * audio_hz)
  starts = np.arange(0, audio.shape[-1] - window + 1, step)
  frames = audio[:, starts[:, None] + np.arange(window)]             # [B, T, window]
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window, dtype=np.float32) / window)
  magnitude = jnp.abs(jnp.fft.rfft(frames * hann))                   # [B, T, bins]
  weights = tf.signal.linear_to_mel_weight_matrix(
      mel_bins, window // 2 + 1, audio_hz, 0.0, audio_hz / 2).numpy()
  return jnp.log(magnitude @ weights + 1e-6)
