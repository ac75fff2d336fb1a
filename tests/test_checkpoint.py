"""Tests vatt_jax/checkpoint.py."""

import dataclasses
import errno
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from vatt_jax import checkpoint
from vatt_jax.errors import UserError


def _state(value):
  return dict(step=jnp.int32(value), params=dict(a=jnp.full((3, 2), value / 3)))


def test_restore_returns_the_newest_state_exactly(tmp_path):
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


def test_state_without_a_newer_field_is_restored(tmp_path):
  """Otherwise a new version could not resume runs of an older one."""
  with checkpoint.Checkpoints(tmp_path / 'c', keep=1, every_steps=1) as saved:
    saved.save(1, Older(jnp.int32(7)))
    restored = saved.restore(Newer(jnp.int32(0)))
    assert restored.step == 7 and restored.average is None
    saved.save(2, Newer(jnp.int32(8), jnp.ones(2)))
    restored = saved.restore(Newer(jnp.int32(0), jnp.zeros(2)))
    np.testing.assert_array_equal(restored.average, [1, 1])


def test_checkpoint_is_due_at_multiples_of_every_steps_once(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'c', keep=1, every_steps=10) as saved:
    assert [s for s in range(31) if saved.due(s)] == [10, 20, 30]
    saved.save(20, _state(20))
    assert not saved.due(20)


def test_donating_the_state_does_not_affect_saving(tmp_path):
  """The next step overwrites the memory that is being saved."""
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


def test_digest_depends_on_names_types_shapes_and_bits():
  a = dict(x=jnp.ones((2, 3)), y=jnp.zeros(4))
  same = checkpoint.digest(dict(y=jnp.zeros(4), x=jnp.ones((2, 3))))
  assert checkpoint.digest(a) == same
  for other in (dict(x=jnp.ones((3, 2)), y=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3)), z=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3), int), y=jnp.zeros(4)),
                dict(x=jnp.ones((2, 3)), y=-jnp.zeros(4))):
    assert checkpoint.digest(other) != same


def test_split_returns_workdir_and_step():
  assert checkpoint.split('runs/a') == (pathlib.Path('runs/a'), None)
  assert checkpoint.split('runs/a/checkpoints') == (
      pathlib.Path('runs/a/checkpoints'), None)
  assert checkpoint.split(checkpoint.of_step(pathlib.Path('runs/a'), 20)) == (
      pathlib.Path('runs/a'), 20)
  assert checkpoint.split('vatt/tx_fac/ckpt-500000') == (
      pathlib.Path('vatt/tx_fac/ckpt-500000'), None)


def test_follow_yields_completed_checkpoints_in_order(tmp_path):
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


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """Returns a workdir with checkpoints 1, 2 and 3 of incompressible arrays."""
  workdir = tmp_path_factory.mktemp('three')
  with checkpoint.Checkpoints(workdir / 'checkpoints', keep=3, every_steps=1) as saved:
    for step in (1, 2, 3):
      saved.save(step, _large_state(step))
  checkpoint.write_config(workdir, {})
  return workdir


def _large_state(step):
  noise = np.random.default_rng(step).normal(size=(2, 100, 100)).astype(np.float32)
  return dict(step=jnp.int32(step), params=dict(a=noise[0], b=noise[1]), model_state={})


@pytest.fixture
def workdir(three, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, '_DELETING_SECONDS', 0.1)
  return pathlib.Path(shutil.copytree(three, tmp_path / 'run'))


def _damage(workdir, step, name, how):
  """Damages the largest file of a checkpoint, or the file `name`."""
  item = checkpoint.of_step(workdir, step) / 'default'
  files = [item / name] if name else [p for p in item.rglob('*') if p.is_file()]
  file = max(files, key=lambda p: p.stat().st_size)
  content = file.read_bytes()
  if how == 'delete':
    file.unlink()
  else:
    file.write_bytes(content[:0 if how == 'empty' else len(content) // 2])


def _restore(workdir):
  with checkpoint.Checkpoints(workdir / 'checkpoints', keep=3, every_steps=1) as saved:
    return saved.restore(_large_state(0))


@pytest.mark.parametrize('name, how', [
    ('', 'truncate'), ('', 'empty'), ('', 'delete'), ('_METADATA', 'delete'),
    ('_METADATA', 'truncate'), ('_sharding', 'truncate'), ('manifest.ocdbt', 'empty')])
def test_damaged_checkpoint_error_names_the_newest_complete_one(workdir, name, how):
  _damage(workdir, 3, name, how)
  three, two = checkpoint.of_step(workdir, 3), checkpoint.of_step(workdir, 2)
  with pytest.raises(checkpoint.Damaged) as error:
    _restore(workdir)
  assert str(error.value).startswith(f'{three}: is damaged (default')
  assert str(error.value).endswith(
      'complete one before it is step 2: use --resume_from=2, or delete the damaged '
      'folder')
  with pytest.raises(checkpoint.Damaged) as error:
    checkpoint.load_model(workdir)
  assert str(error.value).startswith(f'{three}: is damaged (default')
  assert str(error.value).endswith(f'complete one before it is step 2: use {two}')
  assert '\n' not in str(error.value)
  np.testing.assert_array_equal(checkpoint.load_model(two)[1]['params']['b'],
                                _large_state(2)['params']['b'])


def test_complete_checkpoint_has_no_damage(workdir):
  assert [checkpoint.damage(checkpoint.of_step(workdir, s)) for s in (1, 2, 3)] == (
      ['', '', ''])
  jax.tree.map(np.testing.assert_array_equal, _restore(workdir), _large_state(3))


def test_damaged_checkpoint_error_skips_other_damaged_ones(workdir):
  for step, advice in ((3, 'complete one before it is step 2'),
                       (2, 'complete one before it is step 1'),
                       (1, 'no earlier checkpoint is complete')):
    _damage(workdir, step, '', 'truncate')
    with pytest.raises(checkpoint.Damaged, match=advice):
      checkpoint.load_model(checkpoint.of_step(workdir, step))
  with pytest.raises(checkpoint.Damaged, match='no earlier checkpoint is complete'):
    _restore(workdir)


def test_damage_is_found_below_inner_nodes_of_the_index(tmp_path):
  """The index of a large model has more than one node."""
  item = tmp_path / 'default'
  item.mkdir()
  (item / '_METADATA').write_text('{}')
  store = ts.KvStore.open(dict(
      driver='ocdbt', base=f'file://{item}/',
      config=dict(max_decoded_node_bytes=500, max_inline_value_bytes=1))).result()
  with ts.Transaction() as transaction:
    for i in range(40):
      store.with_transaction(transaction)[f'key{i:03}'] = bytes([i]) * 100
  assert checkpoint.damage(tmp_path) == ''
  data = max((p for p in item.glob('d/*')), key=lambda p: p.stat().st_size)
  with data.open('r+b') as file:
    file.truncate(data.stat().st_size - 300)    # the root's node is written last
  assert checkpoint.damage(tmp_path)


def test_go_back_moves_newer_checkpoints_aside(workdir, caplog):
  _damage(workdir, 3, '', 'truncate')
  checkpoint.go_back(workdir, 1)
  assert checkpoint.steps(workdir) == [1]
  aside = workdir / 'checkpoints_discarded'
  assert sorted(p.name for p in aside.iterdir()) == ['2', '3']
  assert f'Discarded the checkpoint of step 3; moved it to {aside / "3"}' in caplog.text
  assert int(_restore(workdir)['step']) == 1
  with checkpoint.Checkpoints(workdir / 'checkpoints', keep=3, every_steps=1) as saved:
    saved.save(2, _large_state(2))
  checkpoint.go_back(workdir, 1)
  assert sorted(p.name for p in aside.iterdir()) == ['2', '2.1', '3']
  with pytest.raises(UserError, match=r'--resume_from=2: .* expected one of 1$'):
    checkpoint.go_back(workdir, 2)


def test_go_back_to_a_damaged_checkpoint_is_an_error(workdir):
  _damage(workdir, 2, '', 'truncate')
  with pytest.raises(checkpoint.Damaged, match='complete one before it is step 1'):
    checkpoint.go_back(workdir, 2)
  assert checkpoint.steps(workdir) == [1, 2, 3]


@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, 'No space left on device'),
    OSError(errno.EDQUOT, 'Disk quota exceeded'),
    ValueError('RESOURCE_EXHAUSTED: Failed to write: No space left on device [..]')])
def test_full_disk_error_names_the_newest_complete_checkpoint(workdir, error):
  _damage(workdir, 3, '', 'truncate')
  with pytest.raises(UserError) as raised, checkpoint.naming_a_full_disk(workdir):
    raise error
  assert str(raised.value) == (
      f'{workdir}: the disk is full; the newest complete checkpoint is '
      f'{checkpoint.of_step(workdir, 2)}; free some space, and run the same command '
      'to resume')


def test_other_errors_are_not_reported_as_a_full_disk(tmp_path):
  full = checkpoint.naming_a_full_disk(tmp_path)
  with pytest.raises(ValueError, match='shape'), full:
    raise ValueError('shape')


@pytest.fixture
def small_disk(tmp_path):
  """Mounts a disk of one megabyte."""
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', str(tmp_path)]
  if shutil.which('mount') is None or subprocess.run(
      mount, capture_output=True).returncode:
    pytest.skip('this user may not mount a small disk')
  yield tmp_path
  subprocess.run(['umount', '--lazy', str(tmp_path)], check=True)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_saving_on_a_full_disk_keeps_the_last_complete_checkpoint(small_disk):
  workdir, step = small_disk / 'run', 0
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', keep=99, every_steps=1)
  with (pytest.raises(UserError, match='disk is full; the newest complete') as error,
        checkpoint.naming_a_full_disk(workdir), checkpoints as saved):
    while True:
      step += 1
      saved.save(step, _large_state(step))
      saved.wait()
  kept = step - 1
  assert str(checkpoint.of_step(workdir, kept)) in str(error.value)
  assert checkpoint.steps(workdir)[-1] == kept
  jax.tree.map(np.testing.assert_array_equal, checkpoint._load(workdir, kept)['params'],
               _large_state(kept)['params'])
