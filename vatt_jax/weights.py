"""Weights from wherever they are, into the model that wants them."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from absl import logging
from flax import traverse_util
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import released
from vatt_jax.errors import UserError
from vatt_jax.models import build
from vatt_jax.models import multimodal
from vatt_jax.models import positions


def load(path: str | os.PathLike[str]
         ) -> tuple[multimodal.Vatt, dict[str, Any]]:
  """Loads a model: of a workdir, of `vatt_jax.released`, or a released checkpoint.

  Returns:
    The model, and its variables as NumPy arrays: `model.apply(variables, batch)`.

  Raises:
    UserError: there is nothing to load.
  """
  config, variables = read(path)
  return build.build_model(**config['model']), variables


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """As `load`, but for the model the config, or what is known of it.

  Its `model` is the settings of `models.build.build_model`.
  """
  folder = pathlib.Path(path)
  if (folder / checkpoint.CONFIG_FILE).exists():
    return checkpoint.load_model(folder)
  settings, variables = released.read(path)
  return {'model': settings}, variables


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str,
          spline: bool) -> dict[str, Any]:
  """The variables of a model, with the values of a checkpoint.

  Tables of positions are resized where the grid differs. What the checkpoint has
  for other modalities is left out; a head that it has not at all stays as it is,
  and the log says so.

  Args:
    ours: variables of the model.
    theirs: of the checkpoint.
    where: the checkpoint, for the message.
    spline: how positions are resized (`models.positions.resize`).

  Raises:
    UserError: the model needs what the checkpoint lacks, or has of another shape.
  """
  ours, theirs = (traverse_util.flatten_dict(dict(x)) for x in (ours, theirs))
  has_head = any(path[:2] == ('params', 'head') and path in theirs for path in ours)
  missing = {p for p in ours.keys() - theirs.keys() if has_head or p[1] != 'head'}
  left_out = sorted({'/'.join(p) for p in theirs.keys() - ours.keys()})
  if missing:
    raise UserError(
        f'{where}: is of another model. This one needs and it lacks: '
        f'{", ".join(sorted("/".join(p) for p in missing))}. It has and this one '
        f'lacks: {", ".join(left_out) or "nothing"}')
  if not has_head and any(path[1] == 'head' for path in ours):
    logging.warning('%s has no head for this model: the head starts from random '
                    'weights', where)
  if left_out:
    logging.info('Left out of %s: %s', where, ', '.join(left_out))
  merged = {path: _fit(path, value, theirs[path], where, spline)
            if path in theirs else value for path, value in ours.items()}
  return traverse_util.unflatten_dict(merged)


def _fit(path, ours, theirs, where, spline):
  """Their value, in the shape of ours."""
  if theirs.shape == ours.shape:
    return theirs
  if path[-1].endswith('positions') and theirs.shape[1:] == ours.shape[1:]:
    return np.asarray(positions.resize(theirs, len(ours), spline))
  raise UserError(f'{where}: {"/".join(path)} has shape {theirs.shape}; this model '
                  f'needs {ours.shape}')
