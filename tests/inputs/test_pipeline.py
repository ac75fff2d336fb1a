"""vatt_jax/inputs/pipeline.py"""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from data import toy_world as world
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text

WINDOW = pipeline.Window(num_frames=4, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                         num_candidates=3, max_words=6, min_crop_area=0.5)


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


def test_a_batch_has_the_shapes_of_the_contract(reader):
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


def test_the_batch_of_a_step_needs_no_step_before_it(reader):
  for step, batch in enumerate(_take(reader, 5)):
    _assert_same(batch, _take(reader, 1, first_step=step)[0])


def test_hosts_share_every_batch(reader):
  whole = _take(reader, 1, first_step=3)[0]
  parts = [_take(reader, 1, first_step=3, host=h, num_hosts=2)[0] for h in (0, 1)]
  _assert_same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own(reader):
  ids = np.concatenate([b['id'] for b in _take(reader, 6)]).reshape(2, 24)
  np.testing.assert_array_equal(np.sort(ids), [range(24)] * 2)
  assert (ids[0] != ids[1]).any() and (ids[0] != np.arange(24)).any()


def test_a_clip_shows_another_window_and_crop_in_each_epoch(reader):
  batches = _take(reader, 6)
  first, second = (next(b['video'][b['id'] == 5][0] for b in part if 5 in b['id'])
                   for part in (batches[:3], batches[3:]))
  assert (first != second).mean() > 0.5


def test_evaluation_sees_every_clip_once_and_always_its_middle(reader):
  batches = list(pipeline.eval_batches(reader, 10))
  mask = np.concatenate([b['mask'] for b in batches])
  ids = np.concatenate([b['id'] for b in batches])
  assert mask.tolist() == [True] * 24 + [False] * 6
  assert ids[:24].tolist() == list(range(24))
  _assert_same(batches[1], list(pipeline.eval_batches(reader, 10))[1])
  assert not any(batches[2][k][4:].any() for k in batches[2])


def test_captions_are_the_nearest_in_time():
  captions = [clip.Caption(t, t + 1, str(t)) for t in (0, 9, 4, 6, 2)]
  assert [c.text for c in pipeline.nearest(captions, 5.2, 3)] == ['4', '6', '2']


def test_a_window_stays_within_the_clip(toy_world):
  """A segment of one object never shows the next one's colour."""
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
      reader._decode(reader.clips[0], Spy(), np.random.default_rng(seed), 0.5, 0.5)
  starts, ends = zip(*seen, strict=True)
  assert min(starts) >= 2.0 and max(ends) <= 4.5 and max(starts) - min(starts) > 1


def test_a_clip_shorter_than_the_window_shows_nothing_of_what_follows(toy_world):
  rows = sources.open_source(str(toy_world / 'train_segments.csv'))
  whole = next(r for r in rows if r.labels['sound_event'] and r.start == 0)
  short = clip.Clip(whole.path, whole.end - 0.3, whole.end)
  example = _reader([short]).read(0, None)
  for later in example['video'][2:]:
    np.testing.assert_array_equal(later, example['video'][2])
  assert example['audio'][:1200].any() and not example['audio'][1200:].any()


def test_a_clip_that_begins_after_its_file_ends_is_skipped(toy_world):
  path = str(toy_world / 'clips' / 'train' / '0000.mp4')
  reader = _reader([clip.Clip(path, 50.0, 60.0)], 1.0)
  assert reader.read(0, None) is None
  assert 'before the clip begins at 50.0 s' in reader.notes.skipped[path]


@pytest.mark.parametrize('key', ['num_frames', 'frame_rate_hz', 'audio_hz'])
def test_a_window_of_nothing_is_refused(key):
  with pytest.raises(ValueError, match=f'{key}=0: expected more than 0'):
    dataclasses.replace(WINDOW, **{key: 0})


def test_a_crop_is_a_part_of_the_picture_as_large_as_it_may_be():
  """Section 4.3: area in [0.08, 1], aspect in [0.5, 2]."""
  assert pipeline.central_box((100, 60)) == (20, 0, 80, 60)
  areas, aspects, rng = [], [], np.random.default_rng(0)
  for _ in range(500):
    left, top, right, bottom = pipeline.random_box((100, 60), 0.08, 2.0, rng)
    assert left >= 0 and right <= 100 and top >= 0 and bottom <= 60
    areas.append((right - left) * (bottom - top) / 6000)
    aspects.append((right - left) / (bottom - top))
  assert 0.08 <= min(areas) < 0.1 and 0.9 < max(areas) <= 1
  assert 0.5 <= min(aspects) < 0.6 and 1.8 < max(aspects) <= 2


def test_a_crop_without_an_aspect_is_a_square():
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


def test_a_broken_file_is_replaced_named_once_and_remembered(toy_world, tmp_path,
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


def test_a_clip_without_sound_is_masked_and_noted(toy_world, tmp_path):
  video = np.zeros((20, 16, 16, 3), np.uint8)
  world.encode(tmp_path / 'quiet.mp4', video, 10)
  reader = _reader([clip.Clip(str(tmp_path / 'quiet.mp4'))])
  batch, = pipeline.eval_batches(reader, 1)
  assert batch['mask'].all() and not batch['has_audio'].any()
  assert 'has no sound' in reader.notes.soundless[str(tmp_path / 'quiet.mp4')]
  assert not reader.notes.skipped


def test_a_broken_file_is_masked_in_evaluation(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 3, 1), 0.5)
  batch, = pipeline.eval_batches(reader, 4)
  assert batch['mask'].tolist() == [True, True, True, False]


def test_too_many_broken_files_end_the_run(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 12, 6), 0.1)
  with pytest.raises(UserError, match=r'files read so far are broken.*bad\d\.mp4'):
    _take(reader, 20)


def test_a_source_of_broken_files_ends_the_run(toy_world, tmp_path):
  reader = _reader(_with_broken(toy_world, tmp_path, 0, 2), 1.0)
  with pytest.raises(UserError, match='100 clips drawn in a row are broken'):
    _take(reader, 1)
