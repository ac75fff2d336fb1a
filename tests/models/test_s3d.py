"""Tests S3D-G."""

import re

from flax import traverse_util
import jax
import numpy as np
import pytest

from vatt_jax.models import s3d
from vatt_jax.models import text_towers
from vatt_jax.tools import cost


def shapes(net, *shape):
  return jax.eval_shape(net.init, jax.random.key(0),
                        jax.ShapeDtypeStruct((1, *shape), np.float32))


def test_stem_is_a_convolution_of_the_video():
  x = np.random.default_rng(0).standard_normal((2, 4, 12, 8, 3), np.float32)
  stem = s3d.Stem(5, still=False, dtype=np.float32)
  variables = stem.init(jax.random.key(0), x)
  expected = jax.lax.conv_general_dilated(
      x, variables['params']['kernel'], (2, 2, 2), [(0, 2), (2, 4), (2, 4)],
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'), precision='highest')
  with jax.default_matmul_precision('highest'):
    np.testing.assert_allclose(stem.apply(variables, x), expected, atol=1e-5)


def test_space_to_depth_orders_channels_as_the_release(shared):
  golden = np.load(shared / 'golden_mmv' / 'eval_ucf101.npz')
  ours = s3d.space_to_depth(golden['space_to_depth/in'], (2, 2, 2))
  np.testing.assert_array_equal(ours, golden['space_to_depth/out'])


def test_stem_of_a_still_video_takes_one_frame():
  image = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 3), np.float32)
  stem = s3d.Stem(5, still=False, dtype=np.float32)
  video = np.repeat(image, 8, axis=1)
  variables = stem.init(jax.random.key(0), video)
  one = s3d.Stem(5, still=True, dtype=np.float32).apply(variables, image)
  np.testing.assert_allclose(one[:, 0], stem.apply(variables, video)[:, 1], atol=1e-5)


def test_network_has_the_released_number_of_parameters():
  variables = shapes(s3d.S3DG(), 4, 32, 32, 3)
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == 9_146_000


@pytest.mark.parametrize('still, shape, expected', [
    (False, (32, 200, 200, 3), 58.9), (False, (32, 224, 224, 3), 72.6),
    (False, (16, 200, 200, 3), 29.4), (True, (1, 224, 224, 3), 3.6)])
def test_operations_follow_from_the_layers(still, shape, expected):
  net = s3d.S3DG(still=still)
  x = jax.ShapeDtypeStruct((1, *shape), np.float32)
  ours = cost.operations(net.apply, shapes(net, *shape), x).true / 1e9
  np.testing.assert_allclose(ours, expected, rtol=0.01)


@pytest.mark.parametrize('shape, grid', [
    ((32, 200, 200, 3), (4, 7, 7)), ((5, 36, 37, 3), (1, 2, 2)),
    ((1, 32, 32, 3), (1, 1, 1))])
def test_grid_and_pooled_have_their_shapes(shape, grid):
  net = s3d.S3DG(width=1 / 8)
  x = jax.ShapeDtypeStruct((2, *shape), np.float32)
  features = jax.eval_shape(net.apply, shapes(net, *shape), x)
  assert features.grid.shape == (2, *grid, 128)
  assert features.pooled.shape == (2, 128)


def torch_value(arrays, path):
  """Returns the array of the MIL-NCE release's S3D-G (PyTorch) for one of ours."""
  *modules, leaf = path
  name = '.'.join(modules)
  for pattern, replacement in (
      (r'(conv|norm)_1a', r'conv1.\1_1'), (r'conv_2c\.gate', 'gating.fc'),
      (r'branch_(\d)\.gate', r'gating_b\1.fc'), (r'branch_0', 'conv_b0'),
      (r'branch_(\d)_reduced', r'conv_b\1_a'), (r'branch_(\d)', r'conv_b\1_b'),
      (r'\.conv_(\d)$', r'.conv\1'), (r'\.norm_(\d)$', r'.bn\1')):
    name = re.sub(pattern, replacement, name)
  leaves = dict(kernel='weight', scale='weight', mean='running_mean', var='running_var')
  value = arrays[f'{name}.{leaves.get(leaf, leaf)}']
  value = value.transpose(*range(2, value.ndim), *range(value.ndim)[1::-1])
  if modules == ['conv_1a']:    # on blocks of 2 x 2 x 2 pixels
    value = value.reshape(2, 4, 4, 2, 2, 2, 3, -1).transpose(0, 3, 1, 4, 2, 5, 6, 7)
    value = value.reshape(4, 8, 8, 3, -1)
  return value


@pytest.mark.slow
def test_features_match_the_release_of_mil_nce(shared):
  folder = shared / 'golden_mmv'
  arrays = np.load(folder / 'milnce_s3d_s2d_small.npz')
  io = np.load(folder / 'milnce_s3d_s2d_small_io.npz')
  video = io['in_video_bcthw'].transpose(0, 2, 3, 4, 1) * 2 - 1
  net = s3d.S3DG(width=1 / 8)
  paths = traverse_util.flatten_dict(shapes(net, *video.shape[1:]))
  variables = traverse_util.unflatten_dict({
      path: torch_value(arrays, path[1:]) for path in paths})
  with jax.default_matmul_precision('highest'):
    features = jax.jit(net.apply)(variables, video)
  for ours, expected in ((features.pooled, io['out/mixed_5c_pooled']),
                         (features.grid.transpose(0, 4, 1, 2, 3),
                          io['endpoint/mixed_5c'])):
    np.testing.assert_allclose(ours, expected, rtol=0,
                               atol=1e-4 * np.abs(expected).max() + 1e-5)


def test_text_matches_the_release_of_mil_nce(shared):
  folder = shared / 'golden_mmv'
  arrays = np.load(folder / 'milnce_s3d_s2d_small.npz')
  io = np.load(folder / 'milnce_s3d_s2d_small_io.npz')
  weight = lambda name: arrays[f'text_module.{name}']
  projection = dict(kernel=weight('fc1.weight').T, bias=weight('fc1.bias'))
  bag = text_towers.WordBag(*weight('word_embd.weight').shape, len(projection['bias']))
  words = bag.apply(dict(params=dict(projection=projection),
                         frozen=dict(embedding=weight('word_embd.weight'))),
                    io['text/ids'].astype(np.int32)).pooled
  ours = words @ weight('fc2.weight').T + weight('fc2.bias')
  np.testing.assert_allclose(ours, io['text/embedding'], atol=1e-5)
