"""Tests R(2+1)D-18."""

import jax
import numpy as np
import pytest

from vatt_jax.models import r2plus1d
from vatt_jax.tools import cost


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
