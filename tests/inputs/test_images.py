"""Tests of vatt_jax/inputs/images.py."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from vatt_jax.inputs import images
from vatt_jax.inputs import media
from vatt_jax.inputs.window import jittered_box


def _encode(picture, kind='JPEG', **options):
  content = io.BytesIO()
  Image.fromarray(picture).save(content, kind, **options)
  return content.getvalue()


def _smooth(height, width, scale=1):
  """Returns an image without edges, which resizers would render differently."""
  y, x = np.mgrid[:height, :width] / scale
  waves = [np.sin(x / 17 + y / 29), np.cos(x / 23 - y / 19), np.sin((x + y) / 31)]
  return np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def _cut(content, box=None, size=None):
  picture, = images.image('x.jpg', content).frames([0.0])
  box = box or (0, 0, *picture.size)
  return picture.cut(box, size or (box[2] - box[0], box[3] - box[1]))


@pytest.mark.parametrize('box', [
    (0, 0, 120, 90), (16, 16, 48, 48), (7, 3, 100, 81), (119, 89, 120, 90)])
def test_crop_of_a_jpeg_equals_the_crop_of_the_whole_image(box):
  """Without resizing the crops are equal to the bit, for any position of the blocks.

  With colors at half the size, the first and the last column differ, because they have
  no neighbor to interpolate with.
  """
  left, top, right, bottom = box
  for subsampling, most in ((0, 0), (2, 6)):
    content = _encode(_smooth(90, 120), quality=90, subsampling=subsampling)
    whole = tf.io.decode_jpeg(content).numpy()[top:bottom, left:right].astype(int)
    difference = np.abs(_cut(content, box) - whole)
    assert not difference[:, 1:-1].any() and difference.max() <= most


@pytest.mark.parametrize('box, size', [
    ((0, 0, 480, 360), (32, 32)), ((61.3, 20.8, 333.1, 299.9), (32, 32)),
    ((100, 50, 228, 178), (64, 64)), ((33, 5, 390, 205), (40, 40)),
    ((10.4, 10.4, 30.4, 30.4), (64, 64))])
def test_resized_crop_of_a_jpeg_is_close_to_full_decoding(box, size):
  """The box is rounded to reduced pixels: it is off by half a pixel of the result.

  This equals four pixels of the image, which differ by at most 1.5 each.
  """
  content = _encode(_smooth(360, 480, 4), quality=95)
  whole = Image.open(io.BytesIO(content))
  expected = np.asarray(whole.resize(size, Image.Resampling.BILINEAR, box)).astype(int)
  difference = np.abs(_cut(content, box, size) - expected)
  assert difference.mean() < 4 and difference.max() < 14


def test_jpeg_orientation_is_applied():
  picture = _smooth(40, 60)
  for orientation, upright in ((3, picture[::-1, ::-1]),
                               (6, np.rot90(picture, -1)), (8, np.rot90(picture))):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _encode(picture, quality=95, exif=exif)
    seen, = images.image('x.jpg', content).frames([0.0])
    assert seen.size == upright.shape[1::-1]
    assert np.abs(_cut(content) - upright.astype(int)).mean() < 3


@pytest.mark.parametrize('kind, mode, options', [
    ('JPEG', 'L', {}), ('JPEG', 'CMYK', {}), ('PNG', 'RGBA', {}), ('PNG', 'LA', {}),
    ('PNG', 'P', {}), ('GIF', 'P', {}), ('WEBP', 'RGB', dict(lossless=True)),
    ('BMP', 'RGB', {})])
def test_images_of_all_formats_and_modes_become_rgb(kind, mode, options):
  content = io.BytesIO()
  picture = Image.new('RGB', (24, 16), (204, 51, 102)).convert(mode)
  picture.save(content, kind, **options)
  seen = _cut(content.getvalue())
  assert seen.shape == (16, 24, 3) and seen.dtype == np.uint8
  grey = 0.299 * 204 + 0.587 * 51 + 0.114 * 102
  expected = [grey] * 3 if mode in ('L', 'LA') else (204, 51, 102)
  assert np.abs(seen - np.asarray(expected)).max() < 5


@pytest.mark.parametrize('content', [b'', b'no picture', _encode(_smooth(40, 40))[:400],
                                     _encode(_smooth(40, 40), 'PNG')[:400]])
def test_damaged_image_raises_with_its_name(content):
  with pytest.raises(media.MediaError, match=r'x\.jpg: '):
    _cut(content)


def test_frame_stays_on_screen_until_the_next():
  pictures = [_encode(np.full((8, 8, 3), v, np.uint8)) for v in (0, 100, 200)]
  film = images.Stills('x', pictures, 10.0)
  assert film.duration_seconds == pytest.approx(0.3)
  shown = [p.cut((0, 0, 8, 8), (8, 8))[0, 0, 0]
           for p in film.frames([0.0, 0.05, 0.1, 0.19, 0.2, 7.0])]
  assert shown == [0, 0, 100, 100, 200, 200]


def test_audio_window_is_right_at_any_sample_rate():
  tone = np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)
  film = images.Stills('x', (), 1.0, np.round(tone * 32767).astype(np.int16), 16_000)
  assert film.has_audio and not film.has_video and film.duration_seconds == 1
  for rate_hz in (16_000, 8_000, 24_000):
    samples = int(0.3 * rate_hz)
    expected = np.sin(2 * np.pi * 300 * (0.5 + np.arange(samples) / rate_hz))
    np.testing.assert_allclose(film.audio(0.5, samples, rate_hz), expected, atol=2e-3)
  np.testing.assert_array_equal(film.audio(5.0, 100, 16_000), np.zeros(100))


def test_silence_is_audio_and_an_empty_waveform_is_none():
  for dtype in (np.int16, np.float32):
    silent = images.Stills('x', (), 1.0, np.zeros(16_000, dtype), 16_000)
    np.testing.assert_array_equal(silent.audio(0.5, 4000, 8000), np.zeros(4000))
    assert images.Stills('x', (), 1.0, np.zeros(0, dtype), 16_000).audio(
        0.0, 100, 16_000) is None


@pytest.mark.parametrize('size', [(160, 120), (120, 160)])
def test_scale_jitter_equals_a_square_crop_of_a_rescaled_frame(size):
  """Compares with the direct way: rescale the frame, crop, resize.

  Both show the same if the square fits the rescaled frame. Both round to pixels of the
  frame, which differ by at most 6 from their neighbors.
  """
  picture = _smooth(size[1], size[0])
  content = _encode(picture, 'PNG')
  compared = 0
  for seed in range(30):
    box = jittered_box(size, 0.2, 0.8, np.random.default_rng(seed))
    stretched, wide, high, across, down = np.random.default_rng(seed).random(5)
    factors = [1 + 0.2 * (2 * u - 1) if stretched < 0.8 else 1.0 for u in (wide, high)]
    edge = min(size)
    whole = [round(n * f) for n, f in zip(size, factors, strict=True)]
    if min(whole) < edge:    # limited to the frame
      assert min(box) >= -1e-9 and box[2] <= size[0] + 1e-9 and (
          box[3] <= size[1] + 1e-9)
      continue
    compared += 1
    left, top = ((n - edge) * u for n, u in zip(whole, (across, down), strict=True))
    big = Image.fromarray(picture).resize(whole, Image.Resampling.BILINEAR)
    expected = big.resize((48, 48), Image.Resampling.BILINEAR,
                          (left, top, left + edge, top + edge))
    difference = np.abs(_cut(content, box, (48, 48)) - np.asarray(expected, int))
    assert difference.mean() < 1.5 and difference.max() < 8
  assert compared > 5


def test_scale_jitter_rate_is_the_share_of_rescaled_clips():
  boxes = [jittered_box((100, 60), 0.2, 0.8, np.random.default_rng(i))
           for i in range(400)]
  sides = np.array([(b[2] - b[0], b[3] - b[1]) for b in boxes])
  plain = np.all(np.isclose(sides, 60), axis=1)
  assert 0.14 < plain.mean() < 0.26
  widths = sides[~plain, 0]
  assert 60 / 1.2 <= widths.min() < 52 and 71 < widths.max() <= 75
  assert sides[:, 1].max() == 60    # at most the frame


def test_16_bit_gray_and_transparent_palettes_become_rgb():
  deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
  flat = Image.new('P', (8, 8), 1)
  flat.putpalette([0, 0, 0, 200, 100, 50])
  for picture, options, expected in (
      (Image.fromarray(deep), {}, deep[..., None] / 256),
      (flat, dict(transparency=bytes([0, 255])), np.array([200, 100, 50]))):
    file = io.BytesIO()
    picture.save(file, 'PNG', **options)
    shown = images.image('x.png', file.getvalue()).frames([0.0])[0]
    pixels = shown.cut((0, 0, 8, 8), (8, 8))
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (8, 8, 3)), atol=1)
