"""Tables of learnable positions, and their resizing to another grid."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax.models import layers

# Tables of positions in time, at a constant rate: a shorter input takes the first ones.
# The other tables divide a frame or a spectrum of any size.
_IN_TIME = ('positions', 'time_positions')


def table(module: nn.Module, name: str, size: int, width: int) -> jax.Array:
  """Returns the module's table of a name, or creates it.  -> [size', D].

  A new table has `size` rows; a table from a checkpoint may have another number.
  """
  if module.has_variable('params', name):
    return module.get_variable('params', name)
  return module.param(name, layers.table_init, (size, width))


def fit(positions: jax.Array, name: str, size: int, release: bool) -> jax.Array:
  """Fits a table to another number of positions.  [N, D] -> [size, D].

  Args:
    positions: the table.
    name: of the table in its tokenizer. Positions in time are cut for a shorter input,
      whose beginning keeps its positions; all others are resized.
    size: number of positions.
    release: resize all tables by the spline, as the released code does.
  """
  if not release and name in _IN_TIME and size < len(positions):
    return positions[:size]
  return resize(positions, size, spline=release)


def resize(positions: jax.Array, size: int, spline: bool) -> jax.Array:
  """Resizes a table to another number of positions.  [N, D] -> [size, D].

  Args:
    positions: the table.
    size: the new number of positions.
    spline: resize by a polyharmonic spline, as the release does; otherwise bicubic
      (VATT, section 4.3).
  """
  n, d = positions.shape
  if n == size:
    return positions
  if not spline:
    return jax.image.resize(positions, (size, d), 'cubic', antialias=False)
  matrix = jnp.asarray(spline_matrix(n, size), positions.dtype)
  return jnp.matmul(matrix, positions, precision='highest')


@functools.lru_cache
def spline_matrix(n: int, m: int) -> np.ndarray:
  """Returns the matrix of the cubic polyharmonic spline.  -> float64 [m, n].

  The matrix maps values at i/n to values at j/m, by |r|^3 and an affine term
  (`interpolate_pos` of the release). It is solved in float64: float32 would lose all
  but three digits.
  """
  if n == 1:
    return np.ones((m, 1))
  source, target = np.arange(n) / n, np.arange(m) / m
  affine = lambda x: np.stack([x, np.ones_like(x)], axis=1)
  cubes = lambda x: np.abs(x[:, None] - source[None]) ** 3
  system = np.block([[cubes(source), affine(source)],
                     [affine(source).T, np.zeros((2, 2))]])
  values = np.concatenate([np.eye(n), np.zeros((2, n))])
  return np.concatenate([cubes(target), affine(target)], axis=1) @ np.linalg.solve(
      system, values)
