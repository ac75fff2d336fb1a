"""Tests vatt_jax/reports/run_figures.py on the workdir of a small run."""

import csv
import html
import json
import pathlib
import shutil

import pytest

from configs import finetune_video
from configs import quickstart
from configs import quickstart_agnostic
from vatt_jax import train
from vatt_jax.errors import UserError
from vatt_jax.reports import run_figures

TINY = dict(width=16, depth=1, num_heads=2, mlp_dim=16)


def make_config(toy_world, module=quickstart, *switches, **changes):
  """Returns a config of two steps of 4 clips."""
  c = module.get_config(*switches)
  c.total_steps, c.batch_size, c.optim.warmup_steps, c.init_from = 2, 4, 1, ''
  c.data.path = str(toy_world / pathlib.Path(c.data.path).name)
  c.window.update(num_frames=4, image_size=16, audio_hz=2000)
  for tower in ('shared',) if 'shared' in c.model else ('video', 'audio'):
    if tower in c.model:
      c.model[tower].update(TINY)
  if 'probe' in c.evals:
    del c.evals['probe']    # has its own tests
  for evaluation in c.evals.values():
    evaluation.update(path=str(toy_world / 'test_segments.csv'), num_windows=1)
  return c.to_dict() | changes


@pytest.fixture(scope='module')
def trained(toy_world, tmp_path_factory):
  """Returns the workdir of a run."""
  workdir = tmp_path_factory.mktemp('runs') / 'specific'
  train.train(make_config(toy_world), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'run')


def rows(path):
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_draw_writes_png_csv_and_report(toy_world, workdir, capsys):
  results = (workdir / 'results.json').read_bytes()
  wish = dict(label='colour', clips_per_class=1, num_classes=6, num_clips=5,
              runs=str(workdir.parent / '*'), measure='retrieval/text_to_video/R@5')
  run_figures.draw(make_config(toy_world, figures=wish), workdir)
  names = ['drop_token', 'gallery_retrieval_audio_to_video',
           'gallery_retrieval_text_to_video', 'losses', 'similarities', 'tsne_classes',
           'tsne_spaces']
  folder = workdir / 'figures'
  assert sorted(p.stem for p in folder.glob('*.png')) == names
  assert sorted(p.stem for p in folder.glob('*.csv')) == names
  assert (workdir / 'results.json').read_bytes() == results

  clips = rows(toy_world / 'test_segments.csv')
  points = rows(folder / 'tsne_classes.csv')
  now = 'modality-specific, step 2'
  assert {p['when'] for p in points} == {'before training', now}
  assert all(clips[int(p['clip'])]['colour'] == p['label'] for p in points)
  colours = [clips[i]['colour'] for i in {int(p['clip']) for p in points}]
  assert len(colours) == len(set(colours)) == min(
      6, len({clip['colour'] for clip in clips}))
  before, now = ([(p['x'], p['y']) for p in points if p['when'] == when]
                 for when in ('before training', now))
  assert len(before) == len(now) and before != now
  assert len({p['clip'] for p in rows(folder / 'tsne_spaces.csv')}) == 5
  (cost,) = rows(folder / 'drop_token.csv')
  assert cost['run'] == str(workdir) and cost['drop_token_rate'] == '0.5'
  assert float(cost[wish['measure']]) == json.loads(results)[wish['measure']]

  page = (workdir / 'report.html').read_text()
  facts = json.loads((workdir / 'run_info.json').read_text())    # by the training
  assert '<dd>16 clips, held out</dd>' in page and html.escape(facts['code']) in page
  assert page.count('data:image/png') == 5 and (
      f'Step 2; training began with random weights; {len(colours)} clips.' in page)
  assert page.count('data:audio/wav') == 5 and '<h2>Evaluation</h2>' in page
  assert f'Report: {workdir / "report.html"}' in capsys.readouterr().out


@pytest.mark.slow
def test_run_of_the_other_kind_is_drawn_beside(toy_world, workdir, tmp_path):
  other = tmp_path / 'agnostic'
  train.train(make_config(toy_world, quickstart_agnostic, total_steps=0, evals={}),
              other)
  config = make_config(toy_world, figures=dict(beside=str(other), num_clips=8))
  run_figures.draw(config, workdir)
  panels = {p['when'] for p in rows(workdir / 'figures' / 'tsne_classes.csv')}
  assert panels == {'before training', 'modality-specific, step 2',
                    'modality-agnostic, step 0'}
  points = rows(workdir / 'figures' / 'tsne_spaces.csv')
  clips = {kind: {p['clip'] for p in points if p['model'] == kind}
           for kind in ('modality-specific', 'modality-agnostic')}
  assert clips['modality-specific'] == clips['modality-agnostic']
  assert len(clips['modality-agnostic']) == 8
  # Two runs of the same kind are named by their workdirs.
  third = shutil.copytree(workdir, tmp_path / 'third')
  model = run_figures._load(make_config(toy_world), workdir, lambda: None)
  models = run_figures._models(model, f'{other},{third}', lambda: None)
  assert list(models) == ['run', 'agnostic', 'third'] and models['run'] is model


def test_impossible_figures_are_logged(toy_world, tmp_path, caplog):
  """Uses a video model without a head, and clips without labels."""
  config = make_config(toy_world, total_steps=0, evals={}, losses={}, figures={})
  config['model'] = dict(video=config['model']['video'])
  config['window']['modalities'] = ('video',)
  train.train(config, tmp_path / 'run')
  with caplog.at_level('INFO'):
    run_figures.draw(config, tmp_path / 'run')
  assert not list((tmp_path / 'run' / 'figures').iterdir())
  logged = [r.getMessage() for r in caplog.records]
  assert [line for line in logged if line.startswith('No figure')] == [
      "No figure 'tsne_classes': the clips have no labels",
      "No figure 'tsne_spaces': the modality-specific model has no common space",
      "No figure 'similarities': the modality-specific model has no common space",
      "No figure 'losses': no step was trained",
      "No figure 'measures': fewer than two evaluations; set "
      'config.evals.*.every_steps']


@pytest.mark.parametrize('wish, message', [
    (dict(label='size'), r"figures\.label='size': the clips have no such label; found "
     'shape, colour'),
    (dict(beside='/nowhere'), r"figures\.beside='/nowhere': holds no run"),
    (dict(runs='/nowhere/*', measure='x'), r"figures\.measure='x': no run of figures\."
     r"runs='/nowhere/\*' has it; found no results"),
    (dict(runs='x'), r"config\.figures: runs='x', measure='': expected both or none"),
    (dict(num_clips=0), r'num_clips=0: expected 1 or more'),
    (dict(clips_per_class=0), r'clips_per_class=0: expected 1 or more'),
    (dict(clips=3), r'config\.figures\.clips: unknown key'),
    (dict(path='/nowhere'), '/nowhere: no such folder')])
def test_invalid_figures_setting_raises(toy_world, workdir, wish, message):
  with pytest.raises(UserError, match=message):
    run_figures.draw(make_config(toy_world, figures=dict(num_clips=6) | wish), workdir)


def test_workdir_without_run_or_checkpoint_raises(toy_world, workdir, tmp_path):
  with pytest.raises(UserError, match='none: holds no run; train one there first'):
    run_figures.draw(make_config(toy_world), tmp_path / 'none')
  assert not (tmp_path / 'none').exists()
  shutil.rmtree(workdir / 'checkpoints')
  with pytest.raises(UserError, match='run: holds no checkpoint yet'):
    run_figures.draw(make_config(toy_world), workdir)


@pytest.mark.slow
def test_features_before_training_come_from_init_from(toy_world, workdir, tmp_path):
  config = make_config(toy_world, init_from=str(workdir), total_steps=0, evals={})
  train.train(config, tmp_path / 'second')
  wish = dict(num_clips=6, path=str(toy_world / 'test_segments.csv'))
  run_figures.draw(config | dict(figures=wish), tmp_path / 'second')
  points = rows(tmp_path / 'second' / 'figures' / 'tsne_classes.csv')
  before, now = ([(p['x'], p['y']) for p in points if p['when'].startswith(when)]
                 for when in ('before', 'modality-specific'))
  assert before == now and before


@pytest.mark.slow
def test_features_of_a_classifier_are_coloured_by_its_label(toy_world, tmp_path):
  """Checks that the figures default to the label and clips of the run."""
  config = make_config(toy_world, finetune_video, 'toy')
  train.train(config, tmp_path / 'run')
  run_figures.draw(config, tmp_path / 'run')
  folder = tmp_path / 'run' / 'figures'
  assert sorted(p.stem for p in folder.glob('*.png')) == ['losses', 'tsne_classes']
  motions = [row['motion'] for row in rows(toy_world / 'test_segments.csv')]
  points = rows(folder / 'tsne_classes.csv')
  assert {p['modality'] for p in points} == {'video'}
  assert all(motions[int(p['clip'])] == p['label'] for p in points)
