"""Converts checkpoints of the released TensorFlow 2 code, in both directions.

    python -m vatt_jax import_vatt CHECKPOINT --out=DIR

DIR gets the model's settings, an Orbax checkpoint, and the weights as
`model.safetensors`. `--config.init_from=DIR` and `checkpoint.load_model` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import re
import types
from typing import Any

from absl import flags
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.inputs import text
from vatt_jax.models import multimodal
from vatt_jax.models import vatt

Shapes = Mapping[str, tuple[int, ...]]
# Width of an attention head, for all towers or by tower; None to infer it.
HeadDim = int | Mapping[str, int] | None
Path = tuple[str, ...]
Rules = tuple[tuple[str, str], ...]

_ROOT = 'model/layer_with_weights-0/'
_SUFFIX = '/.ATTRIBUTES/VARIABLE_VALUE'

# The name table: our name -> the release's name, as regular expressions that are
# applied in order. The three layouts map modules; `_PARTS` maps variables in them.
_VIDEO = '_base_layer/vid_backbone/_base/'
_AUDIO = '_base_layer/aud_backbone/_base/'
_TEXT = '_base_layer/txt_backbone/'
_HEAD = '_head_layer/_bridge_heads/0/'
_SPECIFIC: Rules = (
    (r'^tokenizers_video/projection/', f'{_VIDEO}voxel_to_patch/'),
    (r'^tokenizers_audio/projection/', f'{_AUDIO}wave_to_patch/'),
    (r'^tokenizers_text/embedding$', f'{_TEXT}embedding/embeddings'),
    (r'^tokenizers_video/', f'{_VIDEO}pos_embedding_lookup/'),
    (r'^tokenizers_audio/', f'{_AUDIO}pos_embedding_lookup/'),
    (r'^aggregators_video/agg$', f'{_VIDEO}agg_embedding'),
    (r'^aggregators_audio/agg$', f'{_AUDIO}agg_embedding'),
    (r'^aggregators_text/agg$', f'{_TEXT}agg_embedding'),
    (r'^backbones_text/projection/', f'{_TEXT}pre_proj/'),
    (r'^backbones_video/', f'{_VIDEO}tx/'),
    (r'^backbones_audio/', f'{_AUDIO}tx/'),
    (r'^backbones_text/', f'{_TEXT}base_lm/'),
    (r'^head/', _HEAD))
_ALL = '_base_layer/unified_backbone/unified_transformer/'
_UNIFIED: Rules = (
    (r'^tokenizers_text/embedding$', f'{_ALL}raw_to_embeddings/text/embeddings'),
    (r'^tokenizers_(\w+)/projection/', rf'{_ALL}raw_to_embeddings/\1/'),
    (r'^tokenizers_(\w+)/pre_projection/projection/', rf'{_ALL}pre_proj/\1/'),
    (r'^tokenizers_(\w+)/', rf'{_ALL}pos_embedding_lookup/\1/'),
    (r'^aggregators_video/agg$', f'{_ALL}vid_agg_embedding'),
    (r'^aggregators_audio/agg$', f'{_ALL}aud_agg_embedding'),
    (r'^aggregators_text/agg$', f'{_ALL}txt_agg_embedding'),
    (r'^backbones_shared/', f'{_ALL}tx/'),
    (r'^projectors_(\w+)/projection/', rf'{_ALL}post_proj/\1/'),
    (r'^head/', _HEAD))
_TUNED: Rules = (
    (r'^tokenizers_video/projection/', '_base/voxel_to_patch/'),
    (r'^tokenizers_audio/projection/', '_base/wave_to_patch/'),
    (r'^tokenizers_\w+/pre_projection/projection/', '_base/pre_proj/'),
    (r'^tokenizers_\w+/', '_base/pos_embedding_lookup/'),
    (r'^aggregators_\w+/agg$', '_base/agg_embedding'),
    (r'^backbones_\w+/', '_base/tx/'),
    (r'^projectors_\w+/projection/', '_base/post_proj/'),
    (r'^head/logits/', '_ops/cls/'))
_PARTS: Rules = (
    # text tower
    (r'base_lm/block_(\d+)/attention/(\w)\w+/',
     r'base_lm/layers/\1/self_attention/attention/\2/'),
    (r'base_lm/block_(\d+)/norm_1/scale$',
     r'base_lm/layers/\1/self_attention/layer_norm/weight'),
    (r'base_lm/norm/scale$', 'base_lm/final_layer_norm/weight'),
    (r'base_lm/relative_bias/table$',
     'base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings'),
    # every tower
    (r'/block_(\d+)/attention/(\w)\w+/', r'/layers/\1/mha/\2/'),
    (r'/block_(\d+)/norm_1/', r'/layers/\1/layer_norm/'),
    (r'/block_(\d+)/norm_2/', r'/layers/\1/feed_forward/layer_norm/'),
    (r'/block_(\d+)/mlp_1/', r'/layers/\1/feed_forward/mlp/wi/'),
    (r'/block_(\d+)/mlp_2/', r'/layers/\1/feed_forward/mlp/wo/'),
    (r'/tx/norm/', '/tx/final_layer_norm/'),
    # positions
    (r'/(?:time_)?positions$', '/temporal_position_embeddings/embeddings'),
    (r'/(vertical|horizontal)_positions$', r'/\1_position_embeddings/embeddings'),
    (r'/position_norm/', '/layernorm/'),
    # head
    (r'/video_hidden_norm/', '/hid_to_va/pre_bn/'),
    (r'/video_hidden/', '/vid_to_hid/'),
    (r'/video_to_video_audio_norm/', '/hid_to_va/bn/'),
    (r'/video_to_video_audio/', '/hid_to_va/dense/'),
    (r'/video_audio_to_video_text_norm/', '/va_to_vat/bn/'),
    (r'/video_audio_to_video_text/', '/va_to_vat/dense/'),
    (r'/audio_to_video_audio/', '/aud_to_va/'),
    (r'/text_to_video_text/', '/txt_to_vat/'),
    (r'/mean$', '/moving_mean'),
    (r'/var$', '/moving_variance'),
    # norms
    (r'/scale$', '/gamma'),
    (r'(norm|bn)/bias$', r'\1/beta'))


def load(prefix: str | os.PathLike[str], head_dim: HeadDim = None
         ) -> tuple[vatt.Vatt, dict[str, Any]]:
  """Loads a released checkpoint: pre-trained, or fine-tuned on video or audio.

  Infers the architecture from names and shapes. They do not determine the number of
  attention heads.

  Args:
    prefix: prefix of the checkpoint's files, or a folder for its newest checkpoint.
    head_dim: width of an attention head, for all towers or by tower (`video`, `audio`,
      `text`, or `shared` for the Transformer of all modalities). The default is the
      width in the text tower, from its table of relative biases. Without that table it
      is 64, as in every published checkpoint, or 8 if 64 does not divide the width.

  Returns:
    The model, and its variables as NumPy arrays: `model.apply(variables, batch)`.

  Raises:
    UserError: the prefix is no checkpoint, or not one of the release; or variables are
      missing or unknown, and both are listed.
  """
  settings, variables = read(prefix, head_dim)
  return vatt.Vatt.from_config(**settings), variables


def read(prefix: str | os.PathLike[str], head_dim: HeadDim = None
         ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a checkpoint as `load` does, but returns settings in place of the model.

  The settings are the arguments of `models.vatt.Vatt.from_config`.
  """
  reader, prefix = _open(prefix)
  shapes = {short_name(key): tuple(shape)
            for key, shape in reader.get_variable_to_shape_map().items()
            if key.startswith(_ROOT) and '/.OPTIMIZER_SLOT/' not in key}
  settings, variables = _match(shapes, head_dim, prefix)
  keys = names(variables)
  return settings, traverse_util.unflatten_dict({
      path: reader.get_tensor(full_name(keys[path])).reshape(like.shape)
      for path, like in variables.items()})


def _match(shapes: Shapes, head_dim: HeadDim, where: str
           ) -> tuple[dict[str, Any], dict[Path, Any]]:
  """Returns settings and flat variables (shapes) of the model with these names."""
  settings, example = find_settings(shapes, head_dim, where)
  variables = traverse_util.flatten_dict(jax.eval_shape(
      vatt.Vatt.from_config(**settings).init, jax.random.key(0), example))
  keys = names(variables)
  missing = sorted(set(keys.values()) - shapes.keys())
  unknown = sorted(shapes.keys() - set(keys.values()))
  if missing or unknown:
    raise UserError(
        f'{where}: does not fit the model inferred from its names and shapes. The '
        f'model needs and the checkpoint lacks: {", ".join(missing) or "nothing"}. '
        f'The checkpoint has and the model lacks: {", ".join(unknown) or "nothing"}')
  for path, like in variables.items():
    expected = release_shape(path, like.shape)
    if shapes[keys[path]] != expected:
      raise UserError(f'{where}: {keys[path]} has shape {shapes[keys[path]]}; '
                      f'expected {expected}')
  return settings, variables


def _tensorflow(prefix: str | os.PathLike[str]) -> types.ModuleType:
  """Imports TensorFlow, which takes seconds.

  Raises:
    UserError: it is not installed.
  """
  try:
    from vatt_jax.inputs.host_tensorflow import tf
  except ImportError as e:
    raise UserError(f'{prefix}: checkpoints of the released code need the package '
                    'tensorflow, which is not installed') from e
  return tf


def _open(prefix: str | os.PathLike[str]) -> tuple[Any, str]:
  """Opens a checkpoint; returns a reader and the prefix of the files."""
  path, tf = os.fspath(prefix), _tensorflow(prefix)
  try:
    if os.path.isdir(path):
      path = tf.train.latest_checkpoint(path) or path
    return tf.train.load_checkpoint(path), path
  except (ValueError, tf.errors.OpError) as e:
    raise UserError(f'{prefix}: not a TensorFlow 2 checkpoint; expected the prefix of '
                    'an .index and a .data file, or a folder of them') from e


def find_settings(shapes: Shapes, head_dim: HeadDim = None,
                  where: str = 'checkpoint') -> tuple[dict[str, Any], dict[str, Any]]:
  """Infers the model of a checkpoint.

  Args:
    shapes: the release's names (`short_name`) -> shapes.
    head_dim: as for `load`.
    where: name of the checkpoint, for messages.

  Returns:
    The settings of `models.vatt.Vatt.from_config`, and a batch whose sizes match the
    position embeddings.

  Raises:
    UserError: the checkpoint is not one of the release.
  """
  try:
    if f'{_ALL}vid_agg_embedding' in shapes:
      return _find_unified(shapes, head_dim)
    if f'{_VIDEO}agg_embedding' in shapes:
      return _find_specific(shapes, head_dim)
    if '_base/agg_embedding' in shapes:
      return _find_tuned(shapes, head_dim)
  except KeyError as e:
    raise UserError(f'{where}: is a checkpoint of the released VATT but lacks '
                    f'{e.args[0]}') from e
  raise UserError(f'{where}: not a checkpoint of the released VATT; expected one of '
                  f'{_VIDEO}agg_embedding, {_ALL}vid_agg_embedding and '
                  '_base/agg_embedding')


def _find_unified(shapes, head_dim):
  raw, places = f'{_ALL}raw_to_embeddings/', f'{_ALL}pos_embedding_lookup/'
  video, frames = _find_video(shapes, f'{raw}video/kernel', f'{places}video/')
  audio, samples = _find_audio(shapes, f'{raw}audio/kernel', f'{places}audio/')
  max_tokens = _rows(shapes, f'{places}text/', 'temporal')
  shared = _find_size(shapes, f'{_ALL}tx/', _of_tower(head_dim, 'shared', ('shared',)))
  shared['projected_width'] = shapes[f'{_ALL}post_proj/video/kernel'][1]
  text = dict(_find_table(shapes, f'{raw}text/embeddings'), max_tokens=max_tokens)
  return (dict(variant='release', video=video, audio=audio, text=text, shared=shared,
               head=_find_head(shapes)),
          dict(video=frames, audio=samples,
               text=jnp.zeros((1, 1, max_tokens), jnp.int32)))


def _find_specific(shapes, head_dim):
  video, frames = _find_video(shapes, f'{_VIDEO}voxel_to_patch/kernel',
                              f'{_VIDEO}pos_embedding_lookup/')
  audio, samples = _find_audio(shapes, f'{_AUDIO}wave_to_patch/kernel',
                               f'{_AUDIO}pos_embedding_lookup/')
  text = _find_table(shapes, f'{_TEXT}embedding/embeddings')
  attention = f'{_TEXT}base_lm/layers/0/self_attention/attention/'
  num_heads = shapes[f'{attention}relative_attention_bias/embeddings'][1]
  default_dim = shapes[f'{attention}q/kernel'][1] // num_heads
  video_dim, audio_dim, text_dim = (
      _of_tower(head_dim, tower, multimodal.MODALITIES) or default_dim
      for tower in multimodal.MODALITIES)
  return (dict(variant='release',
               video=video | _find_size(shapes, f'{_VIDEO}tx/', video_dim),
               audio=audio | _find_size(shapes, f'{_AUDIO}tx/', audio_dim),
               text=text | _find_size(shapes, f'{_TEXT}base_lm/', text_dim,
                                      'self_attention/attention'),
               head=_find_head(shapes)),
          dict(video=frames, audio=samples, text=jnp.zeros((1, 1, 1), jnp.int32)))


def _find_tuned(shapes, head_dim):
  places = '_base/pos_embedding_lookup/'
  if '_base/voxel_to_patch/kernel' in shapes:
    modality = 'video'
    settings, example = _find_video(shapes, '_base/voxel_to_patch/kernel', places)
  else:
    modality = 'audio'
    settings, example = _find_audio(shapes, '_base/wave_to_patch/kernel', places)
  head = dict(name='classifier', num_classes=shapes['_ops/cls/kernel'][1])
  agnostic = '_base/post_proj/kernel' in shapes
  tower = 'shared' if agnostic else modality
  size = _find_size(shapes, '_base/tx/', _of_tower(head_dim, tower, (tower,)))
  if agnostic:
    size['projected_width'] = shapes['_base/post_proj/kernel'][1]
    towers = {modality: settings, 'shared': size}
  else:
    towers = {modality: settings | size}
  return dict(towers, variant='release', head=head), {modality: example}


def _find_video(shapes, kernel, places):
  """Infers the settings of the tokenizer, and an example."""
  *patch, channels, _ = shapes[kernel]
  rows = (_rows(shapes, places, s) for s in ('temporal', 'vertical', 'horizontal'))
  sides = [n * p for n, p in zip(rows, patch, strict=True)]
  return dict(patch=tuple(patch)), jnp.zeros((1, *sides, channels))


def _find_audio(shapes, kernel, places):
  """Infers the settings of the tokenizer, and an example."""
  patch = shapes[kernel][0]
  return dict(patch=(patch,)), jnp.zeros((1, patch * _rows(shapes, places, 'temporal')))


def _find_table(shapes, table):
  vocabulary_size, table_width = shapes[table]
  return dict(vocabulary_size=vocabulary_size, table_width=table_width)


def _rows(shapes, places, side):
  return shapes[f'{places}{side}_position_embeddings/embeddings'][0]


def _of_tower(head_dim: HeadDim, tower: str, towers: Sequence[str]) -> int | None:
  """Returns the width of a tower's heads; checks the names of towers."""
  if not isinstance(head_dim, Mapping):
    return head_dim
  for name in head_dim:
    if name not in towers:
      raise UserError(f'head_dim of {name!r}: the checkpoint has no such tower; '
                      f'expected {", ".join(towers)}')
  return head_dim.get(tower)


def parse_head_dim(value: str) -> HeadDim:
  """Parses a flag: `64` for all towers, or `video=10,text=16`; empty for None.

  Raises:
    UserError: the value has neither form.
  """
  if not value:
    return None
  if value.isdecimal() and int(value):
    return int(value)
  pairs = [pair.partition('=') for pair in value.split(',')]
  if not all(dim.isdecimal() and int(dim) for _, _, dim in pairs):
    raise UserError(f'--head_dim={value}: expected a number such as 64, or one '
                    'for each tower, such as video=64,text=32')
  return {tower: int(dim) for tower, _, dim in pairs}


def _find_size(shapes, tower, head_dim, attention='mha'):
  """Infers the size of the Transformer with the prefix `tower`."""
  layers = {key[len(tower):].split('/')[1] for key in shapes
            if key.startswith(f'{tower}layers/')}
  width = shapes[f'{tower}layers/0/{attention}/q/kernel'][0]
  head_dim = head_dim or (8 if width % 64 else 64)
  if width % head_dim:
    raise UserError(f'head_dim={head_dim}: expected a divisor of the width {width} of '
                    f'{tower}')
  return dict(depth=len(layers), width=width, num_heads=width // head_dim,
              mlp_dim=shapes[f'{tower}layers/0/feed_forward/mlp/wi/kernel'][1])


def _find_head(shapes):
  return dict(video_audio_dim=shapes[f'{_HEAD}aud_to_va/kernel'][1],
              video_text_dim=shapes[f'{_HEAD}txt_to_vat/kernel'][1])


def short_name(key: str) -> str:
  """Strips a checkpoint's key to the variable's name, such as `_base/...`."""
  return key.removeprefix(_ROOT).removesuffix(_SUFFIX)


def full_name(name: str) -> str:
  """Returns the checkpoint's key of a `short_name`."""
  return f'{_ROOT}{name}{_SUFFIX}'


def names(paths: Mapping[Path, Any]) -> dict[Path, str]:
  """Returns the release's name (`short_name`) of each of our variables.

  Args:
    paths: the flattened variables of a model with `variant='release'`:
      ('params', 'head', ...) and so on.
  """
  modules = {path[1] for path in paths}
  layout = (_TUNED if any(path[1:3] == ('head', 'logits') for path in paths) else
            _UNIFIED if 'backbones_shared' in modules else _SPECIFIC)
  release_names = {}
  for path in paths:
    name = '/'.join(path[1:])
    for pattern, replacement in layout + _PARTS:
      name = re.sub(pattern, replacement, name)
    release_names[path] = name
  return release_names


def release_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the release's shape of one of our variables: heads are joined."""
  if 'attention' not in path:
    return tuple(shape)
  name, leaf = path[-2:]
  join = lambda sides: int(np.prod(sides))
  if leaf == 'bias':
    return (join(shape),)
  return ((join(shape[:-1]), shape[-1]) if name == 'out' else
          (shape[0], join(shape[1:])))


def export(variables: Mapping[str, Any], prefix: str | os.PathLike[str]) -> None:
  """Writes a checkpoint with the keys of the released code.

  Args:
    variables: variables of a model with `variant='release'`.
    prefix: prefix of the files to write, such as `.../ckpt-500000`.

  Raises:
    UserError: the release has no such model.
  """
  flat = traverse_util.flatten_dict(variables)
  shapes = {name: release_shape(path, flat[path].shape)
            for path, name in names(flat).items()}
  _match(shapes, _head_dims(flat), 'the model to export')
  write({name: np.asarray(flat[path]).reshape(shapes[name])
         for path, name in names(flat).items()}, prefix)


def _head_dims(variables: Mapping[Path, Any]) -> dict[str, int]:
  """Returns tower -> width of an attention head, from our flattened variables."""
  return {path[1].removeprefix('backbones_'): value.shape[-1]
          for path, value in variables.items() if path[-2:] == ('query', 'kernel')}


def write(values: Mapping[str, np.ndarray], prefix: str | os.PathLike[str]) -> None:
  """Writes a checkpoint of arrays, given by the release's names (`short_name`)."""
  tf = _tensorflow(prefix)
  root = tf.train.Checkpoint()
  for name, value in values.items():
    *parts, leaf = f'{_ROOT}{name}'.split('/')
    node = root
    for part in parts:
      if not hasattr(node, part):
        setattr(node, part, tf.Module())
      node = getattr(node, part)
    setattr(node, leaf, tf.Variable(value))
  root.write(os.fspath(prefix))
  # TensorFlow finds the newest checkpoint of a folder by this file.
  path = pathlib.Path(prefix)
  (path.parent / 'checkpoint').write_text(
      f'model_checkpoint_path: {json.dumps(path.name)}\n', encoding='utf-8')


def main(prefix: str) -> None:
  settings, variables = read(prefix, parse_head_dim(flags.FLAGS.head_dim))
  folder, vocabulary = pathlib.Path(flags.FLAGS.out), flags.FLAGS.vocabulary
  if vocabulary:
    tokenizer = text.load('words', vocabulary, settings['text']['vocabulary_size'])
  checkpoint.save_model(folder, settings, variables)
  if vocabulary:
    tokenizer.save(folder / tokenizer.file_name)
  print(f'Wrote {folder}')


if __name__ == '__main__':
  flags.DEFINE_string('out', None, 'Output folder.', required=True)
  flags.DEFINE_string('vocabulary', None,
                      "The release's vocabulary file, to copy to --out.")
  flags.DEFINE_string(
      'head_dim', '', 'Width of an attention head if it cannot be inferred and is not '
      '64: a number, or one for each tower, such as video=10,text=16.')
  cli.run(main, 'CHECKPOINT')
