"""Builds MSR-VTT: 10,000 clips of YouTube, with twenty sentences each.

    python -m data.msrvtt --annotations=DIR --media=DIR --out=data/msrvtt

reads those of these files that exist:

- the owners' `train_val_videodatainfo.json` and `test_videodatainfo.json`
  (http://ms-multimedia-challenge.com/2017/dataset), or both in one as
  `MSRVTT_data.json`: videos of video_id, category and split, and sentences of video_id,
  sen_id and caption. They give the official splits train.csv, val.csv, test_full.csv;
- `msrvtt_test.csv` (key,vid_key,video_id,sentence), from
  https://github.com/antoine77340/MIL-NCE_HowTo100M. It gives test.csv: 1,000 of the
  test clips with one sentence each, the benchmark of text-to-video retrieval.

The clips as published, `video7010.mp4`, may be in any folders below --media.

In the official splits a row is a sentence, so a clip has twenty rows. Retrieval, where
every row is its own answer, needs test.csv. `label` is the category; labels.csv has the
categories in the official order.
"""

import os
import pathlib

from data import manifests
from vatt_jax.errors import UserError

# The owners' category.txt, which some copies of the annotations lack.
CATEGORIES = (
    'music', 'people', 'gaming', 'sports/actions', 'news/events/politics', 'education',
    'tv shows', 'movie/comedy', 'animation', 'vehicles/autos', 'howto', 'travel',
    'science/technology', 'animals/pets', 'kids/family', 'documentary', 'food/drink',
    'cooking', 'beauty/fashion', 'advertisement')
_LISTS = {'all': ('MSRVTT_data.json',),
          'train_val': ('train_val_videodatainfo.json',),
          'test_full': ('test_videodatainfo.json',),
          'test': ('msrvtt_test.csv',)}
_SPLITS = {'train': 'train', 'validate': 'val', 'test': 'test_full'}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  lists = manifests.owners_files(annotations, _LISTS)
  files = manifests.Media(media)
  splits, labels = {}, []
  test = lists.pop('test', None)
  if 'all' in lists:
    lists = {'all': lists['all']}
  for path in lists.values():
    splits.update(_official(path, files))
    labels = [{'label': label} for label in CATEGORIES]
  if test:
    splits['test'] = [
        manifests.Entry(where, row['video_id'], files.find(row['video_id']),
                        columns={'text': row['sentence']})
        for where, row in manifests.rows(test, ('video_id', 'sentence'))]
  manifests.write(out, files, splits, labels)


def _official(path: pathlib.Path, files: manifests.Media
              ) -> dict[str, list[manifests.Entry]]:
  splits: dict[str, list[manifests.Entry]] = {}
  where = f'{path}: videos'
  try:
    owners = manifests.read_json(path)
    clips = {}
    for i, clip in enumerate(owners['videos']):
      where = f'{path}: videos[{i}]'
      if clip['split'] not in _SPLITS:
        raise UserError(f'{where}: split={clip["split"]!r}: expected '
                        f'{", ".join(_SPLITS)}')
      if clip['category'] not in range(len(CATEGORIES)):
        raise UserError(f'{where}: unknown category {clip["category"]!r}; expected 0 '
                        f'to {len(CATEGORIES) - 1}')
      if clip['video_id'] in clips:
        raise UserError(f'{where}: {clip["video_id"]} occurs twice')
      clips[clip['video_id']] = (_SPLITS[clip['split']], CATEGORIES[clip['category']])
    for i, sentence in enumerate(owners['sentences']):
      where, video = f'{path}: sentences[{i}]', sentence['video_id']
      split, label = clips[video]
      splits.setdefault(split, []).append(manifests.Entry(
          where, video, files.find(video),
          columns={'text': sentence['caption'].strip(), 'label': label},
          key=str(sentence['sen_id'])))    # two people may write the same sentence
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(f'{where}: expected videos of video_id, category and split, and '
                    f'sentences of video_id, sen_id and caption ({e!r})') from e
  return splits


if __name__ == '__main__':
  manifests.command(build)
