"""Tests vatt_jax/weights/load.py and models saved by checkpoint.py."""

import jax
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax.errors import UserError
from vatt_jax.models import positions
from vatt_jax.models.vatt import Vatt
from vatt_jax.weights import load as weights

TINY = dict(depth=1, width=8, num_heads=2, mlp_dim=8)
SETTINGS = dict(video=dict(patch=(2, 4, 4), **TINY), audio=dict(patch=(8,), **TINY),
                text=dict(vocabulary_size=9, **TINY),
                head=dict(video_audio_dim=6, video_text_dim=4))
BATCH = dict(video=np.zeros((1, 4, 8, 8, 3), np.float32),
             audio=np.zeros((1, 32), np.float32), text=np.ones((1, 2, 3), np.int32))


def variables(settings, batch=BATCH, seed=0):
  model = Vatt.from_config(**settings)
  return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(seed), batch))


@pytest.fixture(scope='module')
def pretrained():
  return variables(SETTINGS)


def merge(model_vars, checkpoint_vars, spline=False):
  """Merges them for a model of the variant that resizes positions in this way."""
  model = Vatt.from_config(**SETTINGS, variant='release' if spline else 'paper')
  return weights.merge(model, model_vars, checkpoint_vars, 'source')


def only_video(**head):
  return dict(video=SETTINGS['video'], head=head)


@pytest.mark.slow
def test_saved_model_is_loaded_unchanged(pretrained, tmp_path):
  checkpoint.save_model(tmp_path / 'model', SETTINGS, pretrained)
  config, loaded = weights.read(tmp_path / 'model')
  assert config['model']['video']['patch'] == [2, 4, 4]
  jax.tree.map(np.testing.assert_array_equal, loaded, pretrained)
  model, _ = weights.load(tmp_path / 'model')
  outputs = [m.apply(pretrained, BATCH) for m in (model, Vatt.from_config(**SETTINGS))]
  jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_path_without_checkpoint_raises(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": {}}')
  with pytest.raises(UserError, match='holds no checkpoint yet'):
    weights.read(tmp_path)
  with pytest.raises(UserError, match='no such folder or file'):
    weights.read(tmp_path / 'runs' / 'none')
  with pytest.raises(UserError, match='none: no such folder or file'):
    weights.read(tmp_path / 'none')    # although its parent exists
  with pytest.raises(UserError, match='holds no checkpoint yet'):
    weights.read(tmp_path / 'checkpoints' / '7')
  (tmp_path / 'ckpt-9.index').touch()
  with pytest.raises(UserError, match='ckpt-9: not a TensorFlow 2 checkpoint'):
    weights.read(tmp_path / 'ckpt-9')


def test_tower_is_loaded_from_multimodal_checkpoint_and_keeps_head(pretrained, caplog):
  model_vars = variables(only_video(name='classifier', num_classes=5), seed=1)
  merged = merge(model_vars, pretrained)
  tower = lambda v: {k: x for k, x in v['params'].items() if k != 'head'}
  for part, values in tower(merged).items():
    jax.tree.map(np.testing.assert_array_equal, values, pretrained['params'][part])
  jax.tree.map(np.testing.assert_array_equal, merged['params']['head'],
               model_vars['params']['head'])
  assert 'source has no head for this model' in caplog.text


def test_positions_are_resized_to_the_new_grid(pretrained):
  settings = only_video(name='classifier', num_classes=5)
  model_vars = variables(settings, dict(video=np.zeros((1, 4, 12, 8, 3), np.float32)))
  merged = merge(model_vars, pretrained, spline=True)
  tables = merged['params']['tokenizers_video']
  pretrained_tables = pretrained['params']['tokenizers_video']
  np.testing.assert_array_equal(
      tables['vertical_positions'],
      positions.resize(pretrained_tables['vertical_positions'], 3, spline=True))
  np.testing.assert_array_equal(tables['horizontal_positions'],
                                pretrained_tables['horizontal_positions'])


@pytest.mark.parametrize('spline', [False, True])
def test_shorter_clip_takes_the_first_positions_or_resizes_them_like_the_release(
    pretrained, spline):
  settings = only_video(name='classifier', num_classes=5)
  image = dict(video=np.zeros((1, 1, 8, 8, 3), np.float32))
  merged = merge(variables(settings, image), pretrained, spline)
  table = pretrained['params']['tokenizers_video']['time_positions']
  assert len(table) == 2
  np.testing.assert_allclose(merged['params']['tokenizers_video']['time_positions'],
                             table[:1], atol=1e-6)
  settings = dict(audio=SETTINGS['audio'], head=dict(name='classifier', num_classes=5))
  short = dict(audio=np.zeros((1, 24), np.float32))
  merged = merge(variables(settings, short), pretrained, spline)
  table = pretrained['params']['tokenizers_audio']['positions']
  np.testing.assert_array_equal(
      merged['params']['tokenizers_audio']['positions'],
      positions.resize(table, 3, spline=True) if spline else table[:3])


def test_missing_variables_are_named(pretrained):
  other = dict(SETTINGS, video=dict(SETTINGS['video'], depth=2))
  with pytest.raises(UserError, match=r'needs and the checkpoint lacks: params/'
                                      r'backbones_video/block_1\. The checkpoint has '
                                      r'and the model lacks: nothing'):
    merge(variables(other), pretrained)


def test_head_of_another_width_raises(pretrained):
  other = dict(SETTINGS, head=dict(video_audio_dim=7, video_text_dim=4))
  with pytest.raises(UserError, match=r'head/\S+ has shape .*this model needs'):
    merge(variables(other), pretrained)


@pytest.mark.parametrize('count, other, described', [
    (5, 6, '6 classes, this one of 5'),
    (dict(noun=3, verb=5), 6, '6 classes, this one of 3 and 5'),
    (dict(noun=3, verb=5), dict(noun=3), '3 classes, this one of 3 and 5')])
def test_classifier_of_other_classes_keeps_its_head(count, other, described, caplog):
  model_vars, checkpoint_vars = (
      variables(only_video(name='classifier', num_classes=n), seed=seed)
      for seed, n in enumerate((count, other)))
  merged = merge(model_vars, checkpoint_vars)
  jax.tree.map(np.testing.assert_array_equal, merged['params']['head'],
               model_vars['params']['head'])
  jax.tree.map(np.testing.assert_array_equal, merged['params']['backbones_video'],
               checkpoint_vars['params']['backbones_video'])
  assert 'source has no head for this model (it is a classifier of ' + described in (
      caplog.text)


@pytest.mark.parametrize('change, unused', [
    (dict(video=dict(SETTINGS['video'], depth=2)), 'params/backbones_video/block_1'),
    (dict(variant='release'), 'params/tokenizers_video/position_norm')],
                         ids=['deeper', 'release'])
def test_checkpoint_with_unused_variables_raises(pretrained, change, unused):
  """Otherwise a tower would start from half of another one."""
  bigger = variables(SETTINGS | change)
  with pytest.raises(UserError, match=f'the model lacks: .*{unused}'):
    merge(pretrained, bigger)
