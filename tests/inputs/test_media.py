"""Tests of vatt_jax/inputs/media.py."""

import fractions

import av
import numpy as np
import pytest

from data import toy_world
from vatt_jax.inputs import media

RATE_HZ, AUDIO_HZ = 25, 16_000


def _flashes(seconds, moments, frame_rate_hz=RATE_HZ, audio_hz=AUDIO_HZ):
  """Returns video and audio: a white frame and a beep at each moment (seconds)."""
  video = np.zeros((round(seconds * frame_rate_hz), 32, 32, 3), np.uint8)
  sound = np.zeros(round(seconds * audio_hz), np.float32)
  beep = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(audio_hz // 25) / audio_hz)
  for moment in moments:
    video[round(moment * frame_rate_hz)] = 255
    first = round(moment * audio_hz)
    sound[first:first + len(beep)] = beep
  return video, sound


def _pixels(picture):
  """Returns the whole frame without scaling.  -> [H, W, 3]."""
  return picture.cut((0, 0, *picture.size), picture.size)


def _bright(pictures):
  return np.asarray([_pixels(picture).mean() for picture in pictures])


@pytest.fixture(scope='module')
def counting(tmp_path_factory):
  """Writes a video whose frame i has gray value 20 + 2i, 4 s at 25 Hz, with a tone."""
  path = tmp_path_factory.mktemp('media') / 'counting.mp4'
  video = np.broadcast_to(
      (20 + 2 * np.arange(100, dtype=np.uint8))[:, None, None, None], (100, 32, 32, 3))
  time = np.arange(4 * AUDIO_HZ) / AUDIO_HZ
  sound = 0.5 * np.sin(2 * np.pi * (200 + 100 * time) * time).astype(np.float32)
  toy_world.encode(path, np.ascontiguousarray(video), RATE_HZ, sound)
  return path


@pytest.mark.parametrize('start', [0.0, 0.37, 1.0, 2.02, 3.5])
def test_video_window_equals_decoding_the_whole_file(counting, start):
  with av.open(counting) as container:
    whole = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
  times = start + np.arange(5) / 10
  with media.MediaFile(counting) as file:
    images = file.frames(times)
  for time, image in zip(times, images, strict=True):
    on_screen = int(np.floor(time * RATE_HZ + 1e-6))
    np.testing.assert_array_equal(_pixels(image), whole[on_screen])


@pytest.mark.parametrize('start', [0.0, 0.513, 2.0])
def test_audio_window_equals_decoding_the_whole_file(counting, start):
  with av.open(counting) as container:
    whole = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)
                            if f.pts >= 0])
  with media.MediaFile(counting) as file:
    sound = file.audio(start, 8000, AUDIO_HZ)
  first = round(start * AUDIO_HZ)
  np.testing.assert_allclose(sound, whole[first:first + 8000], atol=1e-4)


@pytest.mark.parametrize('frame_rate_hz, audio_hz', [(25, 16_000), (10, 44_100)])
def test_flash_and_beep_coincide(tmp_path, frame_rate_hz, audio_hz):
  """Both come at the right time, for any start of the window and any rates."""
  moments = (0.8, 2.4, 3.2)
  path = tmp_path / 'flash.mp4'
  video, sound = _flashes(4, moments, frame_rate_hz, audio_hz)
  toy_world.encode(path, video, frame_rate_hz, sound, audio_hz)
  for start in (0.0, 0.45, 2.0):
    times = start + np.arange(190) / 100
    with media.MediaFile(path) as file:
      light = _bright(file.frames(times)) > 128
      heard = np.abs(file.audio(start, 190 * 80, 8000)).reshape(190, 80).max(1) > 0.3
    for moment in moments:
      if start <= moment < start + 1.8:
        seen_at = times[light & (abs(times - moment) < 0.3)][0]
        heard_at = times[heard & (abs(times - moment) < 0.3)][0]
        assert abs(seen_at - moment) <= 0.0101    # times are 10 ms apart
        assert abs(heard_at - moment) <= 0.0101


def test_streams_that_begin_at_different_times_stay_in_sync(tmp_path):
  """The video begins 0.4 s after the audio; the time stamps begin at 5 s."""
  path = tmp_path / 'late.mkv'
  video, sound = _flashes(3, (1.0,))
  with av.open(path, 'w') as container:
    picture = container.add_stream('h264', rate=RATE_HZ)
    picture.width = picture.height = 32
    picture.pix_fmt = 'yuv420p'
    voice = container.add_stream('pcm_s16le', rate=AUDIO_HZ, layout='mono')
    packets = []
    frame = av.AudioFrame.from_ndarray(
        (sound[None] * 32767).astype(np.int16), format='s16', layout='mono')
    frame.sample_rate, frame.pts = AUDIO_HZ, 5 * AUDIO_HZ
    packets += voice.encode(frame) + voice.encode(None)
    for i, image in enumerate(video[10:], 10):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      frame.pts, frame.time_base = i + 5 * RATE_HZ, fractions.Fraction(1, RATE_HZ)
      packets += picture.encode(frame)
    container.mux(packets + picture.encode(None))
  times = 0.5 + np.arange(100) / 100
  with media.MediaFile(path) as file:
    light = _bright(file.frames(times)) > 128
    heard = np.abs(file.audio(0.5, 8000, 8000)).reshape(100, 80).max(1) > 0.3
    before_the_first = file.frames([0.1, 0.41])
  assert abs(times[light][0] - 1.0) <= 0.0101
  assert abs(times[heard][0] - 1.0) <= 0.0101
  assert before_the_first[0] is before_the_first[1]


def test_avi_reads_from_its_start_and_its_middle(tmp_path):
  """AVI has no time stamps, an index from the start, and here a title in Latin-1."""
  path = tmp_path / 'old.avi'
  video, sound = _flashes(2, (0.2, 1.2))
  with av.open(path, 'w') as container:
    container.metadata['title'] = 'TITLE-HERE'
    picture = container.add_stream('mpeg4', rate=RATE_HZ)
    picture.width = picture.height = 32
    picture.pix_fmt = 'yuv420p'
    voice = container.add_stream('pcm_s16le', rate=AUDIO_HZ, layout='mono')
    packets = []
    for image in video:
      packets += picture.encode(av.VideoFrame.from_ndarray(image, format='rgb24'))
    frame = av.AudioFrame.from_ndarray(
        (sound[None] * 32767).astype(np.int16), format='s16', layout='mono')
    frame.sample_rate, frame.pts = AUDIO_HZ, 0
    container.mux(packets + picture.encode(None) + voice.encode(frame)
                  + voice.encode(None))
  path.write_bytes(path.read_bytes().replace(b'TITLE-HERE', b'\xe9t\xe9 \xe0 deux'))
  for start, moment in ((0.0, 0.2), (1.0, 1.2)):
    times = start + np.arange(60) / 100
    with media.MediaFile(path) as file:
      light = _bright(file.frames(times)) > 128
      heard = np.abs(file.audio(start, 4800, 8000)).reshape(60, 80).max(1) > 0.3
    assert abs(times[light][0] - moment) <= 0.0101
    assert abs(times[heard][0] - moment) <= 0.0101


def test_past_the_end_the_last_frame_repeats_and_audio_is_zero(counting):
  with media.MediaFile(counting) as file:
    images = file.frames([3.9, 3.96, 4.5, 9.0])
    sound = file.audio(3.5, AUDIO_HZ, AUDIO_HZ)
  assert images[1] is images[2] is images[3]
  assert np.any(sound[:AUDIO_HZ // 2 - 2000])
  assert not np.any(sound[AUDIO_HZ // 2 + 2000:])


def test_resampling_keeps_pitch_and_loudness(counting):
  with media.MediaFile(counting) as file:
    for rate_hz in (8000, 48_000):
      sound = file.audio(1.0, rate_hz, rate_hz)
      assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
      spectrum = np.abs(np.fft.rfft(sound))
      centre = np.sum(spectrum**2 * np.arange(len(spectrum))) / np.sum(spectrum**2)
      assert centre == pytest.approx(500, abs=15)    # d/dt of the phase, 1 s to 2 s


def test_silence_is_zeros_and_missing_audio_stream_is_none(tmp_path):
  video, sound = _flashes(1, ())
  toy_world.encode(tmp_path / 'none.mp4', video, RATE_HZ)
  toy_world.encode(tmp_path / 'zero.mp4', video, RATE_HZ, sound)
  with media.MediaFile(tmp_path / 'none.mp4') as file:
    assert file.audio(0, 1000, AUDIO_HZ) is None
  with media.MediaFile(tmp_path / 'zero.mp4') as file:
    np.testing.assert_array_equal(file.audio(0, 1000, AUDIO_HZ), np.zeros(1000))


def test_audio_after_its_stream_has_ended_is_zeros(tmp_path):
  video, sound = _flashes(3, (0.5,))
  toy_world.encode(tmp_path / 'short.mp4', video, RATE_HZ, sound[:AUDIO_HZ])
  with media.MediaFile(tmp_path / 'short.mp4') as file:
    assert file.audio(0.2, AUDIO_HZ, AUDIO_HZ).any()
    np.testing.assert_array_equal(file.audio(2.0, 8000, AUDIO_HZ), np.zeros(8000))


def test_stereo_is_mixed_to_its_mean(tmp_path):
  path = tmp_path / 'stereo.wav'
  left = 0.5 * np.sin(np.arange(AUDIO_HZ) * 0.05)
  with av.open(path, 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=AUDIO_HZ, layout='stereo')
    packed = (np.stack([left, 0 * left], 1).reshape(1, -1) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(packed, format='s16', layout='stereo')
    frame.sample_rate, frame.pts = AUDIO_HZ, 0
    container.mux(stream.encode(frame) + stream.encode(None))
  with media.MediaFile(path) as file:
    sound = file.audio(0.25, 4000, AUDIO_HZ)
  np.testing.assert_allclose(sound, left[4000:8000] / 2, atol=1e-4)


@pytest.mark.parametrize('content, why', [
    (None, 'No such file'), (b'', 'Invalid data|End of file'),
    (b'not a film' * 99, 'Invalid')])
def test_file_that_is_no_media_file_raises_with_its_name(tmp_path, content, why):
  path = tmp_path / 'odd name.mp4'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(media.MediaError, match=rf'odd name\.mp4: .*({why})'):
    media.MediaFile(path)


def test_truncated_file_raises_with_its_name(tmp_path, counting):
  path = tmp_path / 'short.mp4'
  path.write_bytes(counting.read_bytes()[:3000])
  with pytest.raises(media.MediaError, match=r'short\.mp4: '), \
      media.MediaFile(path) as file:
    file.frames([3.0])


REAL = {    # name -> upright size, or the reason without frames
    'audioset_a.mp4': (256, 144), 'audioset_b.mp4': (1280, 720),
    'av1_video.mkv': (640, 360), 'corrupted.mp4': 'Invalid data',
    'discard_first_keyframe.mp4': (64, 64), 'flipping_a_pancake.mkv': (426, 240),
    'h265_video.mp4': (128, 128), 'nasa_13013.mp4': (480, 270),
    'nasa_13013_rotated.mp4': (270, 480), 'robin.ogg': 'no video',
    'sine_mono_s16.wav': 'no video', 'test_non_zero_start.mp4': (200, 112),
    'testsrc2_vp9.webm': (1280, 720), 'unordered.mov': (50, 50),
    'video_90.mov': (320, 568)}


@pytest.mark.parametrize('name', REAL)
def test_real_files_give_frames_or_raise_with_a_reason(shared, name):
  with media.MediaFile(shared / 'media' / name) as file:
    times = np.linspace(0, file.duration_seconds, 6)
    if isinstance(REAL[name], str):
      with pytest.raises(media.MediaError, match=REAL[name]):
        file.frames(times)
    else:
      assert [image.size for image in file.frames(times)] == [REAL[name]] * 6


@pytest.mark.parametrize('name', [
    'audioset_a.mp4', 'audioset_b.mp4', 'flipping_a_pancake.mkv', 'nasa_13013.mp4',
    'test_non_zero_start.mp4', 'testsrc2_vp9.webm'])
def test_window_of_a_real_file_equals_decoding_it_whole(shared, name):
  path = shared / 'media' / name
  with av.open(path) as container:
    stream = container.streams.best('video')
    zero = container.start_time / av.time_base
    whole = [(float(f.pts * f.time_base) - zero, f.to_ndarray(format='rgb24'))
             for f in container.decode(stream)]
  with media.MediaFile(path) as file:
    start = 0.45 * file.duration_seconds
    times = start + np.arange(4) * 0.033
    images = file.frames(times)
  for time, image in zip(times, images, strict=True):
    expected = [picture for now, picture in whole if now <= time + 2e-3][-1]
    np.testing.assert_array_equal(_pixels(image), expected)


def test_real_recording_of_a_sine_has_one_frequency(shared):
  with media.MediaFile(shared / 'media' / 'sine_mono_s16.wav') as file:
    assert file.duration_seconds == pytest.approx(4.0)
    sound = file.audio(1.0, 48_000, 48_000)
  spectrum = np.abs(np.fft.rfft(sound))
  assert np.sum(spectrum > spectrum.max() / 10) <= 3
