"""Products and GELU, written to suit the compiler; `layers` has the equations."""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def as_matrix(kernel: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Reshapes a kernel of several axes to a matrix."""
  if kernel.ndim == 2:
    return kernel
  # Without the barrier XLA would multiply, and copy activations, in the axes' order.
  return jax.lax.optimization_barrier(kernel.reshape(shape))


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies by a kernel.  [..., K], [K, N] -> [..., N]."""
  return x @ kernel


def _product_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array
                      ) -> tuple[jax.Array, jax.Array]:
  """Computes gradients; the kernel's in float32 with the longer side last.

  This order is up to a third faster on a CPU.
  """
  x, kernel = saved
  over = tuple(range(x.ndim - 1))
  sum_of_outer = lambda a, b: jax.lax.dot_general(a, b, ((over, over), ((), ())))
  if kernel.dtype == jnp.float32 and kernel.shape[0] > kernel.shape[1]:
    # Without the barrier XLA would move the transposition back into the product.
    dkernel = jax.lax.optimization_barrier(sum_of_outer(dy, x)).T
  else:
    dkernel = sum_of_outer(x, dy)
  return dy @ kernel.T, dkernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Computes the exact GELU, x * Phi(x); not the approximation by tanh.

  It is computed in float32 for any type of x. The backward pass keeps only x.
  """
  wide = x.astype(jnp.float32)
  return (wide * _phi(wide, x.dtype)).astype(x.dtype)


# log(Phi(x) / Phi(-x)) is x times a polynomial of x^2: x * Phi(x) errs by 3e-6 at most.
# Fitted by least squares, reweighted until the error was even.
_LOG_ODDS = (1.59565627, 7.29375714e-2, -2.49715826e-4, -6.11635745e-5, 2.23825869e-6)


def _phi(x: jax.Array, dtype: Any) -> jax.Array:
  """Computes the normal distribution function as exactly as a type can represent it.

  In float32 the error is 1e-7, and erfc would take longer. For bfloat16 an
  approximation rounds to the same numbers and takes a TPU a fifth of erf's time.
  """
  if dtype == jnp.bfloat16:
    return nn.sigmoid(x * jnp.polyval(jnp.array(_LOG_ODDS[::-1]), x * x))
  return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
  wide = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
  slope = _phi(wide, x.dtype) + wide * density
  return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
