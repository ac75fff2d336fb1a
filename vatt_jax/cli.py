"""Runs the commands: sets up logging and reports user errors in one line."""

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
  """Runs a command; a user error ends it with status 2.

  Args:
    main: the command; called with the positional arguments.
    names: a name for each positional argument, for error messages.
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


def run_name(config_file: str) -> str:
  """Returns the default name of a run of `FILE` or `FILE:SWITCH,SWITCH`."""
  name, _, switches = config_file.partition(':')
  return '_'.join([pathlib.Path(name).stem, *switches.split(',')]).rstrip('_')


def parse(argv: list[str], flag_values: flags.FlagValues) -> list[str]:
  """Parses a command line.  -> the positional arguments.

  Raises:
    UserError: the command line or the config file is invalid.
  """
  config_file = _config_file(argv)
  if config_file is None and any(a.startswith('--config.') for a in argv):
    raise UserError(_NO_CONFIG)
  if config_file is not None and not pathlib.Path(config_file.split(':')[0]).is_file():
    raise UserError(f'--config={config_file}: no such file')
  try:
    return flag_values(argv)
  except flags.Error as e:
    raise UserError(_rephrase(str(e), argv, flag_values)) from e
  except (KeyError, AttributeError) as e:    # raised by ml_collections: unknown key
    config = flag_values['config'].parser.parse(config_file)
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


def _rephrase(error: str, argv: Sequence[str], flag_values: flags.FlagValues) -> str:
  """Returns an error message of absl as one line."""
  missing = re.search(r'--(\w+) must have a value', error)
  if missing:
    return _NO_CONFIG if missing[1] == 'config' else f'--{missing[1]}: missing'
  # The message of an error in a config file includes its traceback.
  last = re.sub(r'^\w+Error: ', '', error.strip().splitlines()[-1])
  config_file = _config_file(argv)
  if 'Error whilst parsing config file' in error:
    return f'--config={config_file}: {last}'
  wrong = re.match(r'flag --config\.([\w.]+)=(.*?): ', last)
  if wrong is None:
    return last
  config = flag_values['config'].parser.parse(config_file)
  value = functools.reduce(lambda node, name: node[name], wrong[1].split('.'), config)
  expected = next((text for kind, text in _KINDS if isinstance(value, kind)), None)
  return f'--config.{wrong[1]}={wrong[2]}: expected {expected}' if expected else last


# The order matters, because a bool is an int.
_KINDS = ((bool, 'true or false'), (int, 'a whole number, such as 1000'),
          (float, 'a number, such as 0.001 or 1e-3'))


def _unknown_key(argument: str, config: ConfigDict) -> str | None:
  """Returns an error message if a flag names an unknown config key; else None."""
  flag, *_ = argument.partition('=')
  begin, *names = flag.split('.')
  node = config
  for name in names if begin == '--config' else ():
    has_keys = isinstance(node, ConfigDict)
    if not has_keys or name not in node:
      keys = sorted(node) if has_keys else ()
      return (f'{argument}: unknown key {name!r}; {nearest(name, keys)}expected '
              + (f'one of {", ".join(keys)}' if keys else 'no key here'))
    node = node[name]
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
  """Makes the C library keep large freed blocks for the next step.

  XLA's CPU client allocates the memory of a program in every call. By default glibc
  returns it to the system after the call, and the system clears every page again. This
  takes a sixth of an encoder's training step. The cost is that the process never
  shrinks. There is a single heap, because only the first can grow by more than 64 MB.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):    # glibc; its malloc.h has the numbers
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def _keep_compiled() -> None:
  """Sets a default folder for JAX's compilation cache, unless one is set."""
  if jax.config.jax_compilation_cache_dir is None:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(
        pathlib.Path(caches) / 'vatt_jax' / 'compiled'))


def _set_up_log() -> None:
  """Logs vatt_jax's lines with the time; from libraries, logs only warnings."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  package = pathlib.Path(__file__).parent

  def is_shown(record: python_logging.LogRecord) -> bool:
    if pathlib.Path(record.pathname).is_relative_to(package):
      return True
    # Each thread of Orbax logs a traceback for a full disk; vatt_jax logs one line.
    full = record.exc_info and record.exc_info[1] and is_full_disk(record.exc_info[1])
    return record.levelno >= python_logging.WARNING and not full

  handler.addFilter(is_shown)


def _leave_out_echoes() -> None:
  """Hides tracebacks of TensorStore's threads after an error is reported."""
  default_hook = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      default_hook(unraisable)

  sys.unraisablehook = hook
