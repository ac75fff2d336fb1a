"""Tests vatt_jax/reports/run_info.py."""

import dataclasses
import datetime
import json
import math
import subprocess
import sys
import types

from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip
from vatt_jax.reports import run_info
from vatt_jax.tools import prepare

CONFIG = dict(total_steps=3, init_from='')


def gathered(training, measured, **changes):
  mixture = training if isinstance(training, sources.Mixture) else sources.Mixture(
      [training])
  evaluator = types.SimpleNamespace(measured=measured)
  return run_info.gather(CONFIG | changes, 0, mixture, dict(x=evaluator))


def overlap(training, measured):
  return gathered(training, measured).evaluations['x']


def test_facts_are_saved_in_the_workdir(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'orig_argv', ['/usr/bin/python3', '-m', 'x', '--a=b c'])
  info = gathered([Clip('a.mp4')], [Clip('b.mp4')])
  assert run_info.read(tmp_path) is None
  run_info.save(tmp_path, info)
  assert run_info.read(tmp_path) == info
  assert json.loads((tmp_path / 'run_info.json').read_text())['clips'] == 1
  facts = dict(info.facts())
  assert facts['Command'] == "python3 -m x '--a=b c'"
  assert facts['Training clips'] == '1' and facts['Device']
  when = datetime.datetime.fromisoformat(info.date)
  assert abs(datetime.datetime.now().astimezone() - when).seconds < 600


def test_commit_is_read_only_from_the_package_checkout(tmp_path, monkeypatch):
  def git(*arguments):
    subprocess.run(['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=b',
                    *arguments], check=True, capture_output=True)

  monkeypatch.setattr(run_info, '_ROOT', tmp_path)
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  assert 'commit' not in gathered([], []).code    # not a checkout
  git('init')
  (tmp_path / 'f').write_text('1')
  git('add', 'f')
  git('commit', '-m', 'm')
  commit = subprocess.run(['git', '-C', tmp_path, 'rev-parse', 'HEAD'], text=True,
                          capture_output=True, check=True).stdout
  assert gathered([], []).code == f'commit {commit[:10]}'
  (tmp_path / 'f').write_text('2')
  assert gathered([], []).code == f'commit {commit[:10]}, with uncommitted changes'
  # The package is installed inside another checkout.
  (tmp_path / 'site-packages').mkdir()
  monkeypatch.setattr(run_info, '_ROOT', tmp_path / 'site-packages')
  assert 'commit' not in gathered([], []).code
  monkeypatch.setenv('PATH', '')    # no git
  assert gathered([], []).code


def test_overlap_with_training_clips_is_counted(tmp_path, monkeypatch):
  a, b = Clip('a.mp4'), Clip('d/b.mp4', 0.0, 2.0)
  assert str(overlap([a], [b])) == '1 clip, held out'
  assert str(overlap([a, b], [b])) == '1 clip, the same clips as in training'
  some = overlap([a], [dataclasses.replace(a, start=1.0, end=2.0), b, Clip('c.mp4')])
  assert str(some) == '3 clips, 1 of them also trained on'
  later = dataclasses.replace(b, start=2.0, end=math.inf)
  assert overlap([later], [b]).also_trained == 0    # another segment of the file
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'd').mkdir()
  (tmp_path / 'e').symlink_to('d')
  same = dataclasses.replace(b, path=str(tmp_path / 'e' / 'b.mp4'))
  assert overlap([b], [same]).also_trained == 1    # by another path
  assert overlap([Clip('other/b.mp4')], [b]).also_trained == 0


def test_captioned_clips_and_mixtures_are_compared(toy_world):
  path = str(toy_world / 'train.csv')
  training = sources.Mixture([
      sources.open_source(path, 'train_captions.csv'), [Clip('x.mp4')]])
  assert overlap(training, training) == run_info.Measured(25, 25)
  segments = sources.open_source(str(toy_world / 'train_segments.csv'))
  assert overlap(training, segments) == run_info.Measured(len(segments), len(segments))
  held_out = sources.open_source(str(toy_world / 'test_segments.csv'))
  assert overlap(training, sources.Mixture([held_out])) == run_info.Measured(16, 0)


def test_records_are_compared_by_source_or_not_at_all(toy_world, tmp_path):
  plan = prepare.Plan(str(toy_world / 'test_segments.csv'), '', 'untouched')
  prepare.make_shard(plan, tmp_path, 1, 0)
  packed, again = (sources.open_source(str(tmp_path)) for _ in range(2))
  assert overlap(packed, again).also_trained == 16
  unknown = overlap(packed, [Clip('a.mp4')])
  assert unknown.also_trained is None and 'not compared' in str(unknown)
  assert overlap([Clip('a.mp4')] * 16, packed).also_trained is None


def test_run_without_training_does_not_call_clips_held_out():
  info = gathered([Clip('a.mp4')], [Clip('a.mp4')], total_steps=0, init_from='runs/x')
  facts = dict(info.facts())
  assert facts['Training clips'] == 'none in this run'
  assert facts['Evaluation: x'] == '1 clip' and facts['Initial weights'] == 'runs/x'


def test_resumed_run_names_its_first_step():
  info = gathered([], [])
  assert 'resumed' not in dict(info.facts())['Started']
  info = dataclasses.replace(info, first_step=1200)
  assert dict(info.facts())['Started'].endswith(', resumed at step 1,200')
