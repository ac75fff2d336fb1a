"""Trains a config: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the config can be set on the command line, `--config.total_steps=100`.
The same command resumes an interrupted run. `--mode=eval` runs the config's `evals` on
every checkpoint of the workdir, during or after training. `--mode=figures` plots
figures of the newest checkpoint. Both modes take all values that are not on the command
line from the run's own config, if the run was trained with the same config file.

On several hosts, run the same command on each host, with `--coordinator`,
`--num_processes` and `--process_id` (`launch/`).
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import evaluate
from vatt_jax import inherit
from vatt_jax import platforms
from vatt_jax import train
from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.reports import run_figures

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The config, a file of configs/.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The experiment directory; default: runs/NAME_OF_THE_CONFIG.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval', 'figures'],
    'Train; or evaluate every checkpoint of the workdir as it appears; or plot figures '
    'of the newest checkpoint.')
_ALLOW_RANDOM_HEAD = flags.DEFINE_bool(
    'allow_random_head', False,
    'With --mode=eval: evaluate a randomly initialized head if a checkpoint has none.')
_RESUME_FROM = flags.DEFINE_integer(
    'resume_from', None, 'The step to resume from; by default the newest checkpoint. '
    'Later checkpoints are moved to checkpoints_discarded/.', lower_bound=0)
_EXTEND = flags.DEFINE_bool(
    'extend', False,
    'Continue the run of the workdir to a larger --config.total_steps. The rest of its '
    'learning-rate schedule is spread over the remaining steps.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT where several processes connect: the host of '
    'process 0, and any free port on it.')
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', 1, 'With --coordinator: the number of processes.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', 0, 'With --coordinator: the index of this process, from 0.',
    lower_bound=0)
_START_TIMEOUT_SECONDS = flags.DEFINE_float(
    'start_timeout_seconds', 300, 'With --coordinator: seconds to wait for all '
    'processes; missing ones are reported after 20 s.', lower_bound=0)


def main() -> None:
  if _COORDINATOR.value is None:
    if _NUM_PROCESSES.value > 1:
      raise UserError('--coordinator: missing; set it to HOST:PORT, where the '
                      f'--num_processes={_NUM_PROCESSES.value} processes connect')
    return _run()
  if _MODE.value == 'figures':
    raise UserError('--mode=figures: runs in one process; remove --coordinator')
  with hosts.joined(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
                         _START_TIMEOUT_SECONDS.value):
    _run()


def _run() -> None:
  platforms.check()
  if _RESUME_FROM.value is not None and _MODE.value != 'train':
    raise UserError(f'--resume_from={_RESUME_FROM.value}: only training resumes from a '
                    f'checkpoint; remove it with --mode={_MODE.value}')
  if _EXTEND.value and _MODE.value != 'train':
    raise UserError(f'--extend: expected --mode=train, not --mode={_MODE.value}')
  config = _CONFIG.value.to_dict()
  name = cli.run_name(config_flags.get_config_filename(flags.FLAGS['config']))
  workdir = pathlib.Path(_WORKDIR.value or f'runs/{name}')
  if _MODE.value != 'train':
    given = config_flags.get_override_values(flags.FLAGS['config'])
    config = inherit.of_run(config, given, workdir)
  if _MODE.value == 'train':
    train.train(config, workdir, _RESUME_FROM.value, _EXTEND.value)
  elif _MODE.value == 'figures':
    run_figures.draw(config, workdir)
  else:
    evaluate.watch(config, workdir, name, _ALLOW_RANDOM_HEAD.value)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
