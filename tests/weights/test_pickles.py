"""Tests the reader of pickles: arrays only, and nothing is run."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest

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
