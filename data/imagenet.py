"""Builds ImageNet (ILSVRC2012): images of 1,000 classes.

    python -m data.imagenet --annotations=DIR --media=DIR --out=data/imagenet

reads one of

- the owners' archive of
  https://www.kaggle.com/c/imagenet-object-localization-challenge:
  `LOC_synset_mapping.txt` (WNID NAMES), `LOC_val_solution.csv`
  (ImageId,PredictionString) and `ILSVRC/ImageSets/CLS-LOC/train_cls.txt`
  (WNID/FILE NUMBER);
- their development kit at https://image-net.org, ILSVRC2012_devkit_t12: `data/meta.mat`
  and `data/ILSVRC2012_validation_ground_truth.txt` (a number for each image). It has
  no list of the training images, so missing training images are not reported.

The images, `WNID/WNID_N.JPEG` for training and `ILSVRC2012_val_NNNNNNNN.JPEG`, may be
in any folders below --media.

It writes train.csv and val.csv with the column `label`, the WNID, because names are not
unique (two classes are "crane"). labels.csv has the names, in the order of WNIDs. This
is the usual order of class numbers; only the development kit has another.

TFDS prepares its own `imagenet2012` from the owners' tar files (`tfds build
imagenet2012 --manual_dir=DIR`).
"""

import os
import pathlib

import scipy.io

from data import manifests
from vatt_jax.errors import UserError

_SUFFIXES = ('.jpeg', '.jpg')
_MAPPING = 'LOC_synset_mapping.txt'
_SYNSETS = 'data/meta.mat'

Pictures = list[tuple[str, str, str]]    # location in a list, name, WNID


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  path = manifests.owners_file(annotations, _MAPPING, _SYNSETS)
  files = manifests.Media(media, _SUFFIXES)
  if path.name == _MAPPING:
    names, train, val = _kaggle(path, annotations)
  else:
    names, val = _development_kit(path, annotations)
    train = [(str(files.folder), stem, wnid) for stem in files.stems()
             if (wnid := stem.partition('_')[0]) in names]
  splits = {}
  for split, images in (('train', train), ('val', val)):
    splits[split] = []
    for where, image, wnid in images:
      manifests.check_label(where, wnid, names)
      splits[split].append(manifests.Entry(
          where, f'{image}.JPEG', files.find(image), columns={'label': wnid}))
  manifests.write(out, files, splits, [
      {'label': wnid, 'name': names[wnid]} for wnid in sorted(names)])


def _kaggle(mapping: pathlib.Path, annotations: str | os.PathLike[str]
            ) -> tuple[dict[str, str], Pictures, Pictures]:
  names = {}
  for where, line in manifests.lines(mapping):
    wnid, _, name = line.partition(' ')
    if not name or wnid in names:
      raise UserError(f'{where}: expected WNID NAMES, each WNID once; found {line!r}')
    names[wnid] = name
  train = []
  for where, line in manifests.lines(manifests.owners_file(
      annotations, 'ILSVRC/ImageSets/CLS-LOC/train_cls.txt')):
    image = os.path.basename(line.split()[0])
    train.append((where, image, image.partition('_')[0]))
  val = [(where, row['ImageId'], row['PredictionString'].partition(' ')[0])
         for where, row in manifests.rows(
             manifests.owners_file(annotations, 'LOC_val_solution.csv'),
             ('ImageId', 'PredictionString'))]
  return names, train, val


def _development_kit(synsets: pathlib.Path, annotations: str | os.PathLike[str]
                     ) -> tuple[dict[str, str], Pictures]:
  try:
    kinds = scipy.io.loadmat(synsets, squeeze_me=True)['synsets']
    wnids = {int(k['ILSVRC2012_ID']): str(k['WNID']) for k in kinds
             if int(k['num_children']) == 0}
    names = {str(k['WNID']): str(k['words']) for k in kinds
             if int(k['num_children']) == 0}
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(f'{synsets}: expected synsets of ILSVRC2012_ID, WNID, words and '
                    f'num_children ({e!r})') from e
  val = []
  for i, (where, number) in enumerate(manifests.lines(manifests.owners_file(
      annotations, 'data/ILSVRC2012_validation_ground_truth.txt')), 1):
    if not number.isdigit() or int(number) not in wnids:
      raise UserError(f'{where}: unknown number {number!r}; {synsets} has '
                      f'{len(wnids)}')
    val.append((where, f'ILSVRC2012_val_{i:08d}', wnids[int(number)]))
  return names, val


if __name__ == '__main__':
  manifests.command(build)
