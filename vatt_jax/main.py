"""Runs a recipe: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the recipe can be changed on the command line,
`--config.total_steps=100`. The same command goes on with a run that was stopped;
with `--mode=figures` it draws what the run has learnt.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import figures
from vatt_jax import train

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, a file of configs/.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; by default runs/ and the recipe's name.")
_MODES = {'train': train.train, 'figures': figures.draw}
_MODE = flags.DEFINE_enum('mode', 'train', list(_MODES), 'What to do with the run.')


def main() -> None:
  recipe_file = config_flags.get_config_filename(flags.FLAGS['config'])
  name, _, switches = recipe_file.partition(':')
  run = '_'.join([pathlib.Path(name).stem, *switches.split(',')]).rstrip('_')
  _MODES[_MODE.value](_CONFIG.value.to_dict(),
                      pathlib.Path(_WORKDIR.value or f'runs/{run}'))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
