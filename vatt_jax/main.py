"""Runs a recipe: python -m vatt_jax.main --config=configs/quickstart.py

Any value of the recipe can be changed on the command line,
`--config.total_steps=100`. The same command goes on with a run that was stopped.
"""

import logging as python_logging
import pathlib
import sys
from typing import NoReturn

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
  _set_up_log()
  try:
    if len(argv) > 1:
      raise UserError(f'{argv[1]}: expected only flags, --name=value')
    recipe_file = config_flags.get_config_filename(flags.FLAGS['config'])
    if not pathlib.Path(recipe_file.split(':')[0]).is_file():
      raise UserError(f'--config={recipe_file}: no such file')
    name = pathlib.Path(recipe_file.replace(':', '_').replace('.py', '')).name
    workdir = pathlib.Path(_WORKDIR.value or f'runs/{name}')
    train.train(_CONFIG.value.to_dict(), workdir)
  except UserError as e:
    _fail(e)
  except interrupt.Interrupted as e:
    sys.exit(128 + e.signal)


def _parse(argv: list[str]) -> list[str]:
  """Reads the command line; a mistake in it is one line."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as e:
    _fail(e)
  except (KeyError, AttributeError) as e:    # ml_collections: there is no such key
    key = str(e).strip('"\'')
    flag = next((a for a in argv if f'.{key}=' in a or f'.{key}.' in a), key)
    _fail(f'{flag}: the recipe has no key {key!r}; its file shows those it has')


def _fail(why: object) -> NoReturn:
  print('vatt_jax:', ' '.join(str(why).split()), file=sys.stderr)
  sys.exit(2)


def _set_up_log() -> None:
  """Our own lines, with the time; of the libraries only warnings."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  ours = pathlib.Path(__file__).parent
  handler.addFilter(
      lambda record: pathlib.Path(record.pathname).is_relative_to(ours)
      or record.levelno >= python_logging.WARNING)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=_parse)
