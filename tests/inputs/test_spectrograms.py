"""Tests of vatt_jax/inputs/spectrograms.py."""

import dataclasses

import jax
import numpy as np
import pytest
import tensorflow as tf

from vatt_jax.inputs import spectrograms


def _make(name, variant='paper', **changes):
  released = spectrograms.RELEASED.get(name, {}) if variant == 'release' else {}
  return spectrograms.Spectrogram(
      **spectrograms.SPECTROGRAMS[name] | released | changes)


def _noise(samples):
  return np.random.default_rng(0).uniform(-1, 1, (2, samples)).astype(np.float32)


def _mel(audio, window, step, fft, bins, hz, low, high, power, pad_end=False):
  stft = tf.signal.stft(audio, window, step, fft, pad_end=pad_end)
  weights = tf.signal.linear_to_mel_weight_matrix(bins, fft // 2 + 1, hz, low, high)
  return (np.abs(stft) ** power) @ weights.numpy()


@pytest.mark.parametrize('variant, windows', [('paper', 151), ('release', 153)])
def test_vatt_spectrogram_matches_tensorflow(variant, windows):
  """VATT: 80 bins, 42 ms every 21 ms; 3.2 s of 48 kHz; clips stretched to [0, 1]."""
  audio = _noise(153_600) * np.array([[1.0], [0.01]], np.float32)
  mel = np.log(1 + 10_000 * _mel(audio, 2016, 1008, 2016, 80, 48_000, 80.0, 7600.0, 1,
                                 pad_end=variant == 'release'))
  low, high = (f(mel, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
  ours = jax.jit(_make('vatt', variant=variant).__call__)(audio)
  assert ours.shape == (2, windows, 80)
  np.testing.assert_allclose(ours, (mel - low) / (high - low), atol=1e-3)


@pytest.mark.parametrize('name', ['vatt', 'mmv'])
@pytest.mark.parametrize('num_samples', [900, 4096, 5000, 10_080])
def test_release_variant_pads_the_end_like_tensorflow(name, num_samples):
  """A window starts at each step, even if the clip is shorter than a window."""
  audio = _noise(num_samples)
  make = _make(name, variant='release', normalize='none')
  mel = _mel(audio, make.window, make.step, make.fft_length, 80, 48_000, 80.0, 7600.0,
             1, pad_end=True)
  ours = make(audio)
  assert ours.shape == (2, make.num_windows(num_samples), 80) == mel.shape
  np.testing.assert_allclose(ours, np.log(make.log_scale * mel + make.log_offset),
                             atol=1e-3)


@pytest.mark.parametrize('audio', [np.zeros((2, 48_000), np.float32),
                                   np.full((2, 48_000), 0.25, np.float32)],
                         ids=['silence', 'constant'])
def test_constant_clip_gives_a_finite_spectrogram(audio):
  """Digital silence has one value everywhere, which becomes 0, never 0/0."""
  ours = np.asarray(jax.jit(_make('vatt').__call__)(audio))
  assert np.isfinite(ours).all() and ours.min() == 0 and ours.max() <= 1
  assert not np.asarray(_make('vatt')(np.zeros((2, 48_000), np.float32))).any()


def test_every_named_spectrogram_states_its_normalization():
  assert {name: row['normalize'] for name, row in spectrograms.SPECTROGRAMS.items()
          } == dict(vatt='min_max', mmv='none', gdt='standardize', stica='none')
  assert ('mean' in spectrograms.SPECTROGRAMS['gdt']) and not any(
      'mean' in row for name, row in spectrograms.SPECTROGRAMS.items() if name != 'gdt')


def test_mmv_spectrogram_matches_tensorflow():
  """MMV: 80 bins; 3.2 s of 48 kHz."""
  audio = _noise(153_600)
  mel = _mel(audio, 2048, 1024, 2048, 80, 48_000, 80.0, 7600.0, 1)
  ours = jax.jit(_make('mmv').__call__)(audio)
  assert ours.shape == (2, 149, 80)
  np.testing.assert_allclose(ours, np.log(mel + 1e-6), atol=1e-3)


def test_gdt_spectrogram_matches_tensorflow():
  """GDT: 40 bins, 99 windows of one second, zero mean and unit variance."""
  audio = _noise(24_000)
  power = _mel(32768 * audio, 480, 240, 1024, 40, 24_000, 0.0, 12_000.0, 2) / 1024
  ours = jax.jit(_make('gdt').__call__)(audio)
  assert ours.shape == (2, 99, 40)
  np.testing.assert_allclose(ours, (np.log(power) - 1.93) / 17.89, atol=1e-4)


@pytest.mark.parametrize('seconds, window, step', [(1, 0.01, 0.005), (2, 0.02, 0.01)])
def test_stica_spectrogram_matches_tensorflow(seconds, window, step):
  """STiCA: 257 bins, 199 windows of one second (paper) or two seconds (code)."""
  audio = _noise(24_000 * seconds)
  power = _mel(32768 * audio, round(24_000 * window), round(24_000 * step), 1024, 257,
               24_000, 0.0, 12_000.0, 2) / 1024
  ours = jax.jit(_make('stica', window_seconds=window, step_seconds=step).__call__)(
      audio)
  assert ours.shape == (2, 199, 257)
  np.testing.assert_allclose(ours, np.log(power + np.finfo(float).eps), atol=1e-3)


FRONT_ENDS = [('gdt', 'gdt', 24_000), ('stica_1s', 'stica', 24_000),
              ('stica_2s', 'stica', 48_000)]


@pytest.fixture(scope='module')
def released(shared):
  return np.load(shared / 'golden_gdt_stica' / 'spectrograms.npz')


@pytest.mark.parametrize('start', ['0.0', '0.37'])
@pytest.mark.parametrize('key, name, samples', FRONT_ENDS)
def test_release_variants_match_the_code_of_gdt_and_stica(key, name, samples, start,
                                                          released):
  first = round(float(start) * 24_000)
  wave = released['wave'][None, first:first + samples].astype(np.float32) / 32768
  expected = released[f'{key}_from_{start}'][0].T
  ours = jax.jit(_make(name, variant='release').__call__)(wave)[0]
  assert ours.shape == expected.shape
  std = spectrograms.SPECTROGRAMS[name].get('std', 1)    # bounds are of the logarithm
  error = np.abs(ours - expected) * std
  # Float32 rounds a Fourier transform by 1e-7 of its largest number, which is more in
  # the logarithm of a bin that is a millionth as loud as others.
  loud = expected > expected.max() - 12 / std
  assert error[loud].max() < 1e-4 and error.max() < 1e-3
  assert (error > 1e-4).mean() < 2e-4


def test_release_variant_of_silence_matches_the_code_of_gdt(released):
  ours = _make('gdt', variant='release')(np.zeros((1, 24_000), np.float32))
  np.testing.assert_allclose(ours[0].T, released['gdt_silence'][0], atol=1e-5)


@pytest.mark.parametrize('bins', [40, 257])
def test_triangles_of_whole_bins_match_the_code_of_gdt(bins, released):
  ours = spectrograms.mel_weights(bins, 513, 24_000, 0.0, 12_000.0, whole_bins=True)
  np.testing.assert_allclose(ours.T, released[f'filterbank_{bins}'], atol=1e-6)
  if bins == 257:
    np.testing.assert_array_equal(np.flatnonzero(ours.sum(0) == 0),
                                  released['empty_filters_257'])


@pytest.mark.parametrize('name', spectrograms.SPECTROGRAMS)
def test_silence_is_finite_and_lower_than_noise(name):
  make = _make(name)
  silence, sound = make(np.zeros((2, 48_000), np.float32)), make(_noise(48_000))
  assert np.isfinite(silence).all()
  heard = np.asarray(sound).max(axis=(0, 1)) > np.asarray(silence).max()
  # 257 triangles are more than 1024-point FFTs tell apart: low ones hold no bin.
  assert heard.all() if name != 'stica' else heard.mean() > 0.7


def test_tone_is_loudest_in_its_bin():
  time = np.arange(16_000) / 16_000
  make = _make('mmv', audio_hz=16_000, window_seconds=0.04, step_seconds=0.02,
               fft_length=640, mel_bins=40, low_hz=0.0, high_hz=8000.0)
  peaks = [np.asarray(make(np.sin(2 * np.pi * hz * time)[None].astype(np.float32)))[0]
           .mean(0).argmax() for hz in (300, 1000, 4000)]
  mel = lambda hz: 1127 * np.log1p(hz / 700)
  expected = [mel(hz) / mel(8000) * 41 - 1 for hz in (300, 1000, 4000)]
  np.testing.assert_allclose(peaks, expected, atol=1)


@pytest.mark.parametrize('changes, message', [
    (dict(audio_hz=8000), r'high_hz=7600\.0: expected low_hz < high_hz, at most half'),
    (dict(low_hz=8000.0), r'low_hz=8000\.0, high_hz=7600\.0'),
    (dict(fft_length=1024), r'2016 samples, expected at most fft_length=1024'),
    (dict(normalize='minmax'), r"normalize='minmax': expected one of none, min_max"),
    (dict(mean=3.0), r"mean=3\.0, std=1\.0: unused with normalize='min_max'; set"),
    (dict(normalize='standardize', std=0.0), r'std=0\.0: expected more than 0')])
def test_inconsistent_constants_raise(changes, message):
  with pytest.raises(ValueError, match=message):
    _make('vatt', **changes)


NONE = spectrograms.SpecAugment(0, 0, 0, 0)


def _masked(count, seed=0, t=9, f=7, **settings):
  """Returns the masked places of `count` spectrograms; checks their values."""
  x = np.random.default_rng(seed).normal(2.0, 1.0, (count, t, f)).astype(np.float32)
  y = np.asarray(jax.jit(dataclasses.replace(NONE, **settings).__call__)(
      jax.random.split(jax.random.key(seed), count), x))
  masked = y != x
  means = np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)
  np.testing.assert_allclose(y[masked], means[masked], atol=1e-5)
  return masked


def test_masks_of_the_released_code_of_gdt_have_its_sizes_and_places(released):
  """Widths of 0 to 2 bins and 0 to 5 windows, each as often; values become zero."""
  drawn = released['spec_augment_masks']
  masks = spectrograms.SpecAugment(1, 5, 1, 2, zeros=True)
  x = np.ones((2000, 99, 40), np.float32)
  masked = np.asarray(jax.jit(masks.__call__)(
      jax.random.split(jax.random.key(0), 2000), x)) == 0
  for rows, widths, size in ((masked.all(2), drawn[:, 3], 99),
                             (masked.all(1), drawn[:, 1], 40)):
    ours = rows.sum(1)
    assert set(ours) == set(widths)
    shares = [np.bincount(w) / len(w) for w in (ours, widths)]
    np.testing.assert_allclose(*shares, atol=0.08)
    assert rows[:, 0].any() and rows[:, size - 1].any()


def _runs(row):
  """Returns (start, length) of each run of true."""
  edges = np.flatnonzero(np.diff([0, *row.astype(int), 0]))
  return [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_no_masks_leave_the_spectrogram_unchanged():
  assert not _masked(5).any()


@pytest.mark.parametrize('settings, axis, size', [
    (dict(time_masks=1, time_width=3), 2, 9),
    (dict(frequency_masks=1, frequency_width=3), 1, 7)])
def test_mask_is_one_block_of_random_width_and_place(settings, axis, size):
  """The width is uniform in 0 to 3, then the start among those that fit."""
  masked = _masked(4000, **settings)
  rows = masked.any(axis)
  np.testing.assert_array_equal(masked, np.broadcast_to(np.expand_dims(rows, axis),
                                                        masked.shape))
  expected = np.zeros((4, size))
  for width in range(4):
    places = size - width + 1 if width else 1
    expected[width, :places] = 1 / 4 / places
  found = np.zeros((4, size))
  for row in rows:
    [(start, width)] = _runs(row) or [(0, 0)]
    found[width, start] += 1 / 4000
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_masks_of_both_kinds_are_independent():
  masked = _masked(200, time_masks=2, time_width=2, frequency_masks=1,
                   frequency_width=2)
  times, bins = masked.all(2), masked.all(1)
  np.testing.assert_array_equal(masked, times[:, :, None] | bins[:, None])
  assert {len(_runs(row)) for row in times} == {0, 1, 2}
  assert {len(_runs(row)) for row in bins} == {0, 1}
  assert abs(np.corrcoef(times.sum(1), bins.sum(1))[0, 1]) < 0.2


def test_mask_width_is_limited_to_a_short_clip():
  assert {len(_runs(row)) for row in _masked(50, t=3, time_masks=1, time_width=100)
          .all(2)} == {0, 1}
