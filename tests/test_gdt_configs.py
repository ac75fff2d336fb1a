"""Tests the configs of GDT and STiCA: their switches, and shrunk steps."""

import importlib
import json

import jax
import numpy as np
import pytest

from configs import class_retrieval
from configs import finetune_gdt
from configs import linear_dcase2014
from configs import linear_esc50
from configs import linear_ucf101
from configs import pretrain_gdt
from configs import pretrain_stica
from configs import quickstart
from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import models
from vatt_jax import train

TINY = dict(width=16, depth=1, num_heads=2, mlp_dim=16)


def load(module, switches=''):
  config = module.get_config(switches)
  config.lock()
  return config


@pytest.mark.parametrize('name', ['pretrain_gdt', 'pretrain_stica', 'finetune_gdt'])
def test_every_switch_is_documented(name):
  module = importlib.import_module(f'configs.{name}')
  for group in module.GROUPS:
    for switch in group:
      assert switch in module.__doc__
      load(module, f'toy,{switch}' if switch == 'rooms' else switch)


@pytest.mark.parametrize('row, shifts, copies, shift, reversal', [
    ('e', 1, 1, '', ''), ('g', 2, 1, 'invariant', ''), ('i', 1, 2, '', 'distinctive'),
    ('j', 2, 1, 'distinctive', ''),
    ('k', 2, 2, 'invariant', 'distinctive'), ('', 2, 2, 'distinctive', 'invariant')])
def test_row_of_table_1_samples_its_factors(row, shifts, copies, shift, reversal):
  config = load(pretrain_gdt, row)
  loss = config.losses.video_audio
  assert (config.window.num_shifts, len(config.augment.copies)) == (shifts, copies)
  assert (loss.shift, loss.reversal) == (shift, reversal)
  assert config.batch_size == 512 * shifts
  assert load(pretrain_gdt, f'{row or "l"},toy').batch_size == 32


@pytest.mark.parametrize('module, switches', [
    (pretrain_gdt, 'release'), (pretrain_gdt, 'vt'), (pretrain_gdt, 'm,toy,rooms'),
    (pretrain_stica, ''), (pretrain_stica, 'release,space,average'),
    (pretrain_stica, 'release,toy'), (finetune_gdt, 'ucf101,fold_2,release'),
    (finetune_gdt, 'stica')])
def test_model_has_the_outputs_that_the_losses_need(module, switches):
  config = load(module, switches).to_dict()
  config |= dict(batch_size=8, mesh=dict(data=1))    # a trace of few clips
  if config['losses'].get('video_audio', {}).get('variant') == 'release':
    config['losses']['video_audio']['num_groups'] = 2
  experiment.make_step(config, jax.devices()[:1])


def test_values_are_those_of_the_papers():
  gdt, stica = load(pretrain_gdt), load(pretrain_stica)
  for c in (gdt, stica):
    assert c.optim.to_dict() == dict(
        name='sgd', momentum=0.9, weight_decay=1e-5, start_rate=0.01, peak_rate=0.64,
        final_rate=0.64, warmup_steps=4700, decay='multi_step')
    assert (c.total_steps, c.window.image_size, c.window.audio_hz) == (
        47_000, 112, 24_000)
  assert (gdt.window.num_frames, stica.window.num_frames) == (30, 60)
  assert gdt.losses.video_audio.temperature == 0.07
  views = stica.losses.views
  assert (views.temperature_within, views.temperature_across, views.weight_within) == (
      0.5, 0.1, 0.5)
  crops = stica.model.video.crops
  assert (crops.space_large, crops.space_small, crops.time_large, crops.time_small) == (
      (2, 6), (4, 4), (2, 3), (1, 2))
  assert load(pretrain_gdt, 'release').total_steps == 201 * 470
  assert load(pretrain_stica, 'release').total_steps == 151 * 470


@pytest.mark.parametrize('fold', ['', 'fold_3'])
def test_finetuning_has_the_schedule_of_its_fold(fold):
  config = load(finetune_gdt, fold)
  assert config.data.path == f'data/hmdb51/train_{fold[-1:] or 1}.csv'
  schedule = experiment.make_task(experiment.call(
      '', experiment.Config, config.to_dict() | dict(mesh=dict(data=1))),
      jax.devices()[:1]).schedule
  epoch = config.total_steps // 12
  rates = [float(schedule(int(epoch * at))) for at in (0, 1, 2, 5.9, 6.1, 9.9, 10.1)]
  np.testing.assert_allclose(rates, [0.0025, 0.01125, 0.02, 0.02, 0.001, 0.001, 5e-5],
                             rtol=1e-3)


def test_toy_trains_as_many_rows_as_the_quickstart():
  small = quickstart.get_config()
  for module, switches in ((pretrain_gdt, 'toy'), (pretrain_gdt, 'm,toy')):
    toy = load(module, switches)
    assert (toy.total_steps, toy.batch_size) == (small.total_steps, small.batch_size)


def test_toy_finetunes_the_tower_of_its_pretraining():
  tower = load(pretrain_gdt, 'toy').model.video.to_dict()
  assert load(finetune_gdt, 'toy').model.video.to_dict() == tower | dict(
      drop_token_rate=0.0)


def test_release_of_stica_is_finetuned_with_its_pooling():
  pooling = load(pretrain_stica, 'release').model.video.pooling
  assert load(finetune_gdt, 'stica,release').model.video.pooling == pooling
  assert load(finetune_gdt, 'stica').model.video.pooling.variant == 'paper'


def shrunk(module, toy_world, switches):
  """Returns the toy's config for two steps of smaller inputs and towers."""
  config = load(module, f'toy,{switches}' if switches else 'toy')
  config.total_steps, config.batch_size, config.optim.warmup_steps = 2, 8, 1
  config.data.path = str(toy_world / 'train.csv')
  config.window.update(image_size=32, min_crop_area=1.0)
  for section in (config.model[m] for m in config.window.modalities):
    section.update(TINY)
  if 'crops' in config.model.video:
    config.model.video.crops.update(space_large=(1, 3), space_small=(1, 2))
  return config.to_dict() | dict(evals={}, figures={}, mesh=dict(data=2))


@pytest.mark.parametrize('module, switches', [
    (pretrain_gdt, 'l'),
    *[pytest.param(module, switches, marks=pytest.mark.slow) for module, switches in (
        (pretrain_gdt, 'e'), (pretrain_gdt, 'h,release'), (pretrain_gdt, 'f,vt'),
        (pretrain_gdt, 'm'), (pretrain_stica, ''), (pretrain_stica, 'release'),
        (pretrain_stica, 'no_crops,average'), (pretrain_stica, 'within'))]])
def test_shrunk_step_trains(module, switches, toy_world, tmp_path):
  train.train(shrunk(module, toy_world, switches), tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert np.isfinite(results['train/loss'])
  assert results['input/skipped_files'] == 0


@pytest.mark.parametrize('config, seconds, windows', [
    (lambda: linear_esc50.get_config('gdt'), 2.0, 10),
    (lambda: linear_dcase2014.get_config('gdt'), 1.0, 60)])
def test_audio_features_are_windows_of_the_last_map(config, seconds, windows):
  config = config()
  model, clip = experiment.model_and_clip(config.to_dict())
  assert clip['audio'].shape == (1, round(24_000 * seconds))
  outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), clip)[0]
  grid, pooled = outputs['grid']['audio'], outputs['pooled']['audio']
  steps = (grid.shape[1] - 3) // 2 + 1
  assert pooled.shape == (1, steps * grid.shape[2] * 512)
  linear = config.evals.linear
  assert (linear.num_windows, linear.rows) == (windows, 'spread')
  assert linear.classifiers.to_dict() == dict(mlp=dict(
      hidden_dim=0, learning_rate=1e-4, weight_decay=5e-4, batch_size=512,
      steps=10_000, seed=0))


def test_video_features_of_linear_evaluation_are_those_of_pretraining():
  config = linear_ucf101.get_config('stica')
  model, clip = experiment.model_and_clip(config.to_dict())
  assert clip['video'].shape == (1, 60, 128, 128, 3)
  assert model.poolings['video'].depth == 2


@pytest.mark.parametrize('module, switches', [
    (class_retrieval, 'ucf'), (class_retrieval, 'ucf101,mmv'),
    (linear_dcase2014, 'mbs'), (linear_esc50, 'gdt,vt'), (pretrain_gdt, 'rooms'),
    (pretrain_gdt, 'e,f')])
def test_switches_that_do_not_fit_raise(module, switches):
  with pytest.raises(ValueError, match='expected'):
    module.get_config(switches)


@pytest.mark.slow
def test_class_retrieval_finds_neighbours_of_max_pooled_features(toy_world, tmp_path):
  config = class_retrieval.get_config('ucf101,gdt').to_dict()
  tower = dict(TINY, name='vatt', patch=(2, 8, 8))
  settings = dict(name='mmv', video=tower)
  model = models.from_config(settings)
  video = np.zeros((1, 4, 16, 16, 3), np.float32)
  checkpoint.save_model(tmp_path / 'checkpoint', settings, jax.device_get(
      model.init(jax.random.key(0), dict(video=video))))
  config |= dict(init_from=str(tmp_path / 'checkpoint'), batch_size=4)
  config['window'] |= dict(num_frames=4, image_size=16, frame_rate_hz=5.0)
  config['model'] |= dict(dtype='float32', video=dict(tower, pooling=dict(name='max')))
  config['evals']['neighbours'] |= dict(
      train=str(toy_world / 'train_segments.csv'), labels=dict(shape='video'), cache='',
      test=str(toy_world / 'test_segments.csv'), num_windows=2)
  train.train(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert 0 <= results['neighbours/shape/R@1'] <= results['neighbours/shape/R@20'] <= 1
