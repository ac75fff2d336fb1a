"""Builds UCF101: short videos of 101 actions; three official splits.

    python -m data.ucf101 --annotations=DIR --media=DIR --out=data/ucf101

reads the owners' `ucfTrainTestlist` folder, from
https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip:
`classInd.txt` (NUMBER NAME), `trainlist01.txt` to `trainlist03.txt`
(NAME/FILE.avi NUMBER) and `testlist01.txt` to `testlist03.txt` (NAME/FILE.avi). The
videos, v_NAME_gNN_cNN.avi of https://www.crcv.ucf.edu/data/UCF101/UCF101.rar, may be in
any folders below --media.

It writes train_1.csv and test_1.csv to train_3.csv and test_3.csv with the column
`label`, and labels.csv in the official order.
"""

import os

from data import manifests
from vatt_jax.errors import UserError


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  numbers: dict[str, str] = {}
  for where, line in manifests.lines(
      manifests.owners_file(annotations, 'classInd.txt')):
    words = line.split()
    if len(words) != 2 or words[1] in numbers:
      raise UserError(f'{where}: expected NUMBER NAME, each name once; found {line!r}')
    numbers[words[1]] = words[0]
  lists = manifests.owners_files(annotations, {
      f'{split}_{i}': (f'{split}list0{i}.txt',)
      for i in (1, 2, 3) for split in ('train', 'test')})
  files = manifests.Media(media)
  splits: dict[str, list[manifests.Entry]] = {}
  for split, path in lists.items():
    splits[split] = []
    for where, line in manifests.lines(path):
      name, _, number = line.partition(' ')
      label, file = os.path.split(name)
      if not label:
        raise UserError(f'{where}: expected NAME/FILE.avi; found {line!r}')
      manifests.check_label(where, label, numbers)
      if number and number != numbers[label]:
        raise UserError(f'{where}: {label} has number {number}; expected '
                        f'{numbers[label]}, as in classInd.txt')
      splits[split].append(manifests.Entry(
          where, file, files.find(os.path.splitext(file)[0]), columns={'label': label}))
  manifests.write(out, files, splits, [{'label': label} for label in numbers])


if __name__ == '__main__':
  manifests.command(build)
