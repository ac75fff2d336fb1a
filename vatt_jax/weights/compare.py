"""Compares the names of a released checkpoint with those of a model."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import os
import re

import numpy as np

from vatt_jax.errors import UserError


def check(arrays: Mapping[str, np.ndarray], expected: Collection[str],
          fits: Callable[[str], bool], unused: re.Pattern[str],
          where: str | os.PathLike[str]) -> None:
  """Raises UserError if names or shapes differ; lists all.

  Args:
    arrays: of the checkpoint.
    expected: names that the model needs.
    fits: whether the array of a name is of the model's shape and type.
    unused: fits the names that the model does not need.
    where: name of the checkpoint, for messages.
  """
  missing = sorted(set(expected) - arrays.keys())
  unknown = sorted(name for name in arrays.keys() - set(expected)
                   if not unused.fullmatch(name))
  other = sorted(name for name in expected if name in arrays and not fits(name))
  if missing or unknown or other:
    listed = lambda names: ', '.join(names) or 'nothing'
    raise UserError(f'{where}: does not fit the model inferred from its names and '
                    f'shapes. Missing: {listed(missing)}. Unknown: {listed(unknown)}. '
                    f'Of another shape or type: {listed(other)}')
