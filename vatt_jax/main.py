"""Runs a recipe: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the recipe can be changed on the command line,
`--config.total_steps=100`. The same command goes on with a run that was stopped.
With `--mode=eval` the recipe's `evals` are run on every checkpoint of the workdir,
as they come, while another process trains there or after it; with `--mode=figures`
the newest is drawn. Both take everything that is not given on the command line from
the run, if it was trained by the same recipe.

On several hosts, the same command runs on each, with where they meet, how many they
are and which this is (`launch/`).
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import evaluate
from vatt_jax import platforms
from vatt_jax import train
from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.recipe import inherit
from vatt_jax.reports import run_figures

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, a file of configs/.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; by default runs/ and the recipe's name.")
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval', 'figures'],
    'Train, or evaluate every checkpoint of the workdir as they come, or draw what the '
    'newest has learnt.')
_ALLOW_RANDOM_HEAD = flags.DEFINE_bool(
    'allow_random_head', False,
    'With --mode=eval: evaluate a head of random weights where a checkpoint has none.')
_RESUME_FROM = flags.DEFINE_integer(
    'resume_from', None, 'The step of the checkpoint to go on from, in place of the '
    'newest; later ones are moved to checkpoints_discarded/.', lower_bound=0)
_EXTEND = flags.DEFINE_bool(
    'extend', False,
    'Go on with the run of the workdir to a larger --config.total_steps. What is left '
    'of its learning-rate schedule is spread over the steps to come.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT where several processes meet: the host of process '
    '0, and any free port of it.')
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', 1, 'With --coordinator: how many there are.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', 0, 'With --coordinator: which of them this is, from 0.',
    lower_bound=0)
_START_TIMEOUT_SECONDS = flags.DEFINE_float(
    'start_timeout_seconds', 300, 'With --coordinator: how long to wait for all; after '
    '20 s it is said who is missing.', lower_bound=0)


def main() -> None:
  if _COORDINATOR.value is None:
    if _NUM_PROCESSES.value > 1:
      raise UserError('--coordinator: missing; HOST:PORT, where '
                      f'--num_processes={_NUM_PROCESSES.value} meet')
    return _run()
  if _MODE.value == 'figures':
    raise UserError('--mode=figures: takes one process; leave out --coordinator')
  with hosts.joined(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
                         _START_TIMEOUT_SECONDS.value):
    _run()


def _run() -> None:
  platforms.check()
  if _RESUME_FROM.value is not None and _MODE.value != 'train':
    raise UserError(f'--resume_from={_RESUME_FROM.value}: only training goes on from a '
                    f'checkpoint; leave it out with --mode={_MODE.value}')
  if _EXTEND.value and _MODE.value != 'train':
    raise UserError(f'--extend: expected --mode=train, not --mode={_MODE.value}')
  config = _CONFIG.value.to_dict()
  name = cli.recipe_name(config_flags.get_config_filename(flags.FLAGS['config']))
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
