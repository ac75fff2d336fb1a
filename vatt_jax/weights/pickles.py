"""Reads pickles of arrays without running anything that a pickle may ask for.

A pickle is a program: it may call any function of any module. This reader knows no
function at all. The few global names of a pickle of arrays stand for small classes of
its own, which only keep numbers, and any other name is refused. Files of PyTorch have a
pickle too, which refers to the numbers beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import math
import os
import pickle
import struct
from typing import Any
from typing import BinaryIO
import zipfile

import numpy as np

from vatt_jax.errors import UserError

# Types of arrays, as NumPy names them in a pickle: no objects, no structures.
_TYPES = frozenset(f'{kind}{size}' for kind, sizes in (
    ('f', '248'), ('i', '1248'), ('u', '1248'), ('b', '1')) for size in sizes)
# Errors of a damaged pickle, and of one whose classes are not used as NumPy does.
_DAMAGED = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ArithmeticError,
            AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError,
            ValueError)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the arrays of a pickle of nested mappings.

  It knows the arrays of NumPy and JAX, as written by `pickle` or `dill`, and the
  mappings of Haiku.

  Returns:
    The keys of all mappings, joined by a slash -> array.

  Raises:
    UserError: the file is no such pickle. Nothing in it was run.
  """
  with _naming(path), open(path, 'rb') as file:
    return dict(_arrays(_Reader(file).load(), ()))


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the tensors of a model that PyTorch saved, in any of its versions' forms.

  The model's mapping of names is the whole file, or its `model` or `state_dict`. All
  else, such as the state of an optimizer, is left out.

  Returns:
    The names -> arrays.

  Raises:
    UserError: the file is no such file. Nothing in it was run.
  """
  with _naming(path), open(path, 'rb') as file:
    tree = _load_zip(file) if zipfile.is_zipfile(file) else _load_stream(file)
    tree = _branches(tree)
    tree = _branches(tree.get('model', tree.get('state_dict', tree)))
    wrong = [name for name, x in tree.items() if not isinstance(x, _Tensor)]
    if wrong or not tree:
      raise _Refused(f'has no tensor at {wrong[0] if wrong else "its top"}')
    return {name: tensor.array() for name, tensor in tree.items()}


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Converts errors of a reader to a UserError that names the file."""
  try:
    yield
  except _Refused as e:
    raise UserError(f'{path}: {e}; expected a pickle of arrays only; nothing of it was '
                    'run') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror or e})') from e
  except _DAMAGED as e:
    raise UserError(f'{path}: is damaged, or no pickle of arrays ({e})') from e


class _Refused(Exception):
  """Reports content other than arrays and mappings."""


class _Reader(pickle.Unpickler):
  """Reads a pickle of arrays."""

  @property
  def table(self) -> Mapping[tuple[str, str], type[_Value]]:
    """Returns the global names that are known -> the classes that stand for them."""
    return _GLOBALS

  def find_class(self, module: str, name: str) -> Any:
    """Returns the class that stands for a global name.

    Raises:
      _Refused: the name is not one of a pickle of arrays.
    """
    if (module, name) not in self.table:
      raise _Refused(f'asks for {module}.{name}')
    return self.table[module, name]

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


# Types of PyTorch's storages: its name -> NumPy's.
_STORAGES = {'Float': '<f4', 'Double': '<f8', 'Half': '<f2', 'Long': '<i8',
             'Int': '<i4', 'Short': '<i2', 'Char': 'i1', 'Byte': 'u1', 'Bool': '?'}
# The first two pickles of a file of PyTorch before 1.6.
_MAGIC, _PROTOCOL = 0x1950a86a20f9469cfc6c, 1001


class _TorchReader(_Reader):
  """Reads a pickle of PyTorch; `storages` has the numbers that it refers to, by key."""

  def __init__(self, file: BinaryIO):
    super().__init__(file)
    self.storages: dict[str, _Storage] = {}

  @property
  def table(self) -> Mapping[tuple[str, str], type[_Value]]:
    return _TORCH_GLOBALS

  def persistent_load(self, pid: Any) -> _Storage:
    kind, storage, key, _, size, *view = pid
    if kind != 'storage' or not issubclass(storage, _Storage) or any(view):
      raise _Refused('refers to another file')
    return self.storages.setdefault(key, storage(size))


def _load_zip(file: BinaryIO) -> Any:
  """Returns the tree of a file of PyTorch: a pickle, and a file for each storage."""
  with zipfile.ZipFile(file) as archive:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
      raise _Refused('is compressed')    # it might expand without a limit
    [name] = (name for name in archive.namelist() if name.endswith('/data.pkl'))
    folder = name.removesuffix('data.pkl')
    if archive.namelist().count(f'{folder}byteorder') and (
        archive.read(f'{folder}byteorder') != b'little'):
      raise _Refused('has numbers of another byte order')
    reader = _TorchReader(io.BytesIO(archive.read(name)))
    tree = reader.load()
    for key, storage in reader.storages.items():
      storage.fill(archive.read(f'{folder}data/{key}'))
  return tree


def _load_stream(file: BinaryIO) -> Any:
  """Returns the tree of a file of PyTorch before 1.6: pickles, then all storages."""
  file.seek(0)
  if [_TorchReader(file).load() for _ in range(2)] != [_MAGIC, _PROTOCOL]:
    raise _Refused('is no file of PyTorch')
  _TorchReader(file).load()    # properties of the system
  reader = _TorchReader(file)
  tree = reader.load()
  for key in _TorchReader(file).load():
    storage, size = reader.storages[key], int.from_bytes(file.read(8), 'little')
    if size != storage.size:
      raise _Refused(f'has {size} numbers in place of {storage.size}')
    storage.fill(file.read(size * storage.dtype.itemsize))
  return tree


class _Storage(_Value):
  """Stands for PyTorch's storages; a subclass for each type."""
  dtype: np.dtype

  def __init__(self, size: int):
    self.size, self.data = size, None

  def fill(self, data: bytes) -> None:
    if len(data) != self.size * self.dtype.itemsize:
      raise _Refused('has a storage of another size than it says')
    self.data = np.frombuffer(data, self.dtype)


class _Tensor(_Value):
  """Stands for the function that makes a tensor of a storage."""

  def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...],
               strides: tuple[int, ...], *others: Any):
    del others
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides,
                                                              strict=True))
    if (min((offset, *shape, *strides)) < 0 or math.prod(shape) > storage.size
        or (0 not in shape and last >= storage.size)):
      raise _Refused('has a tensor outside its storage')
    self.storage, self.offset, self.shape, self.strides = (
        storage, offset, shape, strides)

  def array(self) -> np.ndarray:
    data, size = self.storage.data[self.offset:], self.storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        data, self.shape, [size * stride for stride in self.strides]).copy()


class _Parameter(_Value):
  """Stands for the function that makes a parameter of a tensor."""

  def __new__(cls, tensor: _Tensor, *others: Any) -> _Tensor:
    del others
    return tensor


class _State(_Dict):
  """Stands for the mapping of a model's tensors, and its versions of modules."""

  def __setstate__(self, state: Any) -> None:
    """Ignores the versions."""


class _Ignored(_Value):
  """Stands for objects beside the tensors, such as arguments of a command."""

  def __init__(self, *arguments: Any):
    del arguments

  def __setstate__(self, state: Any) -> None:
    """Ignores the state."""


_TORCH_GLOBALS: dict[tuple[str, str], type[_Value]] = {
    ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
    ('torch._utils', '_rebuild_parameter'): _Parameter,
    ('collections', 'OrderedDict'): _State, ('collections', 'Counter'): _Ignored,
    ('argparse', 'Namespace'): _Ignored,
    **{('torch', f'{name}Storage'): type(f'_{name}Storage', (_Storage,), {
        'dtype': np.dtype(kind)}) for name, kind in _STORAGES.items()}}


def _branches(tree: Any) -> dict[str, Any]:
  """Returns the branches of a mapping."""
  tree = tree.branches if isinstance(tree, _Dict) else tree
  if not isinstance(tree, dict):
    raise _Refused('has no mapping of tensors')
  return tree
