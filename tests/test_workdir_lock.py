"""Tests vatt_jax/workdir_lock.py."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from vatt_jax import evaluate
from vatt_jax import train
from vatt_jax import workdir_lock
from vatt_jax.errors import UserError

HERE = socket.gethostname()
# A process that locks the file in argument 1, like an owner, until it is killed.
_OWNER = """
import fcntl, json, os, socket, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, json.dumps(dict(host=socket.gethostname(), pid=os.getpid(),
                               since='noon')).encode())
print('locked', flush=True)
time.sleep(600)
"""


def _write(folder, host, pid, age=0.0):
  """Writes a lock file that no process holds."""
  path = folder / workdir_lock.LOCK_FILE
  path.write_text(json.dumps(dict(host=host, pid=pid, since='noon')))
  os.utime(path, (time.time() - age,) * 2)


def _owner(folder):
  return json.loads((folder / workdir_lock.LOCK_FILE).read_text())


def test_second_process_error_names_host_and_process_id(tmp_path):
  with workdir_lock.held(tmp_path):
    before = (tmp_path / workdir_lock.LOCK_FILE).read_bytes()
    with (pytest.raises(UserError, match=f'in use by process {os.getpid()} on {HERE} '),
          workdir_lock.held(tmp_path)):
      pass
    assert (tmp_path / workdir_lock.LOCK_FILE).read_bytes() == before
    with (pytest.raises(UserError, match='in use by'), workdir_lock.held(tmp_path)):
      pass
  with workdir_lock.held(tmp_path):
    assert _owner(tmp_path)['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
  path = tmp_path / workdir_lock.LOCK_FILE
  owner = subprocess.Popen([sys.executable, '-c', _OWNER, str(path)],
                           stdout=subprocess.PIPE)
  try:
    assert owner.stdout.readline() == b'locked\n'
    with (pytest.raises(UserError, match=f'in use by process {owner.pid} on {HERE} '),
          workdir_lock.held(tmp_path)):
      pass
  finally:
    owner.kill()
    owner.communicate()
  with workdir_lock.held(tmp_path):
    assert _owner(tmp_path)['pid'] == os.getpid()


@pytest.mark.parametrize('content', ['mine', '', '{"host": "a", "pi'])
def test_stale_lock_is_taken_over_even_if_its_process_id_exists(tmp_path, content):
  if content == 'mine':
    _write(tmp_path, HERE, os.getpid())
  else:
    (tmp_path / workdir_lock.LOCK_FILE).write_text(content)
  with workdir_lock.held(tmp_path):
    assert _owner(tmp_path)['pid'] == os.getpid()


def test_recently_touched_lock_of_another_host_is_held(tmp_path):
  _write(tmp_path, 'elsewhere', 7, age=20)
  with (pytest.raises(UserError, match=(
      r'by process 7 on elsewhere \(since noon\), which was alive 2\d s ago; if it '
      r'has ended, delete \S+run\.lock, or wait \d+ s$')), workdir_lock.held(tmp_path)):
    pass
  assert _owner(tmp_path)['pid'] == 7
  _write(tmp_path, 'elsewhere', 7, age=200)
  with workdir_lock.held(tmp_path):
    assert _owner(tmp_path) == _owner(tmp_path) | dict(host=HERE, pid=os.getpid())


def test_owner_touches_the_lock(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lock, '_TOUCH_SECONDS', 0.01)
  with workdir_lock.held(tmp_path):
    path = tmp_path / workdir_lock.LOCK_FILE
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 30
    while path.stat().st_mtime == 0:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_user_error_leaves_no_folder_and_no_lock(tmp_path):
  folder = tmp_path / 'runs' / 'one'
  with pytest.raises(UserError, match='typo'), workdir_lock.held(folder):
    raise UserError('typo')
  assert not (tmp_path / 'runs').exists()
  with pytest.raises(KeyError), workdir_lock.held(folder):
    (folder / 'config.json').touch()
    raise KeyError
  assert [p.name for p in folder.iterdir()] == ['config.json']


def test_unwritable_workdir_error_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  for folder, why in ((tmp_path / 'file', 'is a file, or lies below one'),
                      (tmp_path / 'file' / 'run', 'is a file, or lies below one'),
                      (tmp_path / ('x' * 300), r'cannot be written \(File name too')):
    with pytest.raises(UserError, match=why) as error, workdir_lock.held(folder):
      pass
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('run, own', [
    (lambda workdir: train.train({}, workdir), '.'),
    (lambda workdir: evaluate.watch({}, workdir, 'name'), 'eval/name')],
    ids=['train', 'eval'])
def test_run_in_a_workdir_in_use_changes_no_file(tmp_path, run, own):
  """Otherwise Orbax would delete the checkpoint that the other process is writing."""
  begun = tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp'
  begun.mkdir(parents=True)
  config = tmp_path / own / 'config.json'
  config.parent.mkdir(parents=True, exist_ok=True)
  config.write_text('{}')
  with workdir_lock.held(tmp_path / own):
    with pytest.raises(UserError, match=f'in use by process {os.getpid()}'):
      run(tmp_path)
    assert begun.is_dir() and config.exists()
    assert _owner(tmp_path / own)['pid'] == os.getpid()
