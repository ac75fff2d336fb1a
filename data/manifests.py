"""Shared code of the builders: owners' lists, media by name, manifests, missing files.

A builder reads the lists that a dataset's owners publish, looks for the media
files in them, and writes to a folder

    SPLIT.csv           path,start,end and labels or a text: docs/data.md
    missing_SPLIT.txt   names of the missing media files, one per line
    labels.csv          index,label,...: the labels in the owners' order

It decodes and downloads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import flags

from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip

FILM_AND_SOUND = clip.MEDIA_SUFFIXES - clip.IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Entry:
  """Describes a clip of an owner's list.

  Attributes:
    where: its location in the list, FILE:LINE.
    name: name of its media file, for the list of missing files.
    path: path of its media file; empty if it is missing.
    start: seconds.
    end: seconds; None for the end of the file.
    columns: labels and text, by column; all entries of a split have the same columns.
    key: unique in its list; by default its name, times and columns.
  """
  where: str
  name: str
  path: str
  start: float = 0.0
  end: float | None = None
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  key: str = ''


# ------------------------------------------------------------------ the media

class Media:
  """Finds media files below a folder by name."""

  def __init__(self, folder: str | os.PathLike[str],
               suffixes: Collection[str] = FILM_AND_SOUND):
    """Lists the folder, once.

    Args:
      folder: the folder; links to other folders in it are followed.
      suffixes: suffixes of the files to list, in lower case. By default not images,
        because downloaders put a video's thumbnail beside it.

    Raises:
      UserError: the folder does not exist.
    """
    self.folder = pathlib.Path(folder)
    if not self.folder.is_dir():
      raise UserError(f'{folder}: no such folder; set --media to the folder of the '
                      'media files')
    self._by_stem: dict[str, list[str]] = {}
    files = [f for f in _files(self.folder) if _suffix(f) in suffixes]
    # A video has audio too, so it comes before a file of audio alone.
    for file in sorted(files, key=lambda f: (_suffix(f) in clip.SOUND_SUFFIXES, f)):
      stem = os.path.splitext(os.path.basename(file))[0]
      self._by_stem.setdefault(stem, []).append(file)

  def find(self, *names: str) -> str:
    """Returns the path of the first name that exists; '' if none does.

    Returns the first in order of path if several files have the name.

    Args:
      *names: names without suffix; the folders in a name (`train/x`) must be the last
        folders of the path.
    """
    for name in names:
      parent, stem = os.path.split(name)
      for path in self._by_stem.get(stem, ()):
        if not parent or (os.sep + os.path.dirname(path)).endswith(os.sep + parent):
          return path
    return ''

  def stems(self) -> list[str]:
    """Returns the names of all files, without suffix, in order."""
    return sorted(self._by_stem)


def _files(folder: pathlib.Path) -> Iterator[str]:
  seen = set()
  for root, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(root)
    if real in seen:    # a link back to a listed folder
      folders.clear()
      continue
    seen.add(real)
    yield from (os.path.join(root, name) for name in names)


def _suffix(path: str) -> str:
  return os.path.splitext(path)[1].lower()


def youtube_clip(media: Media, where: str, video: str, start: float, end: float,
                 columns: Mapping[str, str], trimmed: bool) -> Entry:
  """Returns a clip of a YouTube video, from a file of the clip or the whole video.

  Downloaders name a clip by the video and its times: `ID_000010_000020` (as Kinetics'
  owners do), `ID_10_20`, in milliseconds `ID_10000_20000`, `ID_10.000_20.000`,
  `ID_10.0_20.0`, `ID_10.0-20.0`, each with or without the prefix `Y`, or `YID`.

  Args:
    media: the media files.
    where: location of the clip in its list, FILE:LINE.
    video: YouTube's ID, eleven characters.
    start: seconds of the video.
    end: seconds of the video.
    columns: columns of the manifest.
    trimmed: whether a file with only the video's name is the clip, not the whole video.
  """
  first, last = round(start * 1000), round(end * 1000)
  times = (f'_{int(start):06d}_{int(end):06d}', f'_{int(start)}_{int(end)}',
           f'_{first}_{last}', f'_{start:.3f}_{end:.3f}', f'_{start}_{end}',
           f'_{start}-{end}')
  cut = [prefix + video + time for prefix in ('', 'Y') for time in times]
  cut.append('Y' + video)
  if path := media.find(*cut, *([video] if trimmed else ())):
    return Entry(where, cut[0], path, columns=columns)
  return Entry(where, cut[0], media.find(video), start, end, columns)


# ------------------------------------------------------------ the owners' lists

def owners_file(folder: str | os.PathLike[str], *names: str) -> pathlib.Path:
  """Returns the path of the first of the names in the folder of annotations.

  Raises:
    UserError: the folder has none of them.
  """
  return owners_files(folder, {'the': names})['the']


def owners_files(folder: str | os.PathLike[str], lists: Mapping[str, Sequence[str]]
                 ) -> dict[str, pathlib.Path]:
  """Returns the paths of the lists that exist in the folder of annotations.

  Args:
    folder: the folder of annotations.
    lists: key of a list -> possible names of its file.

  Raises:
    UserError: the folder has none of them.
  """
  folder, paths = pathlib.Path(folder), {}
  for key, names in lists.items():
    present = [folder / name for name in names if (folder / name).exists()]
    if present:
      paths[key] = present[0]
  if not paths:
    names = ' or '.join(n for names in lists.values() for n in names)
    raise UserError(f'{folder}: expected {names} in this folder; set --annotations to '
                    "the folder of the owners' lists")
  return paths


def lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields (FILE:LINE, line) of a text file, without empty lines and outer spaces.

  Raises:
    UserError: the file is not UTF-8, or is empty.
  """
  empty = True
  try:
    with path.open(encoding='utf-8-sig') as file:
      for number, line in enumerate(file, 1):
        if line := line.strip():
          empty = False
          yield f'{path}:{number}', line
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: expected UTF-8 text ({e.reason})') from e
  if empty:
    raise UserError(f'{path}: is empty')


def rows(path: pathlib.Path, columns: Sequence[str], has_header: bool = True,
         comment: str = '') -> Iterator[tuple[str, dict[str, str]]]:
  """Yields (FILE:LINE, row) of a CSV file, without spaces after commas.

  Args:
    path: path of the file.
    columns: required columns; without a header, all columns of the file.
    has_header: whether the first line names the columns.
    comment: prefix of lines to skip.

  Raises:
    UserError: the file is not such a CSV file, or is empty.
  """
  with path.open(encoding='utf-8-sig', newline='') as file:
    reader = csv.reader(file, skipinitialspace=True, strict=True)
    names = None if has_header else list(columns)
    empty = True
    try:
      for cells in reader:
        if not cells or (comment and cells[0].startswith(comment)):
          continue
        if names is None:
          names = cells
          missing = [c for c in columns if c not in names]
          if missing:
            raise UserError(f'{path}: no column {missing[0]!r} in its first line; '
                            f'found {", ".join(names)}')
          continue
        where = f'{path}:{reader.line_num}'
        if len(cells) != len(names):
          raise UserError(f'{where}: expected {len(names)} cells, {",".join(names)}; '
                          f'found {len(cells)}')
        empty = False
        yield where, dict(zip(names, cells, strict=True))
    except csv.Error as e:
      raise UserError(f'{path}:{reader.line_num}: not CSV ({e})') from e
    except UnicodeDecodeError as e:
      raise UserError(f'{path}: expected UTF-8 text ({e.reason})') from e
  if empty:
    raise UserError(f'{path}: holds no rows')


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file; raises UserError if it is invalid."""
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except ValueError as e:
    raise UserError(f'{path}: not JSON ({e})') from e


def number(where: str, key: str, value: Any) -> float:
  """Converts a value of a list to a number; raises UserError if it is not one."""
  try:
    return float(value)
  except (TypeError, ValueError):
    raise UserError(f'{where}: {key}={value!r}: expected a number') from None


def check_label(where: str, label: str, labels: Collection[str]) -> None:
  """Raises UserError unless the label is one of the dataset's."""
  if label not in labels:
    raise UserError(f'{where}: unknown label {label!r}; expected one of {len(labels)}, '
                    f'such as {next(iter(labels), "none")!r}')


# ----------------------------------------------------------------- the manifests

def write(out: str | os.PathLike[str], media: Media,
          splits: Mapping[str, Sequence[Entry]],
          labels: Sequence[Mapping[str, str]] = ()) -> None:
  """Writes manifests, lists of missing files and the label map; prints each split.

  Args:
    out: the folder, which is created if necessary.
    media: the media files.
    splits: name -> clips of the split.
    labels: rows of the label map in the owners' order, each with the `label` of the
      manifests and further columns.

  Raises:
    UserError: an entry occurs twice, a clip ends before it starts, or all files are
      missing.
  """
  splits = {name: entries for name, entries in splits.items() if entries}
  if not splits:
    raise UserError(f'{out}: nothing to write; the lists have no clips')
  for entries in splits.values():
    _check(entries)
  if not any(entry.path for entries in splits.values() for entry in entries):
    first = next(e for entries in splits.values() for e in entries)
    raise UserError(f'{media.folder}: holds none of the files in the lists; the first '
                    f'of them is {first.name!r} ({first.where})')
  folder = pathlib.Path(os.path.abspath(out))
  folder.mkdir(parents=True, exist_ok=True)
  if labels:
    write_csv(folder / 'labels.csv', ('index', *labels[0]), (
        {'index': i, **label} for i, label in enumerate(labels)))
  for name, entries in splits.items():
    write_csv(folder / f'{name}.csv', ('path', 'start', 'end', *entries[0].columns), (
        {'path': relative(e.path, folder), 'start': e.start, 'end': e.end, **e.columns}
        for e in entries if e.path))
    missing = list(dict.fromkeys(e.name for e in entries if not e.path))
    listed = folder / f'missing_{name}.txt'
    listed.write_text(''.join(f'{m}\n' for m in missing), encoding='utf-8')
    clips, files = sum(bool(e.path) for e in entries), len({e.name for e in entries})
    print(f'{name}: {clips:,} of {len(entries):,} clips; {len(missing):,} of {files:,} '
          f'files missing ({len(missing) / files:.1%})'
          + (f', listed in {listed}' if missing else ''))


def _check(entries: Sequence[Entry]) -> None:
  seen: dict[str | tuple, str] = {}
  for entry in entries:
    if entry.end is not None and entry.end <= entry.start:
      raise UserError(f'{entry.where}: end={entry.end} is not after '
                      f'start={entry.start} (seconds)')
    key = entry.key or (entry.name, entry.start, entry.end, *entry.columns.values())
    if key in seen:
      raise UserError(f'{entry.where}: is a duplicate of {seen[key]} ({entry.name}); '
                      'remove one of the two')
    seen[key] = entry.where


def relative(path: str, folder: pathlib.Path) -> str:
  """Returns the path of a file in a manifest of an absolute folder.

  The path is relative, so that both can move together, unless they share only the root.
  """
  path = os.path.abspath(path)
  near = pathlib.Path(path).parts[:2] == folder.parts[:2]
  return os.path.relpath(path, folder) if near else path


def write_csv(path: pathlib.Path, columns: Sequence[str],
              table: Iterable[Mapping[str, Any]]) -> None:
  """Writes a CSV file atomically."""
  partial = path.with_name(path.name + '.partial')
  with partial.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)
  partial.replace(path)


def command(build: Callable[[str, str, str], None]) -> None:
  """Runs a builder as a command: `build(annotations, media, out)`."""
  flags.DEFINE_string('annotations', None, "The folder of the owners' lists.",
                      required=True)
  flags.DEFINE_string('media', None, 'The folder below which the media files are.',
                      required=True)
  flags.DEFINE_string('out', None, 'The folder to write manifests to.', required=True)
  cli.run(lambda: build(flags.FLAGS.annotations, flags.FLAGS.media, flags.FLAGS.out))
