"""Label maps: the classes of a classifier, their order, and the classes of a clip."""

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

FILE_NAME = 'labels.csv'    # in a workdir and in the datasets that data/ builds
_SEPARATOR = '|'


@dataclasses.dataclass(frozen=True)
class Labels:
  """Maps the labels of clips to class numbers.

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

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a file that `read` reads."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file, lineterminator='\n')
      writer.writerows([('index', 'label'), *enumerate(self.names)])


def read(path: str | os.PathLike[str], column: str, multi_label: bool) -> Labels:
  """Reads a label map: a CSV file with a column `label`, the classes in order.

  Raises:
    UserError: the file or the column is missing, a class is empty or occurs twice, or
      an `index` is not the number of its row.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'{path}: no such label map; expected a CSV file with the classes '
                    "in order in a column 'label'")
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
    raise UserError(f'{path}: holds no labels')
  return Labels(column, tuple(names), multi_label, str(path))


def find(clips: Iterable[Clip], column: str, multi_label: bool, source: str) -> Labels:
  """Collects the labels of clips, in alphabetical order.

  Args:
    clips: all clips of a source.
    column: the column of the labels.
    multi_label: whether `|` joins several labels.
    source: the name of the source, for messages.

  Raises:
    UserError: no clip has a label.
  """
  names, columns = set(), set()
  for clip in clips:    # one by one: a record is as large as its video
    names.update(_split(clip, column, multi_label))
    columns.update(clip.labels)
  if not names:
    check_column(columns, column, source)
    raise UserError(f'{source}: no clip has a label in its column {column!r}')
  return Labels(column, tuple(sorted(names)), multi_label, source)


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
