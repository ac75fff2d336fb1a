"""Tests deflation with training."""

import types

from flax import traverse_util
import jax
import numpy as np
import pytest

from configs import deflate_mmv
from vatt_jax import experiment
from vatt_jax import losses
from vatt_jax import models
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.errors import UserError
from vatt_jax.models import resnet
from vatt_jax.weights import load

VIDEO = dict(name='tsm_resnet50', width=1 / 16)


@pytest.fixture(scope='module')
def fitted():
  """Trains batch norm of a shallow random network, as the config does.

  Returns:
    The states before and after, and the losses of all steps.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))
    return fit(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))


def fit(images, num_frames=4, num_steps=60):
  settings = deflate_mmv.get_config().optim.to_dict()
  settings['drop_steps'] = tuple(num_steps * epoch // 100 for epoch in (30, 60, 90))
  model = models.from_config(dict(name='deflation', video=VIDEO, num_frames=num_frames))
  optimizer = optim.build(num_steps, **settings)
  task = train_step.Task(model, {'video': losses.build('video', dict(name='l1'))},
                         optimizer.update, optimizer.schedule, 0,
                         frozen=optimizer.frozen)
  batch = dict(video=images[:, None], has_video=np.ones(len(images), bool))
  state = task.init(batch)
  checkpoint = {kind: {'backbones_video': jax.device_get(tree['backbones_video'])}
                for kind, tree in train_step.variables(state).items()}
  state = train_step.start_from(
      load.merge(model, train_step.variables(state), checkpoint, 'random'), state)
  before, values = jax.device_get(state), []
  for _ in range(num_steps):
    state, metrics = task.train_step(state, batch)
    values.append(float(metrics['loss_video']))
  return types.SimpleNamespace(before=before, after=jax.device_get(state),
                               losses=values)


def test_run_without_a_checkpoint_is_refused(toy_world, tmp_path):
  config = deflate_mmv.get_config('toy')
  config.init_from, config.data.path = '', str(toy_world / 'train.csv')
  with pytest.raises(UserError, match='init_from: is empty; the model deflation'):
    experiment.make(config.to_dict(), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_training_halves_the_distance_to_the_still_video(fitted):
  assert fitted.losses[-1] < 0.5 * fitted.losses[0]


def test_only_scales_and_offsets_of_the_deflated_network_learn(fitted):
  before, after = (traverse_util.flatten_dict(train_step.variables(state), sep='/')
                   for state in (fitted.before, fitted.after))
  for name, value in before.items():
    learns = name.startswith('params/backbones_video') and 'norm' in name
    assert learns == (value != after[name]).any(), name


def test_both_networks_start_from_the_checkpoint(fitted):
  for tree in train_step.variables(fitted.before).values():
    jax.tree.map(np.testing.assert_array_equal, tree['backbones_video'],
                 tree['teachers_video'])


def test_video_in_place_of_an_image_is_an_error():
  model = models.from_config(dict(name='deflation', video=VIDEO))
  with pytest.raises(UserError, match=r'window\.num_frames=4: .* expected 1'):
    model.check_window(types.SimpleNamespace(num_frames=4))
