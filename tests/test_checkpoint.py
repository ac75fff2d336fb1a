"""vatt_jax/checkpoint.py"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax.errors import UserError


def _state(value):
  return dict(step=jnp.int32(value), params=dict(a=jnp.full((3, 2), value / 3)))


def test_the_newest_state_comes_back_exactly(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'c', keep=2, every_steps=10) as saved:
    assert saved.latest() is None
    for step in (10, 20, 30):
      saved.save(step, _state(step))
  with checkpoint.Checkpoints(tmp_path / 'c', keep=2, every_steps=10) as saved:
    assert saved.latest() == 30
    jax.tree.map(np.testing.assert_array_equal, saved.restore(_state(0)), _state(30))
  assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['20', '30']


@dataclasses.dataclass(frozen=True)
class Older:
  step: jax.Array


@dataclasses.dataclass(frozen=True)
class Newer(Older):
  average: jax.Array | None = None


def test_a_state_of_an_older_version_lacks_what_is_not_used(tmp_path):
  """Or an update would end all runs that are under way."""
  with checkpoint.Checkpoints(tmp_path / 'c', keep=1, every_steps=1) as saved:
    saved.save(1, Older(jnp.int32(7)))
    restored = saved.restore(Newer(jnp.int32(0)))
    assert restored.step == 7 and restored.average is None
    saved.save(2, Newer(jnp.int32(8), jnp.ones(2)))
    restored = saved.restore(Newer(jnp.int32(0), jnp.zeros(2)))
    np.testing.assert_array_equal(restored.average, [1, 1])


def test_a_checkpoint_is_due_every_so_often_and_once(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'c', keep=1, every_steps=10) as saved:
    assert [s for s in range(31) if saved.due(s)] == [10, 20, 30]
    saved.save(20, _state(20))
    assert not saved.due(20)


def test_saving_is_not_disturbed_by_donating_the_state(tmp_path):
  """The next step writes over the very memory that is being saved."""
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = dict(step=jnp.int32(0), big=jnp.zeros(2_000_000))
  with checkpoint.Checkpoints(tmp_path / 'c', keep=1, every_steps=1) as saved:
    for i in range(1, 4):
      state = step(state)
      saved.save(i, state)
      for _ in range(3):
        state = step(state)
      restored = saved.restore(state)
      expected = 1 + 4 * (i - 1)
      np.testing.assert_array_equal(restored['big'], expected)
      assert restored['step'] == expected


def test_the_digest_is_of_names_types_shapes_and_bits():
  a = dict(x=jnp.ones((2, 3)), y=jnp.zeros(4))
  same = checkpoint.digest(dict(y=jnp.zeros(4), x=jnp.ones((2, 3))))
  assert checkpoint.digest(a) == same
  for other in (dict(x=jnp.ones((3, 2)), y=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3)), z=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3), int), y=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3)), y=-jnp.zeros(4))):
    assert checkpoint.digest(other) != same


def test_a_path_names_a_workdir_or_a_step_of_one():
  assert checkpoint.split('runs/a') == (pathlib.Path('runs/a'), None)
  assert checkpoint.split('runs/a/checkpoints') == (
      pathlib.Path('runs/a/checkpoints'), None)
  assert checkpoint.split(checkpoint.of_step(pathlib.Path('runs/a'), 20)) == (
      pathlib.Path('runs/a'), 20)
  assert checkpoint.split('vatt/tx_fac/ckpt-500000') == (
      pathlib.Path('vatt/tx_fac/ckpt-500000'), None)


def test_checkpoints_are_followed_by_number_and_only_whole(tmp_path):
  folder = tmp_path / 'checkpoints'

  def write(*names):
    for name in names:
      (folder / name).mkdir(parents=True)

  coming = [['90', '100', '100.orbax-checkpoint-tmp-1'], [], ['200'], ['300']]
  wait = lambda: write(*coming.pop(0))
  assert checkpoint.steps(tmp_path) == []
  assert list(checkpoint.follow(tmp_path, 0, 200, wait)) == [90, 100, 200]
  assert coming == [['300']]
  assert list(checkpoint.follow(tmp_path, 90, 200, wait)) == [100, 200]


def test_a_damaged_checkpoint_is_not_taken_for_a_deleted_one(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, '_DELETING_SECONDS', 0.1)
  checkpoint.write_config(tmp_path, {})
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  with pytest.raises(Exception) as error:    # Orbax's own
    checkpoint.load_model(tmp_path)
  assert not isinstance(error.value, UserError)
