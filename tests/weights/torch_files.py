"""Writes files as PyTorch does, without PyTorch."""

import collections
import io
import pickle
import sys
import types
from typing import NamedTuple
import zipfile

import numpy as np

NAMES = {'float32': 'Float', 'float64': 'Double', 'int64': 'Long', 'bool': 'Bool'}


class Tensor(NamedTuple):
  """Holds a tensor of a storage, which it may share or exceed."""
  data: np.ndarray
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Pickler(pickle.Pickler):
  """Pickles arrays as tensors of their own storages, by the names of PyTorch."""

  def __init__(self, file, view):
    super().__init__(file, protocol=2)
    self.storages, self.view = {}, view

  def reducer_override(self, value):
    if isinstance(value, np.ndarray):
      data = np.array(value, order='C')
      strides = tuple(stride // value.itemsize for stride in data.strides)
      value = Tensor(data, 0, value.shape, strides)
    if not isinstance(value, Tensor):
      return NotImplemented
    return sys.modules['torch._utils']._rebuild_tensor_v2, (
        _Storage(value.data), *value[1:], False, collections.OrderedDict())

  def persistent_id(self, value):
    if not isinstance(value, _Storage):
      return None
    key = str(len(self.storages))
    self.storages[key] = value.data
    kind = getattr(sys.modules['torch'], f'{NAMES[value.data.dtype.name]}Storage')
    view = (None,) if self.view else ()
    return ('storage', kind, key, 'cpu', value.data.size, *view)


class _Storage:

  def __init__(self, data):
    self.data = data


def _dumps(tree, view=False):
  """Returns the pickle of a tree, and its storages by key."""
  modules = {name: types.ModuleType(name) for name in ('torch', 'torch._utils')}

  def named(name, module):
    function = lambda *arguments: None
    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    return function

  modules['torch._utils']._rebuild_tensor_v2 = named('_rebuild_tensor_v2',
                                                     'torch._utils')
  for kind in NAMES.values():
    setattr(modules['torch'], f'{kind}Storage', named(f'{kind}Storage', 'torch'))
  sys.modules.update(modules)
  try:
    file = io.BytesIO()
    pickler = _Pickler(file, view)
    pickler.dump(tree)
    return file.getvalue(), pickler.storages
  finally:
    for name in modules:
      del sys.modules[name]


def write_zip(path, tree, **changes):
  """Writes a file of PyTorch 1.6 or later; `changes` replaces entries, by name."""
  data, storages = _dumps(tree)
  entries = {'data.pkl': data, 'byteorder': b'little', 'version': b'3\n',
             **{f'data/{key}': x.tobytes() for key, x in storages.items()}}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in (entries | changes).items():
      archive.writestr(f'archive/{name}', content)


def write_stream(path, tree):
  """Writes a file of PyTorch before 1.6."""
  data, storages = _dumps(tree, view=True)
  with open(path, 'wb') as file:
    for head in (0x1950a86a20f9469cfc6c, 1001, dict(little_endian=True)):
      file.write(pickle.dumps(head, protocol=2))
    file.write(data)
    file.write(pickle.dumps(list(storages), protocol=2))
    for x in storages.values():
      file.write(x.size.to_bytes(8, 'little') + x.tobytes())
