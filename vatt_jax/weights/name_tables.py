"""Fills a model's variables from a released checkpoint by a table of names."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from vatt_jax.errors import UserError

Path = tuple[str, ...]


def fill(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any],
         names: Callable[[Mapping[Path, Any]], Mapping[Path, str]],
         ours: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray | None],
         unused: re.Pattern[str], where: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns variables with the values of a checkpoint.

  Args:
    arrays: the release's names -> arrays.
    variables: of the model, or their shapes.
    names: the flattened variables -> the release's name of each.
    ours: (name, array, our shape) -> the array in our form; None if it does not fit.
    unused: fits the names that the model does not need.
    where: name of the checkpoint, for messages.

  Raises:
    UserError: names or shapes differ; all are listed.
  """
  flat = traverse_util.flatten_dict(dict(variables))
  keys = names(flat)
  values = {name: ours(name, arrays[name], flat[path].shape)
            for path, name in keys.items() if name in arrays}
  missing = sorted(set(keys.values()) - arrays.keys())
  unknown = sorted(name for name in arrays.keys() - set(keys.values())
                   if not unused.fullmatch(name))
  other = sorted(name for name, value in values.items() if value is None)
  if missing or unknown or other:
    listed = lambda names: ', '.join(names) or 'nothing'
    raise UserError(f'{where}: does not fit the model inferred from its names and '
                    f'shapes. Missing: {listed(missing)}. Unknown: {listed(unknown)}. '
                    f'Of another shape or type: {listed(other)}')
  return traverse_util.unflatten_dict({
      path: values[name] for path, name in keys.items()})
