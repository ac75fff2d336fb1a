"""Builds Moments in Time: three-second clips of 339 (version 1) or 305 (2) actions.

    python -m data.moments_in_time --annotations=DIR --media=DIR --out=data/moments

reads the content of the owners' archive (http://moments.csail.mit.edu, on request):
`moments_categories.txt` (NAME,NUMBER), `trainingSet.csv` and `validationSet.csv`
(LABEL/FILE.mp4,LABEL,workers who agree,workers who do not, without a header), and the
videos in `training/LABEL/` and `validation/LABEL/` below --media.

It writes train.csv and val.csv, the official splits, with the column `label`, and
labels.csv in the official order.
"""

import os

from data import manifests
from vatt_jax.errors import UserError

_LISTS = {'train': ('trainingSet.csv',), 'val': ('validationSet.csv',)}
_FOLDERS = {'train': 'training', 'val': 'validation'}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  numbers: dict[str, float] = {}
  for where, row in manifests.rows(
      manifests.owners_file(annotations, 'moments_categories.txt'), ('name', 'number'),
      has_header=False):
    if row['name'] in numbers:
      raise UserError(f'{where}: label {row["name"]!r} occurs twice')
    numbers[row['name']] = manifests.number(where, 'number', row['number'])
  lists = manifests.owners_files(annotations, _LISTS)
  files = manifests.Media(media)
  splits: dict[str, list[manifests.Entry]] = {}
  for split, path in lists.items():
    splits[split] = []
    for where, row in manifests.rows(path, ('file', 'label', 'agree', 'disagree'),
                                     has_header=False):
      manifests.check_label(where, row['label'], numbers)
      name = f'{_FOLDERS[split]}/{row["file"]}'
      splits[split].append(manifests.Entry(
          where, name, files.find(os.path.splitext(name)[0]),
          columns={'label': row['label']}))
  manifests.write(out, files, splits, [
      {'label': name} for name in sorted(numbers, key=numbers.__getitem__)])


if __name__ == '__main__':
  manifests.command(build)
