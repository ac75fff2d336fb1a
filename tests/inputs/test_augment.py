"""vatt_jax/inputs/augment.py"""

import jax
import numpy as np
import pytest
import tensorflow as tf

from vatt_jax.inputs import augment


def test_pixels_and_samples_come_out_between_minus_one_and_one():
  batch = dict(video=np.array([0, 51, 255], np.uint8),
               audio=np.array([-2**15, 0, 2**15 - 1], np.int16), text=np.ones(3))
  out = augment.normalize(batch)
  np.testing.assert_allclose(out['video'], [-1, -0.6, 1], atol=1e-6)
  np.testing.assert_allclose(out['audio'], [-1, 0, 1], atol=1e-4)
  assert out['text'] is batch['text']


def test_the_spectrogram_is_tensorflow_s():
  """VATT's: 80 bins, 42 ms every 21 ms, of 48 kHz."""
  audio = np.random.default_rng(0).uniform(-1, 1, (2, 24_000)).astype(np.float32)
  ours = jax.jit(lambda x: augment.log_mel(x, 48_000, 80, 0.042, 0.021))(audio)
  stft = tf.signal.stft(audio, 2016, 1008, fft_length=2016)
  weights = tf.signal.linear_to_mel_weight_matrix(80, 1009, 48_000, 0.0, 24_000.0)
  expected = np.log(np.abs(stft) @ weights.numpy() + 1e-6)
  assert ours.shape == (2, 22, 80)
  np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_a_tone_is_loudest_in_its_own_bin():
  time = np.arange(16_000) / 16_000
  peaks = [np.asarray(augment.log_mel(
      np.sin(2 * np.pi * hz * time)[None].astype(np.float32), 16_000, 40, 0.04, 0.02)
                      )[0].mean(0).argmax() for hz in (300, 1000, 4000)]
  mel = lambda hz: 1127 * np.log1p(hz / 700)
  expected = [mel(hz) / mel(8000) * 41 - 1 for hz in (300, 1000, 4000)]
  np.testing.assert_allclose(peaks, expected, atol=1)


CLIP = np.random.default_rng(1).integers(0, 256, (4, 3, 6, 5, 3), np.uint8)


def _changed(augmentation, seed=0):
  key = jax.random.key(seed)
  return np.asarray(jax.jit(augmentation.__call__)(key, dict(video=CLIP))['video'])


def test_without_a_rate_nothing_changes():
  np.testing.assert_allclose(_changed(augment.Augment()),
                             augment.normalize(dict(video=CLIP))['video'], atol=1e-6)


def test_a_mirrored_clip_is_mirrored_whole():
  plain = np.asarray(augment.normalize(dict(video=CLIP))['video'])
  seen = set()
  for seed in range(4):
    for before, after in zip(plain, _changed(augment.Augment(flip_rate=0.5), seed),
                             strict=True):
      mirrored = np.allclose(after, before[:, :, ::-1], atol=1e-6)
      assert mirrored != np.allclose(after, before, atol=1e-6)
      seen.add(mirrored)
  assert seen == {True, False}


@pytest.mark.parametrize('name', ['brightness', 'saturation', 'contrast', 'hue'])
def test_colours_change_as_in_tensorflow_and_in_all_frames_alike(name):
  """By some amount within the bounds; found among many, for it is drawn inside."""
  none = dict(brightness=0.0, saturation=0.0, contrast=0.0, hue=0.0)
  after = _changed(augment.Augment(color_rate=1.0, **none | {name: 0.2}))[0] / 2 + 0.5
  x = CLIP[0].astype(np.float32) / 255

  def error(amount):
    by = none | {name: amount}
    y = tf.image.adjust_brightness(x, by['brightness'])
    y = tf.image.adjust_saturation(y, 1 + by['saturation'])
    y = tf.image.adjust_contrast(y, 1 + by['contrast'])
    return np.abs(np.clip(tf.image.adjust_hue(y, by['hue']), 0, 1) - after).max()

  amounts = np.linspace(-0.2, 0.2, 401)
  errors = [error(a) for a in amounts]
  assert min(errors) < 4e-3 < error(0.0)


def test_only_a_share_of_the_clips_changes_colour():
  plain = np.asarray(augment.normalize(dict(video=CLIP))['video'])
  same = [np.allclose(a, b, atol=1e-6) for seed in range(10) for a, b in zip(
      plain, _changed(augment.Augment(color_rate=0.8), seed), strict=True)]
  assert 0 < np.mean(same) < 0.5
