"""Builds HowTo100M: 1.2 million narrated videos of YouTube with timed captions.

    python -m data.howto100m --annotations=DIR --media=DIR --out=data/howto100m

reads the owners' lists, from https://www.di.ens.fr/willow/research/howto100m/:
`HowTo100M_v1.csv` (video_id,category_1,category_2,rank,task_id) and the narrations, the
first of these that exists:

- `raw_caption.json`, ID -> lists of start, end and text, as spoken;
- `caption.json`, the same without stop words;
- `howto100m_captions/`, a file `ID.csv` of start,end,text for each video.

Reading the JSON files incrementally needs the extra `.[prep]`. The videos, `ID.mp4` (or
.webm, .mkv), may be in any folders below --media.

It writes train.csv, a row for each video that exists, and captions.csv
(path,start,end,text), for `data.path` and `data.captions`. The dataset has no labels
and no other splits. A video that is listed for several tasks has one row.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import os
import pathlib
from typing import Any

from data import manifests
from vatt_jax.errors import UserError

_CAPTIONS = ('raw_caption.json', 'caption.json', 'howto100m_captions')


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifest and the narrations."""
  videos = manifests.owners_file(annotations, 'HowTo100M_v1.csv')
  captions = manifests.owners_file(annotations, *_CAPTIONS)
  files = manifests.Media(media)
  listed: dict[tuple[str, str], str] = {}
  entries: dict[str, manifests.Entry] = {}
  for where, row in manifests.rows(videos, ('video_id', 'task_id')):
    video, key = row['video_id'], (row['video_id'], row['task_id'])
    if key in listed:
      raise UserError(f'{where}: is a duplicate of {listed[key]} ({video}); remove one '
                      'of the two')
    listed[key] = where
    if video not in entries:
      entries[video] = manifests.Entry(where, video, files.find(video))
  manifests.write(out, files, {'train': list(entries.values())})

  folder = pathlib.Path(os.path.abspath(out))
  paths = {video: manifests.relative(e.path, folder)
           for video, e in entries.items() if e.path}
  read = _from_files if captions.is_dir() else _from_json
  manifests.write_csv(folder / 'captions.csv', ('path', 'start', 'end', 'text'),
                      _rows(read(captions, paths), paths))
  print(f'captions: from {captions}')


def _rows(captions: Iterable[tuple[str, str, Any, Any, Any]], paths: dict[str, str]
          ) -> Iterator[dict[str, Any]]:
  """Yields rows of captions.csv from (where, video, start, end, text)."""
  for where, video, start, end, text in captions:
    # A transcript has line breaks within sentences, and empty sentences.
    text = ' '.join(text.split()) if isinstance(text, str) else ''
    if text:
      yield {'path': paths[video], 'start': manifests.number(where, 'start', start),
             'end': manifests.number(where, 'end', end), 'text': text}


def _from_json(path: pathlib.Path, paths: dict[str, str]
               ) -> Iterator[tuple[str, str, Any, Any, Any]]:
  try:
    import ijson
  except ImportError as e:
    raise UserError(f"{path}: reading it needs ijson; pip install -e '.[prep]'") from e
  where = str(path)
  try:
    with path.open('rb') as file:
      for video, said in ijson.kvitems(file, '', use_float=True):
        where = f'{path}: {video}'
        if video in paths:
          for start, end, text in zip(said['start'], said['end'], said['text'],
                                      strict=True):
            yield where, video, start, end, text
  except (ijson.JSONError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'{where}: expected start, end and text, lists of one length '
                    f'({e!r})') from e


def _from_files(path: pathlib.Path, paths: dict[str, str]
                ) -> Iterator[tuple[str, str, Any, Any, Any]]:
  for video in paths:
    file = path / f'{video}.csv'
    if file.is_file():
      for where, row in manifests.rows(file, ('start', 'end', 'text')):
        yield where, video, row['start'], row['end'], row['text']


if __name__ == '__main__':
  manifests.command(build)
