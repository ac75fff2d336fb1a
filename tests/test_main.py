"""Tests the main command: runs, resumed, killed, interrupted and mistyped ones."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from absl import flags
from ml_collections import config_flags
import pytest

from vatt_jax import cli
from vatt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12


def _command(toy_world, workdir, *overrides):
  """Returns the command of a small quickstart, shrunk by flags only."""
  flags = ['total_steps=12', 'batch_size=8', 'log_every_steps=4',
           'evals.retrieval.every_steps=6', 'evals.retrieval.num_windows=1',
           'evals.probe.num_windows=1',
           'checkpoint.every_steps=3', 'optim.warmup_steps=2',
           'window.num_frames=4', 'window.image_size=32', 'window.audio_hz=4000',
           f'data.path={toy_world}/train.csv',
           f'evals.retrieval.path={toy_world}/test_segments.csv',
           f'evals.probe.train={toy_world}/train_segments.csv',
           f'evals.probe.test={toy_world}/test_segments.csv']
  for tower in ('video', 'audio'):
    flags += [f'model.{tower}.width=16', f'model.{tower}.depth=1',
              f'model.{tower}.num_heads=2', f'model.{tower}.mlp_dim=16']
  return [sys.executable, '-m', 'vatt_jax.main', '--config=configs/quickstart.py',
          f'--workdir={workdir}', *(f'--config.{f}' for f in (*flags, *overrides))]


def _run(*args):
  return subprocess.run(_command(*args), cwd=ROOT, capture_output=True, text=True)


def _digest(workdir):
  return json.loads((workdir / 'results.json').read_text())['params/sha256']


def _wait_for(condition, process, seconds=180):
  deadline = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, 'timeout'
    time.sleep(0.02)


@pytest.fixture(scope='module')
def undisturbed(toy_world, tmp_path_factory):
  """Returns the workdir and the finished process of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = _run(toy_world, workdir)
  assert done.returncode == 0, done.stderr
  return workdir, done


@pytest.mark.slow
def test_same_seed_is_bit_exact(toy_world, tmp_path, undisturbed):
  workdir, _ = undisturbed
  assert _run(toy_world, tmp_path / 'again').returncode == 0
  assert _digest(tmp_path / 'again') == _digest(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('checkpoints', [0, 2])
def test_killed_and_resumed_run_is_bit_exact(toy_world, tmp_path, undisturbed,
                                             checkpoints):
  """Sends SIGKILL before the first checkpoint, or after a number of them."""
  workdir = tmp_path / 'killed'
  process = subprocess.Popen(_command(toy_world, workdir), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  saved = workdir / 'checkpoints'
  begun = lambda: saved.is_dir() and any(
      p.name.split('.')[0].isdigit() and int(p.name.split('.')[0]) >= 3 * checkpoints
      for p in saved.iterdir())
  _wait_for(begun if checkpoints else saved.is_dir, process)
  process.kill()
  process.communicate()
  assert not (workdir / 'results.json').exists()
  done = _run(toy_world, workdir)
  assert done.returncode == 0, done.stderr
  assert _digest(workdir) == _digest(undisturbed[0])
  steps = [json.loads(line)['step']
           for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_state_and_exits(toy_world, tmp_path, undisturbed, number):
  workdir = tmp_path / 'stopped'
  process = subprocess.Popen(
      _command(toy_world, workdir), cwd=ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  metrics = workdir / 'metrics.jsonl'
  _wait_for(lambda: metrics.exists() and metrics.read_text(), process)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 128 + number, stderr
  assert f'{number.name}: saved step' in stderr and 'Traceback' not in stderr
  stopped_at = int(stderr.split('saved step ')[1].split()[0])
  assert (workdir / 'checkpoints' / str(stopped_at)).is_dir()
  assert _run(toy_world, workdir).returncode == 0
  assert _digest(workdir) == _digest(undisturbed[0])


@pytest.mark.slow
def test_finished_run_only_evaluates_when_repeated(toy_world, undisturbed):
  workdir, _ = undisturbed
  before, rows = ((workdir / name).read_text()
                  for name in ('results.json', 'metrics.jsonl'))
  done = _run(toy_world, workdir)
  assert done.returncode == 0, done.stderr
  assert f'Resuming from step {STEPS}' in done.stderr
  assert 'left' not in done.stderr
  assert (workdir / 'results.json').read_text() == before
  assert (workdir / 'metrics.jsonl').read_text() == rows


def test_log_shows_only_progress(undisturbed):
  """One line per report, no lines of libraries, the table on standard output."""
  workdir, done = undisturbed
  # Orbax warns about slow disks, which depends on the machine.
  lines = [line for line in done.stderr.splitlines()
           if 'previous save to complete' not in line]
  progress = [line for line in lines if ' loss ' in line]
  assert [line.split('/12')[0].split()[-1] for line in progress] == [
      '1', '4', '8', '12']
  assert 'compiled in' in progress[0]
  assert all('clips/s' in line and line.endswith(' left') for line in progress[1:])
  # Other lines: the size of the model, the share of unknown words in the captions, and
  # one for each of the two evaluations.
  assert len(lines) == len(progress) + 4, done.stderr
  assert 'retrieval/text_to_video/R@10' in done.stdout
  rows = [json.loads(line) for line in
          (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows if 'retrieval/text_to_video/R@1' in row] == [
      6, 12]
  assert done.stdout.splitlines()[-1] == f'Report: {workdir / "report.html"}'


@pytest.mark.parametrize('override, message', [
    pytest.param('data.path=/nowhere', '/nowhere: no such folder or file',
                 marks=pytest.mark.slow),
    pytest.param('total_steps=many', 'total_steps=many: expected a whole number',
                 marks=pytest.mark.slow),
    ('optim.rate=1', "--config.optim.rate=1: unknown key 'rate'; did you mean peak_")])
def test_user_error_is_one_line_and_a_status(toy_world, tmp_path, override, message):
  done = _run(toy_world, tmp_path / 'run', override)
  assert done.returncode not in (0, None)
  assert 'Traceback' not in done.stderr, done.stderr
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_workdir_of_another_config_is_unchanged(toy_world, undisturbed):
  workdir, _ = undisturbed
  before = (workdir / 'config.json').read_bytes()
  done = _run(toy_world, workdir, 'seed=1')
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert 'another config, seed=0 where this one has 1' in done.stderr
  assert (workdir / 'config.json').read_bytes() == before


QUICKSTART = '--config=configs/quickstart.py'


# The warning is from ml_collections.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('arguments, message', [
    ([], '--config: missing; give a config file, such as --config=configs/quick'),
    (['--config.seed=1'], '--config: missing; give a config file, such as --config=c'),
    ([QUICKSTART, '--config.batch_size=1e3'],
     '--config.batch_size=1e3: expected a whole number, such as 1000'),
    ([QUICKSTART, '--config.optim.peak_rate=fast'],
     '--config.optim.peak_rate=fast: expected a number, such as 0.001 or 1e-3'),
    ([QUICKSTART, '--config.optim.rate=1'], "--config.optim.rate=1: unknown key 'rate'"
     '; did you mean peak_rate? expected one of final_rate, peak_rate, warmup_steps'),
    ([QUICKSTART, '--config.batchsize=1'],
     "--config.batchsize=1: unknown key 'batchsize'; did you mean batch_size? "),
    ([QUICKSTART, '--config.widow.image_size=1'],
     "--config.widow.image_size=1: unknown key 'widow'; did you mean window? "),
    ([QUICKSTART, '--config.seed.value=1'],
     "--config.seed.value=1: unknown key 'value'; expected no key here"),
    (['--config=configs/pretrain_mbs.py:relase'],
     "--config=configs/pretrain_mbs.py:relase: 'relase': unknown switch; did you mean "
     'release? expected some of batch_8192, release, toy, joined by commas')])
def test_mistyped_command_line_error_suggests_the_nearest(arguments, message,
                                                          monkeypatch):
  monkeypatch.chdir(ROOT)
  argv, flag_values = ['main', *arguments], flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', flag_values, sys_argv=argv)
  flags.mark_flag_as_required('config', flag_values)
  with pytest.raises(UserError) as error:
    cli.parse(argv, flag_values)
  assert str(error.value).startswith(message) and '\n' not in str(error.value)


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_config_file_may_follow_its_flag(monkeypatch):
  monkeypatch.chdir(ROOT)
  argv, flag_values = ['main', *QUICKSTART.split('=')], flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', flag_values, sys_argv=argv)
  assert cli.parse(argv, flag_values) == ['main']
  assert flag_values.config.batch_size == 32


@pytest.mark.slow
@pytest.mark.parametrize('flags, message', [
    ([], '--config: missing; give a config file'),
    (['--config=none.py'], 'none.py: no such file'),
    (['--config=configs/quickstart.py', 'more'], 'more: expected only fl')])
def test_missing_or_extra_arguments_are_errors(flags, message):
  done = subprocess.run([sys.executable, '-m', 'vatt_jax.main', *flags], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize('phase, seconds', [('Evaluating: probe', 0.0),
                                            ('Evaluating: probe', 1.0),
                                            ('Evaluating: retrieval', 0.0)])
def test_signal_during_the_final_evaluation_ends_the_run(toy_world, tmp_path, phase,
                                                         seconds):
  """The process ends within 5 s on an idle machine."""
  process = subprocess.Popen(
      _command(toy_world, tmp_path / 'run', 'total_steps=3',
               'evals.retrieval.every_steps=0'),
      cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  lines = iter(process.stderr.readline, '')
  assert any(phase in line for line in lines)
  time.sleep(seconds)
  process.send_signal(signal.SIGTERM)
  since = time.monotonic()
  _, stderr = process.communicate(timeout=120)
  took = time.monotonic() - since
  print(f'{phase} + {seconds} s: ended after {took:.1f} s')
  assert process.returncode == 143 and 'Traceback' not in stderr
  assert took < 15
  assert (tmp_path / 'run' / 'checkpoints' / '3').is_dir()
  assert not (tmp_path / 'run' / 'run.lock').exists()


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_missing_device_error_is_one_line(platform, tmp_path):
  if shutil.which('nvidia-smi'):
    pytest.skip('this machine has a GPU')
  done = subprocess.run(
      [sys.executable, '-m', 'vatt_jax.main', '--config=configs/quickstart.py',
       f'--workdir={tmp_path}/run'], cwd=ROOT, capture_output=True, text=True,
      env=os.environ | dict(JAX_PLATFORMS=platform))
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
  assert f'JAX_PLATFORMS={platform}: JAX finds no such device' in done.stderr
  assert ("available: cpu; install the extra for it, pip install -e "
          f"'.[{platform}]'") in done.stderr


@pytest.mark.slow
def test_real_media_files_train_unchanged(shared, tmp_path):
  """The folder has audio files, a broken video and videos without audio."""
  flags = ['total_steps=3', 'batch_size=4', 'optim.warmup_steps=1',
           'window.image_size=32', f'data.path={shared / "media"}']
  for tower in ('video', 'audio', 'text'):
    flags += [f'model.{tower}.width=16', f'model.{tower}.depth=1',
              f'model.{tower}.num_heads=2', f'model.{tower}.mlp_dim=16']
  workdir = tmp_path / 'run'
  done = subprocess.run(
      [sys.executable, '-m', 'vatt_jax.main', '--config=configs/pretrain_folder.py',
       f'--workdir={workdir}', *(f'--config.{f}' for f in flags)],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  results = json.loads((workdir / 'results.json').read_text())
  assert results['input/skipped_files'] == 1
  notes = [json.loads(line) for line in
           (workdir / 'file_notes.jsonl').read_text().splitlines()]
  no_video = {pathlib.Path(n['path']).name for n in notes if n['note'] == 'no_video'}
  assert no_video == {'robin.ogg', 'sine_mono_s16.wav'}
  assert results['input/no_video_files'] == 2
  no_audio = {pathlib.Path(n['path']).name for n in notes if n['note'] == 'no_audio'}
  assert no_audio == {    # the files without an audio stream
      'av1_video.mkv', 'discard_first_keyframe.mp4', 'h265_video.mp4',
      'nasa_13013_rotated.mp4', 'test_non_zero_start.mp4', 'testsrc2_vp9.webm',
      'unordered.mov', 'video_90.mov', 'corrupted.mp4'}
  assert results['input/no_audio_files'] == len(no_audio)
  assert done.stderr.count('corrupted.mp4: ') == 1
