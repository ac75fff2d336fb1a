"""Sections of a config become the arguments of functions; what doesn't fit is named."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import difflib
import inspect
from typing import Any

from vatt_jax.errors import UserError

Settings = Mapping[str, Any]


def call(where: str, function: Callable[..., Any], settings: Settings, /,
         **given: Any) -> Any:
  """Calls a function with a section of the config.

  Args:
    where: the section's name.
    function: takes the section's keys as arguments.
    settings: the section.
    **given: arguments that are not the config's.

  Raises:
    UserError: a key that the function doesn't take, one that it needs and is
      missing, or a ValueError of the function's.
  """
  check_keys(where, function, settings, given)
  try:
    return function(**settings, **given)
  except ValueError as e:
    raise UserError(f'config.{where}: {e}') from e


def check_keys(where: str, function: Callable[..., Any], settings: Settings,
               given: Collection[str]) -> None:
  """Raises UserError unless the settings are just what else the function needs."""
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


def choose(table: Mapping[str, Any], value: str, key: str = 'name') -> Any:
  """The entry of a table.

  Raises:
    ValueError: there is no such entry; lists those there are.
  """
  if value not in table:
    raise ValueError(f'{key}={value!r}: {nearest(value, table)}expected one of '
                     f'{", ".join(table)}')
  return table[value]


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns 'did you mean NAME? ' for the known name most like a word, or ''."""
  found = difflib.get_close_matches(word, list(known), n=1)
  return f'did you mean {found[0]}? ' if found else ''
