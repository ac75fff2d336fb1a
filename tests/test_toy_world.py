"""Tests data/toy_world.py."""

import csv
import dataclasses
import hashlib

import av
import numpy as np
import pytest

from data import toy_world as world


def _rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def _digests(folder):
  return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(folder.rglob('*')) if p.is_file()}


def test_files_depend_only_on_the_seed(tmp_path):
  for name, seed in (('a', 5), ('b', 5), ('c', 6)):
    world.build(tmp_path / name, seed, train_clips=3, test_clips=2)
  a, b, c = (_digests(tmp_path / name) for name in 'abc')
  assert a == b
  assert a.keys() == c.keys()
  videos = [{v for k, v in d.items() if k.suffix == '.mp4'} for d in (a, c)]
  assert not videos[0] & videos[1]


def test_encoding_is_deterministic(tmp_path):
  clip = world.script(0, 'test', 0)
  video = world.draw(clip, np.random.default_rng(0))
  audio = world.sing(clip, np.random.default_rng(1))
  files = set()
  for _ in range(6):
    world.encode(tmp_path / 'a.mp4', video, 10, audio)
    files.add((tmp_path / 'a.mp4').read_bytes())
  assert len(files) == 1


def test_clips_are_h264_and_aac_of_6_to_10_seconds(toy_world):
  silent = 0
  clips = sorted((toy_world / 'clips').rglob('*.mp4'))
  assert len(clips) == 24 + 16
  for path in clips:
    with av.open(path) as container:
      video = container.streams.video[0]
      assert video.codec_context.name == 'h264'
      assert 5.9 <= float(video.duration * video.time_base) <= 10.1
      silent += not container.streams.audio
      for audio in container.streams.audio:
        assert audio.codec_context.name == 'aac'
  assert 0 < silent < 8


def test_splits_are_disjoint():
  train = [world.script(0, 'train', i) for i in range(200)]
  test = [world.script(0, 'test', i) for i in range(200)]
  assert not {c.segments for c in train} & {c.segments for c in test}
  draws = [world._generator(0, split, i).integers(2**60)
           for split in ('train', 'test') for i in range(200)]
  assert len(set(draws)) == 400


def test_training_manifest_has_no_labels(toy_world):
  assert list(_rows(toy_world / 'train.csv')[0]) == ['path']
  assert list(_rows(toy_world / 'train_captions.csv')[0]) == [
      'path', 'start', 'end', 'text']


def test_test_split_has_one_correct_caption_per_clip(toy_world):
  rows = _rows(toy_world / 'test_segments.csv')
  assert len({row['path'] for row in rows}) == len(rows) == 16
  for row in rows:
    assert row['shape'] in row['text'] and row['colour'] in row['text']
    assert any(p in row['text'] for p in world.PHRASES[row['motion']])
    assert world.TIMBRES[row['shape']] in row['sound_event'].split('|')
    assert float(row['end']) - float(row['start']) > 2


def test_captions_are_noisy_like_transcripts():
  """Some clips have no captions; some captions are off topic or at a wrong time."""
  clips = [world.script(0, 'train', i) for i in range(512)]
  assert 0.10 < np.mean([not c.captions for c in clips]) < 0.20
  assert 0.06 < np.mean([not c.has_sound for c in clips]) < 0.14
  right = wrong = chatter = 0
  for clip in clips:
    for start, _, text in clip.captions:
      if text in world.CHATTER:
        chatter += 1
        continue
      now = next((s for s in clip.segments if s.start <= start < s.end), None)
      fits = now is not None and (now.shape in text or now.colour in text)
      right, wrong = right + fits, wrong + (not fits)
  total = right + wrong + chatter
  assert 0.12 < chatter / total < 0.18
  assert 0.05 < wrong / total < 0.15
  assert right / total > 0.7


def test_segment_shows_its_object_only_during_its_time():
  clip = world.script(3, 'train', 0)
  video = world.draw(clip, np.random.default_rng(0)).astype(int)
  for segment in clip.segments:
    colour = np.asarray(world.COLOURS[segment.colour])
    near = (abs(video - colour).max(-1) < 30).sum((1, 2))
    time = np.arange(len(video)) / world.FRAME_RATE_HZ
    now = (time >= segment.start - 1e-6) & (time < segment.end - 1e-6)
    assert near[now].min() > 2 * near[~now].max()


def test_room_tints_the_background_and_hums_for_the_whole_clip():
  plain, roomy = (world.script(0, 'test', 3, rooms) for rooms in (False, True))
  assert dataclasses.replace(roomy, room=None) == plain
  clips = [dataclasses.replace(plain, room=room) for room in (None, 0, 8)]
  videos, audios = zip(*((world.draw(clip, np.random.default_rng(0)).astype(int),
                          world.sing(clip, np.random.default_rng(1)))
                         for clip in clips), strict=True)
  for video, channel in ((videos[1], 0), (videos[2], 1)):
    tint = np.median(video, (1, 2))                                  # [T, 3]
    others = np.delete(tint, channel, axis=1)
    assert (tint[:, channel] > others.max(axis=1) + 50).all()
  for audio, hz in ((audios[1], 400), (audios[2], 400 + 8 * 130)):
    seconds = (audio - audios[0])[:5 * world.AUDIO_HZ].reshape(5, -1)
    assert (np.abs(np.fft.rfft(seconds)).argmax(axis=1) == hz).all()


def test_rooms_add_a_column_of_labels_and_change_no_other_file(tmp_path):
  for name in ('plain', 'roomy'):
    world.build(tmp_path / name, 5, train_clips=1, test_clips=1, rooms=name == 'roomy')
  plain, roomy = (_digests(tmp_path / name) for name in ('plain', 'roomy'))
  changed = {str(path) for path in plain if plain[path] != roomy[path]}
  assert changed == {'clips/train/0000.mp4', 'clips/test/0000.mp4',
                     'train_segments.csv', 'test_segments.csv'}
  for split in ('train', 'test'):
    before, after = (_rows(tmp_path / name / f'{split}_segments.csv')
                     for name in ('plain', 'roomy'))
    assert all(row.pop('room').startswith('room ') for row in after)
    assert after == before


def test_existing_folder_is_unchanged(toy_world):
  with pytest.raises(FileExistsError, match='is there already'):
    world.build(toy_world, train_clips=1, test_clips=1)

