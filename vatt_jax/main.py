"""Runs a recipe: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the recipe can be changed on the command line,
`--config.total_steps=100`. The same command goes on with a run that was stopped.
With `--mode=eval` the recipe's `evals` are run on every checkpoint of the workdir,
as they come, while another process trains there or after it.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import evaluate
from vatt_jax import train

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, a file of configs/.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; by default runs/ and the recipe's name.")
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval'],
    'Train, or evaluate every checkpoint of the workdir, as they come.')
_ALLOW_RANDOM_HEAD = flags.DEFINE_bool(
    'allow_random_head', False,
    'With --mode=eval: evaluate a head of random weights where a checkpoint has none.')


def main() -> None:
  config = _CONFIG.value.to_dict()
  name = cli.recipe_name(config_flags.get_config_filename(flags.FLAGS['config']))
  workdir = pathlib.Path(_WORKDIR.value or f'runs/{name}')
  if _MODE.value == 'train':
    train.train(config, workdir)
  else:
    evaluate.watch(config, workdir, name, _ALLOW_RANDOM_HEAD.value)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
