"""Tests of vatt_jax/inputs/pipeline.py."""

import dataclasses
import io
import itertools
import json

import av
import numpy as np
from PIL import Image
import pytest

from data import toy_world as world
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip
from vatt_jax.inputs import images
from vatt_jax.inputs import labels
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text

WINDOW = pipeline.Window(num_frames=4, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                         num_candidates=3, max_tokens=6, min_crop_area=0.5)


def _reader(clips, max_bad_fraction=0.1, log=None):
  tokenizer = text.WordTokenizer.build(
      (c.text for clip in clips for c in clip.captions), 256)
  notes = pipeline.FileNotes(max_bad_fraction, len(clips), log)
  return pipeline.Reader(clips, WINDOW, tokenizer, notes)


@pytest.fixture(scope='module')
def reader(toy_world):
  return _reader(sources.open_source(str(toy_world / 'train.csv'),
                                     'train_captions.csv'))


def _take(reader, count, first_step=0, batch_size=8, **kwargs):
  return list(itertools.islice(
      pipeline.train_batches(reader, batch_size, 7, first_step, **kwargs), count))


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def test_batch_has_the_expected_shapes_and_types(reader):
  batch, = _take(reader, 1)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
      'video': ((8, 4, 16, 16, 3), 'uint8'), 'audio': ((8, 3200), 'int16'),
      'text': ((8, 3, 6), 'int32'), 'has_video': ((8,), 'bool'),
      'has_audio': ((8,), 'bool'), 'has_text': ((8,), 'bool'),
      'id': ((8,), 'int32'), 'mask': ((8,), 'bool')}
  assert batch['video'].std() > 10 and batch['mask'].all() and batch['has_video'].all()
  assert batch['audio'][batch['has_audio']].any(1).all()
  assert not batch['audio'][~batch['has_audio']].any()
  assert (batch['text'].any((1, 2)) == batch['has_text']).all()


def test_batch_of_a_step_does_not_depend_on_earlier_steps(reader):
  for step, batch in enumerate(_take(reader, 5)):
    _assert_same(batch, _take(reader, 1, first_step=step)[0])


def test_hosts_share_every_batch(reader):
  whole = _take(reader, 1, first_step=3)[0]
  parts = [_take(reader, 1, first_step=3, host=h, num_hosts=2)[0] for h in (0, 1)]
  _assert_same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})


def test_every_epoch_has_every_clip_once_in_a_new_order(reader):
  ids = np.concatenate([b['id'] for b in _take(reader, 6)]).reshape(2, 24)
  np.testing.assert_array_equal(np.sort(ids), [range(24)] * 2)
  assert (ids[0] != ids[1]).any() and (ids[0] != np.arange(24)).any()


def test_window_and_crop_of_a_clip_change_every_epoch(reader):
  batches = _take(reader, 6)
  first, second = (next(b['video'][b['id'] == 5][0] for b in part if 5 in b['id'])
                   for part in (batches[:3], batches[3:]))
  assert (first != second).mean() > 0.5


def test_evaluation_yields_every_clip_once_at_its_middle(reader):
  batches = list(pipeline.eval_batches(reader, 10))
  mask = np.concatenate([b['mask'] for b in batches])
  ids = np.concatenate([b['id'] for b in batches])
  assert mask.tolist() == [True] * 24 + [False] * 6
  assert ids[:24].tolist() == list(range(24))
  _assert_same(batches[1], list(pipeline.eval_batches(reader, 10))[1])
  assert not any(batches[2][k][4:].any() for k in batches[2])


def test_candidates_are_the_captions_nearest_in_time():
  captions = [clip.Caption(t, t + 1, str(t)) for t in (0, 9, 4, 6, 2)]
  assert [c.text for c in pipeline.nearest(captions, 5.2, 3)] == ['4', '6', '2']


def test_window_stays_within_the_clip(toy_world):
  """A segment of one object never shows the next one's color."""
  path = str(toy_world / 'clips' / 'train' / '0000.mp4')
  seen = set()

  class Spy:
    duration_seconds, has_video = 8.0, True

    def frames(self, times):
      seen.add((times[0], times[-1]))
      raise pipeline.media.MediaError(path, 'enough')

  reader = _reader([clip.Clip(path, 2.0, 4.5)], 1.0)
  for seed in range(50):
    with pytest.raises(pipeline.media.MediaError):
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
  _assert_same(next(pipeline.eval_batches(looped, 8, 2)),
               next(pipeline.eval_batches(held, 8, 2)))


def test_unknown_short_raises():
  with pytest.raises(ValueError, match="short='repeat': expected 'hold' or 'loop'"):
    dataclasses.replace(WINDOW, short='repeat')


def test_clip_that_begins_after_its_file_ends_is_skipped(toy_world):
  path = str(toy_world / 'clips' / 'train' / '0000.mp4')
  reader = _reader([clip.Clip(path, 50.0, 60.0)], 1.0)
  assert reader.views(0) is None
  assert 'before the clip begins at 50.0 s' in reader.notes.skipped[path]


@pytest.mark.parametrize('key', ['num_frames', 'frame_rate_hz', 'audio_hz'])
def test_window_size_of_zero_raises(key):
  with pytest.raises(ValueError, match=f'{key}=0: expected more than 0'):
    dataclasses.replace(WINDOW, **{key: 0})


def test_random_crops_lie_in_the_frame_within_area_and_aspect_bounds():
  """VATT, section 4.3: area in [0.08, 1], aspect in [0.5, 2]."""
  assert pipeline.central_box((100, 60)) == (20, 0, 80, 60)
  areas, aspects, rng = [], [], np.random.default_rng(0)
  for _ in range(500):
    left, top, right, bottom = pipeline.random_box((100, 60), 0.08, 2.0, rng)
    assert left >= 0 and right <= 100 and top >= 0 and bottom <= 60
    areas.append((right - left) * (bottom - top) / 6000)
    aspects.append((right - left) / (bottom - top))
  assert 0.08 <= min(areas) < 0.1 and 0.9 < max(areas) <= 1
  assert 0.5 <= min(aspects) < 0.6 and 1.8 < max(aspects) <= 2


def test_crop_without_aspect_is_a_square():
  for seed in range(50):
    left, top, right, bottom = pipeline.random_box(
        (64, 64), 0.25, 1.0, np.random.default_rng(seed))
    assert right - left == pytest.approx(bottom - top)
    assert 32 <= right - left <= 64
  whole = pipeline.random_box((100, 60), 1.0, 1.0, np.random.default_rng(0))
  assert whole == pipeline.central_box((100, 60))


def _with_broken(toy_world, tmp_path, good, bad):
  paths = [str(toy_world / 'clips' / 'train' / f'{i:04d}.mp4') for i in range(good)]
  for i in range(bad):
    (tmp_path / f'bad{i}.mp4').write_text('nothing')
    paths.append(str(tmp_path / f'bad{i}.mp4'))
  return [clip.Clip(p) for p in paths]


def test_broken_file_is_replaced_logged_once_and_noted(toy_world, tmp_path,
                                                             caplog):
  log = tmp_path / 'skipped.jsonl'
  clips = _with_broken(toy_world, tmp_path, 12, 2)
  reader = _reader(clips, 0.2, log)
  batches = _take(reader, 6)
  assert {clips[i].path for b in batches for i in b['id']} == {
      c.path for c in clips[:12]}
  assert all(b['mask'].all() for b in batches)
  assert sorted(reader.notes.skipped) == [c.path for c in clips[12:]]
  assert len([r for r in caplog.records if 'Skipped' in r.message]) == 2
  noted = [json.loads(line) for line in log.read_text().splitlines()]
  assert [row['path'] for row in noted if row['note'] == 'skipped'] == list(
      reader.notes.skipped)
  again = _reader(clips, 0.2, log)
  assert again.notes.skipped == reader.notes.skipped
  _assert_same(_take(again, 1, first_step=4)[0], batches[4])


def test_clip_without_audio_is_masked_and_noted(toy_world, tmp_path):
  video = np.zeros((20, 16, 16, 3), np.uint8)
  world.encode(tmp_path / 'quiet.mp4', video, 10)
  reader = _reader([clip.Clip(str(tmp_path / 'quiet.mp4'))])
  batch, = pipeline.eval_batches(reader, 1)
  assert batch['mask'].all() and not batch['has_audio'].any()
  assert 'has no audio stream' in reader.notes.no_audio[str(tmp_path / 'quiet.mp4')]
  assert not reader.notes.skipped


def test_broken_file_is_masked_in_evaluation(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 3, 1), 0.5)
  batch, = pipeline.eval_batches(reader, 4)
  assert batch['mask'].tolist() == [True, True, True, False]


def test_too_many_broken_files_raise(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 12, 6), 0.1)
  with pytest.raises(UserError, match=r'files read so far are broken.*bad\d\.mp4'):
    _take(reader, 20)


def test_source_of_only_broken_files_raises(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 0, 2), 1.0)
  with pytest.raises(UserError, match='100 clips drawn in a row are broken'):
    _take(reader, 1)


def _record(films, number, **replaced):
  """Holds clips of one gray frame, or of audio alone, without a file."""
  content = images.Stills(f'{number}', films, 1.0, **replaced)
  return clip.Clip(f'{number}', content=content)


def _grey(count, first=0):
  """Gives frames without audio."""
  image = io.BytesIO()
  Image.new('RGB', (16, 16), (99, 99, 99)).save(image, 'PNG')
  return [_record([image.getvalue()], first + i) for i in range(count)]


def _tones(count, first=0):
  """Gives audio without frames."""
  tone = np.sin(np.arange(4000) / 8).astype(np.float32)
  return [_record((), first + i, waveform=tone, audio_hz=4000)
          for i in range(count)]


def _mixed(*parts, weights=()):
  return _reader(sources.Mixture(parts, weights), 0.5)


@pytest.mark.parametrize('weights, within', [
    ((1, 1), 1), ((3, 1), 1), ((0.2, 0.9), 1), ((1, 2, 5), 2), ((2, 4, 5, 7, 11), 2)])
def test_batch_has_the_share_of_each_source(weights, within):
  lengths = (7, 5, 11, 3, 6)[:len(weights)]
  reader = _mixed(*(_grey(n) for n in lengths), weights=weights)
  ends = np.cumsum(lengths)
  counts = np.array([np.bincount(np.searchsorted(ends, b['id'], 'right'),
                                 minlength=len(weights)) for b in _take(reader, 30)])
  expected = 8 * np.array(weights) / sum(weights)
  assert np.abs(counts - expected).max() < within
  np.testing.assert_allclose(counts.mean(0), expected, atol=within / 30 + 1e-3)


def test_every_epoch_of_each_source_has_every_clip_once():
  reader = _mixed(_grey(7), _grey(4), weights=(1, 3))
  ids = np.concatenate([b['id'] for b in _take(reader, 14)])
  for clips, of in ((range(7), ids[ids < 7]), (range(7, 11), ids[ids >= 7])):
    epochs = of[:len(of) // len(clips) * len(clips)].reshape(-1, len(clips))
    assert len(epochs) >= 4
    np.testing.assert_array_equal(np.sort(epochs), [list(clips)] * len(epochs))
    assert len(np.unique(epochs, axis=0)) > 1


def test_mixture_is_equal_on_any_number_of_hosts_and_from_any_step():
  reader = _mixed(_grey(7), _tones(4), weights=(1, 3))
  whole = _take(reader, 4)
  for hosts in (2, 4):
    parts = [_take(reader, 1, 3, host=h, num_hosts=hosts)[0] for h in range(hosts)]
    _assert_same(whole[3], {k: np.concatenate([p[k] for p in parts])
                            for k in whole[3]})


def test_without_weights_all_clips_are_equally_probable():
  reader = _mixed(_grey(5), _grey(11))
  ids = np.concatenate([b['id'] for b in _take(reader, 4)]).reshape(2, 16)
  np.testing.assert_array_equal(np.sort(ids), [range(16)] * 2)
  _assert_same(_take(reader, 3)[2], _take(_reader(_grey(16)), 3)[2])


def test_broken_clip_of_a_mixture_is_replaced_from_its_source():
  broken = clip.Clip('broken', content=images.Stills('broken', [b'no picture'], 1.0))
  reader = _mixed(_grey(3), [broken, *_tones(3)], weights=(1, 1))
  for batch in _take(reader, 6):
    assert batch['has_audio'].sum() == 4 and 3 not in batch['id']


def test_missing_modalities_of_a_source_are_masked():
  batch, = _take(_mixed(_grey(4), _tones(4), weights=(1, 1)), 1)
  silent = batch['id'] < 4
  np.testing.assert_array_equal(batch['has_video'], silent)
  np.testing.assert_array_equal(batch['has_audio'], ~silent)
  assert silent.sum() == 4 and batch['mask'].all() and not batch['has_text'].any()
  assert not batch['audio'][silent].any() and not batch['video'][~silent].any()
  assert batch['audio'][~silent].any(1).all()
  assert batch['video'][silent].any((1, 2, 3, 4)).all()


@pytest.mark.parametrize('modalities', [
    ('audio',), ('video',), ('video', 'text'), ('audio', 'text'), ('video', 'audio')])
def test_example_has_only_the_modalities_of_the_window(reader, modalities):
  window = dataclasses.replace(WINDOW, modalities=modalities)
  some = dataclasses.replace(reader, window=window)
  batch, whole = _take(some, 2)[1], _take(reader, 2)[1]
  expected = {'id', 'mask', *modalities, *(f'has_{m}' for m in modalities)}
  assert batch.keys() == expected
  if 'video' in modalities:    # otherwise another clip replaces a silent one
    _assert_same(batch, {k: whole[k] for k in batch})


@pytest.mark.parametrize('modalities', [(), ('text',), ('video', 'smell')])
def test_window_without_video_and_audio_raises(modalities):
  with pytest.raises(ValueError, match='expected some of video, audio, text, not text'):
    dataclasses.replace(WINDOW, modalities=modalities)


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
  batch, = pipeline.eval_batches(reader, 1)
  assert batch['mask'].all() and batch['has_audio'].all()
  assert not batch['has_video'].any() and not batch['video'].any()
  spectrum = np.abs(np.fft.rfft(batch['audio'][0]))
  assert abs(spectrum.argmax() * 4000 / 3200 - 440) < 2
  alone = dataclasses.replace(reader, window=dataclasses.replace(
      WINDOW, modalities=('audio',)))
  _assert_same(*({k: b[k] for k in ('audio', 'has_audio', 'id', 'mask')}
                 for b in (next(pipeline.eval_batches(alone, 1)), batch)))
  pictures = dataclasses.replace(reader, window=dataclasses.replace(
      WINDOW, modalities=('video',)))
  assert not next(pipeline.eval_batches(pictures, 1))['mask'].any()
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
    batch, = pipeline.eval_batches(reader, 1)
    assert batch['mask'].all() and batch['has_audio'].all()
    assert not batch['audio'].any()
    assert not reader.notes.skipped and not reader.notes.no_audio


def test_silent_clips_do_not_count_as_broken():
  """ESC-50 pads with zeros; three broken clips would exceed a fraction of 0.1."""
  reader = _hears(_silence(3) + _tones(17, 3))
  batches = _take(reader, 3, batch_size=20)
  for batch in batches:    # epochs
    assert sorted(batch['id']) == list(range(20)) and batch['has_audio'].all()
    np.testing.assert_array_equal(batch['audio'].any(1), batch['id'] >= 3)
  assert not reader.notes.skipped


def test_class_of_silent_clips_is_evaluated():
  """AudioSet has a class "Silence"."""
  clips = [dataclasses.replace(c, labels={'label': name}) for c, name in zip(
      _silence(2) + _tones(2, 2), ['Silence', 'Silence', 'Tone', 'Tone'], strict=True)]
  reader = dataclasses.replace(
      _hears(clips), labels=labels.find(clips, 'label', False, 'here'))
  batch, = pipeline.eval_batches(reader, 4)
  assert batch['mask'].all() and batch['has_audio'].all()


def test_audio_that_ends_before_the_video_is_zeros_and_present(tmp_path):
  world.encode(tmp_path / 'film.mp4', np.zeros((40, 16, 16, 3), np.uint8), 10,
               np.full(16_000, 0.5, np.float32))    # 4 s of video, 1 s of audio
  reader = _reader([clip.Clip(str(tmp_path / 'film.mp4'))])
  late, = reader.views(0, place=1.0)
  assert late['has_audio'] and not late['audio'].any()


def _striped(width, height):
  """Writes a video of 2 s, with a new image every 0.2 s.

  Red tells the third of the longer edge, green the time.
  """
  encoded = []
  for i in range(10):
    frame = np.zeros((height, width, 3), np.uint8)
    along = frame if width > height else frame.transpose(1, 0, 2)
    for third, red in enumerate((50, 150, 250)):
      along[:, third * 16:(third + 1) * 16, 0] = red
    frame[..., 1] = 20 * i
    image = io.BytesIO()
    Image.fromarray(frame).save(image, 'PNG')
    encoded.append(image.getvalue())
  return clip.Clip('film', content=images.Stills('film', encoded, 5.0))


def test_audio_has_the_length_and_rate_of_the_papers():
  """Pre-training: 48 kHz; fine-tuning on AudioSet: 6.4 s at 24 kHz (section 4.2)."""
  fine_tuning = pipeline.Window(num_frames=64, frame_rate_hz=10.0, image_size=224,
                                audio_hz=24_000, modalities=('audio',))
  assert fine_tuning.seconds == 6.4
  assert fine_tuning.empty()['audio'].shape == (153_600,)
  assert set(fine_tuning.empty()) == {'audio', 'has_audio', 'id', 'mask'}
  pre_training = pipeline.Window(num_frames=32, frame_rate_hz=10.0, image_size=224,
                                 audio_hz=48_000)
  assert pre_training.num_samples == 153_600


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
  window = pipeline.Window(num_frames=10, frame_rate_hz=10.0, image_size=8,
                           audio_hz=1000, audio_seconds=2.0,
                           modalities=('video', 'audio'))
  assert (window.seconds, window.num_samples) == (1.0, 2000)
  reader = pipeline.Reader([_ramp(4)], window, text.WordTokenizer(()),
                           pipeline.FileNotes(0.5, None))
  example, = reader.views(0, place)
  assert example['video'][0, 0, 0, 0] == frame
  np.testing.assert_array_equal(example['audio'], 1 + sample + np.arange(2000))


def test_audio_longer_than_its_clip_ends_in_zeros():
  window = pipeline.Window(num_frames=10, frame_rate_hz=10.0, image_size=8,
                           audio_hz=1000, audio_seconds=4.0,
                           modalities=('video', 'audio'))
  reader = pipeline.Reader([_ramp(3)], window, text.WordTokenizer(()),
                           pipeline.FileNotes(0.5, None))
  example, = reader.views(0, 1.0)
  assert example['video'][0, 0, 0, 0] == 20
  np.testing.assert_array_equal(example['audio'][:3000], 1 + np.arange(3000))
  assert example['audio'].shape == (4000,) and not example['audio'][3000:].any()
  with pytest.raises(ValueError, match=r'audio_seconds=-1\.0: expected a length, or 0'):
    pipeline.Window(1, 1.0, 8, 1000, audio_seconds=-1.0)


@pytest.mark.parametrize('size', [(48, 16), (16, 48)])
def test_views_span_the_clip_in_time_and_along_its_longer_edge(size):
  reader = _reader([_striped(*size), _striped(*size)])
  batch, = pipeline.eval_batches(reader, 18, num_windows=3, num_crops=3)
  assert batch['id'].tolist() == [0] * 9 + [1] * 9 and batch['mask'].all()
  assert (batch['video'][..., 0] == batch['video'][:, :1, :1, :1, 0]).all()
  assert batch['video'][:, 0, 0, 0, 0].tolist() == [50, 150, 250] * 6
  # 2 s, windows of 0.8 s: they begin at 0, 0.6 and 1.2 s.
  assert batch['video'][:, 0, 0, 0, 1].tolist() == (
      [0] * 3 + [60] * 3 + [120] * 3) * 2
  one, = pipeline.eval_batches(reader, 2)
  np.testing.assert_array_equal(one['video'][0], batch['video'][4])


@pytest.mark.parametrize('num_hosts', [1, 2, 3, 6])
def test_hosts_together_yield_every_view_once(num_hosts):
  clips = [_striped(48, 16) for _ in range(5)]
  hosts = [list(pipeline.eval_batches(_reader(clips), 12, 2, 3, host=h,
                                      num_hosts=num_hosts)) for h in range(num_hosts)]
  assert {len(h) for h in hosts} == {3}    # all have the same number of steps
  rows = {k: np.concatenate([batch[k] for h in hosts for batch in h])
          for k in hosts[0][0]}
  assert rows['mask'].sum() == 30
  seen = [(rows['id'][i], *rows['video'][i, 0, 0, 0, :2])
          for i in np.flatnonzero(rows['mask'])]
  assert len(set(seen)) == 30
  assert not rows['video'][~rows['mask']].any()
  assert not rows['has_video'][~rows['mask']].any()


def test_audio_only_clips_have_the_same_number_of_views(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = pipeline.Window(2, 5.0, 8, 2000, modalities=('audio',))
  reader = pipeline.Reader(clips, window, text.WordTokenizer(()),
                           pipeline.FileNotes(0.5, None))
  assert len(reader.views(0, 0.5, num_crops=3)) == 3


def test_window_is_decoded_once_for_all_crops(monkeypatch):
  asked = []
  frames = images.Stills.frames
  monkeypatch.setattr(images.Stills, 'frames',
                      lambda self, times: asked.append(times[0]) or frames(self, times))
  list(pipeline.eval_batches(_reader([_striped(48, 16)]), 6, 2, 3))
  assert sorted(asked) == pytest.approx([0.0, 1.2])


def test_batch_size_that_hosts_do_not_divide_raises(reader):
  """Otherwise no host would read the last rows."""
  for batches, args in ((pipeline.eval_batches, ()), (pipeline.train_batches, (0, 0))):
    with pytest.raises(UserError, match='batch_size=10: expected a multiple of the 4'):
      batches(reader, 10, *args, host=0, num_hosts=4)
