"""Tests vatt_jax/tools/check_data.py."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import pretrain_folder
from configs import pretrain_mbs
from data import toy_world as world
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.tools import check_data

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A manifest of one good clip and one for each fault."""
  folder = tmp_path_factory.mktemp('faults')
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 255, (50, 32, 32, 3), np.uint8)
  tone = 0.3 * np.sin(np.arange(5 * 16_000) * 0.1).astype(np.float32)
  world.encode(folder / 'good.mp4', frames, 10, tone)
  world.encode(folder / 'no_audio.mp4', frames, 10)
  world.encode(folder / 'silent.mp4', frames, 10, 0 * tone)
  world.encode(folder / 'slides.mp4', frames[:10], 2, tone)
  whole = (folder / 'good.mp4').read_bytes()
  (folder / 'cut.mp4').write_bytes(whole[:len(whole) // 2])
  # The second half of the data is overwritten; the index at the file's end is intact.
  hole = bytearray(whole)
  index = whole.index(b'moov')
  hole[index // 2:index - 100] = bytes(index - 100 - index // 2)
  (folder / 'hole.mp4').write_bytes(hole)
  (folder / 'all.csv').write_text(
      'path,start,end,text\n'
      'good.mp4,,,a red cross\n' 'good.mp4,1,2,a blue star\n' 'good.mp4,,,\n'
      'no_audio.mp4,,,a star\n' 'silent.mp4,,,a star\n' 'slides.mp4,,,a star\n'
      'cut.mp4,,,a star\n' 'hole.mp4,,,a star\n' 'absent.mp4,,,a star\n')
  return folder


def test_each_fault_is_detected_and_distinguished(folder):
  clips = sources.open_source(str(folder / 'all.csv'))
  findings = check_data.check_source(clips, min_seconds=3.2)
  assert [sorted(f.faults) for f in findings] == [
      [], ['short'], ['no_text'], ['no_audio'], ['silent'], ['odd_frame_rate'],
      ['broken'], ['broken'], ['broken']]
  assert findings[1].faults['short'] == 'is 1.00 s long, less than 3.2 s'
  assert findings[5].faults['odd_frame_rate'] == 'has 2 frames per second'
  assert 'Invalid data' in findings[7].faults['broken']
  assert 'No such file' in findings[8].faults['broken']


def test_summary_matches_the_source(folder):
  clips = sources.open_source(str(folder / 'all.csv'))
  words = text.WordTokenizer(['a', 'star'])
  summary = check_data.summarize(
      check_data.check_source(clips, 3.2, words), seconds=2.0, knows_words=True)
  assert summary['clips'] == 9 and summary['broken'] == 3 and summary['silent'] == 1
  assert summary['duration_seconds/min'] == pytest.approx(1)
  assert summary['duration_seconds/sum'] == pytest.approx(26, abs=0.2)
  assert summary['decode_speed'] == pytest.approx(13, abs=0.1)
  assert summary['clips_per_second'] == 4.5
  assert summary['captions_per_clip/mean'] == pytest.approx(8 / 9)
  assert summary['words_per_caption'] == pytest.approx((3 + 3 + 6 * 2) / 8)
  assert summary['unknown_words'] == pytest.approx(3 / 18)    # red, cross, blue


def test_least_duration_is_the_window_of_the_config():
  assert check_data.least_seconds(None) == check_data.least_seconds(
      pretrain_folder.get_config().to_dict()) == 1.6
  assert check_data.least_seconds(pretrain_mbs.get_config().to_dict()) == 3.2
  with pytest.raises(UserError, match=r'config\.window: missing'):
    check_data.least_seconds({})


def _run(*args):
  return subprocess.run([sys.executable, '-m', 'vatt_jax', 'check_data', *args],
                        cwd=ROOT, capture_output=True, text=True)


def test_table_names_each_clip_with_a_fault(folder):
  findings = check_data.check_source(sources.open_source(str(folder / 'all.csv')), 3.2)
  table = check_data.as_text(check_data.summarize(findings, 1.0, False), findings)
  assert f'{folder}/no_audio.mp4: has no audio' in table.splitlines()
  assert 'good.mp4: has no caption' in table


def test_command_prints_json(folder):
  done = _run(f'--source={folder / "all.csv"}', '--json',
              '--config=configs/linear_esc50.py:mbs', '--config.window.num_frames=49')
  assert done.returncode == 0, done.stderr
  summary = json.loads(done.stdout)
  assert summary['clips'] == 9 and summary['no_audio'] == 1
  assert {x['short'] for x in summary['amiss'] if 'short' in x} == {
      'is 1.00 s long, less than 4.9 s'}
  assert [pathlib.Path(x['path']).name for x in summary['amiss'] if 'broken' in x] == [
      'cut.mp4', 'hole.mp4', 'absent.mp4']


@pytest.mark.slow
def test_missing_source_flag_is_an_error():
  done = _run()
  assert done.returncode == 2 and '--source: missing' in done.stderr


def test_broken_clip_is_named_when_all_others_share_a_fault(folder):
  clips = [c for c in sources.open_source(str(folder / 'all.csv'))
           if c.path.endswith(('silent.mp4', 'cut.mp4'))]
  findings = check_data.check_source(clips, 3.2)
  table = check_data.as_text(check_data.summarize(findings, 1.0, False), findings)
  assert 'silent.mp4: has audio that is zero throughout' in table
  assert 'cut.mp4: Invalid data' in table
