"""Runs a recipe: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the recipe can be changed on the command line,
`--config.total_steps=100`. The same command goes on with a run that was stopped.
"""

import logging as python_logging
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from vatt_jax import interrupt
from vatt_jax import train
from vatt_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The recipe, a file of configs/.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, "The run's folder; by default runs/ and the recipe's name.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r}: expected only flags')
  _set_up_log()
  recipe_file = config_flags.get_config_filename(flags.FLAGS['config'])
  name = pathlib.Path(recipe_file.replace(':', '_').replace('.py', '')).name
  workdir = pathlib.Path(_WORKDIR.value or f'runs/{name}')
  try:
    train.train(_CONFIG.value.to_dict(), workdir)
  except UserError as e:
    print(f'vatt_jax: {e}', file=sys.stderr)
    sys.exit(2)
  except interrupt.Interrupted as e:
    sys.exit(128 + e.signal)


def _set_up_log() -> None:
  """Our own lines, with the time; of the libraries only warnings."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  handler.addFilter(lambda record: 'vatt_jax' in record.pathname
                    or record.levelno >= python_logging.WARNING)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
