"""Tests the commands that launch/*.sh run, with fake Slurm and gcloud programs."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = ['--config=configs/quickstart.py', '--config.data.path=two words',
             '--workdir=runs/a b']


def _run(*command, **environment):
  return subprocess.run(['bash', *command], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | environment, timeout=60)


def _fake(folder, name, script):
  """Writes a program of this name.  -> a PATH with the program's folder first."""
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{script}\n')
  path.chmod(0o755)
  return f'{folder}:{os.environ["PATH"]}'


def test_each_process_gets_its_index_and_failures_are_reported(tmp_path):
  path = _fake(tmp_path, 'say', 'echo "$@"; [[ "$*" != *process_id=1 ]] || exit 7')
  done = _run('launch/multi_process.sh', '2', 'say', 'a b', PATH=path, PORT='1234')
  assert sorted(done.stdout.splitlines()) == [
      f'a b --coordinator=127.0.0.1:1234 --num_processes=2 --process_id={i}'
      for i in range(2)]
  assert done.returncode == 7
  assert _run('launch/multi_process.sh', 'say').returncode == 2


def test_slurm_nodes_use_the_first_node_as_coordinator(tmp_path):
  _fake(tmp_path, 'scontrol', 'echo node7; echo node9')
  path = _fake(tmp_path, 'srun', 'export SLURM_PROCID=1; shift; exec "$@"')
  python = tmp_path / '.venv/bin'
  python.mkdir(parents=True)
  _fake(python, 'python', 'printf "<%s>" "$@"')
  done = _run(str(ROOT / 'launch/slurm.sh'), *ARGUMENTS, PATH=path, SLURM_NTASKS='2',
              SLURM_JOB_NODELIST='node[7,9]', SLURM_JOB_ID='34567',
              SLURM_SUBMIT_DIR=str(tmp_path))
  assert done.stdout == ''.join(f'<{x}>' for x in (
      '-m', 'vatt_jax.main', *ARGUMENTS, '--coordinator=node7:24567',
      '--num_processes=2', '--process_id=1')), done.stderr


def test_tpu_pod_dry_run_prints_every_command():
  flags = ['--name=pod', '--zone=europe-west4-a', '--type=v3-256', '--spot']
  done = _run('launch/tpu_pod.sh', *flags, '--dry_run', '--', *ARGUMENTS)
  assert done.returncode == 0, done.stderr
  create, archive, copy, install, run = done.stdout.splitlines()
  assert 'tpu-vm create pod --zone=europe-west4-a' in create
  assert '--accelerator-type=v3-256' in create and '--spot' in create
  assert archive.startswith('git archive') and 'scp vatt_jax.tar.gz pod:' in copy
  assert 'pip install' in install and '--worker=all' in run
  assert 'two\\\\ words' in run    # quoted for the local and the remote shell
  assert _run('launch/tpu_pod.sh', '--name=pod').returncode == 2
  done = _run('launch/tpu_pod.sh', *flags, '--dry_run', '--', '--config=a.py')
  assert done.returncode == 2 and 'expected --workdir=DIR' in done.stderr


@pytest.fixture
def slice_(tmp_path):
  """Returns a function that launches on a fake TPU slice.

  Each run is `STATUS:STEP`: its exit status, and its newest checkpoint.
  """
  _fake(tmp_path, 'sleep', '')
  _fake(tmp_path, 'git', '')
  path = _fake(tmp_path, 'gcloud', f'''
    echo "$4" >> {tmp_path}/verbs
    case "$*" in
      *describe*) echo "$STATE" ;;
      *"ls runs/a\\ b/checkpoints"*)
        seq 1 "$(cat {tmp_path}/step)"; echo 99.orbax-checkpoint-tmp ;;
      *vatt_jax.main*)
        echo "$*" >> {tmp_path}/commands
        IFS=: read -r status step < {tmp_path}/runs
        sed -i 1d {tmp_path}/runs
        echo "$step" > {tmp_path}/step
        echo 'RuntimeError: of worker 3' >&2
        echo 'noise' >&2
        exit "$status" ;;
    esac''')

  def launch(runs, state='READY', *arguments):
    (tmp_path / 'runs').write_text(runs.replace(' ', '\n') + '\n')
    done = _run('launch/tpu_pod.sh', '--name=pod', '--zone=z', '--type=v3-8', '--',
                *ARGUMENTS, *arguments, PATH=path, STATE=state)
    left = (tmp_path / 'runs').read_text().split()
    return done, left, (tmp_path / 'verbs').read_text().split(), (
        tmp_path / 'commands').read_text().splitlines()

  return launch


@pytest.mark.parametrize('runs, state, expected', [
    ('0:5', 'READY', ['describe', 'scp', 'ssh', 'ssh']),
    ('1:5 0:6', 'READY', ['describe', 'scp', 'ssh', 'ssh', 'describe', 'ssh',
                          'describe', 'ssh']),
    ('2:5', 'READY', ['describe', 'scp', 'ssh', 'ssh']),
    ('0:5', 'PREEMPTED', ['describe', 'describe', 'delete', 'create', 'scp', 'ssh',
                          'ssh'])])
def test_preempted_tpu_slice_is_created_again(slice_, runs, state, expected):
  done, left, verbs, _ = slice_(runs, state)
  assert done.returncode == int(runs.split()[-1].split(':')[0]), done.stderr
  assert verbs == expected and not left


@pytest.mark.parametrize('runs, runs_left', [
    ('1:0 1:0 0:9', ['0:9']), ('1:3 1:4 1:4 0:9', ['0:9']), ('1:9 1:10 1:11 0:12', [])])
def test_two_failures_without_a_new_checkpoint_stop_the_restarts(slice_, runs,
                                                                 runs_left):
  done, left, _, _ = slice_(runs)
  assert left == runs_left
  if not left:
    assert done.returncode == 0
    return
  assert done.returncode == 1
  *_, verdict, error = done.stderr.splitlines()
  assert 'failed twice without a new checkpoint in runs/a b; the last err' in verdict
  assert error == 'RuntimeError: of worker 3'


def test_preemptions_do_not_count_as_failures(slice_):
  done, left, _, _ = slice_('1:3 1:3 1:3 0:4', 'PREEMPTED')
  assert done.returncode == 0 and not left


def test_resume_from_applies_only_to_the_first_start(slice_):
  done, _, _, commands = slice_('1:3 0:4', 'READY', '--resume_from=2')
  assert done.returncode == 0
  last_lines = [line for line in commands if '--num_processes' in line]
  assert ['--resume_from=2' in line for line in last_lines] == [True, False]
  assert all(r'two\ words' in line for line in last_lines)
