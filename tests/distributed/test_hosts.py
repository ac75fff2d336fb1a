"""vatt_jax/distributed/hosts.py, and two processes with launch/multi_process.sh"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils
import numpy as np
import pytest
import test_main

from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.inputs import clip
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import spread
from vatt_jax.inputs.window import Window

ROOT = pathlib.Path(__file__).parents[2]


def _free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def _meet(*processes, seconds=2.0, port=None):
  """Joins processes (process_id, num_processes).  -> the error message of each."""
  where = f'127.0.0.1:{port or _free_port()}'

  def join(process):
    number, count = process
    with pytest.raises(UserError) as error, hosts.joined(where, count, number,
                                                         seconds):
      pass
    return str(error.value)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(join, processes))


def test_all_processes_report_the_missing_ones(monkeypatch, caplog):
  monkeypatch.setattr(hosts, '_TELL_SECONDS', 0.5)
  host = socket.gethostname()
  errors = _meet((0, 4), (2, 4))
  assert len(set(errors)) == 1
  assert 'of 4 processes these did not connect to' in errors[0]
  assert f': 1, 3 (connected: 0 on {host}, 2 on {host})' in errors[0]
  waiting = [r.getMessage() for r in caplog.records]    # long before the timeout
  assert waiting and all(': 1, 3 (connected' in line for line in waiting)


def test_missing_coordinator_is_named(monkeypatch, caplog):
  monkeypatch.setattr(hosts, '_TELL_SECONDS', 0.3)
  (error,) = _meet((1, 2), seconds=1.0)
  assert '--coordinator=127.0.0.1:' in error and 'does not answer' in error
  assert 'does not answer' in caplog.records[0].getMessage()


@pytest.mark.parametrize('processes', [[(0, 3), (1, 3), (1, 3)], [(0, 2), (1, 3)]])
def test_unexpected_process_is_refused(processes):
  errors = _meet(*processes, seconds=30)
  assert all('process 1 of 3 on' in why and 'expected one of' in why for why in errors)


def test_port_in_use_and_inconsistent_numbers_are_refused():
  with socket.create_server(('', 0)) as server:
    (error,) = _meet((0, 2), port=server.getsockname()[1])
  assert 'cannot listen at the port' in error
  for where, count, number in (('nowhere', 2, 0), ('a:b', 2, 0), ('a:1', 2, 2)):
    with pytest.raises(UserError, match='expected HOST:PORT'), hosts.joined(
        where, count, number, 1):
      pass


class _Reader(Reader):
  """Reads only the number of each view."""

  def views(self, index, place=0.5, num_crops=1):
    empty = self.window.empty()
    number = np.int32(100 * index + 10 * round(2 * place))
    return [empty | dict(id=number + np.int32(c)) for c in range(num_crops)]


@pytest.mark.parametrize('num_windows, num_crops', [(1, 1), (3, 2)])
def test_each_host_reads_its_share_and_all_get_every_clip_in_order(
    monkeypatch, num_windows, num_crops):
  """Two threads stand for the hosts."""
  window = Window(1, 1.0, 1, 8, modalities=('audio',))
  clips = [clip.Clip(f'{i}.wav', 0, 1) for i in range(7)]
  reader = _Reader(clips, window, text.WordTokenizer(()), FileNotes(1.0, 7))
  host, trees, meeting = threading.local(), {}, threading.Barrier(2)

  def gather(tree):
    trees[host.number] = tree
    meeting.wait(30)
    both = jax.tree.map(lambda *x: np.stack(x), trees[0], trees[1])
    meeting.wait(30)
    return both

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: host.number)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)

  def play(number):
    host.number, reads = number, []

    def predict(state, batch):
      reads.extend(batch['id'])
      return jax.numpy.asarray(batch['id'])

    outputs = extract.by_clip(predict, None, reader, 4, num_windows, num_crops,
                              lambda outputs, batch: outputs)
    return outputs, reads

  with concurrent.futures.ThreadPoolExecutor() as pool:
    (one, reads), (two, others) = pool.map(play, (0, 1))
  places = [round(2 * place) for place in spread(num_windows)]
  expected = [[100 * i + 10 * p + c for p in places for c in range(num_crops)]
              for i in range(7)]
  np.testing.assert_array_equal(one, expected)
  np.testing.assert_array_equal(two, expected)
  assert not {n for n in reads if n} & {n for n in others if n}


@pytest.mark.parametrize('ready', [(True, True), (True, False), (False, False)])
def test_hosts_wait_for_the_first_unless_all_are_ready(
    monkeypatch, ready):
  """Two threads stand for the hosts."""
  host, votes, log = threading.local(), {}, []
  meeting, within = threading.Barrier(2), threading.Barrier(2)

  def gather(vote):
    votes[host.number] = vote
    meeting.wait(30)
    return np.stack([votes[0], votes[1]])

  monkeypatch.setattr(jax, 'process_index', lambda: host.number)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  monkeypatch.setattr(multihost_utils, 'sync_global_devices',
                      lambda name: meeting.wait(30))

  def play(number):
    host.number = number
    with hosts.first_alone(unless=ready[number]):
      if all(ready):
        within.wait(30)    # breaks if either waits for the other
      log.append(number)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(play, (0, 1)))
  assert log == [0, 1] or all(ready)


def _environment(devices):
  flags = os.environ.get('XLA_FLAGS', '')
  return os.environ | dict(
      XLA_FLAGS=f'{flags} --xla_force_host_platform_device_count={devices}',
      JAX_PLATFORMS='cpu')


def _run(command, count, devices):
  """Runs a command as `count` processes."""
  launch = ['bash', 'launch/multi_process.sh', str(count)] if count > 1 else []
  done = subprocess.run([*launch, *command], cwd=ROOT, env=_environment(devices),
                        capture_output=True, text=True, timeout=1500)
  assert done.returncode == 0, done.stderr
  return done


def _losses(workdir):
  rows = [json.loads(line) for line in
          (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [row['train/loss'] for row in rows if 'train/loss' in row]


_SMALL = """
from configs import quickstart

def get_config():
  c = quickstart.get_config()
  c.update(total_steps=3, batch_size=8, log_every_steps=1)
  c.evals = {}
  c.data.path = %r
  c.optim.warmup_steps = 1
  c.window.update(num_frames=4, image_size=32, audio_hz=4000,
                  modalities=('video', 'audio'))
  del c.losses['video_text'], c.model['text']
  for tower in (c.model.video, c.model.audio):
    tower.update(width=16, depth=1, num_heads=2, mlp_dim=16)
  return c
"""


@pytest.mark.slow
def test_two_processes_train_like_one(toy_world, tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(_SMALL % f'{toy_world}/train.csv')
  command = [sys.executable, '-m', 'vatt_jax.main', f'--config={config}']
  _run([*command, f'--workdir={tmp_path / "one"}'], 1, 1)
  done = _run([*command, f'--workdir={tmp_path / "two"}'], 2, 2)
  losses = [_losses(tmp_path / name) for name in ('one', 'two')]
  assert len(losses[0]) == 3
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
  # Only the first process logs.
  assert len([line for line in done.stderr.splitlines() if ' loss ' in line]) == 3
  assert done.stdout.count('Report: ') == 1


@pytest.mark.slow
def test_quickstart_on_two_processes_equals_that_on_one(toy_world, tmp_path):
  # These settings give the learning rates of the quickstart's first 20 steps.
  flags = [f'--config.{flag}' for flag in (
      'total_steps=20', 'optim.warmup_steps=20', 'optim.peak_rate=1e-4',
      'log_every_steps=1', f'data.path={toy_world}/train.csv',
      'evals.retrieval.num_windows=1', 'evals.probe.num_windows=1',
      f'evals.retrieval.path={toy_world}/test_segments.csv',
      f'evals.probe.train={toy_world}/train_segments.csv',
      f'evals.probe.test={toy_world}/test_segments.csv')]
  for name, count, devices in (('one', 1, 1), ('two', 2, 4)):
    _run([sys.executable, '-m', 'vatt_jax.main', '--config=configs/quickstart.py',
          f'--workdir={tmp_path / name}', *flags], count, devices)
  losses = [_losses(tmp_path / name) for name in ('one', 'two')]
  assert len(losses[0]) == 20
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
  one, two = (json.loads((tmp_path / name / 'results.json').read_text())
              for name in ('one', 'two'))
  assert one.keys() == two.keys()
  for key in one:
    if 'MeanR' in key or key.startswith('input/'):
      assert two[key] == pytest.approx(one[key], abs=0.5), key


@pytest.mark.slow
def test_two_processes_evaluate_every_checkpoint_like_one(toy_world, tmp_path):
  one, two = (test_main._command(toy_world, tmp_path / name, 'total_steps=6',
                                 'evals.retrieval.every_steps=0')
              for name in ('one', 'two'))
  _run(one, 1, 1)
  shutil.copytree(tmp_path / 'one', tmp_path / 'two')
  _run([*one, '--mode=eval'], 1, 1)
  done = _run([*two, '--mode=eval'], 2, 2)
  assert done.stdout.count('Results: ') == 1
  one, two = ([json.loads(line) for line in (
      tmp_path / name / 'eval' / 'quickstart' / 'metrics.jsonl'
      ).read_text().splitlines()] for name in ('one', 'two'))
  assert [row['step'] for row in two] == [row['step'] for row in one] == [3, 6]
  for row, other in zip(one, two, strict=True):
    assert row.keys() == other.keys() and len(row) > 20
    for key in row:
      if 'chance' in key or 'MeanR' in key:
        assert other[key] == pytest.approx(row[key], abs=0.5), key
  results = json.loads((tmp_path / 'two/eval/quickstart/results.json').read_text())
  assert results == two[-1]


@pytest.mark.slow
def test_signal_to_one_process_stops_all_that_wait_for_a_checkpoint(toy_world,
                                                                      tmp_path):
  command = test_main._command(toy_world, tmp_path / 'run', 'total_steps=3',
                               'evals.retrieval.every_steps=0')
  _run(command, 1, 1)
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '3')
  port = _free_port()
  processes = [subprocess.Popen(
      [*command, '--mode=eval', f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
       f'--process_id={i}'], cwd=ROOT, env=_environment(2), text=True,
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for i in range(2)]
  try:
    folder = tmp_path / 'run' / 'eval' / 'quickstart'
    test_main._wait_for((folder / 'metrics.jsonl').exists, processes[0], seconds=300)
    time.sleep(3)    # until both wait
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [143, 143], errors
  assert not (folder / 'run.lock').exists()


@pytest.fixture
def pair(toy_world, tmp_path):
  """Returns a function that starts two training processes.  -> processes, workdir."""
  processes = []

  def start():
    port = _free_port()
    command = test_main._command(toy_world, tmp_path / 'run', 'total_steps=30',
                                 'log_every_steps=1', 'evals.retrieval.every_steps=0')
    new = [subprocess.Popen(
        [*command, f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
         f'--process_id={i}'], cwd=ROOT, env=_environment(2), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for i in range(2)]
    processes.extend(new)
    return new, tmp_path / 'run'

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def _wait_for_steps(workdir, process, count):
  metrics = workdir / 'metrics.jsonl'
  test_main._wait_for(lambda: metrics.exists() and len(_losses(workdir)) >= count,
                      process, seconds=300)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_killed_process_is_reported_and_both_resume(pair, victim):
  processes, workdir = pair()
  _wait_for_steps(workdir, processes[0], 5)
  processes[victim].kill()
  since = time.monotonic()
  _, stderr = processes[1 - victim].communicate(timeout=60)
  assert time.monotonic() - since < 60
  assert processes[1 - victim].returncode == 1
  # A thread of JAX's may log another line before the process is gone.
  line, = (line for line in stderr.splitlines() if line.startswith('vatt_jax: '))
  assert f'process {victim} on {socket.gethostname()} has disconnected' in line
  assert 'Traceback' not in stderr
  processes, _ = pair()
  errors = [process.communicate(timeout=600)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], errors
  assert 'Resuming from step 3' in errors[0]
  assert len(_losses(workdir)) == 30


@pytest.mark.slow
def test_signal_to_one_process_stops_all_at_the_same_step(pair):
  processes, workdir = pair()
  _wait_for_steps(workdir, processes[0], 5)
  processes[1].send_signal(signal.SIGTERM)
  errors = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [143, 143], errors
  step = int(errors[0].split('saved step ')[1].split()[0])
  assert step < 30 and (workdir / 'checkpoints' / str(step)).is_dir()
  processes, _ = pair()
  errors = [process.communicate(timeout=600)[1] for process in processes]
  assert f'Resuming from step {step}' in errors[0]
  assert [process.returncode for process in processes] == [0, 0], errors
