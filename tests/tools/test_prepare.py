"""Tests vatt_jax/tools/prepare.py."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from data import toy_world as world
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.tools import prepare

ROOT = pathlib.Path(__file__).parents[2]
WINDOW = Window(num_frames=8, frame_rate_hz=5.0, image_size=64, audio_hz=8000)


def _make(plan, out):
  """Writes all shards without Beam.  -> the clips."""
  out.mkdir()
  count = plan.num_shards()
  for number in range(count):
    prepare.make_shard(plan, out, count, number)
  return sources.open_source(str(out))


def _read(clips, index):
  reader = Reader(clips, WINDOW, text.WordTokenizer(()),
                  FileNotes(0.0, len(clips)))
  return reader.views(index)[0]


def _correlation(a, b):
  return np.corrcoef(a.astype(float).ravel(), b.astype(float).ravel())[0, 1]


@pytest.mark.parametrize('form', prepare.FORMS)
def test_packed_clips_equal_the_source(toy_world, tmp_path, form):
  source = str(toy_world / 'train.csv')
  clips = sources.open_source(source, 'train_captions.csv')
  packed = _make(prepare.Plan(source, 'train_captions.csv', form, clips_per_shard=10),
                 tmp_path / form)
  assert len(packed) == len(clips) == 24
  for i in range(0, 24, 5):
    captions, expected = packed[i].captions, clips[i].captions
    assert [c.text for c in captions] == [c.text for c in expected]
    np.testing.assert_allclose([c.start for c in captions],
                               [c.start for c in expected], rtol=1e-6)
    a, b = _read(packed, i), _read(clips, i)
    assert a['has_audio'] == b['has_audio'] and a['has_video']
    if form == 'untouched':
      np.testing.assert_array_equal(a['video'], b['video'])
      np.testing.assert_array_equal(a['audio'], b['audio'])
    else:
      assert _correlation(a['video'], b['video']) > 0.98
      if a['has_audio']:
        assert _correlation(a['audio'], b['audio']) > 0.98


@pytest.mark.parametrize('form', ['video', 'frames'])
def test_manifest_segment_becomes_a_whole_record_with_labels(toy_world, tmp_path,
                                                             form):
  source = str(toy_world / 'test_segments.csv')
  packed = _make(prepare.Plan(source, '', form), tmp_path / form)
  clips = sources.open_source(source)
  for i in (0, 7, 15):
    assert packed[i].labels == clips[i].labels
    assert [(round(c.start, 3), c.text) for c in packed[i].captions] == [
        (0.0, c.text) for c in clips[i].captions]
    with packed[i].open() as file:
      assert file.duration_seconds == pytest.approx(clips[i].end - clips[i].start,
                                                    abs=0.11)
    assert _correlation(_read(packed, i)['video'], _read(clips, i)['video']) > 0.98


def test_long_clips_become_segments_with_their_own_captions(toy_world, tmp_path):
  source = str(toy_world / 'train.csv')
  plan = prepare.Plan(source, 'train_captions.csv', 'frames', segment_seconds=3.0)
  packed = _make(plan, tmp_path / 'out')
  whole = sources.open_source(source, 'train_captions.csv')
  with whole[0].open() as file:
    pieces = round(file.duration_seconds / 3)
    later = file.frames([3.0 + 1.0])[0].cut((0, 0, 64, 64), (64, 64))
  segments = [packed[i] for i in range(pieces)]
  assert all('0000.mp4' in segment.path for segment in segments)
  assert '0000.mp4' not in packed[pieces].path
  frame = segments[1].content.frames([1.0])[0].cut((0, 0, 64, 64), (64, 64))
  assert _correlation(frame, later) > 0.98
  for number, segment in enumerate(segments):
    expected = [c for c in whole[0].captions
                if c.end > 3 * number and (number == pieces - 1 or
                                           c.start < 3 * number + 3)]
    assert [c.text for c in segment.captions] == [c.text for c in expected]
    np.testing.assert_allclose([c.start for c in segment.captions],
                               [c.start - 3 * number for c in expected], atol=1e-5)


def test_broken_clip_is_skipped_and_named(toy_world, tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'bad.mp4').write_text('nothing')
  (tmp_path / 'in' / 'good.mp4').symlink_to(toy_world / 'clips' / 'train' / '0000.mp4')
  for form in prepare.FORMS:
    packed = _make(prepare.Plan(str(tmp_path / 'in'), '', form), tmp_path / form)
    assert len(packed) == 1 and 'good.mp4' in packed[0].path
    note = json.loads(next((tmp_path / form).glob('*.json')).read_text())
    assert [pathlib.Path(row['path']).name for row in note['skipped']] == ['bad.mp4']
    assert 'Invalid data' in note['skipped'][0]['reason']


@pytest.mark.parametrize('form', prepare.FORMS)
def test_silence_is_packed_as_audio_and_missing_audio_is_not(form, tmp_path):
  (tmp_path / 'in').mkdir()
  frames = np.zeros((10, 16, 16, 3), np.uint8)
  world.encode(tmp_path / 'in' / 'no_audio.mp4', frames, 10)
  with av.open(tmp_path / 'in' / 'silent.wav', 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=11_127, layout='mono')
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 20_000), np.int16), layout='mono')
    frame.sample_rate = 11_127
    container.mux(stream.encode(frame) + stream.encode(None))
  packed = _make(prepare.Plan(str(tmp_path / 'in'), '', form), tmp_path / 'out')
  assert [pathlib.Path(c.path).name for c in packed] == ['no_audio.mp4', 'silent.wav']
  no_audio, silent = (clip.open() for clip in packed)
  assert no_audio.has_video and not no_audio.has_audio
  assert silent.audio(0.5, 100, 8000).tolist() == [0] * 100


def test_audio_of_an_unusual_rate_is_packed_with_its_video(tmp_path):
  (tmp_path / 'in').mkdir()
  frames = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
  tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * 11_127) / 11_127)
  with av.open(tmp_path / 'in' / 'old.avi', 'w') as container:
    video = container.add_stream('mpeg4', rate=10)
    video.width = video.height = 32
    video.pix_fmt = 'yuv420p'
    audio = container.add_stream('pcm_s16le', rate=11_127, layout='mono')
    packets = [p for image in frames for p in video.encode(
        av.VideoFrame.from_ndarray(image, format='rgb24'))]
    frame = av.AudioFrame.from_ndarray((tone[None] * 32767).astype(np.int16),
                                       layout='mono')
    frame.sample_rate, frame.pts = 11_127, 0
    container.mux(packets + video.encode(None) + audio.encode(frame)
                  + audio.encode(None))
  packed = _make(prepare.Plan(str(tmp_path / 'in'), '', 'video'), tmp_path / 'out')
  with packed[0].open() as file:
    samples = file.audio(0.5, 8000, 8000)
  spectrum = np.abs(np.fft.rfft(samples))
  assert np.argmax(spectrum) == pytest.approx(440, abs=2)


@pytest.mark.slow
def test_resuming_with_a_changed_source_is_refused(toy_world, tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  clips = toy_world / 'clips' / 'train'
  for i in (1, 2):
    (folder / f'{i}.mp4').symlink_to(clips / f'000{i}.mp4')
  out = tmp_path / 'out'
  prepare.prepare(prepare.Plan(str(folder), '', 'untouched'), out)
  (folder / '0.mp4').symlink_to(clips / '0000.mp4')
  prepare._open.cache_clear()    # another process
  with pytest.raises(UserError, match='was begun with num_clips=2, now it is 3'):
    prepare.prepare(prepare.Plan(str(folder), '', 'untouched'), out)


def test_folder_with_missing_shards_is_refused_as_source(toy_world, tmp_path):
  plan = prepare.Plan(str(toy_world / 'train.csv'), '', 'untouched', clips_per_shard=8)
  _make(plan, tmp_path / 'out')
  (tmp_path / 'out' / 'clips-00001-of-00003.array_record').unlink()
  with pytest.raises(UserError, match='holds 2 of the 3 shards'):
    sources.open_source(str(tmp_path / 'out'))
  assert len(sources.open_source(str(tmp_path / 'out' / 'clips-00002*'))) == 8


def _command(source, out, *args):
  return [sys.executable, '-m', 'vatt_jax', 'prepare', f'--source={source}',
          f'--out={out}', *args]


@pytest.mark.slow
def test_resumed_run_writes_no_shard_twice(toy_world, tmp_path):
  out = tmp_path / 'out'
  command = _command(toy_world / 'train.csv', out, '--captions=train_captions.csv',
                     '--form=frames', '--clips_per_shard=1')
  process = subprocess.Popen(command, cwd=ROOT, start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 120
  while len(list(out.glob('*.array_record'))) < 3:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  shards = {path: path.stat().st_mtime_ns for path in out.glob('*.array_record')}
  assert 3 <= len(shards) < 24
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '24 records in 24 shards' in done.stdout and '0 clips skipped' in done.stdout
  assert {path: path.stat().st_mtime_ns for path in shards} == shards
  assert not list(out.glob('*.partial'))
  packed = sources.open_source(str(out))
  names = [packed[i].path.rpartition('/')[2] for i in range(len(packed))]
  assert sorted(names) == [f'{i:04d}.mp4' for i in range(24)]

  other = prepare.Plan(str(toy_world / 'train.csv'), 'train_captions.csv', 'video',
                       clips_per_shard=1)
  with pytest.raises(UserError, match="begun with form='frames', now it is 'video'"):
    prepare.prepare(other, out)


@pytest.mark.parametrize('settings, message', [
    (dict(form='gif'), '--form=gif: expected one of video, frames, untouched'),
    (dict(form='untouched', segment_seconds=3.0), 'cannot cut files'),
    (dict(form='video', clips_per_shard=0), 'expected 0 or more, and 1 or more')])
def test_invalid_plan_is_refused(settings, message):
  with pytest.raises(UserError, match=message):
    prepare.Plan('somewhere', '', **settings)


def test_folder_of_other_files_is_refused_and_unchanged(toy_world, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  plan = prepare.Plan(str(toy_world / 'train.csv'), '', 'video')
  with pytest.raises(UserError, match='is not empty, and was not begun by this'):
    prepare.prepare(plan, tmp_path)
  assert os.listdir(tmp_path) == ['mine.txt']


def test_missing_beam_error_names_the_extra(monkeypatch, toy_world, tmp_path):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  plan = prepare.Plan(str(toy_world / 'train.csv'), '', 'video')
  with pytest.raises(UserError, match=r"pip install -e '\.\[prep\]'"):
    prepare.prepare(plan, tmp_path / 'out')
