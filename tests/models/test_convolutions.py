"""Tests layers of convolutional networks."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.models import convolutions


def random(*shape):
  return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize('sides, strides', [
    ((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)),
    ((3, 1, 1), (2, 1, 1)), ((3, 1, 1), (1, 2, 2)), ((1, 3, 3), (2, 1, 1)),
    ((2, 4, 4), (1, 1, 1))])
def test_cheap_forms_of_a_convolution_equal_the_one_over_three_sides(sides, strides):
  x, kernel = random(2, 5, 7, 6, 3), random(*sides, 3, 4)
  expected = jax.lax.conv_general_dilated(
      x, kernel, strides, 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
      precision='highest')
  with jax.default_matmul_precision('highest'):
    ours = convolutions.convolve(x, kernel, strides)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize('symmetric, first', [(False, 2.0), (True, 3.0)])
def test_first_window_at_stride_two(symmetric, first):
  """On an even side TensorFlow starts at the first pixel, PyTorch one before it."""
  x = np.array([0, 1, 0, 0], np.float32).reshape(1, 4, 1, 1)
  kernel = np.array([1, 2, 3], np.float32).reshape(3, 1, 1, 1)
  ours = convolutions.convolve(x, kernel, (2, 1), symmetric)
  assert ours[0, 0, 0, 0] == first


def test_kernel_summed_over_time_filters_a_still_video():
  x = np.repeat(random(2, 1, 4, 4, 3), 5, axis=1)
  conv = convolutions.Conv(4, (3, 1, 1))
  variables = conv.init(jax.random.key(0), x)
  still = convolutions.Conv(4, (3, 1, 1), sum_time=True).apply(variables, x[:, :1])
  np.testing.assert_allclose(still[:, 0], conv.apply(variables, x)[:, 2], atol=1e-5)


def test_max_pool_ignores_the_padding_of_negative_inputs():
  x = -np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3, 1)
  pooled = convolutions.max_pool(x, (3, 3), (2, 2))
  np.testing.assert_array_equal(pooled[0, :, :, 0], [[-1, -2], [-4, -5]])


@pytest.mark.parametrize('window, strides, symmetric', [
    ((3, 3, 3), (1, 1, 1), False), ((2, 2, 2), (2, 2, 2), False),
    ((1, 3, 3), (1, 2, 2), False), ((1, 3, 3), (1, 2, 2), True)])
def test_max_pool_and_its_gradient_equal_those_of_xla(window, strides, symmetric):
  x = random(2, 5, 6, 7, 3)    # no equal values

  def pool(function):
    weighted = lambda y: jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))
    return jax.jit(jax.value_and_grad(lambda x: weighted(function(x))))(x)

  padding = [(size // 2, size // 2) for size in window] if symmetric else 'SAME'
  ours = pool(lambda x: convolutions.max_pool(x, window, strides, symmetric))
  expected = pool(lambda x: nn.max_pool(x, window, strides, padding))
  for a, b in zip(ours, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_first_of_equal_values_gets_the_gradient_of_a_max_pool():
  x = np.array([1, 1, 0, 1], np.float32).reshape(1, 4, 1, 1)
  grad = jax.grad(lambda x: jnp.sum(convolutions.max_pool(x, (2, 1), (2, 1))))(x)
  np.testing.assert_array_equal(grad.ravel(), [1, 0, 0, 1])


def test_batch_norm_leaves_out_masked_rows_and_returns_the_type():
  x = random(4, 3, 5)
  mask = np.array([True, False, True, True])
  norm = convolutions.BatchNorm()
  variables = norm.init(jax.random.key(0), x, None, False)
  _, few = norm.apply(variables, x[mask], None, True, mutable=['batch_stats'])
  ours, all_rows = norm.apply(variables, jnp.asarray(x, jnp.bfloat16), mask, True,
                              mutable=['batch_stats'])
  assert ours.dtype == jnp.bfloat16
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), all_rows, few)


def test_batch_norm_of_masked_rows_only_is_finite():
  norm = convolutions.BatchNorm()
  variables = norm.init(jax.random.key(0), random(4, 5), None, False)
  y, _ = norm.apply(variables, random(4, 5), np.zeros(4, bool), True,
                    mutable=['batch_stats'])
  assert np.isfinite(y).all()


def test_remat_of_a_block_keeps_its_gradient():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask, train):
      return nn.relu(convolutions.BatchNorm(name='norm')(nn.Dense(5)(x), mask, train))

  x = random(4, 5)
  variables = Block().init(jax.random.key(0), x, None, False)

  def gradient(remat):
    block = convolutions.rematerialized(Block, remat)()

    def loss(params):
      y, _ = block.apply(variables | dict(params=params), x, None, True,
                         mutable=['batch_stats'])
      return jnp.sum(y ** 2)

    return jax.grad(loss)(variables['params'])

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
               gradient('none'), gradient('blocks'))
