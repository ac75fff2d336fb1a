"""Tests vatt_jax/evaluate.py: evaluators of a config on the checkpoints of a run."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from vatt_jax import checkpoint
from vatt_jax import evaluate
from vatt_jax import metric_writer
from vatt_jax import train
from vatt_jax.distributed import interrupt
from vatt_jax.errors import UserError
from vatt_jax.evaluators import evaluation

ROOT = pathlib.Path(__file__).parents[1]
TINY = dict(depth=1, width=8, num_heads=2, mlp_dim=8)


def _config(toy_world, **changes):
  nce = dict(temperature=0.1)
  return dict(
      seed=0, total_steps=3, batch_size=4, log_every_steps=1, average_decay=0.5,
      data=dict(path=str(toy_world / 'train.csv'), captions='train_captions.csv'),
      window=dict(num_frames=2, frame_rate_hz=5.0, image_size=16, audio_hz=4000,
                  num_candidates=2, max_tokens=8),
      model=dict(video=dict(patch=(2, 8, 8), **TINY), audio=dict(patch=(80,), **TINY),
                 text=dict(vocabulary_size=64, **TINY),
                 head=dict(video_audio_dim=8, video_text_dim=8)),
      losses=dict(video_audio=dict(name='nce', **nce),
                  video_text=dict(name='mil_nce', **nce)),
      optim=dict(peak_rate=1e-2, final_rate=1e-2, warmup_steps=0),
      evals=dict(retrieval=dict(name='retrieval', every_steps=1,
                                path=str(toy_world / 'test_segments.csv'))),
      checkpoint=dict(every_steps=1, keep=3)) | changes


@pytest.fixture(scope='module')
def trained(toy_world, tmp_path_factory):
  """Returns the workdir of a run with checkpoints 1, 2 and 3, evaluated in training."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  train.train(_config(toy_world), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  return pathlib.Path(shutil.copytree(trained, tmp_path / 'run'))


@pytest.fixture
def brief(monkeypatch):
  """Returns `evals` with a fake evaluator that sums the parameters."""
  class Sum:
    def run(self, state):
      yield 'R@1', float(sum(x.sum() for x in jax.tree.leaves(state.params)))

  monkeypatch.setitem(evaluation.EVALUATORS, 'sum', Sum)
  return dict(brief=dict(name='sum'))


def _rows(path):
  return metric_writer.read_jsonl(path / 'metrics.jsonl')


def _evaluations(path):
  return [row for row in _rows(path) if 'retrieval/text_to_video/R@1' in row]


def test_watch_returns_the_metrics_of_training(toy_world, workdir, caplog, capsys):
  caplog.set_level('INFO', 'absl')
  evaluate.watch(_config(toy_world), workdir, 'own')
  folder = workdir / 'eval' / 'own'
  rows, expected = _rows(folder), _evaluations(workdir)
  assert [row['step'] for row in rows] == [1, 2, 3]
  assert expected[:2] == rows[:2] and expected[2].items() >= rows[2].items()
  assert json.loads((folder / 'results.json').read_text()) == rows[2]
  assert (folder / 'tensorboard').is_dir()
  lines = [r.getMessage() for r in caplog.records if 'text_to_video/R@10' in r.message]
  assert [line.split()[:2] for line in lines] == [['step', '1'], ['step', '2'],
                                                  ['step', '3']]
  assert 'retrieval/text_to_video/R@1 ' in capsys.readouterr().out


def test_evaluated_checkpoints_are_skipped(toy_world, workdir, brief, monkeypatch):
  config = _config(toy_world, evals=brief)
  evaluate.watch(config, workdir, 'twice')
  folder = workdir / 'eval' / 'twice'
  metrics, results = folder / 'metrics.jsonl', folder / 'results.json'
  before = metrics.read_text(), results.read_text()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'load_model', None)    # not to be called
    results.unlink()    # as if killed before it was written
    evaluate.watch(config, workdir, 'twice')
  assert (metrics.read_text(), results.read_text()) == before
  metrics.write_text(before[0][:-9])    # as if killed while writing the last row
  evaluate.watch(config, workdir, 'twice')
  assert (metrics.read_text(), results.read_text()) == before
  with pytest.raises(UserError, match='holds a run of another config, seed=0'):
    evaluate.watch(config | dict(seed=1), workdir, 'twice')


def test_watch_waits_for_checkpoints(toy_world, workdir, brief, tmp_path, monkeypatch):
  coming = tmp_path / 'coming'
  (workdir / 'checkpoints').rename(coming)
  waited = []

  def train_on(seconds):
    waited.append(seconds)
    (workdir / 'checkpoints').mkdir(exist_ok=True)
    if len(waited) % 2 == 0:
      step = str(len(waited) // 2)
      (coming / step).rename(workdir / 'checkpoints' / step)

  monkeypatch.setattr(evaluate.time, 'sleep', train_on)
  evaluate.watch(_config(toy_world, evals=brief), workdir, 'waits')
  rows = _rows(workdir / 'eval' / 'waits')
  assert [row['step'] for row in rows] == [1, 2, 3]
  assert len({row['brief/R@1'] for row in rows}) == 3
  assert len(waited) == 6


def test_evaluation_without_metrics_is_a_warning(toy_world, workdir, brief, monkeypatch,
                                                 caplog, capsys):
  class Nothing:
    def run(self, state):
      yield from ()

  monkeypatch.setitem(evaluation.EVALUATORS, 'nothing', Nothing)
  config = _config(toy_world, evals=brief | dict(vain=dict(name='nothing')))
  evaluate.watch(config, workdir, 'vain')
  assert caplog.text.count('config.evals.vain: returned no metrics') == 3
  assert all('brief/R@1' in row for row in _rows(workdir / 'eval' / 'vain'))
  config = _config(toy_world, evals=dict(vain=dict(name='nothing')))
  evaluate.watch(config, workdir, 'all_in_vain')
  results = workdir / 'eval' / 'all_in_vain' / 'results.json'
  assert json.loads(results.read_text()) == dict(step=3)


def test_signal_ends_the_waiting(toy_world, workdir, brief, monkeypatch):
  shutil.rmtree(workdir / 'checkpoints' / '3')
  monkeypatch.setattr(evaluate.time, 'sleep',
                      lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(interrupt.Interrupted, match='SIGTERM'):
    evaluate.watch(_config(toy_world, evals=brief), workdir, 'stopped')
  assert [row['step'] for row in _rows(workdir / 'eval' / 'stopped')] == [1, 2]


def test_checkpoint_deleted_while_loading_is_skipped(toy_world, workdir, brief,
                                                     monkeypatch, caplog):
  caplog.set_level('INFO', 'absl')
  load = checkpoint._load

  def load_too_late(folder, step):
    if step == 1:
      shutil.rmtree(checkpoint.of_step(folder, step))
    return load(folder, step)

  monkeypatch.setattr(checkpoint, '_load', load_too_late)
  evaluate.watch(_config(toy_world, evals=brief), workdir, 'late')
  assert [row['step'] for row in _rows(workdir / 'eval' / 'late')] == [2, 3]
  skipped = [r.getMessage() for r in caplog.records if 'Skipped:' in r.message]
  assert len(skipped) == 1 and 'checkpoints/1: no such checkpoint' in skipped[0]


def test_another_config_loads_one_tower(toy_world, workdir, brief):
  """A config without training loads one of the run's three towers."""
  config = _config(toy_world, evals=brief, total_steps=0, data={})
  for section in ('losses', 'optim', 'checkpoint'):
    del config[section]
  config['model'] = dict(video=config['model']['video'])
  evaluate.watch(config, workdir, 'tower')
  _, variables = checkpoint.load_model(workdir)
  tower = {k: v for k, v in variables['params'].items() if k.endswith('_video')}
  assert len(tower) == 3
  assert _rows(workdir / 'eval' / 'tower')[-1]['brief/R@1'] == pytest.approx(
      float(sum(x.sum() for x in jax.tree.leaves(tower))), rel=1e-4)


def test_random_head_needs_allow_random_head(toy_world, workdir, brief, caplog):
  config = _config(toy_world, evals=brief, losses={})
  config['model'] = dict(video=config['model']['video'],
                         head=dict(name='classifier', num_classes=3))
  with pytest.raises(UserError, match=r'checkpoints/1 has no head for this model, '
                                      r'whose head would be random.*--allow_random_'):
    evaluate.watch(config, workdir, 'head')
  assert not _rows(workdir / 'eval' / 'head')
  evaluate.watch(config, workdir, 'head', allow_random_head=True)
  assert len(_rows(workdir / 'eval' / 'head')) == 3
  assert 'whose head starts from random weights' in caplog.text


@pytest.mark.slow
def test_wrong_size_error_can_be_corrected(toy_world, workdir, brief):
  config = _config(toy_world, evals=brief)
  config['model'] = config['model'] | dict(video=dict(config['model']['video'],
                                                      depth=2))
  with pytest.raises(UserError, match=r'config\.model\.video\.depth=2: the checkpoint '
                                      r'.*checkpoints/1 has 1; set it to') as error:
    evaluate.watch(config, workdir, 'mended')
  assert '\n' not in str(error.value)
  evaluate.watch(_config(toy_world, evals=brief), workdir, 'mended')
  assert len(_rows(workdir / 'eval' / 'mended')) == 3


@pytest.mark.parametrize('named, step', [('', 3), ('checkpoints/2', 2)])
def test_init_from_is_evaluated_without_a_run(toy_world, trained, brief, tmp_path,
                                              named, step):
  config = _config(toy_world, evals=brief, init_from=str(trained / named))
  evaluate.watch(config, tmp_path / 'none', 'start')
  evaluate.watch(config, tmp_path / 'none', 'start')
  [row] = _rows(tmp_path / 'none' / 'eval' / 'start')
  params = checkpoint.load_model(trained / named)[1]['params']
  assert row['step'] == step
  assert row['brief/R@1'] == pytest.approx(
      float(sum(x.sum() for x in jax.tree.leaves(params))), rel=1e-4)


def test_nothing_to_evaluate_is_an_error(toy_world, trained, tmp_path):
  with pytest.raises(UserError, match='none: holds no run to evaluate; set'):
    evaluate.watch(_config(toy_world), tmp_path / 'none', 'nothing')
  with pytest.raises(UserError, match=r'config\.evals: is empty'):
    evaluate.watch(_config(toy_world, evals={}, init_from=str(trained)),
                   tmp_path / 'none', 'nothing')
  with pytest.raises(checkpoint.Gone, match=r'expected one of 1, 2, 3'):
    checkpoint.load_model(trained / 'checkpoints' / '7')


@pytest.mark.slow
def test_mode_eval_reports_a_missing_run(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'vatt_jax.main', '--config=configs/quickstart.py',
       '--mode=eval', f'--workdir={tmp_path / "none"}'],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert 'holds no run to evaluate' in done.stderr
  assert len(done.stderr.splitlines()) == 1
