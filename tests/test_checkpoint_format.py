"""Tests that a checkpoint of version 0.6.0 opens: fixtures/checkpoint_0_6.tar.gz.

`python tests/test_checkpoint_format.py` wrote it, with Orbax 0.12.6 and JAX 0.10.2.
"""

import pathlib
import re
import tarfile
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.distributed import sharding

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'checkpoint_0_6.tar.gz'
CONFIG = dict(seed=3, model=dict(audio=dict(depth=1), attention='plain'),
              losses=dict(video_text=dict(name='mil_nce')))


def make_state():
  """Returns a state with every field, whose arrays hold different numbers."""
  kernel = lambda: dict(kernel=jnp.zeros((4, 3)), bias=jnp.zeros(3))
  params = dict(backbones_audio=dict(mlp_1=kernel()), head=dict(logits=kernel()),
                losses=dict(video_text=dict(temperature=jnp.zeros(()))))
  update = optim.build(10, 1e-3, 1e-4, 2, rules=(('head', 1.0), ('.*', 0.0)),
                       state_dtype='bfloat16').update
  state = train_step.State(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=update.init(params),
      model_state=dict(batch_stats=dict(head=dict(norm=dict(mean=jnp.zeros(3))))),
      average=params, memory=dict(video_text=dict(labels=jnp.zeros(5, jnp.int32))))
  leaves, tree = jax.tree.flatten(state)
  return jax.tree.unflatten(tree, [
      (jnp.arange(x.size).reshape(x.shape) + 8 * i).astype(x.dtype)
      for i, x in enumerate(leaves)])


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(FIXTURE) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path / 'checkpoint_0_6'


def test_state_of_0_6_is_restored_on_another_mesh(workdir):
  mesh = sharding.make_mesh(4, data=2, devices=jax.devices()[:2])
  like = jax.device_put(jax.tree.map(jnp.zeros_like, make_state()),
                        sharding.replicated(mesh))
  with checkpoint.Checkpoints(workdir / 'checkpoints', keep=1, every_steps=1) as saved:
    restored = saved.restore(like)
  jax.tree.map(np.testing.assert_array_equal, restored, make_state())
  assert all(x.dtype == y.dtype and x.sharding == y.sharding for x, y in zip(
      jax.tree.leaves(restored), jax.tree.leaves(like), strict=True))


def test_model_of_0_6_loads_with_averaged_parameters_and_current_names(workdir):
  config, variables = checkpoint.load_model(workdir)
  assert config == CONFIG | dict(model=CONFIG['model'] | dict(attention='xla'))
  state = make_state()
  average = {k: v for k, v in state.average.items() if k != 'losses'}
  jax.tree.map(np.testing.assert_array_equal, variables,
               dict(params=average, **state.model_state))


def test_only_the_module_of_checkpoints_imports_orbax():
  package = pathlib.Path(checkpoint.__file__).parent
  assert [path.name for path in package.rglob('*.py')
          if re.search('^ *(import|from) orbax', path.read_text(encoding='utf-8'), re.M)
          ] == ['checkpoint.py']


def write():
  """Writes the fixture."""
  with tempfile.TemporaryDirectory() as folder:
    run = pathlib.Path(folder) / 'checkpoint_0_6'
    with checkpoint.Checkpoints(run / 'checkpoints', keep=1, every_steps=1) as saved:
      saved.save(2, make_state())
    checkpoint.write_config(run, CONFIG)
    with tarfile.open(FIXTURE, 'w:gz') as archive:
      archive.add(run, run.name)


if __name__ == '__main__':
  write()
