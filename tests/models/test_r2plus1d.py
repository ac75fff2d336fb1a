"""Tests R(2+1)D."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from vatt_jax.models import r2plus1d
from vatt_jax.tools import cost
from vatt_jax.weights import gdt


def shapes(net, *shape):
  return jax.eval_shape(net.init, jax.random.key(0),
                        jax.ShapeDtypeStruct((1, *shape), np.float32))


def count(net, only=''):
  variables = shapes(net, 4, 32, 32, 3)
  return sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(
      variables['params']) if only in str(path))


def test_network_has_the_number_of_parameters_of_the_paper():
  """MMV reports 33.3 M: convolutions, and a classifier of 400 classes."""
  net = r2plus1d.R2Plus1D18()
  assert count(net) == 33_165_639
  assert count(net, 'kernel') + 512 * 400 + 400 == 33_344_679


def test_network_of_torchvision_has_its_number_of_parameters():
  """31,505,325 with a classifier of 400 classes."""
  assert count(r2plus1d.R2Plus1D18(torchvision=True)) == 31_505_325 - (512 * 400 + 400)


def test_deeper_network_has_the_number_of_parameters_of_its_authors():
  """63.7 M with a classifier of 400 classes."""
  assert round(count(r2plus1d.R2Plus1D34()) / 1e6 + 0.2, 1) == 63.7


@pytest.mark.parametrize('size, expected', [(200, 532.0), (224, 663.9)])
def test_operations_follow_from_the_layers(size, expected):
  net, shape = r2plus1d.R2Plus1D18(), (32, size, size, 3)
  x = jax.ShapeDtypeStruct((1, *shape), np.float32)
  ours = cost.operations(net.apply, shapes(net, *shape), x).true / 1e9
  np.testing.assert_allclose(ours, expected, rtol=0.01)


def test_grid_and_pooled_have_their_shapes():
  net = r2plus1d.R2Plus1D18(width=1 / 8)
  x = jax.ShapeDtypeStruct((2, 16, 40, 40, 3), np.float32)
  features = jax.eval_shape(net.apply, shapes(net, 16, 40, 40, 3), x)
  assert features.grid.shape == (2, 2, 3, 3, 64)
  assert features.pooled.shape == (2, 64)


# Positions of each stage's activations in the golden network: time and space of norms
# after strided convolutions in space, and after those in time too.
POSITIONS = [(9, 360), (9, 360), (5, 90), (3, 25), (2, 9)]


def num_positions(name):
  """Returns the number of values of a channel, over which a norm averages."""
  if not name.startswith('layer'):
    return 3 * 9 * 360
  stage, block, conv, inside = int(name[5]), *name.split('.')[1:3], '.0.1' in name
  time, space = POSITIONS[stage]
  if inside and conv == 'conv1' and block == '0':
    time = POSITIONS[stage - 1][0]    # the stride in time comes later
  return 3 * time * space


@pytest.mark.parametrize('train', [pytest.param(False, marks=pytest.mark.slow), True],
                         ids=['eval', 'train'])
def test_network_matches_the_release_of_gdt(train, shared):
  golden = np.load(shared / 'golden_gdt_stica' / 'r2plus1d_18_narrow.npz')
  net = r2plus1d.R2Plus1D18(width=0.12, torchvision=True, mean=0.5, std=0.5)
  video = golden['in'].transpose(0, 2, 3, 4, 1)
  weights = {f'video_network.base.{key[2:]}': golden[key] for key in golden.files
             if key.startswith('p/')}
  named = {kind: dict(backbones_video=tree)
           for kind, tree in shapes(net, *video.shape[1:]).items()}
  variables = gdt.convert(weights, named, 'golden')
  own = {kind: tree['backbones_video'] for kind, tree in variables.items()}
  features, new = jax.jit(lambda own: net.apply(
      own, video, None, train, mutable=['batch_stats']))(own)
  close(features.pooled, golden['out_train' if train else 'out_eval'])
  if not train:
    close(features.grid.transpose(0, 4, 1, 2, 3), golden['out_eval_layer4'])
    return
  flat = traverse_util.flatten_dict(
      dict(batch_stats=dict(backbones_video=new['batch_stats'])))
  for path, name in gdt.names(flat).items():
    name, ours = name.removeprefix('video_network.base.'), flat[path]
    if path[-1] == 'var':    # the release adds n / (n - 1) times the batch's variance
      n, old = num_positions(name), golden[f'p/{name}']
      ours = 0.9 * old + (ours - 0.9 * old) * n / (n - 1)
    np.testing.assert_allclose(ours, golden[f'after/{name}'], rtol=0, atol=3e-6)


def close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=0,
                             atol=2e-6 * np.abs(expected).max() + 2e-5)
