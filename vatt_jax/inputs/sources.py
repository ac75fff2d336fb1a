"""Sources of clips: folders, manifests, and files that hold many clips."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import glob
import itertools
import os
import pathlib
import re
import types

from absl import logging

from vatt_jax.errors import UserError
from vatt_jax.inputs import caption_index
from vatt_jax.inputs import media
from vatt_jax.inputs import tables
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.clip import MEDIA_SUFFIXES

# Weights become integer parts of this number, for exact arithmetic.
_SHARE_STEPS = 10_000


def open_source(path: str, captions: str = '') -> Sequence[Clip]:
  """Opens the clips of a source.

  A folder gives every media file below it, in order of name. The name of its first
  subfolder is the `label` of the files in it.

  A manifest is a CSV file, or a JSONL file of objects. It has the column `path`
  (relative to the manifest) and optionally `start` and `end` in seconds and `text`, a
  sentence about the whole clip. All other columns are labels. A JSONL line may also
  have `captions`, a list of {start, end, text}.

  Files that hold many clips are given by a pattern (`shards/train-*.tar`), or by
  their folder: ArrayRecord shards (`.array_record`), tar files (`.tar`), TFRecord
  files of SequenceExamples (`.tfrecord`, `.tfrecords`). A folder that TFDS prepared
  is given with a split, `tensorflow_datasets/ucf101/ucf101_1/2.0.0:train`.

  Args:
    path: path of the folder, manifest or files.
    captions: a CSV or JSONL file of `path,start,end,text`, with many rows per media
      file and paths relative to the captions file. Its own path is relative to the
      folder, or to the folder of the manifest.

  Raises:
    UserError: the source is invalid; names the file and its wrong line or column.
  """
  if not path:
    raise UserError(f'the path of a source (data.path, --source) is empty; expected '
                    f'{_EXPECTED}')
  root = pathlib.Path(path)
  clips = _open_many(path)
  if clips is not None:
    folder = root.parent
  elif root.is_dir():
    clips = [Clip(os.path.normpath(p), labels=_folder_label(p.relative_to(root)))
             for p in sorted(root.rglob('*')) if _is_media(p) and p.is_file()]
    folder = root
  elif root.is_file():
    clips = tables.read_clips(root)
    folder = root.parent
  else:
    raise UserError(f'{path}: no such folder or file; {_how_to_build(root)}expected '
                    f'{_EXPECTED}')
  if not clips:
    raise UserError(f'{path}: holds no clips; expected media files '
                    '(.mp4, .mkv, .webm, ...) or rows with a path')
  if captions:
    if not isinstance(clips, list):
      raise UserError(f'{path}: its records have their own captions; remove the '
                      f'captions file {captions!r}')
    clips = Captioned(clips, folder / captions)
  return clips


def is_indexed(path: str, captions: str) -> bool:
  """Returns whether `open_source` need not build an index of the captions."""
  root = pathlib.Path(path)
  return not captions or caption_index.is_ready(
      (root if root.is_dir() else root.parent) / captions)


def _how_to_build(path: pathlib.Path) -> str:
  """Returns the command that builds a dataset of `data/`, for an error message."""
  folder = path if path.parent.name == 'data' else path.parent
  if folder.parent.name != 'data' or not folder.with_suffix('.py').is_file():
    return ''
  return (f'build it with `python -m data.{folder.name} --out={folder}` (--help lists '
          'its flags); ')


def each(clips: Sequence[Clip], indices: Iterable[int] | None = None
         ) -> Iterator[Clip]:
  """Yields clips, by default all; a clip that cannot be read has only its name."""
  for index in range(len(clips)) if indices is None else indices:
    try:
      clip = clips[index]
    except media.MediaError as e:
      clip = Clip(e.path)
    yield clip


def _open_many(path: str) -> Sequence[Clip] | None:
  """Opens files that hold many clips; returns None for a plain folder or manifest."""
  folder, _, split = path.rpartition(':')
  if folder and (pathlib.Path(folder) / 'dataset_info.json').is_file():
    return _records().open_tfds(pathlib.Path(folder), split)
  root = pathlib.Path(path)
  if (root / 'dataset_info.json').is_file():
    raise UserError(f'{path}: was prepared by TFDS; add a split after a colon, such as '
                    f'{path}:train')
  files = [root] if root.is_file() else sorted(
      root.iterdir() if root.is_dir() else map(pathlib.Path, glob.glob(path)))
  by_kind: dict[str, list[pathlib.Path]] = {}
  for file in files:
    if kind := _SHARD_SUFFIX.search(file.name):
      # DMVR's script writes TFRecord files without a suffix.
      by_kind.setdefault(kind[1] or 'tfrecord', []).append(file)
  if not by_kind:
    return None
  kinds = sorted(by_kind)
  if root.is_dir() and any(map(_is_media, root.rglob('*'))):
    kinds.append('media')
  if len(kinds) > 1:
    raise UserError(f'{path}: holds files of several kinds, {", ".join(kinds)}; give a '
                    f'pattern for one kind, such as {path}/*.{kinds[0]}*')
  if root.is_dir():
    _check_complete(path, by_kind[kinds[0]])
  clips = _records().OPENERS[kinds[0]](by_kind[kinds[0]])
  _check_readable(path, clips)
  return clips


def _check_complete(path: str, files: Sequence[pathlib.Path]) -> None:
  """Raises UserError if some of the shards `NAME-00000-of-00010` etc. are missing."""
  shards: dict[str, set[int]] = {}
  for file in files:
    if part := re.search(r'^(.*)-(\d+)-of-(\d+)', file.name):
      shards.setdefault(f'{part[1]}-*-of-{part[3]}', set()).add(int(part[2]))
  for name, numbers in shards.items():
    count = int(name.rpartition('-')[2])
    if len(numbers) < count:
      raise UserError(f'{path}: holds {len(numbers)} of the {count} shards {name}; '
                      'add the others, or choose shards by a pattern')


def _check_readable(path: str, clips: Sequence[Clip]) -> None:
  """Raises UserError if all of the first clips are malformed."""
  for index in range(min(len(clips), _NUM_TRIED)):
    try:
      clips[index]
      return
    except media.MediaError as e:
      reason = e
  if len(clips):
    raise UserError(f'{path}: none of its first clips can be read: {reason}'
                    ) from reason


def _folder_label(path: pathlib.Path) -> dict[str, str]:
  return {'label': path.parts[0]} if len(path.parts) > 1 else {}


def _is_media(path: pathlib.Path) -> bool:
  return path.suffix.lower() in MEDIA_SUFFIXES


def _records() -> types.ModuleType:
  """Imports the readers of shards, and with them TensorFlow, which takes seconds."""
  from vatt_jax.inputs import records
  return records


# Compressed files match too, so that their reader refuses them by name.
_SHARD_SUFFIX = re.compile(r'(?:\.(array_record|tar|tfrecord)s?(?:-\d+-of-\d+)?'
                          r'(?:\.(?:gz|bz2|xz|zst))?|-\d{5}-of-\d{5})$')
# If this many first clips are malformed, the source is of another kind.
_NUM_TRIED = 10
_EXPECTED = ('a folder of media files, a CSV or JSONL manifest, or shards '
             '(docs/data.md)')


class Mixture(Sequence[Clip]):
  """Concatenates several sources: the clips of the first, then of the second, etc.

  Attributes:
    parts: the sources.
    shares: the relative share of every batch for each source, as integers; empty if
      all clips are equally probable.
    num_files: number of files.
  """

  def __init__(self, parts: Sequence[Sequence[Clip]], weights: Sequence[float] = ()):
    """Takes the sources, and a weight for each source or no weights.

    Raises:
      UserError: the number of weights is wrong, or a weight is not positive.
    """
    if weights and (len(weights) != len(parts) or min(weights) <= 0):
      raise UserError(f'data.weights={tuple(weights)}: expected a positive number for '
                      f'each of the {len(parts)} sources, or no weights')
    self.parts = tuple(parts)
    self.shares = tuple(round(w / sum(weights) * _SHARE_STEPS) for w in weights)
    if 0 in self.shares:
      raise UserError(f'data.weights={tuple(weights)}: the smallest is too small; '
                      f'expected at least 1/{_SHARE_STEPS} of the sum')
    self._ends = list(itertools.accumulate(map(len, self.parts)))
    self.num_files = sum(map(_num_files, self.parts))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> Clip:
    part = bisect.bisect_right(self._ends, index)
    begin = self._ends[part] - len(self.parts[part])
    return self.parts[part][index - begin]


class Captioned(Sequence[Clip]):
  """Adds captions from a captions file, with many rows per clip, to clips.

  A `caption_index` gives the position of each media file's rows, because a hundred
  million sentences do not fit into memory and take minutes to scan. The rows are read
  with their clip.

  Attributes:
    plain: the clips without the captions file.
  """

  def __init__(self, clips: Sequence[Clip], path: pathlib.Path):
    """Opens the index of the captions file; reads the file if it has no index.

    Raises:
      UserError: the file is missing, a row is malformed, or no row belongs to a clip.
    """
    if not path.is_file():
      raise UserError(f'{path}: no such captions file; expected a CSV or JSONL file of '
                      'path,start,end,text')
    self.plain = clips
    self._table = tables.Table(path, ('path', 'text'))
    self._folder = os.path.normpath(path.parent)
    self._index = caption_index.open_index(path, self._pieces())
    next(iter(self._table), None)    # reads the names of the table's columns
    # The paths are compared only when the index is built, because it takes seconds.
    if self._index.is_new or not any(self._index.find(self._keys(c.path))
                                     for c in clips):
      self._name_unknown()

  def __len__(self) -> int:
    return len(self.plain)

  def __getitem__(self, index: int) -> Clip:
    clip = self.plain[index]
    more = [tables.to_caption(str(self._table.path), row)
            for begin, end in self._index.find(self._keys(clip.path))
            for row in self._table.read(begin, end)]
    return dataclasses.replace(clip, captions=clip.captions + tuple(more))

  def _pieces(self) -> Iterator[tuple[str, int, int]]:
    """Yields key, begin and end of adjacent rows of one media file."""
    last, key, piece = object(), '', None
    for number, row, begin, end in self._table:
      location = f'{self._table.path}:{number}'
      tables.to_caption(location, row)    # reports an error now, not during a run
      if row['path'] != last:
        last = row['path']
        file = self._table.media_path(row, location)
        key = file if os.path.isabs(last) else _relative(file, self._folder)
      if piece is not None and piece[0] == key and piece[2] == begin:
        piece = key, piece[1], end
        continue
      if piece is not None:
        yield piece
      piece = key, begin, end
    if piece is not None:
      yield piece

  def _keys(self, path: str) -> list[str]:
    """Returns the possible keys of a clip's file in the index.

    Keys follow the paths in the captions file, so that both may be moved together.
    """
    keys = [path] if os.path.isabs(path) else []
    if os.path.isabs(path) == os.path.isabs(self._folder):
      keys.append(_relative(path, self._folder))
    return keys

  def _name_unknown(self) -> None:
    """Warns of paths that belong to no clip; raises UserError if all do not."""
    path = self._table.path
    unknown, count, first = self._index.unknown(
        key for clip in self.plain for key in self._keys(clip.path))
    name = next((self._table.media_path(row) for row in self._table.read(*first)),
                'missing')
    if unknown == count:
      raise UserError(f'{path}: none of its paths is in the manifest; the first is '
                      f'{name!r}')
    if unknown:
      logging.warning('%s: %d of its %d paths are not in the manifest; the first is %s',
                      path, unknown, count, name)


def _num_files(clips: Sequence[Clip]) -> int:
  if isinstance(clips, Captioned):
    clips = clips.plain
  return len({c.path for c in clips}) if isinstance(clips, list) else len(clips)


def _relative(path: str, folder: str) -> str:
  """Returns a path relative to a folder; both are normalized."""
  if path.startswith(f'{folder}/'):    # much faster
    return path[len(folder) + 1:]
  return os.path.relpath(path, folder)
