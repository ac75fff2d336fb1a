"""Builds objects from sections of a config.

A section has a `name`; a table maps the name to a class or function; the other keys are
its arguments (`build`). A section without a name is the arguments of one function
(`call`). An unknown or missing key is an error that names the nearest key.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import inspect
from typing import Any

from vatt_jax.errors import UserError

Settings = Mapping[str, Any]

# Readings of a paper that differ: the paper's, and its released code's.
VARIANTS = ('paper', 'release')


def call(where: str, function: Callable[..., Any], settings: Settings, /,
         **given: Any) -> Any:
  """Calls a function with a section of the config.

  Args:
    where: the section's name.
    function: the function; its parameters are the section's keys.
    settings: the section.
    **given: arguments that do not come from the config.

  Raises:
    UserError: a key is unknown or missing, or the function raised a ValueError.
  """
  _check_keys(where, function, settings, given)
  with naming(where):
    return function(**settings, **given)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
  """Converts a ValueError to a UserError that names a section of the config."""
  try:
    yield
  except ValueError as e:
    raise UserError(f'config.{where}: {e}') from e


def build(where: str, table: Mapping[str, Callable[..., Any]], section: Settings, /,
          **given: Any) -> Any:
  """Builds the object of a section with a `name`.

  Args:
    where: the section's name.
    table: maps names to classes or functions. A class with a method `from_config` is
      built by it.
    section: `name`, and arguments.
    **given: arguments that do not come from the config; those are passed that the
      class takes.

  Raises:
    UserError: a name or key is unknown or missing, or a value is invalid.
  """
  def make(name: str, **fields: Any) -> Any:
    kind = choose(table, name)
    function = getattr(kind, 'from_config', kind)
    takes = inspect.signature(function).parameters
    return call(where, function, fields,
                **{key: value for key, value in given.items() if key in takes})

  names = ', '.join(table)
  if not isinstance(section, Mapping):
    raise UserError(f'config.{where}: {section!r}: expected a section with a name, one '
                    f'of {names}')
  if 'name' not in section:
    raise UserError(f'config.{where}.name: missing; expected one of {names}')
  return call(where, make, section)


def _check_keys(where: str, function: Callable[..., Any], settings: Settings,
               given: Collection[str]) -> None:
  """Raises UserError for unknown or missing keys (arguments in `given` aside)."""
  dot = f'{where}.' if where else ''
  parameters = inspect.signature(function).parameters.values()
  takes = [p.name for p in parameters
           if p.name not in given and p.kind is not p.VAR_KEYWORD]
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for key in settings:
      if key not in takes:
        raise UserError(f'config.{dot}{key}: unknown key; {nearest(key, takes)}'
                        f'expected one of {", ".join(takes)}')
  for p in parameters:
    if p.name in takes and p.name not in settings and p.default is p.empty:
      raise UserError(f'config.{dot}{p.name}: missing')


def choose(table: Collection[str], value: str, key: str = 'name') -> Any:
  """Returns the entry of a table, or the value itself if the table only lists values.

  Raises:
    ValueError: the table has no such entry; the message lists all entries.
  """
  if value not in table:
    raise ValueError(f'{key}={value!r}: {nearest(value, table)}expected one of '
                     f'{", ".join(table)}')
  return table[value] if isinstance(table, Mapping) else value


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns 'did you mean NAME? ' for the known name closest to a word, or ''."""
  matches = difflib.get_close_matches(word, list(known), n=1)
  return f'did you mean {matches[0]}? ' if matches else ''
