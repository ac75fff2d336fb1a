"""Tests of vatt_jax/inputs/window.py."""

import dataclasses

import numpy as np
import pytest

from vatt_jax.inputs.window import central_box
from vatt_jax.inputs.window import random_box
from vatt_jax.inputs.window import Window

WINDOW = Window(num_frames=4, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                num_candidates=3, max_tokens=6, min_crop_area=0.5)


def test_unknown_short_raises():
  with pytest.raises(ValueError, match="short='repeat': expected 'hold' or 'loop'"):
    dataclasses.replace(WINDOW, short='repeat')


@pytest.mark.parametrize('key', ['num_frames', 'frame_rate_hz', 'audio_hz'])
def test_window_size_of_zero_raises(key):
  with pytest.raises(ValueError, match=f'{key}=0: expected more than 0'):
    dataclasses.replace(WINDOW, **{key: 0})


def test_random_crops_lie_in_the_frame_within_area_and_aspect_bounds():
  """VATT, section 4.3: area in [0.08, 1], aspect in [0.5, 2]."""
  assert central_box((100, 60)) == (20, 0, 80, 60)
  areas, aspects, rng = [], [], np.random.default_rng(0)
  for _ in range(500):
    left, top, right, bottom = random_box((100, 60), 0.08, 2.0, rng)
    assert left >= 0 and right <= 100 and top >= 0 and bottom <= 60
    areas.append((right - left) * (bottom - top) / 6000)
    aspects.append((right - left) / (bottom - top))
  assert 0.08 <= min(areas) < 0.1 and 0.9 < max(areas) <= 1
  assert 0.5 <= min(aspects) < 0.6 and 1.8 < max(aspects) <= 2


def test_crop_without_aspect_is_a_square():
  for seed in range(50):
    left, top, right, bottom = random_box(
        (64, 64), 0.25, 1.0, np.random.default_rng(seed))
    assert right - left == pytest.approx(bottom - top)
    assert 32 <= right - left <= 64
  whole = random_box((100, 60), 1.0, 1.0, np.random.default_rng(0))
  assert whole == central_box((100, 60))


def test_crop_share_makes_the_jittered_square_smaller():
  whole = dataclasses.replace(WINDOW, min_crop_area=1.0, max_crop_aspect=1.0,
                              scale_jitter=0.2)
  part = dataclasses.replace(whole, crop_share=0.5)
  for seed in range(50):
    large, small = (w.random_box((400, 80), np.random.default_rng(seed))
                    for w in (whole, part))
    assert small[2] - small[0] == pytest.approx((large[2] - large[0]) / 2)
    assert small[3] - small[1] <= 50
  for window, share in ((whole, 1.5), (WINDOW, 0.5)):
    with pytest.raises(ValueError, match=f'crop_share={share}: expected at most 1'):
      dataclasses.replace(window, crop_share=share)


@pytest.mark.parametrize('modalities', [(), ('text',), ('video', 'smell')])
def test_window_without_video_and_audio_raises(modalities):
  with pytest.raises(ValueError, match='expected some of video, audio, text, not text'):
    dataclasses.replace(WINDOW, modalities=modalities)


def test_audio_has_the_length_and_rate_of_the_papers():
  """Pre-training: 48 kHz; fine-tuning on AudioSet: 6.4 s at 24 kHz (section 4.2)."""
  fine_tuning = Window(num_frames=64, frame_rate_hz=10.0, image_size=224,
                       audio_hz=24_000, modalities=('audio',))
  assert fine_tuning.seconds == 6.4
  assert fine_tuning.empty()['audio'].shape == (153_600,)
  assert set(fine_tuning.empty()) == {'audio', 'has_audio', 'id', 'mask'}
  pre_training = Window(num_frames=32, frame_rate_hz=10.0, image_size=224,
                        audio_hz=48_000)
  assert pre_training.num_samples == 153_600
