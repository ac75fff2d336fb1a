"""launch/*.sh: what they would run, where there is neither Slurm nor a TPU"""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = ['--config=configs/quickstart.py', '--config.data.path=two words']


def _run(*command, **environment):
  return subprocess.run(['bash', *command], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | environment, timeout=60)


def _fake(folder, name, script):
  """A program of that name.  -> a PATH where it is found first."""
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{script}\n')
  path.chmod(0o755)
  return f'{folder}:{os.environ["PATH"]}'


def test_each_process_is_told_who_it_is_and_a_failure_is_reported(tmp_path):
  path = _fake(tmp_path, 'say', 'echo "$@"; [[ "$*" != *process_id=1 ]] || exit 7')
  done = _run('launch/multi_process.sh', '2', 'say', 'a b', PATH=path, PORT='1234')
  assert sorted(done.stdout.splitlines()) == [
      f'a b --coordinator=127.0.0.1:1234 --num_processes=2 --process_id={i}'
      for i in range(2)]
  assert done.returncode == 7
  assert _run('launch/multi_process.sh', 'say').returncode == 2


def test_slurm_s_nodes_meet_at_the_first(tmp_path):
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


def test_a_dry_run_for_a_tpu_slice_prints_every_command():
  flags = ['--name=pod', '--zone=europe-west4-a', '--type=v3-256', '--spot']
  done = _run('launch/tpu_pod.sh', *flags, '--dry_run', '--', *ARGUMENTS)
  assert done.returncode == 0, done.stderr
  create, archive, copy, install, run = done.stdout.splitlines()
  assert 'tpu-vm create pod --zone=europe-west4-a' in create
  assert '--accelerator-type=v3-256' in create and '--spot' in create
  assert archive.startswith('git archive') and 'scp vatt_jax.tar.gz pod:' in copy
  assert 'pip install' in install and '--worker=all' in run
  assert 'two\\\\ words' in run    # quoted for the shell here, and for the one there
  assert _run('launch/tpu_pod.sh', '--name=pod').returncode == 2


@pytest.mark.parametrize('statuses, state, expected', [
    ('0', 'READY', ['describe', 'scp', 'ssh', 'ssh']),
    ('1 0', 'READY', ['describe', 'scp', 'ssh', 'ssh', 'describe', 'ssh']),
    ('2', 'READY', ['describe', 'scp', 'ssh', 'ssh']),
    ('0', 'PREEMPTED', ['describe', 'describe', 'delete', 'create', 'scp', 'ssh',
                        'ssh'])])
def test_a_tpu_slice_that_was_preempted_is_made_anew(tmp_path, statuses, state,
                                                     expected):
  """The runs on it end with these statuses, one after the other."""
  (tmp_path / 'statuses').write_text(statuses.replace(' ', '\n') + '\n')
  _fake(tmp_path, 'sleep', '')
  _fake(tmp_path, 'git', '')
  path = _fake(tmp_path, 'gcloud', f'''
    echo "$4" >> {tmp_path}/said
    case "$*" in
      *describe*) echo {state} ;;
      *vatt_jax.main*)
        read -r status < {tmp_path}/statuses
        sed -i 1d {tmp_path}/statuses
        exit "$status" ;;
    esac''')
  done = _run('launch/tpu_pod.sh', '--name=pod', '--zone=z', '--type=v3-8', '--',
              *ARGUMENTS, PATH=path)
  assert done.returncode == int(statuses.split()[-1]), done.stderr
  assert (tmp_path / 'said').read_text().split() == expected
