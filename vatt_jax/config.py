"""Passes sections of a config to functions as keyword arguments; rejects other keys."""

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
    function: the function; its parameters are the section's keys.
    settings: the section.
    **given: arguments that do not come from the config.

  Raises:
    UserError: a key is unknown or missing, or the function raised a ValueError.
  """
  check_keys(where, function, settings, given)
  try:
    return function(**settings, **given)
  except ValueError as e:
    raise UserError(f'config.{where}: {e}') from e


def check_keys(where: str, function: Callable[..., Any], settings: Settings,
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


def choose(table: Mapping[str, Any], value: str, key: str = 'name') -> Any:
  """Returns the entry of a table.

  Raises:
    ValueError: the table has no such entry; the message lists all entries.
  """
  if value not in table:
    raise ValueError(f'{key}={value!r}: {nearest(value, table)}expected one of '
                     f'{", ".join(table)}')
  return table[value]


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns 'did you mean NAME? ' for the known name closest to a word, or ''."""
  matches = difflib.get_close_matches(word, list(known), n=1)
  return f'did you mean {matches[0]}? ' if matches else ''
