"""Tests the configs that evaluate frozen features, shrunk, on the toy world."""

import importlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import pytest

from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import inherit
from vatt_jax import train
from vatt_jax.errors import UserError

DATA_SETS = {    # switches, modality, frames, pixels, rate, splits
    'linear_ucf101': ('video', 32, 320, 12.5, 3),
    'linear_hmdb51': ('video', 32, 320, 12.5, 3),
    'linear_esc50': ('audio', 32, 320, 10.0, 5)}


def load(name: str, *switches: str) -> ConfigDict:
  config = importlib.import_module(f'configs.{name}').get_config(*switches)
  config.lock()
  return config


def shrink(config: ConfigDict, toy_world: pathlib.Path, folder: pathlib.Path,
           labels: dict[str, str], num_splits: int = 1) -> dict[str, Any]:
  """Shrinks a config to a small toy world and a random checkpoint."""
  config = inherit.inherit(config.to_dict()) | dict(
      batch_size=8, init_from=str(folder / 'model'))
  config['window'].update(num_frames=4, image_size=32, audio_hz=4000)
  model = config['model']
  for name in ('shared',) if 'shared' in model else ('video', 'audio'):
    if name in model:
      model[name].pop('size', None)
      model[name].update(width=16, depth=1, num_heads=2, mlp_dim=16)
  train, test = (str(toy_world / f'{side}_segments.csv') for side in ('train', 'test'))
  if num_splits > 1:    # all the same
    train, test = (train,) * num_splits, (test,) * num_splits
  for evaluation in config['evals'].values():
    evaluation.update(train=train, test=test, labels=labels, num_windows=1,
                      cache=str(folder / 'features'))
  linear = config['evals']['linear']
  linear['classifiers']['low_rank']['steps'] = 20
  if 'num_epochs' in linear:
    linear['num_epochs'] = 2
  network, clip = experiment.model_and_clip(config)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), clip)
  checkpoint.save_model(folder / 'model', model, network.init(jax.random.key(1), zeros))
  return config


def run(config: dict[str, Any], workdir: pathlib.Path) -> dict[str, float]:
  train.train(config, workdir)
  return json.loads((workdir / 'results.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('name, switches', [
    ('linear_esc50', ('ma,release',)), ('linear_ucf101', ()),
    ('linear_hmdb51', ('bbs',))])
def test_dataset_config_evaluates_every_split(name, switches, toy_world, tmp_path,
                                              capsys):
  modality, *_, splits = DATA_SETS[name]
  config = shrink(load(name, *switches), toy_world, tmp_path, dict(shape=modality),
                  splits)
  results = run(config, tmp_path / 'run')
  for classifier in ('low_rank', 'svm'):
    for number in range(1, splits + 1):
      # The splits are all the same here.
      where = f'linear/shape/{classifier}'
      assert results[f'{where}/split_{number}/top1'] == pytest.approx(
          results[f'{where}/top1'])
    assert {f'{where}/top1_random_init', f'{where}/chance_top1'} <= results.keys()
  for measure in ('R@1', 'R@5', 'R@20', '1_shot/top1', '5_shot/top1', '20_shot/top1'):
    assert f'neighbours/shape/{measure}' in results
  # Two models: features for both evaluators, and augmented features.
  assert len(list((tmp_path / 'features').iterdir())) == 4


@pytest.mark.slow
def test_folder_config_accepts_own_columns(toy_world, tmp_path, capsys):
  config = load('linear_folder', 'colour=video,sound_event=audio')
  config.evals.linear.multi_labels = ('sound_event',)
  labels = config.evals.neighbours.labels.to_dict()
  results = run(shrink(config, toy_world, tmp_path, labels), tmp_path / 'run')
  for classifier in ('logistic', 'svm', 'low_rank'):
    assert 0 <= results[f'linear/colour/{classifier}/top1'] <= 1
    assert 0 <= results[f'linear/sound_event/{classifier}/mAP'] <= 1
  assert 'neighbours/sound_event/R@1' in results


@pytest.mark.parametrize('name', DATA_SETS)
def test_configs_have_the_paper_values(name):
  """Section 4.3 of arXiv 2104.11178: windows, and the low-rank classifier."""
  modality, frames, pixels, rate, splits = DATA_SETS[name]
  config = load(name)
  window = config.window
  assert (window.num_frames, window.image_size, window.frame_rate_hz,
          window.modalities) == (frames, pixels, rate, (modality,))
  assert window.short == ('loop' if modality == 'video' else 'hold')
  if modality == 'audio':
    assert window.num_frames / window.frame_rate_hz * window.audio_hz == 153_600
  low_rank = config.evals.linear.classifiers.low_rank
  assert (low_rank.rank, low_rank.sample_rate, low_rank.steps, low_rank.learning_rate,
          low_rank.batch_size) == (128, 0.1, 50_000, 5e-4, 64)
  assert len(config.evals.linear.train) == len(config.evals.neighbours.test) == splits
  # MMV's pipeline.
  linear = config.evals.linear
  assert (linear.rows, linear.num_epochs, linear.num_windows) == ('windows', 10, 10)
  assert linear.classifiers.svm.C == 1e-3
  experiment.model_and_clip(config.to_dict())


def test_one_flag_sets_the_features_of_both_evaluators():
  config = load('linear_folder')
  config.evals.linear.update(train='mine.csv', num_windows=9)
  assert (config.evals.neighbours.train, config.evals.neighbours.num_windows) == (
      'mine.csv', 9)


@pytest.mark.parametrize('name, switches, message', [
    ('linear_folder', 'action', "'action': invalid labels .* expected COLUMN=MODALITY"),
    ('linear_ucf101', 'mba', r"'mba': unknown config .*; did you mean ma\?")])
def test_unknown_switch_error_names_the_switch(name, switches, message):
  with pytest.raises(ValueError, match=message):
    load(name, switches)


@pytest.mark.parametrize('key, value, message', [
    ('init_from', '', r'config\.init_from: is empty; a config without training'),
    ('evals.linear.test', ('a.csv', 'b.csv'), r'config\.evals\.linear: train and test'),
    ('evals.linear.test', '', 'the path of a source .* is empty'),
    ('evals.linear.classifiers.low_rank.rate', 1.0,
     r'config\.evals\.linear\.classifiers\.low_rank\.rate: unknown key'),
    ('evals.linear.classifiers.svm.C', 0.0,
     r'config\.evals\.linear\.classifiers\.svm: C=0\.0: expected more than 0'),
    ('evals.linear.classifiers.lda', {},
     r"linear\.classifiers\.lda: name='lda': expected one of logistic, svm"),
    ('evals.linear.rows', 'films', r"\.linear: rows='films': expected one of clips, w"),
    ('evals.linear.num_epochs', 0, r'\.linear: num_epochs=0: expected 1 or more'),
    ('evals.neighbours.rows', 'windows', r'evals\.neighbours\.rows: unknown key'),
    ('evals.linear.windows', 3, r'config\.evals\.linear\.windows: unknown key'),
    ('evals.neighbours.shots', (0,), r'config\.evals\.neighbours: shots=\(0,\)')])
def test_invalid_value_error_names_the_key(key, value, message, toy_world, tmp_path):
  config = place = shrink(load('linear_folder'), toy_world, tmp_path,
                          dict(shape='video', sound_event='audio'))
  *sections, last = key.split('.')
  for section in sections:
    place = place[section]
  place[last] = value
  with pytest.raises(UserError, match=message) as error:
    run(config, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()
