"""What the device does to a batch before the model sees it."""

from collections.abc import Mapping

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
