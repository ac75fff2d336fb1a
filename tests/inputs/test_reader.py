"""Tests of vatt_jax/inputs/reader.py."""

import dataclasses
import io

import av
import numpy as np
from PIL import Image
import pytest

from data import toy_world as world
from vatt_jax.inputs import clip
from vatt_jax.inputs import images
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.batches import eval_batches
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import nearest
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

WINDOW = Window(num_frames=4, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                num_candidates=3, max_tokens=6, min_crop_area=0.5)


def _reader(clips, max_bad_fraction=0.1, log=None):
  tokenizer = text.WordTokenizer.build(
      (c.text for clip in clips for c in clip.captions), 256)
  notes = FileNotes(max_bad_fraction, len(clips), log)
  return Reader(clips, WINDOW, tokenizer, notes)


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def test_candidates_are_the_captions_nearest_in_time():
  captions = [clip.Caption(t, t + 1, str(t)) for t in (0, 9, 4, 6, 2)]
  assert [c.text for c in nearest(captions, 5.2, 3)] == ['4', '6', '2']


def test_window_stays_within_the_clip(toy_world):
  """A segment of one object never shows the next one's color."""
  path = str(toy_world / 'clips' / 'train' / '0000.mp4')
  seen = set()

  class Spy:
    duration_seconds, has_video = 8.0, True

    def frames(self, times):
      seen.add((times[0], times[-1]))
      raise media.MediaError(path, 'enough')

  reader = _reader([clip.Clip(path, 2.0, 4.5)], 1.0)
  for seed in range(50):
    with pytest.raises(media.MediaError):
      reader._decode(reader.clips[0], Spy(), np.random.default_rng(seed).random(), list)
  starts, ends = zip(*seen, strict=True)
  assert min(starts) >= 2.0 and max(ends) <= 4.5 and max(starts) - min(starts) > 1


def test_clip_shorter_than_the_window_shows_nothing_after_its_end(toy_world):
  rows = sources.open_source(str(toy_world / 'train_segments.csv'))
  whole = next(r for r in rows if r.labels['sound_event'] and r.start == 0)
  short = clip.Clip(whole.path, whole.end - 0.3, whole.end)
  example = _reader([short]).views(0)[0]
  for later in example['video'][2:]:
    np.testing.assert_array_equal(later, example['video'][2])
  assert example['audio'][:1200].any() and not example['audio'][1200:].any()


def _looping(window=WINDOW, **changes):
  return dataclasses.replace(window, short='loop', **changes)


def _numbered(count, rate_hz, **sound):
  """Returns a record whose frame i has gray value 10 * i."""
  encoded = []
  for i in range(count):
    image = io.BytesIO()
    Image.new('RGB', (16, 16), (10 * i,) * 3).save(image, 'PNG')
    encoded.append(image.getvalue())
  return clip.Clip('short', content=images.Stills('short', encoded, rate_hz, **sound))


def _order(reader, **kwargs):
  """Returns the numbers of the frames in a window."""
  return (reader.views(0, **kwargs)[0]['video'][:, 0, 0, 0] / 10).round().tolist()


@pytest.mark.parametrize('count', [1, 2, 3, 7, 10, 13, 24])
def test_loop_repeats_frames_in_the_order_of_dmvr(count):
  """DMVR takes every second frame of 25 Hz from the repeated list of all frames."""
  window = _looping(num_frames=16, frame_rate_hz=12.5, modalities=('video',))
  reader = dataclasses.replace(_reader([_numbered(count, 25.0)]), window=window)
  repeated = np.tile(np.arange(count), 32)[:32:2].tolist()
  assert _order(reader) == _order(reader, place=1.0) == repeated
  held = dataclasses.replace(reader, window=dataclasses.replace(window, short='hold'))
  assert _order(held) == np.minimum(2 * np.arange(16), count - 1).tolist()


@pytest.mark.parametrize('name', ['short.mp4', 'short.mkv', 'short.avi'])
def test_loop_repeats_a_short_file_exactly(name, tmp_path):
  frames = np.repeat(np.arange(6, dtype=np.uint8) * 40, 32 * 32 * 3)
  world.encode(tmp_path / name, frames.reshape(6, 32, 32, 3), 25)
  reader = dataclasses.replace(
      _reader([clip.Clip(str(tmp_path / name))]),
      window=_looping(num_frames=24, frame_rate_hz=12.5, modalities=('video',)))
  video = reader.views(0)[0]['video'][:, 8, 8, 0]
  assert (video / 40).round().tolist() == [0, 2, 4] * 8


def test_loop_repeats_only_the_clip_not_the_rest_of_its_file():
  """The clip is 0.2 s to 0.5 s of a record at 10 Hz: frames 2, 3 and 4."""
  row = dataclasses.replace(_numbered(9, 10.0), start=0.2, end=0.5)
  reader = dataclasses.replace(_reader([row]), window=_looping(
      num_frames=8, frame_rate_hz=10.0, modalities=('video',)))
  assert _order(reader) == [2, 3, 4, 2, 3, 4, 2, 3]


def test_loop_repeats_audio_in_sync_with_frames():
  ramp = np.linspace(0.1, 0.9, 1200).astype(np.float32)    # 0.3 s
  short = _numbered(3, 10.0, waveform=ramp, audio_hz=4000)
  window = _looping(num_frames=10, frame_rate_hz=10.0)    # 1 s
  example, = dataclasses.replace(_reader([short]), window=window).views(0)
  assert example['has_audio']
  one = example['audio'][:1200]
  assert one.any()
  np.testing.assert_array_equal(example['audio'], np.resize(one, 4000))
  held, = dataclasses.replace(_reader([short]), window=dataclasses.replace(
      window, short='hold')).views(0)
  np.testing.assert_array_equal(held['audio'][:1200], one)
  assert not held['audio'][1200:].any()


def test_clip_as_long_as_the_window_does_not_loop(toy_world):
  rows = sources.open_source(str(toy_world / 'train_segments.csv'))[:4]
  looped, held = (dataclasses.replace(_reader(rows), window=window)
                  for window in (_looping(), WINDOW))
  _assert_same(next(eval_batches(looped, 8, 2)),
               next(eval_batches(held, 8, 2)))


def test_clip_that_begins_after_its_file_ends_is_skipped(toy_world):
  path = str(toy_world / 'clips' / 'train' / '0000.mp4')
  reader = _reader([clip.Clip(path, 50.0, 60.0)], 1.0)
  assert reader.views(0) is None
  assert 'before the clip begins at 50.0 s' in reader.notes.skipped[path]


def test_clip_without_audio_is_masked_and_noted(toy_world, tmp_path):
  video = np.zeros((20, 16, 16, 3), np.uint8)
  world.encode(tmp_path / 'quiet.mp4', video, 10)
  reader = _reader([clip.Clip(str(tmp_path / 'quiet.mp4'))])
  batch, = eval_batches(reader, 1)
  assert batch['mask'].all() and not batch['has_audio'].any()
  assert 'has no audio stream' in reader.notes.no_audio[str(tmp_path / 'quiet.mp4')]
  assert not reader.notes.skipped


def _record(films, number, **replaced):
  """Holds clips of one gray frame, or of audio alone, without a file."""
  content = images.Stills(f'{number}', films, 1.0, **replaced)
  return clip.Clip(f'{number}', content=content)


@pytest.mark.parametrize('kind, codec', [
    ('wav', 'pcm_s16le'), ('flac', 'flac'), ('ogg', 'libopus'), ('mp3', 'mp3'),
    ('m4a', 'aac')])
def test_audio_files_have_audio_and_masked_video(kind, codec, tmp_path):
  path = tmp_path / f'tone.{kind}'
  tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=16_000, layout='mono')
    cover = container.add_stream('mjpeg') if kind == 'mp3' else None
    if cover:    # which is not a video
      cover.width, cover.height, cover.pix_fmt = 32, 32, 'yuvj420p'
      cover.disposition = av.stream.Disposition.attached_pic
      container.mux(cover.encode(av.VideoFrame(32, 32, 'yuvj420p'))
                    + cover.encode(None))
    frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), 'fltp', 'mono')
    frame.sample_rate, frame.pts = 16_000, 0
    packets = [stream.encode(part) for part in av.AudioResampler(
        stream.format, 'mono', 16_000).resample(frame)]
    container.mux([p for part in packets for p in part] + stream.encode(None))
  reader = _reader(sources.open_source(str(tmp_path)), 1.0)
  batch, = eval_batches(reader, 1)
  assert batch['mask'].all() and batch['has_audio'].all()
  assert not batch['has_video'].any() and not batch['video'].any()
  spectrum = np.abs(np.fft.rfft(batch['audio'][0]))
  assert abs(spectrum.argmax() * 4000 / 3200 - 440) < 2
  alone = dataclasses.replace(reader, window=dataclasses.replace(
      WINDOW, modalities=('audio',)))
  _assert_same(*({k: b[k] for k in ('audio', 'has_audio', 'id', 'mask')}
                 for b in (next(eval_batches(alone, 1)), batch)))
  pictures = dataclasses.replace(reader, window=dataclasses.replace(
      WINDOW, modalities=('video',)))
  assert not next(eval_batches(pictures, 1))['mask'].any()
  assert reader.notes.skipped[str(path)] == f'{path}: has no video stream'


def _silence(count, first=0):
  """Returns records of zeros."""
  return [_record((), first + i, waveform=np.zeros(4000, np.float32), audio_hz=4000)
          for i in range(count)]


def _hears(clips, max_bad_fraction=0.1):
  """Returns a reader of audio alone."""
  return dataclasses.replace(
      _reader(clips, max_bad_fraction),
      window=dataclasses.replace(WINDOW, modalities=('audio',)))


def test_silent_file_is_read_as_zeros_and_not_noted(tmp_path):
  world.encode(tmp_path / 'zero.mp4', np.zeros((20, 16, 16, 3), np.uint8), 10,
               np.zeros(32_000, np.float32))
  for reader in (_reader([clip.Clip(str(tmp_path / 'zero.mp4'))]),
                 _hears([clip.Clip(str(tmp_path / 'zero.mp4'))]),
                 _hears(_silence(1))):
    batch, = eval_batches(reader, 1)
    assert batch['mask'].all() and batch['has_audio'].all()
    assert not batch['audio'].any()
    assert not reader.notes.skipped and not reader.notes.no_audio


def test_audio_that_ends_before_the_video_is_zeros_and_present(tmp_path):
  world.encode(tmp_path / 'film.mp4', np.zeros((40, 16, 16, 3), np.uint8), 10,
               np.full(16_000, 0.5, np.float32))    # 4 s of video, 1 s of audio
  reader = _reader([clip.Clip(str(tmp_path / 'film.mp4'))])
  late, = reader.views(0, place=1.0)
  assert late['has_audio'] and not late['audio'].any()


def _ramp(seconds, audio_hz=1000):
  """Gives frames (10 per second) and samples with values that encode their time."""
  frames = []
  for i in range(10 * seconds):
    image = io.BytesIO()
    Image.new('RGB', (8, 8), (i, i, i)).save(image, 'PNG')
    frames.append(image.getvalue())
  samples = (1 + np.arange(audio_hz * seconds)).astype(np.int16)
  return clip.Clip('ramp', content=images.Stills('ramp', frames, 10.0, samples,
                                                 audio_hz))


@pytest.mark.parametrize('place, frame, sample', [
    (0.0, 0, 0), (0.5, 15, 1000), (1.0, 30, 2000)])
def test_audio_with_its_own_length_spans_the_clip_like_the_frames(place, frame, sample):
  """The clip has 4 s, the window 1 s of frames and 2 s of audio; both span the clip."""
  window = Window(num_frames=10, frame_rate_hz=10.0, image_size=8,
                  audio_hz=1000, audio_seconds=2.0,
                  modalities=('video', 'audio'))
  assert (window.seconds, window.num_samples) == (1.0, 2000)
  reader = Reader([_ramp(4)], window, text.WordTokenizer(()),
                  FileNotes(0.5, None))
  example, = reader.views(0, place)
  assert example['video'][0, 0, 0, 0] == frame
  np.testing.assert_array_equal(example['audio'], 1 + sample + np.arange(2000))


def test_audio_longer_than_its_clip_ends_in_zeros():
  window = Window(num_frames=10, frame_rate_hz=10.0, image_size=8,
                  audio_hz=1000, audio_seconds=4.0,
                  modalities=('video', 'audio'))
  reader = Reader([_ramp(3)], window, text.WordTokenizer(()),
                  FileNotes(0.5, None))
  example, = reader.views(0, 1.0)
  assert example['video'][0, 0, 0, 0] == 20
  np.testing.assert_array_equal(example['audio'][:3000], 1 + np.arange(3000))
  assert example['audio'].shape == (4000,) and not example['audio'][3000:].any()
  with pytest.raises(ValueError, match=r'audio_seconds=-1\.0: expected a length, or 0'):
    Window(1, 1.0, 8, 1000, audio_seconds=-1.0)


def test_audio_only_clips_have_the_same_number_of_views(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = Window(2, 5.0, 8, 2000, modalities=('audio',))
  reader = Reader(clips, window, text.WordTokenizer(()),
                  FileNotes(0.5, None))
  assert len(reader.views(0, 0.5, num_crops=3)) == 3
