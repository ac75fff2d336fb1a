"""What the builders share: owners' lists, media by name, manifests, missing files.

A builder reads the lists that a data set's owners publish, looks for the media
they name, and writes to a folder

    SPLIT.csv           path,start,end and labels or a text: docs/data.md
    missing_SPLIT.txt   names of the media files that are not there, one a line
    labels.csv          index,label,...: the labels in the owners' order

Nothing is decoded and nothing is downloaded.
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
  """A clip that an owner's list names.

  Attributes:
    where: the list names it, as FILE:LINE.
    name: of its media file, for the list of missing ones.
    path: of the file that was found; empty: it is missing.
    start: seconds.
    end: seconds; None for the end of the file.
    columns: labels and text, by column; the same columns all through a split.
    key: what its list has once; by default its name, times and columns.
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
  """The media files below a folder, to be found by name."""

  def __init__(self, folder: str | os.PathLike[str],
               suffixes: Collection[str] = FILM_AND_SOUND):
    """Lists the folder, once.

    Args:
      folder: links to other folders in it are followed.
      suffixes: of the files that count, in lower case; by default not images, for
        downloaders put a film's thumbnail beside it.

    Raises:
      UserError: there is no such folder.
    """
    self.folder = pathlib.Path(folder)
    if not self.folder.is_dir():
      raise UserError(f'{folder}: no such folder; --media is where the media files are')
    self._by_stem: dict[str, list[str]] = {}
    files = [f for f in _files(self.folder) if _suffix(f) in suffixes]
    # A film has its sound too, so it comes before a file of sound alone.
    for file in sorted(files, key=lambda f: (_suffix(f) in clip.SOUND_SUFFIXES, f)):
      stem = os.path.splitext(os.path.basename(file))[0]
      self._by_stem.setdefault(stem, []).append(file)

  def find(self, *names: str) -> str:
    """The first of the names that is there; '' if none is.

    Of several files of one name it is the first in order of path.

    Args:
      *names: without suffix; folders before one (`train/x`) must be its last ones.
    """
    for name in names:
      parent, stem = os.path.split(name)
      for path in self._by_stem.get(stem, ()):
        if not parent or (os.sep + os.path.dirname(path)).endswith(os.sep + parent):
          return path
    return ''

  def stems(self) -> list[str]:
    """The names of all files, without suffix, in order."""
    return sorted(self._by_stem)


def _files(folder: pathlib.Path) -> Iterator[str]:
  seen = set()
  for root, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(root)
    if real in seen:    # a link back to where we were
      folders.clear()
      continue
    seen.add(real)
    yield from (os.path.join(root, name) for name in names)


def _suffix(path: str) -> str:
  return os.path.splitext(path)[1].lower()


def youtube_clip(media: Media, where: str, video: str, start: float, end: float,
                 columns: Mapping[str, str], trimmed: bool) -> Entry:
  """A clip of a YouTube video, from a file of the clip or of the whole video.

  Downloaders name a clip they cut by the video and its times: `ID_000010_000020` (as
  Kinetics' owners do), `ID_10_20`, in milliseconds `ID_10000_20000`,
  `ID_10.000_20.000`, `ID_10.0_20.0`, `ID_10.0-20.0`, each with a `Y` before it or
  not, or `YID`.

  Args:
    media: where to look.
    where: the list names it.
    video: YouTube's eleven characters.
    start: seconds of the video.
    end: seconds of the video.
    columns: of the manifest.
    trimmed: a file of the video's name alone is the clip, not the whole video.
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
  """The first of the names that the folder of annotations holds.

  Raises:
    UserError: it holds none of them.
  """
  return owners_files(folder, {'the': names})['the']


def owners_files(folder: str | os.PathLike[str], lists: Mapping[str, Sequence[str]]
                 ) -> dict[str, pathlib.Path]:
  """The lists of which the folder of annotations holds a file.

  Args:
    folder: of annotations.
    lists: what a list is -> names its file may have.

  Raises:
    UserError: it holds none of them.
  """
  folder, found = pathlib.Path(folder), {}
  for what, names in lists.items():
    there = [folder / name for name in names if (folder / name).exists()]
    if there:
      found[what] = there[0]
  if not found:
    names = ' or '.join(n for names in lists.values() for n in names)
    raise UserError(f'{folder}: expected {names} there; --annotations is the folder of '
                    "the owners' lists")
  return found


def lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(FILE:LINE, line) of a text file, without blank lines and outer blanks.

  Raises:
    UserError: it is not UTF-8, or empty.
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
  """(FILE:LINE, row) of a CSV file; blanks after a comma don't count.

  Args:
    path: of the file.
    columns: which it must have; without a header, all that it has.
    has_header: its first line names its columns.
    comment: lines that begin with this are left out.

  Raises:
    UserError: it is no such file, or empty.
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
  """What a JSON file says."""
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except ValueError as e:
    raise UserError(f'{path}: not JSON ({e})') from e


def number(where: str, key: str, value: Any) -> float:
  """A list's number, with a clear line if it is none."""
  try:
    return float(value)
  except (TypeError, ValueError):
    raise UserError(f'{where}: {key}={value!r}: expected a number') from None


def check_label(where: str, label: str, labels: Collection[str]) -> None:
  """Raises UserError unless it is one of the data set's."""
  if label not in labels:
    raise UserError(f'{where}: unknown label {label!r}; there are {len(labels)}, '
                    f'such as {next(iter(labels), "none")!r}')


# ----------------------------------------------------------------- the manifests

def write(out: str | os.PathLike[str], media: Media,
          splits: Mapping[str, Sequence[Entry]],
          labels: Sequence[Mapping[str, str]] = ()) -> None:
  """Writes manifests, lists of missing files and the label map; prints a line a split.

  Args:
    out: the folder; it is made if it is not there.
    media: where the files were looked for.
    splits: name -> its clips.
    labels: in the owners' order, each with its `label` as it stands in the manifests
      and what else there is to say about it.

  Raises:
    UserError: an entry comes twice, a clip ends before it starts, or there is not a
      single file.
  """
  splits = {name: entries for name, entries in splits.items() if entries}
  if not splits:
    raise UserError(f'{out}: nothing to write; the lists name no clips')
  for entries in splits.values():
    _check(entries)
  if not any(entry.path for entries in splits.values() for entry in entries):
    first = next(e for entries in splits.values() for e in entries)
    raise UserError(f'{media.folder}: holds none of the files that the lists name; the '
                    f'first looked for is {first.name!r} ({first.where})')
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
      raise UserError(f'{entry.where}: names the same as {seen[key]} ({entry.name}); '
                      'remove one of the two')
    seen[key] = entry.where


def relative(path: str, folder: pathlib.Path) -> str:
  """How a manifest in an absolute folder names a file.

  Relative, so that both can move together, unless all that they share is the root.
  """
  path = os.path.abspath(path)
  near = pathlib.Path(path).parts[:2] == folder.parts[:2]
  return os.path.relpath(path, folder) if near else path


def write_csv(path: pathlib.Path, columns: Sequence[str],
              table: Iterable[Mapping[str, Any]]) -> None:
  """Writes a CSV file, which appears whole or not at all."""
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
