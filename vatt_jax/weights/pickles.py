"""Reads pickles of arrays without running anything that a pickle may ask for.

A pickle is a program: it may call any function of any module. This reader knows no
function at all. The few global names of a pickle of arrays stand for small classes of
its own, which only keep numbers, and any other name is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import pickle
from typing import Any

import numpy as np

from vatt_jax.errors import UserError

# Types of arrays, as NumPy names them in a pickle: no objects, no structures.
_TYPES = frozenset(f'{kind}{size}' for kind, sizes in (
    ('f', '248'), ('i', '1248'), ('u', '1248'), ('b', '1')) for size in sizes)
# Errors of a damaged pickle, and of one whose classes are not used as NumPy does.
_DAMAGED = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError,
            LookupError, MemoryError, TypeError, ValueError)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the arrays of a pickle of nested mappings.

  It knows the arrays of NumPy and JAX, as written by `pickle` or `dill`, and the
  mappings of Haiku.

  Returns:
    The keys of all mappings, joined by a slash -> array.

  Raises:
    UserError: the file is no such pickle. Nothing in it was run.
  """
  with open(path, 'rb') as file:
    reader = _Reader(file)
    try:
      tree = reader.load()
      return dict(_arrays(tree, ()))
    except _Refused as e:
      raise UserError(f'{path}: {e}; expected a pickle of arrays only; nothing of it '
                      'was run') from e
    except _DAMAGED as e:
      raise UserError(f'{path}: is damaged, or no pickle of arrays ({e})') from e


class _Refused(Exception):
  """Reports content other than arrays and mappings."""


class _Reader(pickle.Unpickler):

  def find_class(self, module: str, name: str) -> Any:
    """Returns the class that stands for a global name.

    Raises:
      _Refused: the name is not one of a pickle of arrays.
    """
    if (module, name) not in _GLOBALS:
      raise _Refused(f'asks for {module}.{name}')
    return _GLOBALS[module, name]

  def persistent_load(self, pid: Any) -> Any:
    raise _Refused('refers to another file')


class _Value:
  """Stands for an object of a pickle; base of all classes that a pickle may call."""

  def __setstate__(self, state: Any) -> None:
    raise _Refused(f'sets the state of {type(self).__name__}')


class _Bytes(_Value):
  """Stands for `_codecs.encode`, by which old pickles write bytes."""

  def __new__(cls, text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
      raise _Refused(f'has a string in {encoding!r}')
    return text.encode('latin1')


class _Type(_Value):
  """Stands for `numpy.dtype`."""

  def __init__(self, name: str, *flags: bool):
    del flags
    if name not in _TYPES:
      raise _Refused(f'has an array of type {name!r}')
    self.dtype = np.dtype(name)

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    _, order, *fields = state[:5]
    if order not in '<>|' or fields != [None] * 3:
      raise _Refused('has an array of a structured type')
    self.dtype = self.dtype.newbyteorder(order)


class _Array(_Value):
  """Stands for `numpy.ndarray`, and for the function that makes an empty one."""
  value: np.ndarray | None = None

  def __init__(self, *arguments: Any):
    del arguments

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    _, shape, kind, is_fortran, data = state
    if not (isinstance(kind, _Type) and isinstance(data, bytes)):
      raise _Refused('has an array of objects')
    self.value = np.frombuffer(data, kind.dtype).reshape(
        shape, order='F' if is_fortran else 'C')


class _Scalar(_Value):
  """Stands for the function that makes a NumPy scalar."""

  def __new__(cls, kind: _Type, data: bytes) -> _Array:
    array = _Array()
    array.__setstate__((1, (), kind, False, data))
    return array


class _Copy(_Value):
  """Stands for functions of dill and JAX, which make an array from its pickle."""

  def __new__(cls, make: type, arguments: tuple[Any, ...], state: tuple[Any, ...],
              *others: Any) -> _Array:
    del make, arguments, others
    array = _Array()
    array.__setstate__(state)
    return array


class _Dict(_Value):
  """Stands for mappings that are no dict."""

  def __init__(self, items: Mapping[str, Any] | tuple[()] = ()):
    self.branches = dict(items)

  def __setitem__(self, key: str, value: Any) -> None:
    self.branches[key] = value


_GLOBALS: dict[tuple[str, str], type[_Value]] = {
    ('_codecs', 'encode'): _Bytes, ('numpy', 'dtype'): _Type,
    ('numpy', 'ndarray'): _Array, ('collections', 'OrderedDict'): _Dict,
    ('dill._dill', '_create_array'): _Copy,
    ('jax._src.array', '_reconstruct_array'): _Copy,
    **{(f'numpy.{core}.multiarray', name): kind for core in ('core', '_core')
       for name, kind in (('_reconstruct', _Array), ('scalar', _Scalar))},
    **{('haiku._src.data_structures', name): _Dict
       for name in ('FlatMapping', 'FlatMap', 'frozendict')}}


def _arrays(tree: Any, path: tuple[str, ...]):
  """Yields (name, array) of nested mappings."""
  if len(path) > 3:    # a mapping may contain itself
    raise _Refused('has mappings in mappings in mappings')
  if isinstance(tree, _Array) and tree.value is not None:
    yield '/'.join(path), tree.value
    return
  tree = tree.branches if isinstance(tree, _Dict) else tree
  if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
    raise _Refused(f'has no array at {"/".join(path) or "its top"}')
  for key, branch in tree.items():
    yield from _arrays(branch, (*path, key))
