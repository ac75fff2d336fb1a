"""Converts the released checkpoints of MMV (arXiv 2006.16228).

    python -m vatt_jax import_mmv mmv_s3d.pkl --out=DIR

DIR gets the model's settings, an Orbax checkpoint, and the weights as
`model.safetensors`. `--config.init_from=DIR` and `vatt_jax.weights.load` read it, and
they read the released file too.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any

from absl import flags
from absl import logging
import jax
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.weights import name_tables
from vatt_jax.weights import pickles

Path = tuple[str, ...]

_ROOT = 'text_audio_video/'
_TSM = 'visual_module/~/TSMResNetV2/'
_S3D = 'visual_module/~/S3D/'
_AUDIO = 'audio_module/~/res_net_v2/'
_HEADS = '~_get_pair_embedding_heads/'
_NORM = '__cross_replica_batch_norm'
# Heads that the release does not train, and leaves of moving averages beside `average`.
_UNUSED = re.compile(r'.*/(audio2txt_embd/.*|txt2audio_embd/.*|hidden|counter)')

# The name table: our name -> the release's name, as regular expressions that are
# applied in order.
_RESNETS = (
    (r'^backbones_video/resnet/stem/', f'{_TSM}tsm_resnet_stem/'),
    (r'^backbones_video/resnet/unit_(\d)_', rf'{_TSM}tsm_resnet_unit_\1/'),
    (r'^backbones_audio/resnet/stem/', f'{_AUDIO}~/initial_conv/'),
    (r'^backbones_audio/resnet/unit_(\d)_(block_\d)/(?=norm)',
     rf'{_AUDIO}~/block_group_\1/\2/'),
    (r'^backbones_audio/resnet/unit_(\d)_(block_\d)/',
     rf'{_AUDIO}~/block_group_\1/\2/~/'),
    (r'^(?=.*ResNetV2|.*res_net)(.*)/conv_1/', r'\1/conv_0/'),
    (r'^(?=.*ResNetV2|.*res_net)(.*)/conv_2/', r'\1/conv_1/'),
    (r'/conv_3/', '/conv_2/'), (r'/shortcut/', '/shortcut_conv/'),
    (r'^backbones_video/norm/', f'{_TSM}{_NORM}/'),
    (r'^backbones_audio/norm/', f'{_AUDIO}{_NORM}/'))
_S3D_G = (
    (r'^backbones_video/conv_1a/', f'{_S3D}Conv2d_1a_7x7/conv_1/'),
    (r'^backbones_video/norm_1a/', f'{_S3D}Conv2d_1a_7x7/norm_1/'),
    (r'^backbones_video/conv_2b/', f'{_S3D}Conv2d_2b_1x1/'),
    (r'^backbones_video/conv_2c/', f'{_S3D}Conv2d_2c_3x3/'),
    (r'^backbones_video/mixed_(\w+)/branch_', rf'{_S3D}Mixed_\1/Branch_'),
    (r'/(Branch_0|Branch_\d(?=_reduced))\w*/', r'/\1_Conv2d_0a_1x1/'),
    (r'/(Branch_[12])/', r'/\1_Conv2d_0b_3x3/'),
    (r'/Branch_3/', '/Branch_3_Conv2d_0b_1x1/'),
    (r'(/S3D/.*)/conv_1/', r'\1/~/conv3_d/'),
    (r'(/S3D/.*)/conv_2/', r'\1/~/conv3_d_1/'),
    (r'/gate/', '/self_gating/'))
_TEXT = (
    (r'^backbones_text/embedding$', 'text_module/~/embed/embeddings'),
    (r'^backbones_text/projection/', 'text_module/~/text_conv1/'))
_OUT, _HIDDEN = 'final_projection/', 'final_projection_inner/'
_HEAD = (    # {mlp} is the first of video's heads
    (r'^head/video_hidden/', f'{_HEADS}{{mlp}}/{_HIDDEN}'),
    (r'^head/video_hidden_norm/', f'{_HEADS}{{mlp}}/{_NORM}/'),
    (r'^head/video_to_video_audio/', f'{_HEADS}{{mlp}}/{_OUT}'),
    (r'^head/video_to_video_audio_norm/', f'{_HEADS}{{mlp}}/{_NORM}_1/'),
    (r'^head/video_text_hidden/', f'{_HEADS}vis_embd/{_HIDDEN}'),
    (r'^head/video_text_hidden_norm/', f'{_HEADS}vis_embd/{_NORM}/'),
    (r'^head/video_to_video_text/', f'{_HEADS}vis_embd/{_OUT}'),
    (r'^head/video_to_video_text_norm/', f'{_HEADS}vis_embd/{_NORM}_1/'),
    (r'^head/video_audio_to_video_text/', f'{_HEADS}vis_embd/{_OUT}'),
    (r'^head/video_audio_to_video_text_norm/', f'{_HEADS}vis_embd/{_NORM}/'),
    (r'^head/video_audio_norm/', f'~_activate_interaction/{_NORM}/'),
    (r'^head/audio_to_video_audio/', f'{_HEADS}audio_embd/{_OUT}'),
    (r'^head/text_to_video_text/', f'{_HEADS}txt_embd/{_OUT}'))
_LEAVES = (
    (r'/norm_1/', f'/{_NORM}/'), (r'/norm_2/', f'/{_NORM}_1/'),
    (r'/norm_3/', f'/{_NORM}_2/'), (rf'({_NORM}\w*)/bias$', r'\1/offset'),
    (r'/kernel$', '/w'), (r'/bias$', '/b'), (r'/mean$', '/~/mean_ema/average'),
    (r'/var$', '/~/var_ema/average'))


def read(path: str | os.PathLike[str], graph: str = 'fac_relu'
         ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a released checkpoint, and infers its model from names and shapes.

  Args:
    path: a pickle. Nothing in it is run (`pickles.read`).
    graph: the graph, where shapes do not tell: 'fac_relu' or 'fac'.

  Returns:
    The settings of `models.from_config`, and the variables as NumPy arrays.

  Raises:
    UserError: the file is no checkpoint of MMV, or its variables are not those of the
      model; all that are missing, unknown or of another shape are listed.
  """
  arrays = pickles.read(path)
  settings = find_settings({name: x.shape for name, x in arrays.items()}, path, graph)
  logging.info('%s: the owners license these weights as CC BY-NC 4.0, for use that is '
               'not commercial', path)
  return settings, to_variables(arrays, settings, path)


def find_settings(shapes: Mapping[str, tuple[int, ...]], where: str | os.PathLike[str],
                  graph: str = 'fac_relu') -> dict[str, Any]:
  """Infers the settings of a checkpoint's model.

  Args:
    shapes: the release's names -> shapes.
    where: name of the checkpoint, for messages.
    graph: see `read`.

  Raises:
    UserError: the checkpoint is not one of the release.
  """
  shapes = {name: shape for name, shape in shapes.items() if shape}    # no scalars
  has = lambda name: f'params/{_ROOT}{name}' in shapes
  width = lambda name: shapes[f'params/{_ROOT}{name}'][-1]
  is_tsm, mlp = has(f'{_TSM}tsm_resnet_stem/w'), f'{_HEADS}vid2audio_embd/'
  stem = f'{_TSM}tsm_resnet_stem/w' if is_tsm else f'{_S3D}Conv2d_1a_7x7/~/conv3_d/w'
  table = 'text_module/~/embed/embeddings'
  if not has(f'{mlp}{_OUT}w'):
    graph, mlp = 'shared', f'{_HEADS}vis_embd/'
  elif has(f'{_HEADS}vis_embd/{_HIDDEN}w'):
    graph = 'disjoint'
  elif has(f'~_activate_interaction/{_NORM}/scale'):
    graph = 'fac_bnrelu'
  try:
    return dict(
        name='mmv',
        video=dict(name='tsm_resnet50' if is_tsm else 's3d_g', width=width(stem) / 64),
        audio=dict(name='resnet50', width=width(f'{_AUDIO}~/initial_conv/w') / 64,
                   spectrogram=dict(name='mmv', pad_end=True)),
        text=dict(name='word_bag', vocabulary_size=shapes[f'params/{_ROOT}{table}'][0],
                  table_width=width(table), width=width('text_module/~/text_conv1/w')),
        head=dict(name='mmv', graph=graph, hidden_dim=width(f'{mlp}{_HIDDEN}w'),
                  video_audio_dim=width(f'{_HEADS}audio_embd/{_OUT}w'),
                  video_text_dim=width(f'{_HEADS}txt_embd/{_OUT}w')))
  except KeyError as e:
    raise UserError(f'{where}: no checkpoint of MMV, because it lacks {e}') from e


def to_variables(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any],
                 where: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the variables of the model of `find_settings`; see `convert`."""
  example = dict(video=np.zeros((1, 2, 32, 32, 3), np.float32),
                 audio=np.zeros((1, 2 ** 15), np.float32),
                 text=np.zeros((1, 1, 1), np.int32))
  shapes = jax.eval_shape(models.from_config(settings).init, jax.random.key(0), example)
  return convert(arrays, shapes, where)


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


def names(paths: Mapping[Path, Any]) -> dict[Path, str]:
  """Returns the release's name of each of our variables.

  Args:
    paths: the flattened variables of a model: ('params', 'head', ...) and so on.
  """
  has_two = any(path[1] == 'head' and path[2].startswith(
      ('video_audio_to_video_text', 'video_text_hidden')) for path in paths)
  mlp = 'vid2audio_embd' if has_two else 'vis_embd'
  release_names = {}
  for path in paths:
    name = '/'.join(path[1:])
    for pattern, replacement in (*_RESNETS, *_S3D_G, *_TEXT, *_HEAD, *_LEAVES):
      name = re.sub(pattern, replacement.replace('{mlp}', mlp), name)
    collection = 'state' if path[0] == 'batch_stats' else 'params'
    release_names[path] = f'{collection}/{_ROOT}{name}'
  return release_names


def _blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the release's shape of one of our kernels: S3D-G's stem acts on blocks."""
  if shape[:3] != (4, 8, 8):
    return shape
  return (2, 4, 4, 8 * shape[3], shape[4])


def _ours(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns an array in our shape; None if it does not fit.

  It may have any number of axes of 1 in front.
  """
  del name
  sides = _blocks(shape)
  if value.dtype != np.float32 or value.shape[-len(sides):] != sides or (
      value.size != np.prod(sides)):
    return None
  if sides != shape:
    t, h, w, c, features = value.shape
    value = value.reshape(t, h, w, 2, 2, 2, c // 8, features)
    value = value.transpose(0, 3, 1, 4, 2, 5, 6, 7)
  return value.reshape(shape)


def main(path: str) -> None:
  settings, variables = read(path, flags.FLAGS.graph)
  folder = pathlib.Path(flags.FLAGS.out)
  checkpoint.save_model(folder, settings, variables)
  print(f'Wrote {folder}')


if __name__ == '__main__':
  flags.DEFINE_string('out', None, 'Output folder.', required=True)
  flags.DEFINE_enum('graph', 'fac_relu', ('fac_relu', 'fac'),
                    "The graph, if it has neither batch norm nor a second head: the "
                    "released models', or the paper's.")
  cli.run(main, 'CHECKPOINT')
