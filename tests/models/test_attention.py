"""vatt_jax/models/attention.py"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.models import attention


def _plain(q, k, v, mask, bias):
  scores = jnp.einsum('bqad,bkad->baqk', q, k)
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
  return jnp.einsum('baqk,bkad->bqad', jax.nn.softmax(scores), v)


def _arguments(scale=1.0):
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (scale * jax.random.normal(key, (2, 5, 3, 4)) for key in keys[:3])
  mask = jnp.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 0]], bool)
  return q, k, v, mask, jax.random.normal(keys[3], (3, 5, 5))


def _gradients(function, arguments):
  """Of a sum that no symmetry makes small, by all but the mask."""
  q, k, v, mask, bias = arguments

  def total(q, k, v, bias):
    y = function(q, k, v, mask, bias)
    return jnp.sum(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) * y)
  return jax.grad(total, argnums=(0, 1, 2) if bias is None else (0, 1, 2, 3))(
      q, k, v, bias)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('biased', [False, True])
def test_values_and_gradients_are_those_of_softmax(masked, biased):
  q, k, v, mask, bias = _arguments()
  arguments = q, k, v, mask if masked else None, bias if biased else None
  np.testing.assert_allclose(attention.attend(*arguments), _plain(*arguments),
                             atol=1e-6)
  for ours, plain in zip(_gradients(attention.attend, arguments),
                         _gradients(_plain, arguments), strict=True):
    np.testing.assert_allclose(ours, plain, atol=3e-6)


def test_large_scores_stay_finite():
  arguments = _arguments(scale=30.0)
  np.testing.assert_allclose(attention.attend(*arguments), _plain(*arguments),
                             atol=1e-4)
  for gradient in _gradients(attention.attend, arguments):
    assert np.isfinite(gradient).all()


def test_the_backward_pass_keeps_one_array_of_the_size_of_the_scores():
  q, k, v, mask, bias = _arguments()
  _, backward = jax.vjp(lambda *x: attention.attend(*x, mask, bias), q, k, v)
  sizes = [x.size for x in jax.tree.leaves(backward)]
  assert sizes.count(2 * 3 * 5 * 5) == 1


def test_softmax_runs_in_float32_whatever_the_type():
  q, k, v, mask, bias = (x if x.dtype == bool else x.astype(jnp.bfloat16)
                         for x in _arguments())
  y = attention.attend(q, k, v, mask, bias)
  assert y.dtype == jnp.bfloat16
  wide = (x if x.dtype == bool else x.astype(jnp.float32)
          for x in (q, k, v, mask, bias))
  np.testing.assert_allclose(y.astype(jnp.float32), _plain(*wide), atol=0.03)
  for gradient in _gradients(attention.attend, (q, k, v, mask, bias)):
    assert gradient.dtype == jnp.bfloat16
