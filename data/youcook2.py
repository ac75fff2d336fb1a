"""Builds YouCook2: cooking videos of YouTube, with a sentence for each step.

    python -m data.youcook2 --annotations=DIR --media=DIR --out=data/youcook2

reads those of these files that exist:

- the owners' `youcookii_annotations_trainval.json`, from http://youcook2.eecs.umich.edu
  (database -> ID -> subset, recipe_type, annotations of segment and sentence). It gives
  the official splits train.csv and val.csv;
- `youcook2_validation.csv` (end,start,task,text,video_id), from
  https://github.com/antoine77340/MIL-NCE_HowTo100M. It gives test.csv: the 3,350 steps
  of the validation videos, the benchmark of zero-shot text-to-video retrieval.

The whole videos, `ID.mp4` (or .mkv, .webm), may be in any folders below --media.

A row is a step, with its sentence as `text` and the dish's number (`recipe_type`) as
`label`. With the owners' `label_foodtype.csv` (NUMBER,NAME) labels.csv names them.
"""

import os
import pathlib
from typing import Any

from data import manifests
from vatt_jax.errors import UserError

_LISTS = {'official': ('youcookii_annotations_trainval.json',),
          'test': ('youcook2_validation.csv',)}
_SUBSETS = {'training': 'train', 'validation': 'val'}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  lists = manifests.owners_files(annotations, _LISTS)
  files = manifests.Media(media)
  splits = {}
  if 'official' in lists:
    splits.update(_official(lists['official'], files))
  if 'test' in lists:
    splits['test'] = [
        _step(files, where, row['video_id'], row['start'], row['end'], row['text'],
              row['task'])
        for where, row in manifests.rows(
            lists['test'], ('end', 'start', 'task', 'text', 'video_id'))]
  labels, dishes = [], pathlib.Path(annotations) / 'label_foodtype.csv'
  if dishes.is_file():
    labels = [{'label': row['number'], 'name': row['name']}
              for _, row in manifests.rows(dishes, ('number', 'name'),
                                           has_header=False)]
    numbers = {label['label'] for label in labels}
    for entries in splits.values():
      for entry in entries:
        manifests.check_label(entry.where, entry.columns['label'], numbers)
  manifests.write(out, files, splits, labels)


def _official(path: pathlib.Path, files: manifests.Media
              ) -> dict[str, list[manifests.Entry]]:
  splits: dict[str, list[manifests.Entry]] = {}
  where = f'{path}: database'
  try:
    for video, entry in manifests.read_json(path)['database'].items():
      where = f'{path}: database/{video}'
      if entry['subset'] not in _SUBSETS:
        raise UserError(f'{where}: subset={entry["subset"]!r}: expected '
                        f'{" or ".join(_SUBSETS)}')
      for step in entry['annotations']:
        start, end = step['segment']
        splits.setdefault(_SUBSETS[entry['subset']], []).append(_step(
            files, where, video, start, end, step['sentence'], entry['recipe_type']))
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(f'{where}: expected subset, recipe_type and annotations of segment '
                    f'[start, end] and sentence ({e!r})') from e
  return splits


def _step(files: manifests.Media, where: str, video: str, start: Any, end: Any,
          text: str, recipe: Any) -> manifests.Entry:
  return manifests.Entry(
      where, video, files.find(video), manifests.number(where, 'start', start),
      manifests.number(where, 'end', end), {'text': text.strip(), 'label': str(recipe)})


if __name__ == '__main__':
  manifests.command(build)
