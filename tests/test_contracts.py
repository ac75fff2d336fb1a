"""Extensions: a loss, a CNN, an evaluator and a hook, each a class and a table row."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from configs import linear_folder
from configs import quickstart
from vatt_jax import embed
from vatt_jax import hooks
from vatt_jax import losses
from vatt_jax import models
from vatt_jax import train
from vatt_jax.evaluators import evaluation
from vatt_jax.reports import run_figures
from vatt_jax.weights import load as weights

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def extending(tmp_path_factory):
  """Imports the code of docs/extending.md as a module."""
  text = (ROOT / 'docs' / 'extending.md').read_text()
  path = tmp_path_factory.mktemp('docs') / 'extending.py'
  path.write_text('\n\n'.join(re.findall(r'```python\n(.*?)```', text, re.DOTALL)))
  spec = importlib.util.spec_from_file_location('extending', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def rows(extending, monkeypatch):
  """Adds the four classes to their tables."""
  monkeypatch.setitem(losses.LOSSES, 'counted_norm', extending.CountedNorm)
  monkeypatch.setitem(models.MODELS, 'convnet', extending.ConvNet)
  monkeypatch.setitem(evaluation.EVALUATORS, 'mean_norm', extending.MeanNorm)
  monkeypatch.setitem(hooks.HOOKS, 'forget', extending.Forget)


def small(toy_world, **changes):
  config = quickstart.get_config().to_dict()
  config |= dict(total_steps=3, batch_size=4, log_every_steps=1, evals={}, figures={},
                 mesh=dict(data=2))
  config['data'] = dict(path=str(toy_world / 'train.csv'), max_bad_fraction=0.5)
  config['window'] = dict(num_frames=4, frame_rate_hz=5.0, image_size=16,
                          audio_hz=4000, modalities=('video', 'audio'))
  config['model'] = dict(name='convnet', width=8,
                         head=dict(name='fac', video_audio_dim=8))
  config['losses'] = dict(video_audio=dict(name='nce', temperature=0.1))
  config['optim']['warmup_steps'] = 1
  config['checkpoint'] = dict(every_steps=2, keep=2)
  return config | changes


def test_loss_model_evaluator_and_hook_need_only_a_table_row(
    rows, toy_world, tmp_path):
  config = small(
      toy_world, losses=dict(small(toy_world)['losses'],
                             norm=dict(name='counted_norm', length=2.0, weight=0.1)),
      evals=dict(norm=dict(name='mean_norm')),
      hooks=dict(forget=dict(name='forget', every_steps=2)))
  train.train(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert np.isfinite(results['train/loss']) and results['norm/mean_norm'] > 0
  history = [json.loads(line) for line in
             (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert {'train/loss_norm', 'train/length_norm', 'train/loss_video_audio'} <= set(
      history[0])
  model, variables = weights.load(tmp_path / 'run')
  assert type(model).__name__ == 'ConvNet'
  assert (variables['batch_stats']['audio_norm']['mean'] != 0).any()


def test_memory_of_a_loss_is_saved_and_restored(rows, toy_world, tmp_path, caplog):
  """A run in two halves has the same memory as one without a stop."""
  config = small(toy_world, losses=dict(norm=dict(name='counted_norm', length=2.0)))
  whole = tmp_path / 'whole'
  train.train(config, whole)
  half = tmp_path / 'half'
  train.train(config | dict(total_steps=2), half)
  text = (half / 'config.json').read_text()
  text = text.replace('"total_steps": 2', '"total_steps": 3')
  (half / 'config.json').write_text(text)
  train.train(config, half)
  a, b = (json.loads((run / 'results.json').read_text())['train/loss']
          for run in (whole, half))
  np.testing.assert_allclose(a, b, rtol=1e-4)


def test_microbatches_keep_batch_statistics_of_a_backbone(rows, toy_world, tmp_path):
  config = small(toy_world, num_microbatches=2, mesh=dict(data=-1))
  train.train(config, tmp_path / 'run')
  _, variables = weights.load(tmp_path / 'run')
  for modality in ('video', 'audio'):
    assert (variables['batch_stats'][f'{modality}_norm']['mean'] != 0).any()


def test_missing_output_of_a_loss_is_reported_in_one_line(rows, toy_world, tmp_path):
  config = small(toy_world)
  config['losses'] = dict(video_text=dict(name='mil_nce', temperature=0.1))
  with pytest.raises(train.UserError, match=r'config\.losses\.video_text: needs outputs'
                     r'\.embed\.video_text\.text; the model and data provide'):
    train.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.fixture
def trained(rows, toy_world, tmp_path):
  """Returns the workdir of a run of the model."""
  train.train(small(toy_world), tmp_path / 'run')
  return tmp_path / 'run'


def test_embedder_works_with_a_model_of_another_name(trained, toy_world):
  embedder = embed.Embedder(trained)
  path = next((toy_world / 'clips').rglob('*.mp4'))
  assert embedder.videos([path]).spaces['video_audio'].shape == (1, 8)


def test_config_without_sizes_evaluates_a_model_of_another_name(trained, toy_world,
                                                                tmp_path):
  config = linear_folder.get_config('shape=video').to_dict()
  del config['evals']['neighbours']
  config['evals']['linear'] |= dict(
      train=str(toy_world / 'train_segments.csv'),
      test=str(toy_world / 'test_segments.csv'), cache='',
      num_windows=1, classifiers=dict(logistic={}))
  train.train(config | dict(init_from=str(trained)), tmp_path / 'linear')
  results = json.loads((tmp_path / 'linear' / 'results.json').read_text())
  assert 'linear/shape/top1' in results


def test_figures_are_drawn_of_a_model_of_another_name(trained):
  config = json.loads((trained / 'config.json').read_text())
  run_figures.draw(config, trained)
  assert {path.stem for path in (trained / 'figures').glob('*.png')} >= {
      'losses', 'similarities', 'tsne_spaces'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SameRows(losses.Loss):
  """Pulls the rows of a clip together, by the mean distance of their embeddings."""
  num_shifts: int
  num_views: int
  num_copies: int

  def __call__(self, params, outputs, batch, memory):
    count = self.num_shifts * self.num_views * self.num_copies
    by_clip = lambda x: x.reshape(-1, count, *x.shape[1:])
    ids, embed = map(by_clip, (batch['id'], outputs['embed']['video_audio']['video']))
    distance = jnp.mean((embed - embed[:, :1]) ** 2)
    return distance, dict(together=jnp.mean(ids == ids[:, :1])), memory


@pytest.mark.parametrize('num_microbatches', [1, 2])
def test_loss_sees_all_rows_of_a_clip_together(num_microbatches, rows, toy_world,
                                               tmp_path, monkeypatch):
  monkeypatch.setitem(losses.LOSSES, 'same_rows', _SameRows)
  config = small(toy_world, batch_size=8, num_microbatches=num_microbatches,
                 mesh=dict(data=-1), losses=dict(same=dict(name='same_rows')),
                 augment=dict(copies=('forward', 'reversed')))
  config['window'] |= dict(num_shifts=2, num_views=2)
  with pytest.raises(train.UserError, match='batch_size=6: counts rows; expected a'):
    train.train(config | dict(batch_size=6), tmp_path / 'run')
  train.train(config, tmp_path / 'run')
  first, *_ = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  metrics = json.loads(first)
  assert metrics['train/together_same'] == 1 and metrics['train/loss_same'] > 0
