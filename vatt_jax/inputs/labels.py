"""Label maps: the classes of a classifier, their order, and the classes of a clip."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
import csv
import dataclasses
import functools
import os
import pathlib

import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Clip

FILE_NAME = 'labels.csv'    # in a workdir and in the datasets that data/ builds
_SEPARATOR = '|'


@dataclasses.dataclass(frozen=True)
class Labels:
  """Maps the labels of clips in one column to class numbers.

  Attributes:
    column: the column of a manifest that holds a clip's label.
    names: the names of the C classes, in the order of a classifier's scores.
    multi_label: whether a clip may have several labels, joined by `|`.
    source: the origin of the names, for messages.
  """
  column: str
  names: tuple[str, ...]
  multi_label: bool
  source: str

  def encode(self, clip: Clip) -> np.ndarray:
    """Returns a clip's classes as bool [C]; all False for a clip without a label.

    Raises:
      UserError: a label is not among the names.
    """
    present = np.zeros(len(self.names), bool)
    for name in _split(clip, self.column, self.multi_label):
      if name not in self._places:
        raise UserError(
            f'{clip.path}: {self.column}={name!r} is none of the {len(self.names)} '
            f'classes of {self.source}, such as {self.names[0]!r}; correct the label, '
            'or set config.data.label_map to a list of all classes')
      present[self._places[name]] = True
    return present

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {name: place for place, name in enumerate(self.names)}


def save(path: str | os.PathLike[str], classes: Sequence[Labels]) -> None:
  """Writes a file that `read` reads."""
  rows = [(one.column, *row) for one in classes for row in enumerate(one.names)]
  with open(path, 'w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    first = int(len(classes) == 1)    # a single column needs no name
    writer.writerows(row[first:] for row in [('column', 'index', 'label'), *rows])


def read(path: str | os.PathLike[str], columns: Sequence[str], multi_label: bool
         ) -> tuple[Labels, ...]:
  """Reads a label map: a CSV file with a column `label`, the classes in order.

  If the file has a column `column`, it names the column of the manifest to which a
  class belongs; the classes of each have their own order. Without it, the file has the
  classes of a single column, whatever its name.

  Returns:
    The classes of those of the columns that the file has.

  Raises:
    UserError: the file or its column `label` is missing, a class is empty or occurs
      twice, or an `index` is not the number of its class.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'{path}: no such label map; expected a CSV file with the classes '
                    "in order in a column 'label'")
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      table = csv.DictReader(file)
      rows, header = list(table), table.fieldnames or ()
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path}: expected a CSV file in UTF-8 ({e})') from e
  if 'label' not in header:
    raise UserError(f"{path}: no column 'label' in its first line; found "
                    f'{", ".join(header) or "nothing"}')
  only = columns[0] if len(columns) == 1 else ''
  names: dict[str, dict[str, None]] = {}
  for number, row in enumerate(rows):
    name, listed = row['label'], names.setdefault(row.get('column', only), {})
    if not name or name in listed:
      raise UserError(f'{path}: row {number} has the label {name!r}; expected each '
                      'class once, and none empty')
    if row.get('index') not in (None, '', str(len(listed))):
      raise UserError(f'{path}: row {number} has index={row["index"]!r}; expected the '
                      'rows in the order of their index, from 0')
    listed[name] = None
  if not names:
    raise UserError(f'{path}: holds no labels')
  return tuple(Labels(column, tuple(names[column]), multi_label, str(path))
               for column in columns if column in names)


def find(clips: Iterable[Clip], columns: Sequence[str], multi_label: bool, source: str
         ) -> tuple[Labels, ...]:
  """Collects the labels of clips by column, in alphabetical order.

  Args:
    clips: all clips of a source.
    columns: the columns of labels.
    multi_label: whether `|` joins several labels.
    source: the name of the source, for messages.

  Raises:
    UserError: no clip has a label in one of the columns.
  """
  names, existing = {column: set() for column in columns}, set()
  for clip in clips:    # one by one: a record is as large as its video
    for column in columns:
      names[column].update(_split(clip, column, multi_label))
    existing.update(clip.labels)
  for column in columns:
    if not names[column]:
      check_column(existing, column, source)
      raise UserError(f'{source}: no clip has a label in its column {column!r}')
  return tuple(Labels(column, tuple(sorted(names[column])), multi_label, source)
               for column in columns)


def check_column(columns: Collection[str], column: str, source: str) -> None:
  """Raises UserError, which lists the label columns, unless the column is one."""
  if column not in columns:
    raise UserError(f'{source}: no column {column!r}; found '
                    f'{", ".join(sorted(columns)) or "no labels"} (in a folder, the '
                    "names of the subfolders are the column 'label')")


def separate(text: str) -> list[str]:
  """Splits a text into the labels that `|` joins."""
  return [name for name in text.split(_SEPARATOR) if name]


def _split(clip: Clip, column: str, multi_label: bool) -> list[str]:
  text = clip.labels.get(column, '')
  if multi_label:
    return separate(text)
  if _SEPARATOR in text:
    raise UserError(f'{clip.path}: {column}={text!r} joins several labels; expected '
                    'one, or set config.data.multi_label=True')
  return [text] if text else []
