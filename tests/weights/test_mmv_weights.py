"""Tests the import of MMV's released checkpoints."""

import pickle
import subprocess
import sys

from flax import traverse_util
import jax
import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.weights import load
from vatt_jax.weights import mmv

MODELS = ('mmv_s3d', 'mmv_tsm_resnet_x1', 'mmv_tsm_resnet_x2')


@pytest.fixture(scope='module')
def tables(shared):
  """Returns the names and shapes of the arrays of each released model."""
  def read(model):
    path = shared / 'golden_mmv' / 'full_size' / f'{model}.txt'
    rows = [line.split('\t') for line in path.read_text().splitlines()
            if line and line[0] != '#']
    return {f'{kind}/{module}/{leaf}': tuple(int(n) for n in shape.split(',') if n)
            for kind, module, leaf, shape in rows}
  return {model: read(model) for model in MODELS}


@pytest.mark.parametrize('model', MODELS)
def test_names_map_one_to_one_on_those_of_the_release(model, tables):
  shapes = tables[model]
  arrays = {name: np.broadcast_to(np.float32(0), shape)
            for name, shape in shapes.items()}
  settings = mmv.find_settings(shapes, model)
  variables = mmv.to_variables(arrays, settings, model)
  names = mmv.names(traverse_util.flatten_dict(variables)).values()
  assert len(set(names)) == len(names)
  left = {name for name in shapes.keys() - set(names)
          if not name.endswith(('/hidden', '/counter'))}
  assert {name.split('/')[3] for name in left} == {'audio2txt_embd', 'txt2audio_embd'}


@pytest.mark.parametrize('model', MODELS)
def test_head_has_the_released_number_of_parameters(model, tables):
  shapes = tables[model]
  variables = mmv.to_variables(
      {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()},
      mmv.find_settings(shapes, model), model)
  released = sum(np.prod(shape) for name, shape in shapes.items()
                 if name.startswith('params/') and '_embedding_heads' in name and (
                     '2txt' not in name and 'txt2' not in name))
  assert sum(x.size for x in jax.tree.leaves(variables['params']['head'])) == released


@pytest.fixture(scope='module')
def arrays(shared):
  return dict(np.load(shared / 'golden_mmv' / 's3d_small.npz'))


def write(arrays, path):
  """Writes arrays as a checkpoint of the release."""
  tree = {}
  for name, array in arrays.items():
    kind, rest = name.split('/', 1)
    module, leaf = rest.rsplit('/', 1)
    tree.setdefault(kind, {}).setdefault(module, {})[leaf] = array
  path.write_bytes(pickle.dumps(tree, protocol=4))
  return path


@pytest.mark.slow
def test_command_writes_what_the_released_file_holds(arrays, tmp_path):
  path = write(arrays, tmp_path / 'mmv_s3d.pkl')
  model, variables = load.load(path)
  assert type(model.backbones['video']).__name__ == 'S3DG'
  subprocess.run([sys.executable, '-m', 'vatt_jax', 'import_mmv', str(path),
                  f'--out={tmp_path / "out"}'], check=True)
  converted, again = load.load(tmp_path / 'out')
  assert converted == model
  assert (tmp_path / 'out' / 'model.safetensors').exists()
  jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_stem_on_blocks_becomes_a_kernel_of_pixels(arrays):
  variables = mmv.to_variables(arrays, mmv.find_settings(
      {k: x.shape for k, x in arrays.items()}, ''), '')
  ours = variables['params']['backbones_video']['conv_1a']['kernel']
  theirs = arrays['params/text_audio_video/visual_module/~/S3D/Conv2d_1a_7x7/~/conv3_d'
                  '/w']
  assert ours.shape == (4, 8, 8, 3, 8)
  # Frame 3, row 2, column 5, blue: block 1, 1, 2, and within it 1, 0, 1.
  np.testing.assert_array_equal(ours[3, 2, 5, 2], theirs[1, 1, 2, (1 * 4 + 1) * 3 + 2])


TEXT = 'params/text_audio_video/text_module/~/text_conv1/b'


@pytest.mark.parametrize('change, message', [
    (lambda x: x.pop(TEXT), f'Missing: {TEXT}. Unknown: nothing'),
    (lambda x: x.update({f'{TEXT}2': x[TEXT]}), f'Unknown: {TEXT}2'),
    (lambda x: x.update({TEXT: x[TEXT][:-1]}), f'shape or type: {TEXT}'),
    (lambda x: x.update({TEXT: x[TEXT].astype(np.float64)}), f'or type: {TEXT}'),
    (lambda x: [x.pop(k) for k in list(x) if 'audio_module' in k],
     'no checkpoint of MMV, because it lacks'),
    (lambda x: x.update({f'{TEXT[:-1]}w': np.float32(0)}), 'it lacks .*conv1/w')])
def test_other_arrays_are_listed_in_one_line(change, message, arrays, tmp_path):
  changed = dict(arrays)
  change(changed)
  with pytest.raises(UserError, match=message) as error:
    mmv.read(write(changed, tmp_path / 'changed.pkl'))
  assert '\n' not in str(error.value)


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r'none\.pkl: no such folder or file'):
    load.load(tmp_path / 'none.pkl')


def test_file_of_another_kind_is_named(tmp_path):
  (tmp_path / 'other.pkl').write_bytes(b'not a pickle')
  with pytest.raises(UserError, match=r'other\.pkl: is damaged'):
    load.load(tmp_path / 'other.pkl')
