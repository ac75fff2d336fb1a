"""What the commands share: their log, and mistakes in one line."""

from collections.abc import Callable
from collections.abc import Sequence
import ctypes
import functools
import itertools
import logging as python_logging
import os
import pathlib
import re
import sys
import traceback
from typing import Any
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import ConfigDict

from vatt_jax.config import nearest
from vatt_jax.distributed import hosts
from vatt_jax.distributed import interrupt
from vatt_jax.errors import is_full_disk
from vatt_jax.errors import UserError


def run(main: Callable[..., None], *names: str) -> None:
  """Runs a command; a mistake of the user's ends it with 2.

  Args:
    main: gets what is no flag, one argument for each of
    names: what they are, for the message when they are not that many.
  """
  def guarded(argv: list[str]) -> None:
    _keep_memory()
    _keep_compiled()
    _set_up_log()
    _leave_out_echoes()
    try:
      _, *arguments = argv
      if len(arguments) > len(names):
        raise UserError(f'{arguments[len(names)]}: expected only flags, --name=value'
                        + (f', after {" ".join(names)}' if names else ''))
      if len(arguments) < len(names):
        raise UserError(f'{names[len(arguments)]}: missing')
      main(*arguments)
    except UserError as e:
      _fail(e)
    except interrupt.Interrupted as e:
      hosts.leave(128 + e.signal, at_once=True)
    except Exception:
      if not jax.distributed.is_initialized():
        raise
      traceback.print_exc()
      hosts.leave(1)

  app.run(guarded, flags_parser=_parse)


def recipe_name(recipe_file: str) -> str:
  """What a run of `FILE` or `FILE:SWITCH,SWITCH` is called where nobody says."""
  name, _, switches = recipe_file.partition(':')
  return '_'.join([pathlib.Path(name).stem, *switches.split(',')]).rstrip('_')


def parse(argv: list[str], flag_values: flags.FlagValues) -> list[str]:
  """Reads a command line.  -> what is no flag.

  Raises:
    UserError: a mistake in it, or in the recipe that it names.
  """
  recipe = _config_file(argv)
  if recipe is None and any(a.startswith('--config.') for a in argv):
    raise UserError(_NO_CONFIG)
  if recipe is not None and not pathlib.Path(recipe.split(':')[0]).is_file():
    raise UserError(f'--config={recipe}: no such file')
  try:
    return flag_values(argv)
  except flags.Error as e:
    raise UserError(_in_our_words(str(e), argv, flag_values)) from e
  except (KeyError, AttributeError) as e:    # ml_collections: there is no such key
    config = flag_values['config'].parser.parse(recipe)
    unknown = (_unknown_key(argument, config) for argument in argv)
    raise UserError(next(filter(None, unknown), str(e))) from e


_NO_CONFIG = ('--config: missing; give a config file, such as '
              '--config=configs/quickstart.py')


def _config_file(argv: Sequence[str]) -> str | None:
  """Returns the value of --config=FILE or --config FILE."""
  for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=''):
    flag, equals, value = argument.partition('=')
    if flag == '--config':
      return value if equals else following
  return None


def _in_our_words(error: str, argv: Sequence[str], flag_values: flags.FlagValues
                  ) -> str:
  """Returns one line for an error of absl's."""
  missing = re.search(r'--(\w+) must have a value', error)
  if missing:
    return _NO_CONFIG if missing[1] == 'config' else f'--{missing[1]}: missing'
  # An error within a config file comes with its whole trace.
  last = re.sub(r'^\w+Error: ', '', error.strip().splitlines()[-1])
  recipe = _config_file(argv)
  if 'Error whilst parsing config file' in error:
    return f'--config={recipe}: {last}'
  wrong = re.match(r'flag --config\.([\w.]+)=(.*?): ', last)
  if wrong is None:
    return last
  config = flag_values['config'].parser.parse(recipe)
  value = functools.reduce(lambda place, name: place[name], wrong[1].split('.'), config)
  expected = next((words for kind, words in _KINDS if isinstance(value, kind)), None)
  return f'--config.{wrong[1]}={wrong[2]}: expected {expected}' if expected else last


# In this order, for a bool is an int.
_KINDS = ((bool, 'true or false'), (int, 'a whole number, such as 1000'),
          (float, 'a number, such as 0.001 or 1e-3'))


def _unknown_key(argument: str, config: ConfigDict) -> str | None:
  """Returns the message for a flag of a key that the config lacks; else None."""
  flag, *_ = argument.partition('=')
  begin, *names = flag.split('.')
  place = config
  for name in names if begin == '--config' else ():
    has_keys = isinstance(place, ConfigDict)
    if not has_keys or name not in place:
      known = sorted(place) if has_keys else ()
      return (f'{argument}: unknown key {name!r}; {nearest(name, known)}expected '
              + (f'one of {", ".join(known)}' if known else 'no key here'))
    place = place[name]
  return None


def _parse(argv: list[str]) -> list[str]:
  try:
    return parse(argv, flags.FLAGS)
  except UserError as e:
    _fail(e)


def _fail(why: object) -> NoReturn:
  print('vatt_jax:', ' '.join(str(why).split()), file=sys.stderr)
  hosts.leave(2)


def _keep_memory() -> None:
  """Lets the C library keep large blocks that were freed, for the next step.

  XLA's CPU client allocates the memory of a program anew in every call. By default
  glibc gives it back in between, and the system clears every page again: a sixth of
  an encoder's training step. The price is that a process stays as large as it once
  was. One heap, for only the first can grow by more than 64 MB.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):    # glibc; its malloc.h has the numbers
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def _keep_compiled() -> None:
  """Keeps compiled programs for the next run, if JAX is not told where already."""
  if jax.config.jax_compilation_cache_dir is None:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(
        pathlib.Path(caches) / 'vatt_jax' / 'compiled'))


def _set_up_log() -> None:
  """Our own lines, with the time; of the libraries only warnings."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  ours = pathlib.Path(__file__).parent

  def is_told(record: python_logging.LogRecord) -> bool:
    if pathlib.Path(record.pathname).is_relative_to(ours):
      return True
    # Each thread of Orbax logs the trace of a full disk; we say it in one line.
    full = record.exc_info and record.exc_info[1] and is_full_disk(record.exc_info[1])
    return record.levelno >= python_logging.WARNING and not full

  handler.addFilter(is_told)


def _leave_out_echoes() -> None:
  """Leaves out the traces of TensorStore's threads after an error we report."""
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  sys.unraisablehook = hook
