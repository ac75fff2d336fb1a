"""What there is to read: a folder, a manifest, or files that hold many clips."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import glob
import io
import itertools
import json
import math
import os
import pathlib
import re
from typing import Any

from absl import logging

from vatt_jax.errors import UserError
from vatt_jax.inputs import media
from vatt_jax.inputs import packed
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.clip import MEDIA_SUFFIXES

# Weights are kept as whole numbers, for exact arithmetic: parts of this.
_SHARE_STEPS = 10_000


def open_source(path: str, captions: str = '') -> Sequence[Clip]:
  """The clips of a source.

  A folder gives every media file below it, in order of name. A manifest is a
  CSV file, or a JSONL file of objects, with `path` (relative to the manifest)
  and, each optional, `start` and `end` in seconds and `text`, one sentence
  about all of the clip; all other columns are labels. A JSONL line may also
  have `captions`, a list of {start, end, text}.

  Files that hold many clips are given by a pattern (`shards/train-*.tar`), or by
  their folder: ArrayRecord shards (`.array_record`), tar files (`.tar`), TFRecord
  files of SequenceExamples (`.tfrecord`, `.tfrecords`). A folder that TFDS prepared
  is given with a split, `tensorflow_datasets/ucf101/ucf101_1/2.0.0:train`.

  Args:
    path: of the folder, manifest or files.
    captions: a CSV or JSONL file of `path,start,end,text`, many rows a file, with
      paths relative to it; its own is relative to the folder or the manifest's.

  Raises:
    UserError: names the file, and the line or column that is wrong.
  """
  if not path:
    raise UserError(f'data.path is empty; set it to {_EXPECTED}')
  root = pathlib.Path(path)
  clips = _open_many(path)
  if clips is not None:
    folder = root.parent
  elif root.is_dir():
    clips = [Clip(str(p)) for p in sorted(root.rglob('*'))
             if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file()]
    folder = root
  elif root.is_file():
    clips = [_clip(f'{root}:{number}', _beside(root, _path(f'{root}:{number}', row)),
                   row) for number, row in _rows(root)]
    folder = root.parent
  else:
    raise UserError(f'{path}: no such folder or file; set data.path to {_EXPECTED}')
  if not clips:
    raise UserError(f'{path}: holds no clips; expected media files '
                    '(.mp4, .mkv, .webm, ...) or rows with a path')
  if captions:
    if not isinstance(clips, list):
      raise UserError(f'{path}: its records have their own captions; set data.captions '
                      f'to nothing instead of {captions!r}')
    clips = _add_captions(clips, folder / captions)
  return clips


def _open_many(path: str) -> Sequence[Clip] | None:
  """The clips of files that hold many; None if it is a plain folder or a manifest."""
  folder, _, split = path.rpartition(':')
  if folder and (pathlib.Path(folder) / 'dataset_info.json').is_file():
    return packed.open_tfds(pathlib.Path(folder), split)
  root = pathlib.Path(path)
  if (root / 'dataset_info.json').is_file():
    raise UserError(f'{path}: was prepared by TFDS; say which split after a colon, '
                    f'{path}:train')
  files = [root] if root.is_file() else sorted(
      root.iterdir() if root.is_dir() else map(pathlib.Path, glob.glob(path)))
  by_kind: dict[str, list[pathlib.Path]] = {}
  for file in files:
    if kind := _MANY_SUFFIX.search(file.name):
      by_kind.setdefault(kind[1], []).append(file)
  if len(by_kind) > 1:
    raise UserError(f'{path}: holds files of several kinds, {", ".join(by_kind)}; give '
                    f'those of one, such as {path}/*.{next(iter(by_kind))}*')
  for kind, found in by_kind.items():
    clips = _MANY[kind](found)
    try:
      clips[0]
    except (IndexError, media.MediaError) as e:
      raise UserError(f'{path}: its first clip does not read: {e}') from e
    return clips
  return None


def _open_tar(paths: Sequence[pathlib.Path]) -> Sequence[Clip]:
  return packed.TarClips(paths, _clip)


_MANY = {'array_record': packed.open_array_records, 'tar': _open_tar,
         'tfrecord': packed.open_sequence_examples}
_MANY_SUFFIX = re.compile(r'\.(array_record|tar|tfrecord)s?(-\d+-of-\d+)?$')
_EXPECTED = ('a folder of media files, a CSV or JSONL manifest, or shards '
             '(docs/data.md)')


class Mixture(Sequence[Clip]):
  """Several sources as one: the clips of the first, then of the second, and so on.

  Attributes:
    parts: the sources.
    shares: how much of every batch each source gives, as whole numbers that are
      compared with each other; empty: all clips are drawn alike.
    num_files: how many files there are.
  """

  def __init__(self, parts: Sequence[Sequence[Clip]], weights: Sequence[float] = ()):
    """Takes the sources, and a weight for each or none at all.

    Raises:
      UserError: there are not as many weights, or one is not positive.
    """
    if weights and (len(weights) != len(parts) or min(weights) <= 0):
      raise UserError(f'data.weights={tuple(weights)}: expected a positive number for '
                      f'each of the {len(parts)} sources, or none at all')
    self.parts = tuple(parts)
    self.shares = tuple(round(w / sum(weights) * _SHARE_STEPS) for w in weights)
    if 0 in self.shares:
      raise UserError(f'data.weights={tuple(weights)}: the least is too small beside '
                      f'the others, below one in {_SHARE_STEPS}')
    self._ends = list(itertools.accumulate(map(len, self.parts)))
    self.num_files = sum(len({c.path for c in part}) if isinstance(part, list)
                         else len(part) for part in self.parts)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Clip:
    part = bisect.bisect_right(self._ends, index)
    begin = self._ends[part] - len(self.parts[part])
    return self.parts[part][index - begin]


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


def _path(where: str, row: Mapping[str, Any]) -> str:
  return _text(where, 'path', row['path'])


def _clip(where: str, path: str, row: Mapping[str, Any]) -> Clip:
  row = {k: v for k, v in row.items() if k != 'path'}
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
    by_path.setdefault(_beside(path, _path(where, row)), []).append(
        _caption(where, row))
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
