"""Reads tables of clips and of captions: CSV and JSONL files, and their rows."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import csv
import io
import itertools
import json
import math
import os
import pathlib
from typing import Any
from typing import BinaryIO

from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip


class Table:
  """Reads the rows of a CSV or JSONL file.

  Attributes:
    path: path of the file.
  """

  def __init__(self, path: pathlib.Path, columns: tuple[str, ...]):
    """Takes a file, and the columns that it must have."""
    self.path = path
    self._columns = columns
    self._names: list[str] | None = None    # the columns of a CSV file
    if path.suffix not in ('.csv', '.jsonl'):
      raise UserError(f'{path}: expected a folder, a .csv or a .jsonl file, or shards')

  def __iter__(self) -> Iterator[tuple[int, dict[str, Any], int, int]]:
    """Yields line number, row, and the byte offsets of its begin and end.

    Raises:
      UserError: the file is not valid CSV or JSONL, or a column is missing.
    """
    self._names = None
    with self.path.open('rb') as file:
      begin = file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)
      for number, row in self._parse(self._lines(file)):
        end = file.tell()
        if row is not None:
          yield number, row, begin, end
        begin = end

  def read(self, begin: int, end: int) -> list[dict[str, Any]]:
    """Returns the rows between two offsets, after a first iteration."""
    with self.path.open('rb') as file:
      file.seek(begin)
      text = file.read(end - begin).decode()
    return [row for _, row in self._parse(io.StringIO(text, newline='\n'))]

  def media_path(self, row: Mapping[str, Any], location: str = '') -> str:
    """Returns the path of a row's media file, normalized.

    Args:
      row: `path` is relative to the folder of the table.
      location: file and line of the row, for messages.
    """
    path = _text(location or str(self.path), 'path', row['path'])
    return os.path.normpath(self.path.parent / path)

  def _lines(self, file: BinaryIO) -> Iterator[str]:
    for line in iter(file.readline, b''):
      try:
        yield line.decode()
      except UnicodeDecodeError as e:
        raise UserError(f'{self.path}: expected UTF-8 text ({e.reason} at byte '
                        f'{file.tell() - len(line) + e.start})') from e

  def _parse(self, lines: Iterable[str]
             ) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields line number and row; the row of a header is None."""
    return (self._json_rows if self.path.suffix == '.jsonl' else self._csv_rows)(lines)

  def _csv_rows(self, lines):
    reader = csv.reader(lines)
    try:
      if self._names is None:
        self._names = next(reader, [])
        self._check(f'{self.path}: no column', ' in its first line', self._names)
        yield 1, None
      for values in reader:
        if len(values) > len(self._names):
          raise UserError(f'{self.path}:{reader.line_num}: {len(values)} values for '
                          f'{len(self._names)} columns; put text with commas in quotes')
        if values:
          yield reader.line_num, dict(itertools.zip_longest(self._names, values))
    except csv.Error as e:
      raise UserError(f'{self.path}:{reader.line_num}: not CSV ({e})') from e

  def _json_rows(self, lines):
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      location = f'{self.path}:{number}'
      try:
        row = json.loads(line)
      except json.JSONDecodeError as e:
        raise UserError(f'{location}: not JSON ({e.msg}); expected one object per '
                        'line') from e
      if not isinstance(row, dict):
        raise UserError(f'{location}: expected a JSON object, found {line[:40]!r}')
      self._check(f'{location}: no key', '', row)
      yield number, row

  def _check(self, message: str, place: str, names: Iterable[str]) -> None:
    for column in self._columns:
      if column not in names:
        raise UserError(f'{message} {column!r}{place}; found {_list(names)}')


def read_clips(path: pathlib.Path) -> list[Clip]:
  """Reads a manifest, a table with a row for each clip.

  Raises:
    UserError: names the file and its invalid line or column.
  """
  table, clips = Table(path, ('path',)), []
  for number, row, *_ in table:
    location = f'{path}:{number}'
    clips.append(to_clip(location, table.media_path(row, location), row))
  return clips


def to_clip(location: str, path: str, row: Mapping[str, Any]) -> Clip:
  """Converts a row of a manifest to a clip.

  Args:
    location: file and line of the row, for messages.
    path: path of the media file.
    row: `start`, `end`, `text` and `captions`, all optional; the rest are labels.

  Raises:
    UserError: a value is invalid.
  """
  row = {k: v for k, v in row.items() if k != 'path'}
  start = _seconds(location, 'start', row.pop('start', None), 0.0)
  end = _seconds(location, 'end', row.pop('end', None), math.inf)
  if end <= start:
    raise UserError(f'{location}: end={end} is not after start={start} (seconds)')
  text = row.pop('text', None)
  captions = [] if not text else [Caption(start, end, _text(location, 'text', text))]
  timed = row.pop('captions', None) or []
  if not isinstance(timed, list):
    raise UserError(f'{location}: captions={timed!r}: expected a list')
  captions += [to_caption(location, caption) for caption in timed]
  return Clip(path, start, end, tuple(captions),
              {k: _label(v) for k, v in row.items()})


def to_caption(location: str, row: Any) -> Caption:
  """Converts a row of a captions file to a caption.

  Raises:
    UserError: a value is invalid; begins with `location`.
  """
  if not isinstance(row, dict) or 'text' not in row:
    raise UserError(f'{location}: expected a caption of start, end and text; found '
                    f'{row!r}')
  start = _seconds(location, 'start', row.get('start'), 0.0)
  return Caption(start, _seconds(location, 'end', row.get('end'), start),
                 _text(location, 'text', row['text']))


def _label(value: Any) -> str:
  """Joins a JSON list of labels to one text."""
  if isinstance(value, list):
    return '|'.join(map(str, value))
  return '' if value is None else str(value)


def _list(names: Iterable[str]) -> str:
  return ', '.join(map(str, names)) or 'nothing'


def _text(location: str, key: str, value: Any) -> str:
  if not isinstance(value, str) or (key == 'path' and not value):
    raise UserError(f'{location}: {key}={value!r}: expected text')
  return value


def _seconds(location: str, key: str, value: Any, default: float) -> float:
  if value is None or value == '':
    return default
  try:
    return float(value)
  except (TypeError, ValueError):
    raise UserError(f'{location}: {key}={value!r}: expected seconds') from None
