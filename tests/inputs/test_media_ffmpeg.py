"""Tests of vatt_jax/inputs/media.py: frames and audio of real files equal FFmpeg's.

The command line tool comes with the package `imageio-ffmpeg`; it is another build, and
mostly another version, than the library that the reader uses.
"""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from vatt_jax.inputs import media

PICTURES = [
    'audioset_a.mp4', 'audioset_b.mp4', 'av1_video.mkv', 'discard_first_keyframe.mp4',
    'flipping_a_pancake.mkv', 'h265_video.mp4', 'nasa_13013.mp4',
    'nasa_13013_rotated.mp4', 'test_non_zero_start.mp4', 'testsrc2_vp9.webm',
    'unordered.mov', 'video_90.mov']
SOUNDS = ['audioset_a.mp4', 'audioset_b.mp4', 'flipping_a_pancake.mkv',
          'nasa_13013.mp4', 'robin.ogg', 'sine_mono_s16.wav']


def _ffmpeg(*arguments):
  """Returns FFmpeg's standard output, and its standard error as text."""
  command = [imageio_ffmpeg.get_ffmpeg_exe(), '-hide_banner', '-nostdin', *arguments]
  done = subprocess.run(command, capture_output=True, check=True)
  return done.stdout, done.stderr.decode(errors='replace')


def _stamps(path):
  """Returns the time of every frame in seconds, from the start of the file."""
  _, said = _ffmpeg('-i', str(path), '-an', '-vf', 'showinfo', '-f', 'null', '-')
  return np.asarray([float(s) for s in re.findall(r' pts_time:(\S+) ', said)])


def _pictures(path, numbers, size):
  """Returns some of a file's frames, RGB uint8 [K, H, W, 3]."""
  chosen = '+'.join(f'eq(n,{n})' for n in numbers)
  out, _ = _ffmpeg('-v', 'error', '-i', str(path), '-an', '-vf', f"select='{chosen}'",
                   '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgb24',
                   '-')
  return np.frombuffer(out, np.uint8).reshape(len(numbers), size[1], size[0], 3)


def _psnr(a, b):
  error = np.mean((a.astype(float) - b)**2)
  return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize('name', PICTURES)
def test_frames_equal_ffmpeg_at_the_same_times(shared, name):
  """Compares the first, the middle and the last frame, upright, to 40 dB."""
  path = shared / 'media' / name
  stamps = _stamps(path)
  numbers = sorted({0, len(stamps) // 2, len(stamps) - 1})
  with media.MediaFile(path) as file:
    pictures = file.frames(stamps[numbers])
    if len(stamps) > 2:    # a frame stays until the next one
      early = file.frames(stamps[numbers] + 0.4 * np.diff(stamps).min())
      assert [p.frame.pts for p in early] == [p.frame.pts for p in pictures]
    expected = _pictures(path, numbers, pictures[0].size)
    for picture, like in zip(pictures, expected, strict=True):
      shown = picture.cut((0, 0, *picture.size), picture.size)
      assert _psnr(shown, like) >= 40


@pytest.mark.parametrize('name', SOUNDS)
def test_audio_equals_ffmpeg(shared, name):
  """Compares the mean of the channels, at the file's own rate, by sample."""
  path = shared / 'media' / name
  _, said = _ffmpeg('-i', str(path), '-vn', '-af', 'ashowinfo', '-f', 'null', '-')
  first = float(re.search(r' pts_time:(\S+) ', said)[1])
  rate = int(re.search(r' rate:(\d+) ', said)[1])
  channels = int(re.search(r' channels:(\d+) ', said)[1])
  out, _ = _ffmpeg('-v', 'error', '-i', str(path), '-vn', '-f', 'f32le', '-')
  whole = np.frombuffer(out, np.float32).reshape(-1, channels).mean(1)
  length, most = rate // 2, rate // 1000    # of 1 ms
  with media.MediaFile(path) as file:
    sound = file.audio(first, length, rate)
    np.testing.assert_allclose(sound[:-most], whole[:length - most], atol=2e-3)
    # AAC decoders add their own noise, and time stamps of files are rounded.
    for place in np.linspace(length, len(whole) - 2 * length, 4).astype(int):
      sound = file.audio(first + place / rate, length, rate)
      likeness = [np.corrcoef(sound, whole[place + lag:place + lag + length])[0, 1]
                  for lag in range(-most, most + 1)]
      assert max(likeness) > 0.98


def test_streams_are_chosen_like_ffmpeg(shared):
  path = shared / 'media' / 'nasa_13013.mp4'
  _, said = _ffmpeg('-i', str(path), '-f', 'null', '-')
  chosen = [int(n) for n in re.findall(r'Stream #0:(\d+) -> #0:', said)]
  assert len(chosen) == 2
  with media.MediaFile(path) as file:
    assert [file._video.index, file._audio.index] == chosen
