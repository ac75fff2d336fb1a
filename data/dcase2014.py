"""Builds DCASE-2014: recordings of 30 seconds of ten acoustic scenes.

    python -m data.dcase2014 --annotations=DIR --media=DIR --out=data/dcase2014

DIR holds the folders of the two archives of the challenge's scene classification task
(IEEE AASP, held in 2013; http://dcase.community/challenge2013): `scenes_stereo`, the
development set, and `scenes_stereo_testset`, the test set that was private then. Each
has ten recordings a scene. The owners publish no lists: the name of a recording is its
scene and two digits, such as `busystreet01.wav`, and may occur in both folders.
--annotations is the folder of these names. --media may be another folder with the same
two folders, such as one of converted files.

It writes train.csv and test.csv with the column `label`, and labels.csv in alphabetical
order.
"""

import os
import pathlib
import re

from data import manifests
from vatt_jax.errors import UserError

SCENES = ('bus', 'busystreet', 'office', 'openairmarket', 'park', 'quietstreet',
          'restaurant', 'supermarket', 'tube', 'tubestation')
_FOLDERS = {'train': 'scenes_stereo', 'test': 'scenes_stereo_testset'}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str]) -> None:
  """Writes the manifests."""
  files = manifests.Media(media)
  splits = {}
  for split, folder in _FOLDERS.items():
    named = pathlib.Path(annotations, folder)
    paths = sorted(named.glob('*.wav'))
    if not paths:
      raise UserError(f'{named}: expected the recordings of this archive; set '
                      '--annotations to the folder that holds this folder')
    splits[split] = [manifests.Entry(
        str(path), f'{folder}/{path.name}', files.find(f'{folder}/{path.stem}'),
        columns={'label': _scene(path)}) for path in paths]
  manifests.write(out, files, splits, [{'label': scene} for scene in SCENES])


def _scene(path: pathlib.Path) -> str:
  scene = re.sub(r'\d+$', '', path.stem)
  manifests.check_label(str(path), scene, SCENES)
  return scene


if __name__ == '__main__':
  manifests.command(build)
