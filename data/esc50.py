"""Builds ESC-50: 2,000 recordings of five seconds of 50 sound events; five folds.

    python -m data.esc50 --annotations=ESC-50-master/meta \
        --media=ESC-50-master/audio --out=data/esc50

reads `esc50.csv` (filename,fold,target,category,esc10,src_file,take) and the audio
files of https://github.com/karolpiczak/ESC-50.

For every official fold N it writes test_N.csv, and train_N.csv with the other four
folds. Both have the column `label`. labels.csv is in the official order (`target`).
"""

import os

from data import manifests
from vatt_jax.errors import UserError

_FOLDS = ('1', '2', '3', '4', '5')


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  path = manifests.owners_file(annotations, 'esc50.csv')
  files = manifests.Media(media)
  targets: dict[str, float] = {}
  folds: dict[str, list[manifests.Entry]] = {fold: [] for fold in _FOLDS}
  for where, row in manifests.rows(path, ('filename', 'fold', 'target', 'category')):
    label, target = row['category'], manifests.number(where, 'target', row['target'])
    if targets.setdefault(label, target) != target:
      raise UserError(f'{where}: label {label!r} has target {target:g}, but an earlier '
                      f'line has {targets[label]:g}')
    if row['fold'] not in folds:
      raise UserError(f'{where}: fold={row["fold"]!r}: expected 1 to 5')
    folds[row['fold']].append(manifests.Entry(
        where, row['filename'], files.find(os.path.splitext(row['filename'])[0]),
        columns={'label': label}))
  splits = {}
  for fold, held_out in folds.items():
    splits[f'train_{fold}'] = [e for other in folds if other != fold
                               for e in folds[other]]
    splits[f'test_{fold}'] = held_out
  manifests.write(out, files, splits, [
      {'label': label} for label in sorted(targets, key=targets.__getitem__)])


if __name__ == '__main__':
  manifests.command(build)
