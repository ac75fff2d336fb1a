"""Builds PASCAL VOC2007: images with one or more of 20 classes.

    python -m data.voc2007 --annotations=VOCdevkit/VOC2007/ImageSets/Main \
        --media=VOCdevkit/VOC2007/JPEGImages --out=data/voc2007

reads the lists of each class, such as `aeroplane_trainval.txt` and
`aeroplane_test.txt`, with lines IMAGE 1, IMAGE -1, or IMAGE 0 where all objects of the
class are difficult. They are in the owners' archives at
http://host.robots.ox.ac.uk/pascal/VOC/voc2007.

It writes trainval.csv and test.csv with the column `label`, the classes of an image
joined by `|`. A class whose objects are all difficult does not count; the owners'
evaluation leaves such an image out of that class instead.
"""

import os

from data import manifests
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip

CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep',
    'sofa', 'train', 'tvmonitor')


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  files = manifests.Media(media, clip.IMAGE_SUFFIXES)
  splits = {}
  for split in ('trainval', 'test'):
    wheres: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    for name in CLASSES:
      path = manifests.owners_file(annotations, f'{name}_{split}.txt')
      for where, line in manifests.lines(path):
        image, _, value = line.partition(' ')
        if value.strip() not in ('1', '0', '-1'):
          raise UserError(f'{where}: expected IMAGE and 1, 0 or -1; found {line!r}')
        wheres.setdefault(image, where)
        present = labels.setdefault(image, [])
        if value.strip() == '1':
          present.append(name)
    splits[split] = [
        manifests.Entry(wheres[image], f'{image}.jpg', files.find(image),
                        columns={'label': '|'.join(present)})
        for image, present in labels.items()]
  manifests.write(out, files, splits, [{'label': name} for name in CLASSES])


if __name__ == '__main__':
  manifests.command(build)
