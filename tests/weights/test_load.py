"""vatt_jax/weights/load.py, and the models that checkpoint.py saves"""

import jax
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax.errors import UserError
from vatt_jax.models import build
from vatt_jax.models import positions
from vatt_jax.weights import load as weights

TINY = dict(depth=1, width=8, num_heads=2, mlp_dim=8)
SETTINGS = dict(video=dict(patch=(2, 4, 4), **TINY), audio=dict(patch=(8,), **TINY),
                text=dict(vocabulary_size=9, **TINY),
                head=dict(video_audio_dim=6, video_text_dim=4))
BATCH = dict(video=np.zeros((1, 4, 8, 8, 3), np.float32),
             audio=np.zeros((1, 32), np.float32), text=np.ones((1, 2, 3), np.int32))


def variables(settings, batch=BATCH, seed=0):
  model = build.build_model(**settings)
  return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(seed), batch))


@pytest.fixture(scope='module')
def pretrained():
  return variables(SETTINGS)


def only_video(**head):
  return dict(video=SETTINGS['video'], head=head)


def test_a_saved_model_is_loaded_as_it_was(pretrained, tmp_path):
  checkpoint.save_model(tmp_path / 'model', SETTINGS, pretrained)
  config, loaded = weights.read(tmp_path / 'model')
  assert config['model']['video']['patch'] == [2, 4, 4]
  jax.tree.map(np.testing.assert_array_equal, loaded, pretrained)
  model, _ = weights.load(tmp_path / 'model')
  outputs = [m.apply(pretrained, BATCH) for m in (model, build.build_model(**SETTINGS))]
  jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_a_workdir_without_a_checkpoint_is_said(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": {}}')
  with pytest.raises(UserError, match='holds no checkpoint yet'):
    weights.read(tmp_path)
  with pytest.raises(UserError, match='no such folder or file'):
    weights.read(tmp_path / 'runs' / 'none')
  with pytest.raises(UserError, match='none: no such folder or file'):
    weights.read(tmp_path / 'none')    # though its parent is there
  with pytest.raises(UserError, match='holds no checkpoint yet'):
    weights.read(tmp_path / 'checkpoints' / '7')
  (tmp_path / 'ckpt-9.index').touch()
  with pytest.raises(UserError, match='ckpt-9: not a TensorFlow 2 checkpoint'):
    weights.read(tmp_path / 'ckpt-9')


def test_a_tower_starts_from_the_whole_and_its_head_at_random(pretrained, caplog):
  ours = variables(only_video(name='classifier', num_classes=5), seed=1)
  merged = weights.merge(ours, pretrained, 'there', spline=False)
  tower = lambda v: {k: x for k, x in v['params'].items() if k != 'head'}
  for part, values in tower(merged).items():
    jax.tree.map(np.testing.assert_array_equal, values, pretrained['params'][part])
  jax.tree.map(np.testing.assert_array_equal, merged['params']['head'],
               ours['params']['head'])
  assert 'there has no head for this model' in caplog.text


def test_positions_are_resized_to_the_new_grid(pretrained):
  settings = only_video(name='classifier', num_classes=5)
  ours = variables(settings, dict(video=np.zeros((1, 4, 12, 8, 3), np.float32)))
  merged = weights.merge(ours, pretrained, 'there', spline=True)
  tables = merged['params']['tokenizers_video']
  theirs = pretrained['params']['tokenizers_video']
  np.testing.assert_array_equal(
      tables['vertical_positions'],
      positions.resize(theirs['vertical_positions'], 3, spline=True))
  np.testing.assert_array_equal(tables['horizontal_positions'],
                                theirs['horizontal_positions'])


@pytest.mark.parametrize('spline', [False, True])
def test_a_shorter_clip_starts_from_the_first_positions_or_by_the_release_s_rule(
    pretrained, spline):
  settings = only_video(name='classifier', num_classes=5)
  image = dict(video=np.zeros((1, 1, 8, 8, 3), np.float32))
  merged = weights.merge(variables(settings, image), pretrained, 'there', spline)
  theirs = pretrained['params']['tokenizers_video']['time_positions']
  assert len(theirs) == 2
  np.testing.assert_allclose(merged['params']['tokenizers_video']['time_positions'],
                             theirs[:1], atol=1e-6)
  sounds = dict(audio=SETTINGS['audio'], head=dict(name='classifier', num_classes=5))
  short = dict(audio=np.zeros((1, 24), np.float32))
  merged = weights.merge(variables(sounds, short), pretrained, 'there', spline)
  theirs = pretrained['params']['tokenizers_audio']['positions']
  np.testing.assert_array_equal(
      merged['params']['tokenizers_audio']['positions'],
      positions.resize(theirs, 3, spline=True) if spline else theirs[:3])


def test_what_the_checkpoint_lacks_is_named_with_what_it_has(pretrained):
  other = dict(SETTINGS, video=dict(SETTINGS['video'], depth=2))
  with pytest.raises(UserError, match=r'needs and it lacks: params/backbones_video/'
                                      r'block_1\. It has and this one lacks: nothing'):
    weights.merge(variables(other), pretrained, 'there', spline=False)


def test_a_head_of_another_width_is_no_new_head(pretrained):
  other = dict(SETTINGS, head=dict(video_audio_dim=7, video_text_dim=4))
  with pytest.raises(UserError, match=r'head/\S+ has shape .*this model needs'):
    weights.merge(variables(other), pretrained, 'there', spline=False)


def test_a_classifier_of_other_classes_starts_anew(caplog):
  ours, theirs = (variables(only_video(name='classifier', num_classes=n), seed=n)
                  for n in (5, 6))
  merged = weights.merge(ours, theirs, 'there', spline=False)
  jax.tree.map(np.testing.assert_array_equal, merged['params']['head'],
               ours['params']['head'])
  jax.tree.map(np.testing.assert_array_equal, merged['params']['backbones_video'],
               theirs['params']['backbones_video'])
  assert 'there has no head for this model' in caplog.text


@pytest.mark.parametrize('change, unused', [
    (dict(video=dict(SETTINGS['video'], depth=2)), 'params/backbones_video/block_1'),
    (dict(variant='release'), 'params/tokenizers_video/position_norm')],
                         ids=['deeper', 'release'])
def test_a_checkpoint_of_more_than_the_model_is_refused(pretrained, change, unused):
  """Or a tower would start from half of another."""
  bigger = variables(SETTINGS | change)
  with pytest.raises(UserError, match=f'this one lacks: .*{unused}'):
    weights.merge(pretrained, bigger, 'there', spline=False)
