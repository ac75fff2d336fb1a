"""Tests of vatt_jax/inputs/augment.py."""

import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy import stats
import tensorflow as tf

from vatt_jax.inputs import augment
from vatt_jax.inputs import clip_keys


def test_normalize_maps_pixels_and_samples_to_minus_one_to_one():
  batch = dict(video=np.array([0, 51, 255], np.uint8),
               audio=np.array([-2**15, 0, 2**15 - 1], np.int16), text=np.ones(3))
  out = augment.normalize(batch)
  np.testing.assert_allclose(out['video'], [-1, -0.6, 1], atol=1e-6)
  np.testing.assert_allclose(out['audio'], [-1, 0, 1], atol=1e-4)
  assert out['text'] is batch['text']


CLIP = np.random.default_rng(1).integers(0, 256, (4, 3, 6, 5, 3), np.uint8)
SOUND = np.random.default_rng(2).integers(-2**14, 2**14, (4, 20_000), np.int16)
PLAIN = {k: np.asarray(v) for k, v in augment.normalize(
    dict(video=CLIP, audio=SOUND)).items()}


def _augment(augmentation, seed=0, **batch):
  """Returns the augmented batch, without random numbers and keys."""
  rows = len(next(iter(batch.values())))

  def change(pair_key, keys, batch):    # one program for all seeds
    out = augmentation(augmentation.pair(pair_key, dict(batch, key=keys)))
    return {k: out[k] for k in batch}

  out = jax.jit(change)(jax.random.key(seed), clip_keys.make(seed, 0, rows), batch)
  return jax.tree.map(np.asarray, out)


def _both(augmentation, seed=0):
  out = _augment(augmentation, seed, video=CLIP, audio=SOUND)
  return out['video'], out['audio']


def _changed(augmentation, seed=0):
  return _both(augmentation, seed)[0]


def test_default_augmentation_changes_nothing_and_costs_nothing():
  video, audio = _both(augment.Augment())
  np.testing.assert_allclose(video, PLAIN['video'], atol=1e-6)
  np.testing.assert_array_equal(audio, PLAIN['audio'])
  batch = dict(video=CLIP, audio=SOUND)
  flops = lambda f: jax.jit(f).lower(batch).compile().cost_analysis()['flops']

  def nothing(batch):
    out = augment.Augment()(dict(batch, key=clip_keys.make(0, 0, 4)))
    return {k: out[k] for k in batch}

  assert flops(nothing) == flops(augment.normalize)


def test_flip_mirrors_all_frames_of_a_clip():
  seen = set()
  for seed in range(4):
    for before, after in zip(PLAIN['video'],
                             _changed(augment.Augment(flip_rate=0.5), seed),
                             strict=True):
      mirrored = np.allclose(after, before[:, :, ::-1], atol=1e-6)
      assert mirrored != np.allclose(after, before, atol=1e-6)
      seen.add(mirrored)
  assert seen == {True, False}


@pytest.mark.parametrize('name', ['brightness', 'saturation', 'contrast', 'hue'])
def test_colors_change_as_in_tensorflow_and_equally_in_all_frames(name):
  """The amount is random within the bounds, so the test searches for it."""
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


def test_color_rate_is_the_share_of_clips_that_change():
  same = [np.allclose(a, b, atol=1e-6) for seed in range(10) for a, b in zip(
      PLAIN['video'], _changed(augment.Augment(color_rate=0.8), seed), strict=True)]
  assert 0 < np.mean(same) < 0.5


def _gray(video):
  """Returns TensorFlow's gray video, which it computes from values in [0, 1]."""
  gray = tf.image.rgb_to_grayscale((video + 1) / 2)
  return 2 * np.repeat(gray, 3, axis=-1) - 1


def test_color_drop_turns_a_share_of_clips_gray_as_in_tensorflow():
  seen = []
  for seed in range(10):
    for before, after in zip(PLAIN['video'],
                             _changed(augment.Augment(color_drop_rate=0.3), seed),
                             strict=True):
      gray = np.allclose(after, _gray(before), atol=5e-4)
      assert gray != np.allclose(after, before, atol=1e-6)
      seen.append(gray)
  assert 0.1 < np.mean(seen) < 0.5


def test_color_drop_follows_color_changes_and_is_independent_of_them():
  colored = dict(color_rate=0.5)
  some = _changed(augment.Augment(**colored))
  gray = _changed(augment.Augment(**colored, color_drop_rate=1.0))
  np.testing.assert_allclose(gray, _gray(some), atol=5e-4)
  kinds = set()
  for seed in range(5):
    before, after = (_changed(augment.Augment(**colored, color_drop_rate=rate), seed)
                     for rate in (0.0, 0.5))
    kinds |= {(bool(abs(b - p).max() > 1e-3), bool(abs(a - b).max() > 1e-3))
              for p, b, a in zip(PLAIN['video'], before, after, strict=True)}
  assert len(kinds) == 4    # changed or not, gray or not


def test_blur_matches_scipy_gaussian_in_all_frames():
  """The width is random within the bounds, so the test searches for it."""
  augmentation = augment.Augment(blur_rate=1.0, blur_sigma=(0.5, 1.5), blur_size=0.7)
  found, sigmas = [], np.linspace(0.5, 1.5, 501)
  for before, after in zip(PLAIN['video'], _changed(augmentation), strict=True):
    errors = [abs(ndimage.gaussian_filter(
        before, (0, sigma, sigma, 0), mode='mirror', radius=(0, 2, 2, 0)) - after).max()
              for sigma in sigmas]
    assert min(errors) < 3e-3 < max(errors)
    found.append(sigmas[np.argmin(errors)])
  assert np.ptp(found) > 0.1    # each clip draws its own


def test_blur_kernel_grows_with_the_frame():
  """The size is 10 % of the height, as in SimCLR: three of 32 pixels."""
  dot = np.zeros((1, 1, 32, 16, 3), np.uint8)
  dot[:, :, 16, 8] = 255
  augmentation = augment.Augment(blur_rate=1.0, blur_sigma=(2.0, 2.0))
  after = _augment(augmentation, video=dot)['video']
  lit = np.argwhere(after[0, 0, :, :, 0] > -0.999)
  assert (lit.min(0).tolist(), lit.max(0).tolist()) == ([15, 7], [17, 9])


def test_blur_rate_is_the_share_of_clips_that_are_blurred():
  augmentation = augment.Augment(blur_rate=0.5, blur_size=0.7, blur_sigma=(1.0, 2.0))
  same = [np.allclose(a, b, atol=1e-6) for seed in range(10) for a, b in zip(
      PLAIN['video'], _changed(augmentation, seed), strict=True)]
  assert 0.2 < np.mean(same) < 0.8


@pytest.mark.parametrize('bounds', [(0.0, 2.0), (2.0, 1.0)])
def test_invalid_blur_sigma_raises(bounds):
  with pytest.raises(ValueError, match='blur_sigma='):
    augment.Augment(blur_sigma=bounds)


def test_copies_are_adjacent_rows_of_which_one_runs_backwards():
  batch = dict(video=CLIP, audio=SOUND, text=np.arange(24).reshape(4, 2, 3),
               id=np.arange(4))
  out = augment.Augment(copies=('forward', 'reversed')).copy(batch)
  for name, x in batch.items():
    pairs = np.asarray(out[name]).reshape(4, 2, *x.shape[1:])
    np.testing.assert_array_equal(pairs[:, 0], x)
    backwards = x[:, ::-1] if name in ('video', 'audio') else x
    np.testing.assert_array_equal(pairs[:, 1], backwards)
  alone = augment.Augment(copies=('reversed',)).copy(batch)
  np.testing.assert_array_equal(alone['video'], CLIP[:, ::-1])


def test_single_forward_copy_is_the_batch_itself():
  batch = dict(video=CLIP, id=np.arange(4))
  out = augment.Augment().copy(batch)
  assert all(out[name] is x for name, x in batch.items()) and len(out) == 2


def test_each_copy_is_augmented_for_itself():
  both = augment.Augment(copies=('forward', 'reversed'), flip_rate=0.5)
  batch = both.copy(dict(video=np.repeat(CLIP[:1], 40, axis=0)))
  out = both(dict(batch, key=clip_keys.make(0, 0, 80)))
  flipped = np.asarray(out['draws']['flip'] < 0.5).reshape(40, 2)
  assert 0.2 < np.mean(flipped[:, 0] == flipped[:, 1]) < 0.8
  for row in (0, 1):
    expected = PLAIN['video'][0][::-1] if row else PLAIN['video'][0]
    expected = expected[:, :, ::-1] if flipped[0, row] else expected
    np.testing.assert_allclose(out['video'][row], expected, atol=1e-6)


@pytest.mark.parametrize('copies', [(), ('reverse',), ('forward', 'forward')])
def test_invalid_copies_are_named(copies):
  with pytest.raises(ValueError, match=r'copies=.*expected some of forward, reversed'):
    augment.Augment(copies=copies)


def test_volume_scales_each_clip_within_bounds():
  factors = []
  for seed in range(10):
    for before, after in zip(PLAIN['audio'],
                             _both(augment.Augment(volume=0.1), seed)[1], strict=True):
      factors.append(np.dot(after, before) / np.dot(before, before))
      np.testing.assert_allclose(after, factors[-1] * before, atol=1e-6)
  assert 0.9 <= min(factors) < 0.92 and 1.08 < max(factors) <= 1.1
  assert abs(np.mean(factors) - 1) < 0.03


def test_noise_is_gaussian_and_scales_with_the_largest_sample():
  """The released code: standard deviation 0.01 max |x|; silence stays silent."""
  sound = np.stack([SOUND[0], SOUND[0] // 4, 0 * SOUND[0]])
  out = _augment(augment.Augment(noise=0.01), audio=sound)['audio']
  noise = out - sound.astype(np.float32) / 32768
  np.testing.assert_array_equal(noise[2], 0)
  for row, x in zip(noise[:2], sound, strict=False):
    unit = row / (0.01 * abs(x.astype(np.float32) / 32768).max())
    assert abs(unit.mean()) < 0.03 and abs(unit.std() - 1) < 0.02
    assert abs((abs(unit) > 2).mean() - 0.0455) < 0.006    # as for a normal variable
  assert abs(np.corrcoef(noise[:2])[0, 1]) < 0.03    # each clip draws its own


def test_volume_is_independent_of_the_video_augmentation():
  """A loud clip is not mirrored more often than a quiet one."""
  out = _augment(augment.Augment(flip_rate=0.5, volume=0.1),
                 video=np.repeat(CLIP[:1], 400, 0),
                 audio=np.repeat(SOUND[:1, :9], 400, 0))
  mirrored = abs(out['video'] - PLAIN['video'][:1]).max((1, 2, 3, 4)) > 1e-3
  loud = abs(out['audio']).max(1)
  assert abs(np.corrcoef(mirrored, loud)[0, 1]) < 0.15


def _mix(rows=64, mixup=5.0, seed=3, **batch):
  """Mixes rows with audio and label that encode the row number."""
  sound = np.repeat(np.arange(rows, dtype=np.int16)[:, None] * 100, 4, axis=1)
  batch = dict(audio=sound, labels=dict(label=np.eye(rows, dtype=bool)),
               has_audio=np.ones(rows, bool)) | batch
  return _augment(augment.Augment(mixup=mixup), seed, **batch)


def test_mixup_mixes_labels_like_audio():
  out = _mix()
  numbers = np.arange(64) * 100 / 32768
  label = out['labels']['label']
  np.testing.assert_allclose(out['audio'][:, 0], label @ numbers, atol=1e-6)
  np.testing.assert_allclose(label.sum(axis=1), 1, rtol=1e-6)
  mixed = np.diagonal(label) < 1
  assert mixed.sum() > 55    # the others are their own partners
  assert len(set(label.argsort(axis=1)[:, -2:].ravel())) == 64


def test_mixup_mixes_the_labels_of_all_columns_by_the_same_share():
  rows = np.eye(64, dtype=bool)
  more = np.concatenate([rows, rows], axis=1)
  more[::4] = False
  mixed = _mix(labels=dict(verb=rows, noun=more))['labels']
  labelled = np.arange(64) % 4 > 0
  np.testing.assert_array_equal(mixed['noun'][:, :64], mixed['noun'][:, 64:])
  np.testing.assert_array_equal(mixed['noun'][labelled, :64], mixed['verb'][labelled])
  assert (mixed['noun'][~labelled] == 0).all()
  # A clip without a noun is not mixed with a clip that has one.
  assert (mixed['verb'][np.ix_(labelled, ~labelled)] == 0).all()
  assert (np.diagonal(mixed['verb']) < 1).sum() > 15


def test_mixup_shares_follow_the_beta_distribution():
  shares = []
  for seed in range(4):
    label = np.diagonal(_mix(512, seed=seed)['labels']['label'])
    shares.append(label[label < 1])
  shares = np.concatenate(shares)
  beta = stats.beta(5, 5)
  assert stats.kstest(shares, beta.cdf).pvalue > 0.01
  assert stats.kstest(shares, stats.beta(2, 2).cdf).pvalue < 1e-6


def test_clips_without_label_or_audio_are_not_mixed_with_clips_that_have_it():
  label = np.eye(64, dtype=bool)
  label[::4] = False
  has = np.arange(64) % 3 > 0
  out = _mix(labels=dict(label=label), has_audio=has)
  mixed = out['labels']['label']
  assert (mixed[::4] == 0).all()
  labelled = np.arange(64) % 4 > 0
  np.testing.assert_allclose(mixed[labelled].sum(axis=1), 1, rtol=1e-6)
  assert (mixed[np.ix_(has & labelled, ~has)] == 0).all()
  assert (np.diagonal(mixed) < 1).sum() > 15


def test_mixup_without_labels_changes_nothing():
  plain = _augment(augment.Augment(mixup=5.0), audio=SOUND)
  np.testing.assert_array_equal(plain['audio'], PLAIN['audio'])


def test_augmenting_some_rows_equals_augmenting_the_whole_batch():
  """Includes mixup, with partners from other rows."""
  augmentation = augment.Augment(flip_rate=0.5, noise=0.1, mixup=5.0)
  batch = dict(video=CLIP, audio=SOUND, labels=dict(label=np.eye(4, dtype=bool)),
               has_video=np.ones(4, bool), has_audio=np.ones(4, bool),
               key=clip_keys.make(0, 5, 4))
  paired = augmentation.pair(jax.random.key(1), batch)
  whole = augmentation(paired)
  some = augmentation(jax.tree.map(lambda x: x[2:], paired))
  for name in ('video', 'audio', 'labels'):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[2:], atol=1e-6),
                 some[name], whole[name])


def test_augmentation_returns_its_random_numbers():
  seen = set()
  for step in range(3):
    batch = dict(video=CLIP, key=clip_keys.make(0, step, 4))
    out = augment.Augment(flip_rate=0.5)(batch)
    flags = np.asarray(out['draws']['flip']) < 0.5
    for flag, before, after in zip(flags, PLAIN['video'], out['video'], strict=True):
      mirrored = before[:, :, ::-1]
      np.testing.assert_allclose(after, mirrored if flag else before, atol=1e-6)
    seen |= set(flags.tolist())
  assert seen == {False, True}


def test_draws_are_those_of_earlier_versions():
  """A run that an earlier version began goes on with the same augmentation."""
  out = augment.Augment()(dict(video=CLIP, key=clip_keys.make(3, 7, 4)))
  expected = dict(flip=[0.88310194, 0.34775186, 0.95793390, 0.46610332],
                  volume=[0.47712421, 0.17939031, 0.93035293, 0.51445723])
  for name, values in expected.items():
    np.testing.assert_allclose(out['draws'][name], values, rtol=1e-6)


def test_clip_keys_depend_on_seed_step_and_row():
  base = clip_keys.make(0, 3, 4)
  same = lambda a, b: (jax.random.key_data(a) == jax.random.key_data(b)).all()
  assert same(base, clip_keys.make(0, 3, 4))
  assert same(base[:2], clip_keys.make(0, 3, 2))    # for any batch size
  assert not same(base, clip_keys.make(0, 4, 4))
  assert not same(base, clip_keys.make(1, 3, 4))
  assert not same(clip_keys.derive(base, 'augment'), clip_keys.derive(base, 'mixup'))
