"""Loads the weights of a checkpoint into a model."""

from __future__ import annotations

from collections.abc import Mapping
import glob
import os
import pathlib
from typing import Any

from absl import logging
from flax import traverse_util
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.weights import gdt
from vatt_jax.weights import mmv
from vatt_jax.weights import vatt_tf2

# The ending of a released checkpoint's name -> its reader; VATT's names have none.
_RELEASES = {'.pkl': mmv, **dict.fromkeys(gdt.SUFFIXES, gdt)}


def load(path: str | os.PathLike[str]
         ) -> tuple[models.MultimodalModel, dict[str, Any]]:
  """Loads a model and its weights.

  Args:
    path: a workdir (for its newest checkpoint), one of its checkpoints
      (WORKDIR/checkpoints/STEP), a folder written by `vatt_jax import_vatt`,
      `import_mmv` or `import_gdt`, or a released checkpoint of VATT, MMV or GDT.

  Returns:
    The model, and its variables as NumPy arrays: `model.apply(variables, batch)`.

  Raises:
    UserError: `path` holds no checkpoint.
  """
  config, variables = read(path)
  return models.from_config(config['model']), variables


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the config and the variables of a checkpoint; takes the paths of `load`.

  `config['model']` holds the settings of `models.from_config`. It is the only section
  for a released checkpoint.
  """
  check_exists(path)
  folder, _ = checkpoint.split(path)
  if (folder / checkpoint.CONFIG_FILE).exists():
    return checkpoint.load_model(path)
  release = _RELEASES.get(folder.suffix, vatt_tf2)
  settings, variables = release.read(path)
  return {'model': settings}, variables


def check_exists(path: str | os.PathLike[str]) -> None:
  """Raises UserError if `path` is no folder, file or released checkpoint."""
  where = pathlib.Path(path)
  folder, step = checkpoint.split(where)
  # For a missing step, the reader names the existing ones.
  if where.exists() or (step is not None and folder.exists()):
    return
  # The name of a released checkpoint is a prefix of its files' names.
  if not any(where.parent.glob(f'{glob.escape(where.name)}.*')):
    raise UserError(f'{path}: no such folder or file')


def merge(model: models.MultimodalModel, variables: Mapping[str, Any],
          checkpoint_variables: Mapping[str, Any], where: str,
          allow_random_head: bool = True) -> dict[str, Any]:
  """Returns the variables of a model with the values of a checkpoint.

  The model renames variables of another model (`MultimodalModel.adopt`), and resizes
  arrays such as position embeddings if the grid differs. Leaves out the checkpoint's
  variables of other modalities. Keeps the model's own head, and logs it, if the
  checkpoint has no such head or a classifier with another number of classes.

  Args:
    model: resizes arrays of another shape (`MultimodalModel.resize`).
    variables: variables of the model, or their shapes.
    checkpoint_variables: variables of the checkpoint.
    where: name of the checkpoint, for messages.
    allow_random_head: accept a checkpoint without a head for the model.

  Raises:
    UserError: the checkpoint lacks variables of the model or has them in another shape,
      has variables that the model's modules lack, or has no head for the model and
      `allow_random_head` is off.
  """
  model_vars, checkpoint_vars = (
      traverse_util.flatten_dict(dict(x))
      for x in (variables, model.adopt(checkpoint_variables)))
  new = _new_head(model_vars, checkpoint_vars)
  missing = model_vars.keys() - checkpoint_vars.keys() - new
  left_out = checkpoint_vars.keys() - model_vars.keys()
  modules = {path[1] for path in model_vars} - {'head'}
  modules |= {m.replace('tokenizers', 'projectors') for m in modules}
  unused = {path for path in left_out if path[1] in modules}
  if missing or unused:
    raise UserError(
        f'{where}: does not fit the model. The model needs and the checkpoint lacks: '
        f'{_listed(missing)}. The checkpoint has and the model lacks: '
        f'{_listed(unused)}')
  reason = f'{where} has no head for this model{_classes(model_vars, checkpoint_vars)}'
  if new and not allow_random_head:
    raise UserError(f'{reason}, whose head would be random; set config.model.head to '
                    "the checkpoint's head, or to None for features alone, or give "
                    '--allow_random_head')
  if new:
    logging.warning('%s, whose head starts from random weights', reason)
  if left_out:
    modules = sorted({path[1] for path in left_out})
    logging.info('Left out of %s: %s', where, ', '.join(modules))
  return traverse_util.unflatten_dict({
      path: value if path in new else _fit(model, path, value, checkpoint_vars[path],
                                           where)
      for path, value in model_vars.items()})


def _new_head(model_vars, checkpoint_vars):
  """Returns the paths of the model's head if the checkpoint has no such head."""
  head = {path for path in model_vars if path[1] == 'head'}
  shared = {path for path in head if path in checkpoint_vars}
  same = all(path in shared and model_vars[path].shape == checkpoint_vars[path].shape
             for path in head if path[2].startswith('logits'))
  return set() if shared and same else head


def _classes(model_vars, checkpoint_vars):
  """Describes the numbers of classes of two classifiers, for messages."""
  ours, theirs = (
      ' and '.join(str(value.size) for path, value in variables.items()
                   if path[1] == 'head' and path[2].startswith('logits')
                   and path[-1] == 'bias')    # by column
      for variables in (model_vars, checkpoint_vars))
  if not ours or not theirs:
    return ''
  return f' (it is a classifier of {theirs} classes, this one of {ours})'


def _listed(paths):
  """Lists the modules of some paths, such as `params/backbones_video/block_4`."""
  return ', '.join(sorted({'/'.join(path[:3]) for path in paths})) or 'nothing'


def _fit(model, path, model_value, value, where):
  """Returns the checkpoint's value in the shape of the model's."""
  if value.shape == model_value.shape:
    return value
  resized = model.resize(path, value, model_value.shape)
  if resized is None:
    raise UserError(f'{where}: {"/".join(path)} has shape {value.shape}; this model '
                    f'needs {model_value.shape}')
  return np.asarray(resized)
