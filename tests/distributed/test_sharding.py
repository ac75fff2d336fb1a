"""vatt_jax/distributed/: eight devices compute the same as one."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from configs import finetune_video
from configs import pretrain_mbs
from configs import quickstart
from vatt_jax import experiment
from vatt_jax.distributed import logical_axes
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 6
MESHES = {    # of eight, four, two devices and one
    'data': dict(data=8), 'all': dict(data=2, fsdp=2, model=2), 'fsdp': dict(fsdp=8),
    'four': dict(data=2, fsdp=2), 'two': dict(model=2), 'one': {}}


def _run(tmp_path, without, *commands):
  """Runs `_child` on eight devices.  -> the result of each command."""
  done = subprocess.run(
      [sys.executable, __file__, str(tmp_path), without, *commands],
      capture_output=True, text=True,
      env=os.environ | dict(PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT / "tests"}'))
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def _child(folder, without, *commands):
  """Takes training steps.

  Args:
    folder: of checkpoints.
    without: a modality that the batch lacks, for speed.
    *commands: MESH:FIRST:LAST, to resume from step FIRST, saved by another command.
  """
  jax.config.update('jax_num_cpu_devices', 8)
  import test_train_step

  from vatt_jax import checkpoint
  results = []
  batch = {k: v for k, v in test_train_step.make_batch(16).items()
           if k not in (without, f'has_{without}')}
  for command in commands:
    name, first, last = command.split(':')
    sizes = MESHES[name]
    count = max(np.prod(list(sizes.values()), dtype=int), 1)
    mesh = sharding.make_mesh(16, **dict(dict(data=1), **sizes),
                              devices=jax.devices()[:count])
    task = test_train_step.make_task(mesh=mesh)
    task = dataclasses.replace(task, losses={
        pair: loss for pair, loss in task.losses.items() if without not in pair})
    state, losses = task.init(batch), []
    with checkpoint.Checkpoints(folder, keep=1, every_steps=1) as saved:
      if int(first):
        state = saved.restore(state)
      assert int(state.step) == int(first)
      for _ in range(int(first), int(last)):
        state, metrics = task.train_step(state, sharding.to_devices(batch, mesh))
        losses.append(float(metrics['loss']))
        if len(losses) == 1:
          stats = [np.ravel(x) for x in jax.tree.leaves(state.model_state)]
      if int(last) < STEPS:
        saved.save(int(last), state)
    shapes = {
        jax.tree_util.keystr(path): (x.shape, x.addressable_shards[0].data.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(state)}
    results.append(dict(losses=losses, shapes=shapes,
                        stats=np.concatenate(stats).tolist()))
  print(json.dumps(results))


def _check_alike(runs, one):
  losses = [loss for run in runs for loss in run['losses']]
  np.testing.assert_allclose(losses, one['losses'], rtol=0, atol=1e-5)
  # Statistics are of the whole batch; a device has only two rows.
  np.testing.assert_allclose(runs[0]['stats'], one['stats'], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_train_like_one_and_one_resumes_their_checkpoint(tmp_path):
  one, eight, resumed = _run(tmp_path, 'text', f'one:0:{STEPS}', 'all:0:3',
                             f'one:3:{STEPS}')
  _check_alike([eight, resumed], one)
  assert {tuple(local) == tuple(whole) for whole, local in one['shapes'].values()} == {
      True}
  kernel = "['backbones_video']['block_0']['attention']['query']['kernel']"
  split = {k: local for k, (_, local) in eight['shapes'].items() if kernel in k}
  assert len(split) == 3 and set(map(tuple, split.values())) == {(8, 1, 8)}
  whole = {k for k, (shape, local) in eight['shapes'].items()
           if shape == local and np.prod(shape) > 300}
  assert not whole, whole


@pytest.mark.slow
@pytest.mark.parametrize('name', ['data', 'fsdp'])
def test_every_mesh_trains_alike_and_any_other_resumes_its_checkpoint(tmp_path, name):
  one, *runs = _run(tmp_path, 'nothing', f'one:0:{STEPS}', f'{name}:0:2', 'four:2:4',
                    'two:4:5', f'one:5:{STEPS}')
  _check_alike(runs, one)


def _places(mesh, rules=sharding.RULES, **shapes):
  """Returns the partition specs of matrices of a video tower's first block."""
  block = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
  tree = {'backbones_video': {'block_0': {k: {'kernel': v} for k, v in block.items()}}}
  specs = sharding.of_parameters(tree, mesh, rules)['backbones_video']['block_0']
  return {k: tuple(v['kernel'].spec) for k, v in specs.items()}


def test_each_axis_uses_the_first_rule_that_fits_or_stays_whole():
  mesh = sharding.make_mesh(2, fsdp=2)
  assert _places(mesh, mlp_1=(6, 8), mlp_2=(8, 6)) == dict(
      mlp_1=('fsdp', None), mlp_2=('fsdp', None))
  assert _places(mesh, mlp_1=(5, 8), mlp_2=(7, 5)) == dict(
      mlp_1=(None, 'fsdp'), mlp_2=(None, None))
  assert _places(mesh, [('width', 'fsdp')], mlp_1=(6, 8), mlp_2=(8, 6)) == dict(
      mlp_1=('fsdp', None), mlp_2=(None, 'fsdp'))
  assert sharding.rows(mesh).spec == PartitionSpec(('data', 'fsdp'))


def test_unknown_parameter_is_split_by_its_size():
  mesh = sharding.make_mesh(2, fsdp=2)
  shapes = dict(kernel=(3, 3, 64, 128), odd=(257, 257), scale=(128,))
  tree = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
  specs = {k: tuple(v.spec) for k, v in sharding.of_parameters(tree, mesh).items()}
  assert specs == dict(kernel=(None, None, 'fsdp', None), odd=(None, None),
                       scale=(None,))


def test_output_layers_of_all_columns_of_labels_are_split_alike():
  layer = dict(kernel=np.zeros((4, 3)), bias=np.zeros(3))
  names = logical_axes.logical_axes({'head': dict(logits=layer, logits_verb=layer)})
  assert names['head']['logits_verb'] == names['head']['logits'] == dict(
      kernel=('width', 'classes'), bias=('classes',))


def test_known_parameter_with_another_shape_is_refused():
  with pytest.raises(ValueError, match=r'expected axes width, mlp, found .*\(2,\)'):
    logical_axes.logical_axes({'a': {'mlp_1': {'kernel': np.zeros(2)}}})


def test_make_step_needs_no_data():
  config = quickstart.get_config().to_dict() | dict(mesh=dict(fsdp=2))
  config['data']['path'] = '/nowhere'
  task, state, batch = experiment.make_step(config)
  assert batch['video'].shape == (32, 8, 48, 48, 3)
  assert batch['text'].sharding == sharding.rows(task.mesh)
  for tree in (state.params, state.opt_state[0].mu):
    table = tree['tokenizers_text']['embedding']['embedding']
    assert table.sharding.shard_shape(table.shape) == (128, 64)
    positions = tree['tokenizers_audio']['positions']
    assert positions.sharding.is_fully_replicated
  config = finetune_video.get_config().to_dict()
  config['model']['head']['num_classes'] = 0
  with pytest.raises(UserError, match=r'num_classes: missing'):
    experiment.make_step(config)


@pytest.mark.parametrize('sizes, message', [
    (dict(data=3), 'data=3, fsdp=1, model=1: expected a product of 2'),
    (dict(fsdp=-1), 'one of them may be -1'), (dict(data=0), 'expected a product'),
    (dict(data=-1, model=4), 'expected a product of 2')])
def test_mesh_that_does_not_fit_the_devices_is_refused(sizes, message):
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(8, **sizes)
  assert sharding.make_mesh(8, model=-1, data=1).shape == dict(data=1, fsdp=1, model=2)


@pytest.mark.parametrize('count, sizes, fsdp', [
    (1, {}, 1), (2, {}, 2), (3, {}, 1), (4, {}, 4), (6, {}, 2), (8, {}, 8), (12, {}, 4),
    (20, {}, 4), (256, {}, 8), (8, dict(model=2), 4), (6, dict(model=3), 2),
    (8, dict(data=2), 4), (8, dict(data=1, model=-1), 8)])
def test_fsdp_auto_is_the_largest_size_that_fits(count, sizes, fsdp, caplog):
  """A config with 'auto' starts on any number of devices."""
  sizes = dict(data=-1, model=1) | sizes
  with caplog.at_level('INFO'):
    assert sharding._fsdp('auto', **sizes, count=count) == fsdp
  assert sharding._fill(sizes | dict(fsdp=fsdp), count) is not None
  assert f"config.mesh.fsdp='auto': {fsdp}, of {count} devices" in caplog.text


def test_pretraining_uses_fsdp_auto_unless_told_otherwise():
  config = pretrain_mbs.get_config('toy').to_dict()
  for fsdp, expected in (('auto', 2), ('1', 1), (2, 2)):
    task, _, _ = experiment.make_step(config | dict(mesh=dict(data=-1, fsdp=fsdp)))
    assert task.mesh.shape['fsdp'] == expected
  assert pretrain_mbs.get_config().mesh.fsdp == 'auto'
  with pytest.raises(UserError, match=r"mesh\.fsdp='all': expected a number, or 'aut"):
    sharding.make_mesh(8, fsdp='all')


@pytest.mark.parametrize('rules', [[('widht', 'fsdp')], [('width', 'rows')], ['width']])
def test_rule_of_unknown_axes_is_refused(rules):
  with pytest.raises(UserError, match=r'config\.sharding_rules: '):
    sharding.check_rules(rules)


if __name__ == '__main__':
  _child(*sys.argv[1:])


def test_microbatches_keep_the_rows_of_a_clip_together():
  rows = dict(x=np.arange(24).reshape(12, 2))
  taken = [sharding.take_rows(rows, index, 3, group=2) for index in range(3)]
  assert [part['x'][:, 0].tolist() for part in taken] == [
      [0, 2, 12, 14], [4, 6, 16, 18], [8, 10, 20, 22]]
  stacked = dict(x=np.stack([part['x'] for part in taken]))
  np.testing.assert_array_equal(sharding.join_rows(stacked, 2)['x'], rows['x'])
