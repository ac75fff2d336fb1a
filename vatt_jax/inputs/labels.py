"""The classes that a classifier tells apart: which a clip has, and their order."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
import csv
import dataclasses
import functools
import os
import pathlib

import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Clip

FILE_NAME = 'labels.csv'    # of a workdir, and of what the builders of data/ write
_SEPARATOR = '|'


@dataclasses.dataclass(frozen=True)
class Labels:
  """A label map.

  Attributes:
    column: of a manifest, that holds a clip's label.
    names: of the C classes, in the order of a classifier's scores.
    several: a clip may have several at once, joined by `|`.
    source: where the names come from, for messages.
  """
  column: str
  names: tuple[str, ...]
  several: bool
  source: str

  def encode(self, clip: Clip) -> np.ndarray:
    """Which classes a clip has.  -> bool [C], all False for a clip without a label.

    Raises:
      UserError: a label that is not among the names.
    """
    present = np.zeros(len(self.names), bool)
    for name in _split(clip, self.column, self.several):
      if name not in self._places:
        raise UserError(
            f'{clip.path}: {self.column}={name!r} is none of the {len(self.names)} '
            f'classes of {self.source}, such as {self.names[0]!r}; correct it, or set '
            'config.data.label_map to the list of all classes')
      present[self._places[name]] = True
    return present

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {name: place for place, name in enumerate(self.names)}

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a file that `read` reads."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file, lineterminator='\n')
      writer.writerows([('index', 'label'), *enumerate(self.names)])


def read(path: str | os.PathLike[str], column: str, several: bool) -> Labels:
  """A label map: a CSV file with a column `label`, the classes in order.

  Raises:
    UserError: no such file, no such column, a class that is empty or comes twice, or
      an `index` that is not the row's.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'{path}: no such label map; expected a CSV file with a column '
                    "'label', the classes in order")
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      table = csv.DictReader(file)
      rows, columns = list(table), table.fieldnames or ()
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path}: expected a CSV file in UTF-8 ({e})') from e
  if 'label' not in columns:
    raise UserError(f"{path}: no column 'label' in its first line; found "
                    f'{", ".join(columns) or "nothing"}')
  names: dict[str, None] = {}
  for number, row in enumerate(rows):
    name = row['label']
    if not name or name in names:
      raise UserError(f'{path}: row {number} has the label {name!r}; expected each '
                      'class once, and none empty')
    if row.get('index') not in (None, '', str(number)):
      raise UserError(f'{path}: row {number} has index={row["index"]!r}; expected the '
                      'rows in the order of their index, from 0')
    names[name] = None
  if not names:
    raise UserError(f'{path}: holds no label')
  return Labels(column, tuple(names), several, str(path))


def find(clips: Iterable[Clip], column: str, several: bool, source: str) -> Labels:
  """The labels that some clips have, in alphabetical order.

  Args:
    clips: all of a source.
    column: of their labels.
    several: whether `|` joins several.
    source: its name, for messages.

  Raises:
    UserError: no clip has a label.
  """
  names, columns = set(), set()
  for clip in clips:    # one by one: a record is as large as its film
    names.update(_split(clip, column, several))
    columns.update(clip.labels)
  if not names:
    check_column(columns, column, source)
    raise UserError(f'{source}: no clip has a label in its column {column!r}')
  return Labels(column, tuple(sorted(names)), several, source)


def check_column(columns: Collection[str], column: str, source: str) -> None:
  """Raises UserError unless the column is one of those of the labels; names these."""
  if column not in columns:
    raise UserError(f'{source}: no column {column!r}; found '
                    f'{", ".join(sorted(columns)) or "no label"} (a folder has labels '
                    "as the names of its subfolders, in the column 'label')")


def separate(text: str) -> list[str]:
  """The labels that `|` joins."""
  return [name for name in text.split(_SEPARATOR) if name]


def _split(clip: Clip, column: str, several: bool) -> list[str]:
  text = clip.labels.get(column, '')
  if several:
    return separate(text)
  if _SEPARATOR in text:
    raise UserError(f'{clip.path}: {column}={text!r} joins several labels; expected '
                    'one, or set config.data.multi_label=True')
  return [text] if text else []
