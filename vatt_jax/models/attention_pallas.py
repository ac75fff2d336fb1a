"""Attention as a TPU kernel that writes no [B, A, N, N] array.

A program has a block of queries of some heads, and all keys and values of these heads.
The softmax is therefore taken over whole rows, and the backward pass needs only
queries, keys and values: it recomputes the weights. This is FlashAttention
(arXiv 2205.14135) without its running softmax, which is for longer sequences.

Arrays keep their layout, [B, N, A * D]. A block takes as many heads as fill the 128
lanes of a tile. To select one head, the lanes of the others are set to 0 in one operand
of each product. That costs nothing where a matrix unit has 128 sides and D is 64: half
of it would be empty.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

_LANES = 128
_SUBLANES = 16    # of a tile of 16-bit numbers

# Limits of the fast memory of 16 MiB. It holds several arrays of up to so many weights,
# of 4 bytes each, and several arrays of keys or values of up to so many tokens.
_MOST_WEIGHTS = 2 ** 19
_MOST_TOKENS = 1664

# Contracted and batch dimensions of the products (`jax.lax.dot_general`).
_LAST_BOTH = (((1,), (1,)), ((), ()))
_LAST_FIRST = (((1,), (0,)), ((), ()))
_FIRST_BOTH = (((0,), (0,)), ((), ()))


def fits(q: jax.Array) -> bool:
  """Returns whether heads fill tiles and the keys fit in memory.  q: [B, N, A, D]."""
  _, num_tokens, num_heads, width = q.shape
  fills = _LANES % width == 0 and num_heads * width % _LANES == 0
  return fills and num_tokens <= _MOST_TOKENS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, operand: Any) -> jax.Array:
  """Computes `attention.attend` without mask and bias, for shapes that `fits` accepts.

  Args:
    q: [B, N, A, D], scaled.
    k: [B, N, A, D].
    v: [B, N, A, D].
    operand: type of the operands of products; sums are in float32.

  Returns:
    [B, N, A, D].
  """
  return _attend(q, k, v, operand)[0]


def _attend(q, k, v, operand):
  some, every, grid = _blocks(q)
  flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
  y = _call(functools.partial(_forward, width=q.shape[-1], operand=operand),
            'attend', grid, [some, every, every], some, flat[0])(*flat)
  return y.reshape(q.shape), (q, k, v)


def _attend_backward(operand, saved, dy):
  q = saved[0]
  some, every, grid = _blocks(q)
  flat = [x.reshape(*x.shape[:2], -1) for x in (*saved, dy)]
  kernel = functools.partial(_backward, width=q.shape[-1], operand=operand,
                             num_tokens=q.shape[1])
  gradients = _call(kernel, 'attend_backward', grid, [some, every, every, some],
                    [some, every, every], [flat[0]] * 3,
                    [pltpu.VMEM((q.shape[1], _LANES), jnp.float32)] * 2)(*flat)
  return tuple(x.reshape(q.shape) for x in gradients)


attend.defvjp(_attend, _attend_backward)


def _blocks(q: jax.Array) -> tuple[pl.BlockSpec, pl.BlockSpec, tuple[int, int, int]]:
  """Returns the block specs of some and of all tokens, and the grid.

  The grid counts examples, groups of heads and blocks of queries.
  """
  b, n, num_heads, width = q.shape
  count = math.ceil(n * n / _MOST_WEIGHTS)
  rows = n if count == 1 else math.ceil(n / count / _SUBLANES) * _SUBLANES
  some = pl.BlockSpec((1, rows, _LANES), lambda b, heads, i: (b, i, heads))
  every = pl.BlockSpec((1, n, _LANES), lambda b, heads, i: (b, 0, heads))
  return some, every, (b, num_heads * width // _LANES, math.ceil(n / rows))


def _call(kernel: Callable[..., None], name: str, grid: tuple[int, ...], in_specs: Any,
          out_specs: Any, like: Any, scratch_shapes: Any = ()) -> Callable[..., Any]:
  return pl.pallas_call(
      kernel, grid=grid, in_specs=in_specs, out_specs=out_specs, name=name,
      out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like),
      scratch_shapes=scratch_shapes, compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary')))


def _forward(q, k, v, y, *, width, operand):
  """Computes a block's rows of y; all arrays are [1, rows, lanes]."""
  dot = functools.partial(_dot, operand)
  y_rows = jnp.zeros(q.shape[1:], jnp.float32)
  for lanes in _heads(width):
    e, total = _exponentials(dot, _only(lanes, q[0]), k[0])
    y_rows = jnp.where(lanes, dot(e, v[0], _LAST_FIRST) / total, y_rows)
  y[0] = y_rows.astype(y.dtype)


def _backward(q, k, v, dy, dq, dk, dv, dk_sum, dv_sum, *, width, operand, num_tokens):
  """Computes a block's rows of dq, and adds their share to all rows of dk and dv."""
  dot = functools.partial(_dot, operand)
  block = pl.program_id(2)

  @pl.when(block == 0)
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  # Beyond the last token a block holds undefined numbers.
  row = jax.lax.broadcasted_iota(jnp.int32, (q.shape[1], 1), 0)
  is_token = row < num_tokens - block * q.shape[1]
  dq_rows = jnp.zeros(q.shape[1:], jnp.float32)
  for lanes in _heads(width):
    head_q, head_dy = (_only(lanes, _only(is_token, x[0])) for x in (q, dy))
    e, total = _exponentials(dot, head_q, k[0])
    weights = e / total
    dweights = dot(head_dy, v[0], _LAST_BOTH)
    mean = jnp.sum(weights * dweights, axis=-1, keepdims=True)
    dscores = weights * (dweights - mean)
    dq_rows = jnp.where(lanes, dot(dscores, k[0], _LAST_FIRST), dq_rows)
    dk_sum[...] += dot(dscores, head_q, _FIRST_BOTH)
    dv_sum[...] += dot(weights, head_dy, _FIRST_BOTH)
  dq[0] = dq_rows.astype(dq.dtype)

  @pl.when(block == pl.num_programs(2) - 1)
  def _():
    dk[0] = dk_sum[...].astype(dk.dtype)
    dv[0] = dv_sum[...].astype(dv.dtype)


def _heads(width: int) -> list[jax.Array]:
  """Returns a mask of the lanes of each head of a block.  bool [1, lanes] each."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (1, _LANES), 1)
  return [(first <= lane) & (lane < first + width)
          for first in range(0, _LANES, width)]


def _only(mask: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.where(mask, x, jnp.zeros_like(x))


def _dot(operand, x, y, sides):
  return jax.lax.dot_general(x.astype(operand), y.astype(operand), sides,
                             preferred_element_type=jnp.float32)


def _exponentials(dot, q, k):
  """Returns exponentials of the scores, [rows, N], and their sums, [rows, 1].

  Their quotient is the softmax.
  """
  scores = dot(q, k, _LAST_BOTH)
  e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  return e, jnp.sum(e, axis=-1, keepdims=True)
