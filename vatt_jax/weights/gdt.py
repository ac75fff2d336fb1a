"""Converts the released checkpoints of GDT (arXiv 2003.04298) and STiCA (2103.10211).

    python -m vatt_jax import_gdt gdt_K400.pth --out=DIR

DIR gets the model's settings, an Orbax checkpoint, and the weights as
`model.safetensors`. `--config.init_from=DIR` and `vatt_jax.weights.load` read it, and
they read the released file too. The file is one of PyTorch, or its arrays as
`.safetensors` or `.npz`.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import math
import os
import pathlib
import re
from typing import Any
import zipfile

from absl import flags
from absl import logging
import jax
import numpy as np
import safetensors
import safetensors.numpy

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.weights import name_tables
from vatt_jax.weights import pickles

Path = tuple[str, ...]

SUFFIXES = ('.pth', '.pt', '.tar', '.safetensors', '.npz')

_VIDEO, _AUDIO = 'video_network.base.', 'audio_network.base.'
_POOLING = 'video_pooling.2.transformer.'    # STiCA's
# Counters of norms, and a classifier of 1000 classes that no one trains.
_UNUSED = re.compile(r'.*\.num_batches_tracked|audio_network\.base\.fc\..*')

# The name table: our name -> the release's name, as regular expressions that are
# applied in order.
_NAMES = (
    (r'^backbones_video/stem/space/', f'{_VIDEO}stem.0/'),
    (r'^backbones_video/stem/norm/', f'{_VIDEO}stem.1/'),
    (r'^backbones_video/stem/time/', f'{_VIDEO}stem.3/'),
    (r'^backbones_video/norm/', f'{_VIDEO}stem.4/'),
    (r'^(backbones_video/.*)/conv_(\d)/space/', r'\1.conv\2.0.0/'),
    (r'^(backbones_video/.*)/conv_(\d)/norm/', r'\1.conv\2.0.1/'),
    (r'^(backbones_video/.*)/conv_(\d)/time/', r'\1.conv\2.0.3/'),
    (r'^(backbones_video/.*)/norm_(\d)/', r'\1.conv\2.1/'),
    (r'^backbones_audio/stem/', f'{_AUDIO}conv1/'),
    (r'^backbones_audio/norm/', f'{_AUDIO}bn1/'),
    (r'^(backbones_audio/.*)/conv_(\d)/', r'\1.conv\2/'),
    (r'^(backbones_audio/.*)/norm_(\d)/', r'\1.bn\2/'),
    (r'/shortcut/', '.downsample.0/'), (r'/shortcut_norm/', '.downsample.1/'),
    (r'^backbones_video/', _VIDEO), (r'^backbones_audio/', _AUDIO),
    (r'^head/(v|a)\w+/hidden/', r'mlp_\1.block_forward.2/'),
    (r'^head/(v|a)\w+/norm/', r'mlp_\1.block_forward.4/'),
    (r'^head/(v|a)\w+/out/', r'mlp_\1.block_forward.8/'),
    (r'^poolings_video/block_(\d+)/', rf'{_POOLING}\1.'),
    (r'\.attention/(q|k)\w+/', r'.mha.\1_lin/'), (r'\.norm_(\d)/', r'.norm\1/'),
    (r'\.mlp_(\d)/', r'.ffn.lin\1/'), (r'/(kernel|scale)$', '.weight'),
    (r'/bias$', '.bias'), (r'/mean$', '.running_mean'), (r'/var$', '.running_var'))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a released checkpoint, and infers its model from names and shapes.

  Args:
    path: a file with an ending of `SUFFIXES`. Nothing in it is run.

  Returns:
    The settings of `models.from_config`, and the variables as NumPy arrays.

  Raises:
    UserError: the file is no checkpoint of GDT or STiCA, or its variables are not those
      of the model; all that are missing, unknown or of another shape are listed.
  """
  arrays = {name.removeprefix('module.'): x for name, x in _arrays(path).items()}
  settings = find_settings({name: x.shape for name, x in arrays.items()}, path)
  logging.info('%s: the owners license these weights as CC BY-NC 4.0, for use that is '
               'not commercial', path)
  example = dict(video=np.zeros((1, 2, 32, 32, 3), np.float32),
                 audio=np.zeros((1, 24_000), np.float32))
  shapes = jax.eval_shape(models.from_config(settings).init, jax.random.key(0), example)
  return settings, convert(arrays, shapes, path)


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name."""
  suffix = pathlib.Path(path).suffix
  try:
    if suffix == '.safetensors':
      return safetensors.numpy.load_file(path)
    if suffix == '.npz':
      with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror or e})') from e
  except (safetensors.SafetensorError, zipfile.BadZipFile, EOFError, TypeError,
          ValueError) as e:
    raise UserError(f'{path}: is damaged, or no file of arrays ({e})') from e
  return pickles.read_torch(path)


def find_settings(shapes: Mapping[str, tuple[int, ...]], where: str | os.PathLike[str]
                  ) -> dict[str, Any]:
  """Infers the settings of a checkpoint's model.

  Args:
    shapes: the release's names -> shapes.
    where: name of the checkpoint, for messages.

  Raises:
    UserError: the checkpoint is not one of the release.
  """
  width = lambda name: shapes[name][0]
  deep = f'{_VIDEO}layer1.2.conv1.0.0.weight', f'{_AUDIO}layer1.1.conv1.weight'
  block = f'{_VIDEO}layer2.0.conv{{}}.0.0.weight'
  layers = {name.removeprefix(_POOLING).split('.')[0] for name in shapes
            if name.startswith(_POOLING)}
  pooling = dict(name='transformer', variant='release', depth=len(layers))
  try:
    return dict(
        name='mmv',
        video=dict(name='r2plus1d_34' if deep[0] in shapes else 'r2plus1d_18',
                   width=width(f'{_VIDEO}stem.3.weight') / 64,
                   torchvision=width(block.format(1)) == width(block.format(2)),
                   mean=0.45, std=0.225, **dict(pooling=pooling) if layers else {}),
        audio=dict(name='resnet18' if deep[1] in shapes else 'resnet9',
                   width=width(f'{_AUDIO}conv1.weight') / 64,
                   spectrogram=dict(
                       name='stica' if layers else 'gdt', variant='release')),
        head=dict(name='projection', hidden_dim=width('mlp_v.block_forward.2.weight'),
                  dim=width('mlp_v.block_forward.8.weight')))
  except (KeyError, IndexError) as e:
    raise UserError(f'{where}: no checkpoint of GDT or STiCA, because it lacks {e}'
                    ) from e


def convert(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any],
            where: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns variables with the values of a checkpoint.

  Args:
    arrays: the release's names -> arrays.
    variables: of the model, or their shapes.
    where: name of the checkpoint, for messages.

  Raises:
    UserError: names or shapes differ; all are listed.
  """
  return name_tables.fill(arrays, variables, names, _ours, _UNUSED, where)


def names(paths: Iterable[Path]) -> dict[Path, str]:
  """Returns the release's name of each of our variables.

  Args:
    paths: of the variables of a model: ('params', 'head', ...) and so on.
  """
  release_names = {}
  for path in paths:
    name = re.sub(r'/stage_(\d)_block_(\d)', lambda place:
                  f'/layer{int(place[1]) + 1}.{place[2]}', '/'.join(path[1:]))
    for pattern, replacement in _NAMES:
      name = re.sub(pattern, replacement, name)
    release_names[path] = name
  return release_names


def _ours(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns an array with the axes in our order; None if it does not fit.

  Kernels [features, C, (T,) sides...] and matrices get their channels last. The sides
  of an audio kernel are frequency and time, which are exchanged.
  """
  value = value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value.T
  # The axes of the attention's heads are one axis in the release.
  if '.mha.' in name and value.size == math.prod(shape):
    value = value.reshape(shape)
  return value if value.dtype == np.float32 and value.shape == shape else None


def main(path: str) -> None:
  settings, variables = read(path)
  folder = pathlib.Path(flags.FLAGS.out)
  checkpoint.save_model(folder, settings, variables)
  print(f'Wrote {folder}')


if __name__ == '__main__':
  flags.DEFINE_string('out', None, 'Output folder.', required=True)
  cli.run(main, 'CHECKPOINT')
