"""Tests the readers of pickles: arrays only, and nothing is run."""

import argparse
import collections
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch_files

from vatt_jax.errors import UserError
from vatt_jax.weights import pickles

GOOD = ('haiku_flat_mapping', 'jax_arrays', 'plain_dill', 'plain_numpy1_names',
        'plain_protocol2', 'plain_protocol4')
BAD = {'refuse_builtin_print': 'asks for builtins.print',
       'refuse_dill_function': 'asks for dill._dill._create_function',
       'refuse_getpid': 'asks for os.getpid',
       'refuse_nested': 'asks for types.SimpleNamespace',
       'refuse_object_array': "has an array of type 'O8'",
       'refuse_truncated': 'is damaged, or no pickle of arrays'}


@pytest.mark.parametrize('name', GOOD)
def test_all_forms_of_a_checkpoint_hold_the_same_arrays(name, shared):
  golden = np.load(shared / 'golden_mmv' / 'graphs.npz')
  expected = {key.removeprefix('fac_relu/'): golden[key] for key in golden.files
              if key.startswith(('fac_relu/params/', 'fac_relu/state/'))}
  arrays = pickles.read(shared / 'golden_mmv' / 'pickles' / f'{name}.pkl')
  assert arrays.keys() == expected.keys()
  for key, array in arrays.items():
    assert array.dtype == expected[key].dtype
    np.testing.assert_array_equal(array, expected[key])


@pytest.mark.parametrize('name, message', BAD.items())
def test_other_content_is_refused_in_one_line(name, message, shared, capfd):
  path = shared / 'golden_mmv' / 'pickles' / f'{name}.pkl'
  with pytest.raises(UserError, match=f'{name}.pkl: {message}') as error:
    pickles.read(path)
  assert '\n' not in str(error.value)
  assert capfd.readouterr().out == ''


class Call:
  """Calls a function when it is unpickled."""

  def __init__(self, function, *arguments, state=None):
    self.reduced = (function, arguments, *([state] if state else []))

  def __reduce__(self):
    return self.reduced


class Malice:
  """Pickles that would write a file, each by another way."""

  def system(path):
    return pickle.dumps(dict(params=Call(os.system, f'touch {path}')))

  def evaluated(path):
    return pickle.dumps(Call(eval, f'open({str(path)!r}, "w")'))

  def in_an_array(path):
    array = np.empty(1, object)
    array[0] = Call(os.mkdir, str(path))
    return pickle.dumps(dict(params=dict(m=dict(w=array))))

  def in_a_key(path):
    return pickle.dumps({'params': {Call(os.mkdir, str(path)): 1}})

  def old_opcodes(path):
    return f"(S'{path}'\nios\nmkdir\n.".encode()

  def instance(path):
    return f"(cos\nmkdir\nS'{path}'\no.".encode()

  def dotted_name(path):
    text = str(path).encode()
    return (b'\x80\x04\x8c\x05numpy\x8c\x08os.mkdir\x93\x8c' + struct.pack(
        'B', len(text)) + text + b'\x85R.')

  def persistent(path):
    return b"P" + str(path).encode() + b'\n.'


@pytest.mark.parametrize('name', [name for name in vars(Malice) if name[0] != '_'])
def test_malicious_pickle_runs_nothing(name, tmp_path):
  mark, path = tmp_path / 'mark', tmp_path / 'bad.pkl'
  path.write_bytes(getattr(Malice, name)(mark))
  with pytest.raises(UserError, match=r'bad\.pkl: ') as error:
    pickles.read(path)
  assert '\n' not in str(error.value)
  assert not mark.exists()


@pytest.mark.parametrize('value', [
    3.0, [1.0], None, 'text', np.array(['a']), np.zeros(2, [('a', 'f4')]),
    np.datetime64('2020-01-01'), {1: np.zeros(2)}, np.dtype('f4')],
    ids=lambda value: type(value).__name__)
def test_leaves_that_are_no_numeric_arrays_are_refused(value, tmp_path):
  path = tmp_path / 'other.pkl'
  path.write_bytes(pickle.dumps(dict(params=dict(m=dict(w=value))), protocol=4))
  with pytest.raises(UserError, match=r'other\.pkl: '):
    pickles.read(path)


def test_mapping_that_contains_itself_is_refused(tmp_path):
  tree = {}
  tree['params'] = tree
  (tmp_path / 'loop.pkl').write_bytes(pickle.dumps(tree))
  with pytest.raises(UserError, match='has mappings in mappings'):
    pickles.read(tmp_path / 'loop.pkl')


def test_orders_of_memory_and_bytes_and_scalars_are_kept(tmp_path):
  leaves = dict(fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
                big=np.arange(3, dtype='>i4'), scalar=np.float32(0.5),
                half=np.float16([1, 2]), truth=np.array([True, False]))
  tree = dict(params=collections.OrderedDict(m=leaves))
  (tmp_path / 'good.pkl').write_bytes(pickle.dumps(tree, protocol=4))
  arrays = pickles.read(tmp_path / 'good.pkl')
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(arrays[f'params/m/{name}'], leaf)


@pytest.mark.parametrize('form', ['zip', 'stream'])
@pytest.mark.parametrize('name', [name for name in vars(Malice) if name[0] != '_'])
def test_malicious_file_of_torch_runs_nothing(name, form, tmp_path):
  mark, path = tmp_path / 'mark', tmp_path / 'bad.pth'
  content = getattr(Malice, name)(mark)
  if form == 'zip':
    torch_files.write_zip(path, {}, **{'data.pkl': content})
  else:
    path.write_bytes(content)
  with pytest.raises(UserError, match=r'bad\.pth: ') as error:
    pickles.read_torch(path)
  assert '\n' not in str(error.value)
  assert not mark.exists()


TENSORS = collections.OrderedDict(
    matrix=np.arange(6, dtype=np.float32).reshape(2, 3), count=np.array(3),
    truth=np.array([True, False]), empty=np.zeros((0, 4)))


@pytest.mark.parametrize('write', [torch_files.write_zip, torch_files.write_stream])
@pytest.mark.parametrize('place', [None, 'model', 'state_dict'])
def test_tensors_of_torch_are_read_in_either_form(write, place, tmp_path):
  others = dict(optimizer=dict(state={}, groups=[dict(lr=0.1)]), epoch=3,
                args=argparse.Namespace(lr=0.1), steps=collections.Counter([3, 5]))
  write(tmp_path / 'good.pth', others | {place: TENSORS} if place else TENSORS)
  arrays = pickles.read_torch(tmp_path / 'good.pth')
  assert arrays.keys() == TENSORS.keys()
  for name, tensor in TENSORS.items():
    assert arrays[name].dtype == tensor.dtype
    np.testing.assert_array_equal(arrays[name], tensor)


@pytest.mark.parametrize('changes, message', [
    ({'data/0': b'1234'}, 'has a storage of another size than it says'),
    ({'byteorder': b'big'}, 'has numbers of another byte order')])
def test_entries_that_do_not_fit_the_tensors_are_refused(changes, message, tmp_path):
  torch_files.write_zip(tmp_path / 'bad.pth', TENSORS, **changes)
  with pytest.raises(UserError, match=message):
    pickles.read_torch(tmp_path / 'bad.pth')


@pytest.mark.parametrize('offset, shape, strides', [
    (0, (7,), (1,)), (1, (2, 3), (3, 1)), (-1, (1,), (1,)), (0, (3,), (-1,)),
    (0, (10 ** 9,), (0,)), (5, (2,), (2 ** 62,))])
def test_tensor_outside_its_storage_is_refused(offset, shape, strides, tmp_path):
  tensor = torch_files.Tensor(np.zeros(6, np.float32), offset, shape, strides)
  torch_files.write_zip(tmp_path / 'bad.pth', dict(x=tensor))
  with pytest.raises(UserError, match='has a tensor outside its storage'):
    pickles.read_torch(tmp_path / 'bad.pth')


def test_transposed_tensor_keeps_its_order(tmp_path):
  tensor = torch_files.Tensor(np.arange(7, dtype=np.float32), 1, (3, 2), (1, 3))
  torch_files.write_zip(tmp_path / 'good.pth', dict(x=tensor))
  np.testing.assert_array_equal(pickles.read_torch(tmp_path / 'good.pth')['x'],
                                [[1, 4], [2, 5], [3, 6]])


def test_compressed_file_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'bad.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', bytes(1000))
  with pytest.raises(UserError, match='is compressed'):
    pickles.read_torch(tmp_path / 'bad.pth')


@pytest.mark.parametrize('tree', [{}, 3.0, dict(x=1), dict(model=3), dict(model=[])],
                         ids=str)
def test_file_of_torch_without_tensors_is_refused(tree, tmp_path):
  torch_files.write_zip(tmp_path / 'bad.pth', tree)
  with pytest.raises(UserError, match=r'has no (tensor at|mapping of tensors)'):
    pickles.read_torch(tmp_path / 'bad.pth')
