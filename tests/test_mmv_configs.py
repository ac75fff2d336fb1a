"""Tests configs/pretrain_mmv.py: its switches, and a shrunk step of each."""

import importlib
import json

import jax
import numpy as np
from PIL import Image
import pytest

from configs import deflate_mmv
from configs import finetune_mmv
from configs import linear_image
from configs import pretrain_mmv
from configs import quickstart
from configs import retrieval
from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import models
from vatt_jax import train
from vatt_jax.errors import UserError
from vatt_jax.models import resnet
from vatt_jax.weights import load as load_weights

SWITCHES = [name for group in pretrain_mmv.GROUPS for name in group]


def load(switches=''):
  config = pretrain_mmv.get_config(switches)
  config.lock()
  return config


def shrunk(toy_world, switches):
  """Returns the toy's config for two steps of smaller inputs and networks."""
  config = load(f'{switches},toy')
  config.total_steps, config.batch_size, config.optim.warmup_steps = 2, 4, 1
  config.data.path = str(toy_world / 'train.csv')
  config.window.update(num_frames=4, image_size=32)
  config.model.video.width = 1 / 16
  config = config.to_dict()
  return config | dict(evals={}, figures={}, mesh=dict(data=2))


@pytest.mark.slow
@pytest.mark.parametrize('switches', [
    'tsm', 's3d,va', 'r2plus1d,vt', 's3d,shared', 'disjoint'])
def test_shrunk_step_trains(switches, toy_world, tmp_path, monkeypatch):
  monkeypatch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))
  train.train(shrunk(toy_world, switches), tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert np.isfinite(results['train/loss'])
  assert results['input/skipped_files'] == 0


@pytest.mark.parametrize('switch', SWITCHES)
def test_every_switch_is_documented_and_builds_its_model(switch):
  assert switch in importlib.import_module('configs.pretrain_mmv').__doc__
  config = load(switch).to_dict()
  model, clip = experiment.model_and_clip(config)
  outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), clip)[0]
  embed = outputs['embed']
  assert ('audio' in embed['video_audio']) == (switch != 'vt')
  assert ('text' in embed['video_text']) == (switch != 'va')
  for pair in config['losses']:
    a, b = (embed[pair][modality] for modality in pair.split('_'))
    assert a.shape[-1] == b.shape[-1]


def test_values_are_those_of_the_paper():
  c = load()
  assert (c.total_steps, c.batch_size, load('tsm_x2').batch_size) == (
      500_000, 4096, 2048)
  assert c.optim.to_dict() == dict(peak_rate=2e-3, final_rate=0.0, warmup_steps=5000,
                                   decay='half_cosine')
  assert (c.window.num_frames, c.window.frame_rate_hz, c.window.image_size) == (
      32, 10.0, 200)
  assert {(k, v.temperature, v.weight, v.form) for k, v in c.losses.items()} == {
      ('video_audio', 0.07, 1.0, 'paper'), ('video_text', 0.07, 1.0, 'paper')}
  alone = load('howto100m')
  assert alone.losses.video_text.weight == 10 * alone.losses.video_audio.weight
  assert alone.data.path == ('data/howto100m/train.csv',)
  assert load('va').data.path == ('data/audioset/train.csv',)


def test_audio_has_150_windows_of_80_bins():
  model, clip = experiment.model_and_clip(load().to_dict())
  spectrogram = model.backbones['audio'].spectrogram
  assert jax.eval_shape(spectrogram, clip['audio']).shape == (1, 150, 80)


def test_toy_sees_as_many_clips_as_the_quickstart():
  toy, small = load('toy'), quickstart.get_config()
  assert (toy.total_steps, toy.batch_size) == (small.total_steps, small.batch_size)


@pytest.mark.parametrize('name, switches, rate, size, c', [
    ('ucf101', 'mmv', 12.5, 224, 1e-3), ('ucf101', 'mmv,s3d', 12.5, 224, 1e-3),
    ('hmdb51', 'mmv', 25.0, 200, 1e-4), ('hmdb51', 'mmv,tsm_x2', 25.0, 200, 3e-4),
    ('hmdb51', 'mmv,s3d', 25.0, 200, 3e-4)])
def test_linear_configs_of_video_have_the_values_of_the_release(
    name, switches, rate, size, c):
  config = importlib.import_module(f'configs.linear_{name}').get_config(switches)
  assert (config.window.num_frames, config.window.frame_rate_hz,
          config.window.image_size) == (32, rate, size)
  assert config.evals.linear.classifiers.to_dict() == dict(svm=dict(C=c))
  model, _ = experiment.model_and_clip(config.to_dict())
  assert model.modalities == ('video',)
  assert model.backbones['video'] == models.from_config(
      load(switches.partition(',')[2]).model.to_dict()).backbones['video']


@pytest.mark.parametrize('name', ['esc50', 'audioset'])
def test_linear_config_of_audio_takes_the_last_convolution_of_two_seconds(name):
  config = importlib.import_module(f'configs.linear_{name}').get_config('mmv')
  model, clip = experiment.model_and_clip(config.to_dict())
  assert model.backbones['audio'].last_conv
  assert clip['audio'].shape == (1, 96_000)


@pytest.mark.parametrize('name, test, hidden_dim, multi_labels', [
    ('audioset', 'data/audioset/eval.csv', 512, ('label',)),
    ('kinetics600', 'data/kinetics600/val.csv', 0, ())])
def test_large_datasets_are_classified_by_gradients(name, test, hidden_dim,
                                                    multi_labels):
  linear = importlib.import_module(f'configs.linear_{name}').get_config().evals.linear
  assert (linear.test, linear.get('multi_labels', ())) == (
      (test,), multi_labels)
  classifiers = linear.classifiers.to_dict()
  assert classifiers.keys() == {'mlp'}
  assert classifiers['mlp']['hidden_dim'] == hidden_dim


def test_retrieval_takes_the_model_of_a_checkpoint_of_mmv(tmp_path):
  pretrained = load()
  settings = dict(pretrained.to_dict(), init_from='')
  (tmp_path / checkpoint.CONFIG_FILE).write_text(json.dumps(settings))
  config = retrieval.get_config()
  config.init_from = str(tmp_path)
  model, clip = experiment.model_and_clip(config.to_dict())
  assert model == models.from_config(dict(settings['model'], remat='none'))
  assert clip['video'].shape == (1, 32, 200, 200, 3)


@pytest.mark.parametrize('switches, classes, path, name, width', [
    ('', 101, 'data/ucf101/train_1.csv', 'tsm_resnet50', 1),
    ('hmdb51,split_3,s3d', 51, 'data/hmdb51/train_3.csv', 's3d_g', 1),
    ('tsm_x2', 101, 'data/ucf101/train_1.csv', 'tsm_resnet50', 2)])
def test_finetuning_takes_dataset_split_and_network(
    switches, classes, path, name, width):
  config = finetune_mmv.get_config(switches)
  assert (config.model.head.num_classes, config.data.path) == (classes, path)
  assert config.evals.test.path == path.replace('train', 'test')
  assert (config.model.video.name, config.model.video.width) == (name, width)
  model, clip = experiment.model_and_clip(config.to_dict())
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clip)
  assert outputs['logits'].shape == (1, classes)


@pytest.mark.slow
def test_finetuning_trains_from_a_checkpoint(toy_world, tmp_path, monkeypatch):
  monkeypatch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))
  settings, variables = shrunk_model()
  checkpoint.save_model(tmp_path / 'checkpoint', settings, variables)
  config = finetune_mmv.get_config('toy').to_dict()
  config |= dict(total_steps=2, batch_size=4, init_from=str(tmp_path / 'checkpoint'),
                 figures={}, mesh=dict(data=2))
  config['data']['path'] = str(toy_world / 'train_segments.csv')
  config['window'] |= dict(num_frames=4, image_size=32)
  config['model']['video'] = settings['video']
  config['optim']['warmup_steps'] = 1
  config['evals']['test'] |= dict(path=str(toy_world / 'test_segments.csv'),
                                  num_windows=1)
  train.train(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert np.isfinite(results['train/loss'])
  assert 0 <= results['test/top1'] <= 1


@pytest.mark.parametrize('switches, frames, still', [
    ('', 1, True), ('s3d,imagenet', 1, True), ('tsm_x2,inflated', 32, False)])
def test_image_config_deflates_the_network_or_repeats_the_image(
    switches, frames, still):
  config = linear_image.get_config(switches).to_dict()
  model, clip = experiment.model_and_clip(config)
  assert (clip['video'].shape[1], model.backbones['video'].still) == (frames, still)
  assert ('svm' in config['evals']['linear']['classifiers']) == (
      'imagenet' not in switches)


@pytest.mark.parametrize('switches, name, frames', [
    ('', 'tsm_resnet50', 32), ('s3d', 's3d_g', 32), ('toy', 'tsm_resnet50', 8)])
def test_deflation_compares_an_image_with_a_still_video(switches, name, frames):
  config = deflate_mmv.get_config(switches)
  model, clip = experiment.model_and_clip(config.to_dict())
  assert (model.num_frames, clip['video'].shape[1]) == (frames, 1)
  assert config.model.video.name == name
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clip)
  video, target = (outputs['pooled'][name] for name in ('video', 'video_target'))
  assert video.shape == target.shape


def test_deflation_without_a_checkpoint_is_an_error(tmp_path):
  config = deflate_mmv.get_config('toy').to_dict() | dict(init_from='')
  with pytest.raises(UserError, match=r'config\.init_from: is empty; the model defl'):
    experiment.make(config, tmp_path)


@pytest.mark.slow
def test_deflated_checkpoint_is_evaluated_on_images(toy_world, tmp_path, monkeypatch):
  monkeypatch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))
  settings, variables = shrunk_model()
  checkpoint.save_model(tmp_path / 'pretrained', settings, variables)
  config = deflate_mmv.get_config('toy').to_dict()
  config |= dict(total_steps=2, batch_size=4, init_from=str(tmp_path / 'pretrained'),
                 mesh=dict(data=2))
  config['data']['path'] = str(toy_world / 'train.csv')
  config['window']['image_size'] = 32
  config['model']['video'] = settings['video']
  train.train(config, tmp_path / 'deflated')
  results = json.loads((tmp_path / 'deflated' / 'results.json').read_text())
  assert 0 < results['train/loss'] < 1
  model = models.from_config(dict(settings, video=dict(settings['video'], still=True)))
  image = dict(video=np.zeros((1, 1, 32, 32, 3), np.float32))
  _, deflated = load_weights.read(tmp_path / 'deflated')
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  merged = load_weights.merge(model, shapes, deflated, 'deflated')
  old, new = (x['params']['backbones_video']['norm']['scale']
              for x in (variables, merged))
  assert (old != new).any()


@pytest.mark.slow
def test_image_config_evaluates_images_of_several_classes(tmp_path, monkeypatch):
  monkeypatch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))
  rng = np.random.default_rng(0)
  for split in ('trainval', 'test'):
    rows = ['path,label']
    for i in range(8):
      image = np.full((40, 48, 3), 30 * (i % 4), np.uint8)
      image[:, :, 0] += rng.integers(0, 9, (40, 48), np.uint8)
      Image.fromarray(image).save(tmp_path / f'{split}{i}.png')
      rows.append(f'{split}{i}.png,' + '|'.join(['dark', 'cat'][i % 4 > 1:]))
    (tmp_path / f'{split}.csv').write_text('\n'.join(rows) + '\n')
  pretrained = shrunk_model()
  checkpoint.save_model(tmp_path / 'checkpoint', *pretrained)
  config = linear_image.get_config().to_dict()
  config['init_from'] = str(tmp_path / 'checkpoint')
  config['window'] |= dict(image_size=32)
  config['model'] |= dict(
      dtype='float32', video=dict(pretrained[0]['video'], still=True))
  config['evals']['linear'] |= dict(
      train=str(tmp_path / 'trainval.csv'), test=str(tmp_path / 'test.csv'),
      cache=str(tmp_path / 'features'))
  train.train(config | dict(batch_size=4), tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert 0 < results['linear/label/mAP'] <= 1


def shrunk_model():
  """Returns the settings and the variables of a narrow network of video."""
  settings = dict(name='mmv', video=dict(name='tsm_resnet50', width=1 / 16))
  model = models.from_config(settings)
  video = np.zeros((1, 4, 32, 32, 3), np.float32)
  return settings, jax.device_get(jax.jit(model.init)(
      jax.random.key(0), dict(video=video)))
