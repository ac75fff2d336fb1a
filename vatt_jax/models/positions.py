"""Tables of learnable positions, and how they fit another grid."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax.models import layers

# Tables whose places follow each other in time, at a rate that stays: a shorter input
# has the first of them. The others divide a frame or a spectrum, whatever its size.
_IN_TIME = ('positions', 'time_positions')


def table(module: nn.Module, name: str, size: int, width: int) -> jax.Array:
  """The module's table of that name, as it was made or loaded.  -> [size', D].

  It has `size` rows if it is made now; what a checkpoint brings may have others.
  """
  if module.has_variable('params', name):
    return module.get_variable('params', name)
  return module.param(name, layers.table_init, (size, width))


def fit(positions: jax.Array, name: str, size: int, release: bool) -> jax.Array:
  """Returns a table's positions for another number of places.  [N, D] -> [size, D].

  Args:
    positions: the table.
    name: of the table in its tokenizer. Positions in time are cut where the input is
      shorter, since its begin has the places that it had; all others are resized.
    size: number of places.
    release: resize all of them by the spline, as the released code does.
  """
  if not release and name in _IN_TIME and size < len(positions):
    return positions[:size]
  return resize(positions, size, spline=release)


def resize(positions: jax.Array, size: int, spline: bool) -> jax.Array:
  """Positions for another number of places.  [N, D] -> [size, D].

  Args:
    positions: the table.
    size: how many there are to be.
    spline: as the release does it, by a polyharmonic spline; otherwise bicubic
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
  """The cubic polyharmonic spline as what it is, a linear map.  -> float64 [m, n].

  From values at i/n to values at j/m, by |r|^3 and an affine term
  (`interpolate_pos` of the release). Solved in float64: in float32 it loses all
  but three digits.
  """
  if n == 1:
    return np.ones((m, 1))
  known, asked = np.arange(n) / n, np.arange(m) / m
  affine = lambda x: np.stack([x, np.ones_like(x)], axis=1)
  cubes = lambda x: np.abs(x[:, None] - known[None]) ** 3
  system = np.block([[cubes(known), affine(known)],
                     [affine(known).T, np.zeros((2, 2))]])
  values = np.concatenate([np.eye(n), np.zeros((2, n))])
  return np.concatenate([cubes(asked), affine(asked)], axis=1) @ np.linalg.solve(
      system, values)
