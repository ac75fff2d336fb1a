"""Tests of vatt_jax/inputs/batches.py."""

import dataclasses
import hashlib
import io
import itertools
import json

import numpy as np
from PIL import Image
import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import clip
from vatt_jax.inputs import images
from vatt_jax.inputs import labels
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.batches import eval_batches
from vatt_jax.inputs.batches import train_batches
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

WINDOW = Window(num_frames=4, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                num_candidates=3, max_tokens=6, min_crop_area=0.5)


def _reader(clips, max_bad_fraction=0.1, log=None):
  tokenizer = text.WordTokenizer.build(
      (c.text for clip in clips for c in clip.captions), 256)
  notes = FileNotes(max_bad_fraction, len(clips), log)
  return Reader(clips, WINDOW, tokenizer, notes)


@pytest.fixture(scope='module')
def reader(toy_world):
  return _reader(sources.open_source(str(toy_world / 'train.csv'),
                                     'train_captions.csv'))


def _take(reader, count, first_step=0, batch_size=8, **kwargs):
  return list(itertools.islice(
      train_batches(reader, batch_size, 7, first_step, **kwargs), count))


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
  batches = list(eval_batches(reader, 10))
  mask = np.concatenate([b['mask'] for b in batches])
  ids = np.concatenate([b['id'] for b in batches])
  assert mask.tolist() == [True] * 24 + [False] * 6
  assert ids[:24].tolist() == list(range(24))
  _assert_same(batches[1], list(eval_batches(reader, 10))[1])
  assert not any(batches[2][k][4:].any() for k in batches[2])


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


def test_broken_file_is_masked_in_evaluation(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 3, 1), 0.5)
  batch, = eval_batches(reader, 4)
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


def _silence(count, first=0):
  """Returns records of zeros."""
  return [_record((), first + i, waveform=np.zeros(4000, np.float32), audio_hz=4000)
          for i in range(count)]


def _hears(clips, max_bad_fraction=0.1):
  """Returns a reader of audio alone."""
  return dataclasses.replace(
      _reader(clips, max_bad_fraction),
      window=dataclasses.replace(WINDOW, modalities=('audio',)))


def test_silent_clips_do_not_count_as_broken():
  """ESC-50 pads with zeros; three broken clips would exceed a fraction of 0.1."""
  reader = _hears(_silence(3) + _tones(17, 3))
  batches = _take(reader, 3, batch_size=20)
  for batch in batches:    # epochs
    assert sorted(batch['id']) == list(range(20)) and batch['has_audio'].all()
    np.testing.assert_array_equal(batch['audio'].any(1), batch['id'] >= 3)
  assert not reader.notes.skipped


def test_rows_of_a_clip_carry_its_labels_of_all_columns():
  clips = [dataclasses.replace(c, labels=dict(verb='ab'[i % 2], noun='xyz'[i % 3]))
           for i, c in enumerate([_moving(i) for i in range(7)])]
  columns = labels.find(clips, ['verb', 'noun'], False, 'here')
  reader = dataclasses.replace(_with_views(clips, num_shifts=2), labels=columns)
  for batch in _take(reader, 2):
    assert batch['labels'].keys() == {'verb', 'noun'}
    for column, count in (('verb', 2), ('noun', 3)):
      np.testing.assert_array_equal(batch['labels'][column],
                                    np.eye(count, dtype=bool)[batch['id'] % count])
  plain = _take(_with_views(clips, num_shifts=2), 2)[1]
  _assert_same(plain, {k: v for k, v in batch.items() if k != 'labels'})


def test_class_of_silent_clips_is_evaluated():
  """AudioSet has a class "Silence"."""
  clips = [dataclasses.replace(c, labels={'label': name}) for c, name in zip(
      _silence(2) + _tones(2, 2), ['Silence', 'Silence', 'Tone', 'Tone'], strict=True)]
  reader = dataclasses.replace(
      _hears(clips), labels=labels.find(clips, ['label'], False, 'here'))
  batch, = eval_batches(reader, 4)
  assert batch['mask'].all() and batch['has_audio'].all()


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


@pytest.mark.parametrize('size', [(48, 16), (16, 48)])
def test_views_span_the_clip_in_time_and_along_its_longer_edge(size):
  reader = _reader([_striped(*size), _striped(*size)])
  batch, = eval_batches(reader, 18, num_windows=3, num_crops=3)
  assert batch['id'].tolist() == [0] * 9 + [1] * 9 and batch['mask'].all()
  assert (batch['video'][..., 0] == batch['video'][:, :1, :1, :1, 0]).all()
  assert batch['video'][:, 0, 0, 0, 0].tolist() == [50, 150, 250] * 6
  # 2 s, windows of 0.8 s: they begin at 0, 0.6 and 1.2 s.
  assert batch['video'][:, 0, 0, 0, 1].tolist() == (
      [0] * 3 + [60] * 3 + [120] * 3) * 2
  one, = eval_batches(reader, 2)
  np.testing.assert_array_equal(one['video'][0], batch['video'][4])


@pytest.mark.parametrize('num_hosts', [1, 2, 3, 6])
def test_hosts_together_yield_every_view_once(num_hosts):
  clips = [_striped(48, 16) for _ in range(5)]
  hosts = [list(eval_batches(_reader(clips), 12, 2, 3, host=h,
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


def test_window_is_decoded_once_for_all_crops(monkeypatch):
  asked = []
  frames = images.Stills.frames
  monkeypatch.setattr(images.Stills, 'frames',
                      lambda self, times: asked.append(times[0]) or frames(self, times))
  list(eval_batches(_reader([_striped(48, 16)]), 6, 2, 3))
  assert sorted(asked) == pytest.approx([0.0, 1.2])


def _digest(batches):
  """Hashes names, types, shapes and values of some batches."""
  digest = hashlib.sha256()
  for batch in batches:
    for key, value in sorted(batch.items()):
      digest.update(f'{key}{value.dtype}{value.shape}'.encode())
      digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()[:16]


def test_batches_of_one_view_are_those_of_version_0_6():
  """The digests were computed before clips could have views."""
  clips = [dataclasses.replace(_moving(i), captions=(clip.Caption(0, 1, f'w{i}'),))
           for i in range(11)]
  reader = _reader(clips)
  assert _digest(_take(reader, 3, 5)) == '779663a24ac91f3b'
  jittered = dataclasses.replace(WINDOW, min_crop_area=1.0, scale_jitter=0.2)
  jittered = dataclasses.replace(reader, window=jittered)
  assert _digest(_take(jittered, 3, 5)) == 'c9f1473eeefb9a99'
  assert _digest(eval_batches(reader, 8, 2, 3)) == '2c0b4748ac2004e7'
  assert _digest(eval_batches(reader, 8, 2, augment_seed=3)) == '2a72676109493b44'


def _moving(number):
  """Gives frames of a moving gradient, and audio at the window's rate."""
  encoded = []
  for i in range(20):
    frame = np.empty((20, 28, 3), np.uint8)
    frame[...] = np.arange(28)[:, None] * [3, 5, 7] + [10 * i, 9 * number, 0]
    image = io.BytesIO()
    Image.fromarray(frame).save(image, 'PNG')
    encoded.append(image.getvalue())
  samples = (np.arange(16_000) * (number + 3) % 2001 - 1000).astype(np.int16)
  return clip.Clip(f'{number}', content=images.Stills(
      f'{number}', encoded, 5.0, samples, 4000))


def _with_views(clips, **changes):
  return dataclasses.replace(_reader(clips), window=dataclasses.replace(
      WINDOW, **changes))


@pytest.mark.parametrize('num_hosts', [1, 2, 4])
def test_views_are_equal_on_any_number_of_hosts_and_after_a_resume(num_hosts):
  reader = _with_views([_moving(i) for i in range(7)], num_shifts=2, num_views=2)
  whole = _take(reader, 3, batch_size=16)[2]
  hosts = [_take(reader, 1, 2, 16, host=h, num_hosts=num_hosts)[0]
           for h in range(num_hosts)]
  _assert_same(whole, {k: np.concatenate([host[k] for host in hosts]) for k in whole})
  assert (whole['id'].reshape(4, 4) == whole['id'][::4, None]).all()


def test_crops_share_a_window_and_shifts_do_not():
  reader = _with_views([_moving(i) for i in range(7)], num_shifts=2, num_views=3,
                       max_crop_aspect=2.0)
  batch, = _take(reader, 1, batch_size=24)
  by_view = {k: v.reshape(4, 2, 3, *v.shape[1:]) for k, v in batch.items()}
  for key in ('audio', 'text', 'id', 'has_audio', 'mask'):
    assert (by_view[key] == by_view[key][:, :, :1]).all()
  assert (by_view['audio'][:, 0] != by_view['audio'][:, 1]).any(-1).all()
  for a, b in ((0, 1), (0, 2), (1, 2)):
    differs = by_view['video'][:, :, a] != by_view['video'][:, :, b]
    assert differs.any((2, 3, 4, 5)).all()


def test_clip_with_views_is_opened_once_and_each_window_decoded_once(monkeypatch):
  asked = []
  frames = images.Stills.frames
  monkeypatch.setattr(images.Stills, 'frames',
                      lambda self, times: asked.append(times[0]) or frames(self, times))
  reader = _with_views([_moving(0)], num_shifts=3, num_views=2)
  opened = []
  monkeypatch.setattr(clip.Clip, 'open', lambda self: opened.append(1) or self.content)
  assert len(reader.read(0, np.random.default_rng(0))) == 6
  assert len(opened) == 1 and len(set(asked)) == len(asked) == 3


def test_first_shift_is_the_window_of_a_clip_without_views():
  one = _with_views([_moving(0)]).read(0, np.random.default_rng(4))[0]
  several = _with_views([_moving(0)], num_shifts=3).read(0, np.random.default_rng(4))
  np.testing.assert_array_equal(one['audio'], several[0]['audio'])


@pytest.mark.parametrize('seconds', [0.0, 1.0, 1.5, 5.0])
def test_shifts_keep_their_distance(seconds, monkeypatch):
  """The clip has 4 s, a window 0.8 s: at most 1.6 s lie between three starts."""
  starts = []
  frames = images.Stills.frames
  monkeypatch.setattr(
      images.Stills, 'frames',
      lambda self, times: starts.append(times[0]) or frames(self, times))
  reader = _with_views([_moving(0)], num_shifts=3, min_shift_seconds=seconds)
  for seed in range(60):
    reader.read(0, np.random.default_rng(seed))
  starts = np.reshape(starts, (60, 3))
  gaps = np.diff(np.sort(starts), axis=1)
  assert gaps.min() >= min(seconds, 1.6) - 1e-6
  assert starts.min() >= 0 and starts.max() <= 3.2 + 1e-6
  assert len({tuple(np.argsort(row)) for row in starts}) == 6    # in any order
  if seconds < 1.6:
    assert gaps.min() < seconds + 0.1


def test_evaluation_ignores_shifts_and_views(reader):
  window = dataclasses.replace(WINDOW, num_shifts=2, num_views=2)
  changed = dataclasses.replace(reader, window=window)
  for a, b in zip(eval_batches(reader, 10, 2, 3), eval_batches(changed, 10, 2, 3),
                  strict=True):
    _assert_same(a, b)


def test_batch_size_that_views_do_not_divide_raises(reader):
  reader = dataclasses.replace(reader, window=dataclasses.replace(WINDOW, num_shifts=4))
  with pytest.raises(UserError, match=r'batch_size=8: counts rows; expected a multiple '
                     r'of window\.num_shifts \* window\.num_views=4 on each of '
                     '4 hosts'):
    train_batches(reader, 8, 0, 0, num_hosts=4)


def test_batch_size_that_hosts_do_not_divide_raises(reader):
  """Otherwise no host would read the last rows."""
  for batches, args in ((eval_batches, ()), (train_batches, (0, 0))):
    with pytest.raises(UserError, match='batch_size=10: expected a multiple of the 4'):
      batches(reader, 10, *args, host=0, num_hosts=4)
