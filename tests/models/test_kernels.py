"""vatt_jax/models/kernels.py"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vatt_jax.models import kernels


def _x(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def test_gelu_and_its_gradient_are_exact_in_float32():
  x = np.linspace(-8, 8, 2001, dtype=np.float32)
  wide = x.astype(np.float64)
  density = np.exp(-0.5 * wide ** 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(kernels.gelu(jnp.asarray(x)), wide * special.ndtr(wide),
                             atol=1.5e-6)
  np.testing.assert_allclose(jax.grad(lambda x: kernels.gelu(x).sum())(jnp.asarray(x)),
                             special.ndtr(wide) + wide * density, atol=1e-6)


def test_gelu_in_bfloat16_is_exact_up_to_rounding():
  """Both it and its gradient are, at every bfloat16 number between -30 and 30."""
  positive = np.arange(2 ** 15, dtype=np.uint16).view(jnp.bfloat16)
  positive = positive[positive < jnp.bfloat16(30)]
  x = jnp.asarray(np.concatenate([positive, -positive]))
  wide = np.asarray(x, np.float64)
  density = np.exp(-wide ** 2 / 2) / np.sqrt(2 * np.pi)
  exact = wide * special.ndtr(wide), special.ndtr(wide) + wide * density
  y, backward = jax.vjp(kernels.gelu, x)
  actual = [np.asarray(y, np.float64) for y in (y, *backward(jnp.ones_like(x)))]
  for y, true in zip(actual, exact, strict=True):
    assert (np.abs(y - true) <= 2.0 ** -8 * np.abs(true) + 1e-5).all()
  assert np.abs(actual[0][wide < -8]).max() < 1e-5


def test_product_gradients_are_right_for_tall_and_wide_kernels():
  for rows, columns in ((6, 4), (4, 6)):
    x, kernel, dy = _x(2, 3, rows), _x(rows, columns, seed=1), _x(2, 3, columns, seed=2)
    y, backward = jax.vjp(kernels.product, x, kernel)
    dx, dkernel = backward(dy)
    np.testing.assert_allclose(y, np.matmul(x, kernel), atol=1e-5)
    np.testing.assert_allclose(dx, np.matmul(dy, kernel.T), atol=1e-5)
    np.testing.assert_allclose(dkernel, np.einsum('bnk,bnd->kd', x, dy), atol=1e-5)
