"""Builds Kinetics-400, -600 or -700: ten seconds of YouTube with one of many actions.

    python -m data.kinetics --annotations=DIR --media=DIR --out=data/kinetics400

reads those of the owners' files that exist, `train.csv`, `val.csv` or `validate.csv`,
and `test.csv`: label,youtube_id,time_start,time_end,split (older ones also is_cc; a
held-out test set may have no label). They are at
https://github.com/cvdfoundation/kinetics-dataset, such as
https://s3.amazonaws.com/kinetics/400/annotations/train.csv and
https://s3.amazonaws.com/kinetics/700_2020/annotations/train.csv. Run the command once
for each version.

Media files are found by name in any folders: clips such as `ID_000010_000020.mp4`, as
in the owners' archives (other times in the name: `manifests.youtube_clip`), or whole
videos, `ID.mp4`; then the manifest gives the clip's seconds. With --trimmed `ID.mp4` is
a clip, too. The owners' replacements, in their folder `replacement`, come before the
corrupt files in `test`, `train` or `val`.

It writes train.csv, val.csv and test.csv with the column `label`, the official splits,
and labels.csv. Labels are in alphabetical order, because the owners give them no
numbers.
"""

import os

from absl import flags

from data import manifests

_LISTS = {'train': ('train.csv',), 'val': ('val.csv', 'validate.csv'),
          'test': ('test.csv',)}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str], trimmed: bool = False) -> None:
  """Writes the manifests; with `trimmed` `ID.mp4` is a clip, not the whole video."""
  lists = manifests.owners_files(annotations, _LISTS)
  files = manifests.Media(media)
  splits: dict[str, list[manifests.Entry]] = {}
  labels: set[str] = set()
  for split, path in lists.items():
    rows = list(manifests.rows(path, ('youtube_id', 'time_start', 'time_end')))
    if not labels:
      labels = {row['label'] for _, row in rows if row.get('label')}
    splits[split] = []
    for where, row in rows:
      label = row.get('label', '')
      if label or split != 'test':
        manifests.check_label(where, label, labels)
      start, end = (manifests.number(where, key, row[key])
                    for key in ('time_start', 'time_end'))
      splits[split].append(manifests.youtube_clip(
          files, where, row['youtube_id'], start, end, {'label': label}, trimmed))
  manifests.write(out, files, splits, [{'label': label} for label in sorted(labels)])


if __name__ == '__main__':
  flags.DEFINE_bool('trimmed', False, 'ID.mp4 is the clip, not the whole video.')
  manifests.command(lambda *folders: build(*folders, flags.FLAGS.trimmed))
