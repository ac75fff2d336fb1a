"""What there is to read: a folder of media, or a manifest of it."""

from __future__ import annotations

from collections.abc import Mapping
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from typing import Any

from absl import logging

from vatt_jax.errors import UserError

MEDIA_SUFFIXES = frozenset({
    '.mp4', '.m4v', '.mkv', '.webm', '.mov', '.avi', '.mpg', '.mpeg', '.ts', '.flv',
    '.wmv', '.3gp', '.ogv',
    '.wav', '.flac', '.ogg', '.mp3', '.m4a', '.aac', '.opus'})


@dataclasses.dataclass(frozen=True)
class Caption:
  """A sentence said, or true, from `start` to `end` (seconds of the file)."""
  start: float
  end: float
  text: str


@dataclasses.dataclass(frozen=True)
class Clip:
  """A stretch of a media file, not read yet.

  Attributes:
    path: the file.
    start: seconds.
    end: seconds; infinite for the end of the file.
    captions: sentences with their times.
    labels: the manifest's other columns, by name.
  """
  path: str
  start: float = 0.0
  end: float = math.inf
  captions: tuple[Caption, ...] = ()
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def open_source(path: str, captions: str = '') -> list[Clip]:
  """The clips of a folder or of a manifest.

  A folder gives every media file below it, in order of name. A manifest is a
  CSV file, or a JSONL file of objects, with `path` (relative to the manifest)
  and, each optional, `start` and `end` in seconds and `text`, one sentence
  about all of the clip; all other columns are labels. A JSONL line may also
  have `captions`, a list of {start, end, text}.

  Args:
    path: of the folder or manifest.
    captions: a CSV or JSONL file of `path,start,end,text`, many rows a file, with
      paths relative to it; its own is relative to the folder or the manifest's.

  Raises:
    UserError: names the file, and the line or column that is wrong.
  """
  if not path:
    raise UserError('data.path is empty; set it to a folder of media files or to a CSV '
                    'or JSONL manifest')
  root = pathlib.Path(path)
  if root.is_dir():
    clips = [Clip(str(p)) for p in sorted(root.rglob('*'))
             if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file()]
    folder = root
  elif root.is_file():
    clips = [_clip(root, number, row) for number, row in _rows(root)]
    folder = root.parent
  else:
    raise UserError(f'{path}: no such folder or file; set data.path to a folder of '
                    'media files or to a CSV or JSONL manifest')
  if not clips:
    raise UserError(f'{path}: holds no clips; expected media files '
                    '(.mp4, .mkv, .webm, ...) or rows with a path')
  if captions:
    clips = _add_captions(clips, folder / captions)
  return clips


def _rows(path: pathlib.Path, columns: tuple[str, ...] = ('path',)
          ) -> list[tuple[int, dict[str, Any]]]:
  """(line number, row) of a CSV or JSONL file that has the columns."""
  try:
    file = io.StringIO(path.read_text(encoding='utf-8-sig'), newline='')
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: expected UTF-8 text ({e.reason} at byte '
                    f'{e.start})') from e
  with file:
    if path.suffix == '.jsonl':
      rows = []
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except json.JSONDecodeError as e:
          raise UserError(f'{path}:{number}: not JSON ({e.msg}); expected one '
                          'object a line') from e
        if not isinstance(row, dict):
          raise UserError(f'{path}:{number}: expected a JSON object, found '
                          f'{line[:40]!r}')
        missing = [c for c in columns if c not in row]
        if missing:
          raise UserError(f'{path}:{number}: no key {missing[0]!r}; found {_list(row)}')
        rows.append((number, row))
      return rows
    if path.suffix == '.csv':
      reader = csv.DictReader(file)
      found = reader.fieldnames or []
      missing = [c for c in columns if c not in found]
      if missing:
        raise UserError(f'{path}: no column {missing[0]!r} in its first line; found '
                        f'{_list(found)}')
      return [(reader.line_num, row) for row in reader]
  raise UserError(f'{path}: expected a folder, a .csv or a .jsonl file')


def _list(names) -> str:
  return ', '.join(map(str, names)) or 'nothing'


def _clip(manifest: pathlib.Path, number: int, row: dict[str, Any]) -> Clip:
  row = dict(row)
  where = f'{manifest}:{number}'
  path = _beside(manifest, _text(where, 'path', row.pop('path')))
  start = _seconds(where, 'start', row.pop('start', None), 0.0)
  end = _seconds(where, 'end', row.pop('end', None), math.inf)
  if end <= start:
    raise UserError(f'{where}: end={end} is not after start={start} (seconds)')
  text = row.pop('text', None)
  captions = [] if not text else [Caption(start, end, _text(where, 'text', text))]
  captions += [_caption(where, c) for c in row.pop('captions', None) or ()]
  return Clip(path, start, end, tuple(captions),
              {k: '' if v is None else str(v) for k, v in row.items()
               if k is not None})


def _beside(manifest: pathlib.Path, path: str) -> str:
  """A path that is relative to the manifest's folder, written in one way."""
  return os.path.normpath(manifest.parent / path)


def _caption(where: str, row: Any) -> Caption:
  if not isinstance(row, dict) or 'text' not in row:
    raise UserError(f'{where}: expected a caption of start, end, text; found {row!r}')
  start = _seconds(where, 'start', row.get('start'), 0.0)
  return Caption(start, _seconds(where, 'end', row.get('end'), start),
                 _text(where, 'text', row['text']))


def _text(where: str, key: str, value: Any) -> str:
  if not isinstance(value, str) or (key == 'path' and not value):
    raise UserError(f'{where}: {key}={value!r}: expected text')
  return value


def _seconds(where: str, key: str, value: Any, default: float) -> float:
  if value is None or value == '':
    return default
  try:
    return float(value)
  except (TypeError, ValueError):
    raise UserError(f'{where}: {key}={value!r}: expected seconds') from None


def _add_captions(clips: list[Clip], path: pathlib.Path) -> list[Clip]:
  if not path.is_file():
    raise UserError(f'{path}: no such captions file; set data.captions to a CSV or '
                    'JSONL file of path,start,end,text')
  by_path: dict[str, list[Caption]] = {}
  for number, row in _rows(path, ('path', 'text')):
    where = f'{path}:{number}'
    media = _beside(path, _text(where, 'path', row['path']))
    by_path.setdefault(media, []).append(_caption(where, row))
  known = {clip.path for clip in clips}
  unknown = [p for p in by_path if p not in known]
  if len(unknown) == len(by_path):
    raise UserError(f'{path}: none of its paths is in the manifest; the first is '
                    f'{next(iter(by_path), "missing")!r}')
  if unknown:
    logging.warning('%s: %d of its %d paths are not in the manifest; the first is %s',
                    path, len(unknown), len(by_path), unknown[0])
  return [dataclasses.replace(
      c, captions=c.captions + tuple(by_path.get(c.path, ()))) for c in clips]
