"""Builds HMDB51: short videos of 51 actions; three official splits.

    python -m data.hmdb51 --annotations=DIR --media=DIR --out=data/hmdb51

reads the splits from one of

- the owners' `testTrainMulti_7030_splits` folder, test_train_splits.rar of
  https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/, with a
  file `LABEL_test_splitN.txt` (FILE.avi and 1: train, 2: test, 0: not used) for every
  label and split;
- one file with the same content, `hmdb51.csv` (video_id,label,split1,split2,split3) of
  https://github.com/antoine77340/MIL-NCE_HowTo100M.

The videos of hmdb51_org.rar may be in any folders below --media.

It writes train_1.csv and test_1.csv to train_3.csv and test_3.csv with the column
`label`, and labels.csv. Labels are in alphabetical order, because the owners give them
no numbers.
"""

from collections.abc import Iterator
import os
import pathlib

from data import manifests
from vatt_jax.errors import UserError

_SPLITS = ('1', '2', '3')
_USES = {'0': None, '1': 'train', '2': 'test'}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  folder = pathlib.Path(annotations)
  listed = sorted(folder.glob('*_test_split[123].txt'))
  if listed:
    uses = _owners_lists(listed)
  else:
    uses = _one_list(manifests.owners_file(
        folder, 'LABEL_test_split1.txt', 'hmdb51.csv'))
  files = manifests.Media(media)
  splits: dict[str, list[manifests.Entry]] = {
      f'{use}_{i}': [] for i in _SPLITS for use in ('train', 'test')}
  labels = set()
  for where, file, label, split, use in uses:
    if use not in _USES:
      raise UserError(f'{where}: expected 1 (train), 2 (test) or 0 (not used); found '
                      f'{use!r}')
    labels.add(label)
    if _USES[use]:
      splits[f'{_USES[use]}_{split}'].append(manifests.Entry(
          where, file, files.find(os.path.splitext(file)[0]), columns={'label': label}))
  manifests.write(out, files, splits, [{'label': label} for label in sorted(labels)])


def _owners_lists(paths: list[pathlib.Path]) -> Iterator[tuple[str, ...]]:
  """Yields (where, file, label, split, use) from a file per label and split."""
  for path in paths:
    label, split = path.stem.split('_test_split')
    for where, line in manifests.lines(path):
      file, _, use = line.rpartition(' ')
      yield where, file.strip(), label, split, use


def _one_list(path: pathlib.Path) -> Iterator[tuple[str, ...]]:
  """Yields the same from a single file, whose labels end with `_test`."""
  columns = ('video_id', 'label', *(f'split{i}' for i in _SPLITS))
  for where, row in manifests.rows(path, columns):
    for i in _SPLITS:
      yield (where, row['video_id'], row['label'].removesuffix('_test'), i,
             row[f'split{i}'])


if __name__ == '__main__':
  manifests.command(build)
