"""Attention's two products with softmax between, and their gradient by hand."""

from typing import Any

import jax
import jax.numpy as jnp

# Large enough to silence a key in float32 and bfloat16, small enough to stay finite.
_MASKED = -1e9

# The name, in the traced program, of the products of queries and keys.
SCORES = 'attention_scores'


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
           bias: jax.Array | None = None) -> jax.Array:
  """softmax(q k' + bias) v, for each head.  -> [B, N, A, d].

  The exponentials are never divided by their sum: what they are multiplied with
  is, which is smaller by N / d. The backward pass keeps them, and nothing else of
  that size. Softmax runs in float32, the products in the type of the arguments.

  Args:
    q: [B, N, A, d], queries, scaled; A heads of d.
    k: [B, N, A, d], keys.
    v: [B, N, A, d], values.
    mask: bool [B, N], False for keys that nobody may look at.
    bias: [A, N, N] (head, query, key), added to the scores.
  """
  return _forward(q, k, v, mask, bias)[0]


def scores(q: jax.Array, k: jax.Array, mask: jax.Array | None, bias: jax.Array | None
           ) -> jax.Array:
  """Of every query and key, masked.  [B, A, N, d], [B, A, N, d] -> f32 [B, A, N, N].

  The product is named in the traced program, where `vatt_jax.cost` finds it.
  """
  with jax.named_scope(SCORES):
    s = jnp.einsum('baqd,bakd->baqk', q, k)
  s = s.astype(jnp.float32)
  if bias is not None:
    s = s + bias.astype(jnp.float32)
  return s if mask is None else jnp.where(mask[:, None, None, :], s, _MASKED)


def by_head(x: jax.Array) -> jax.Array:
  """[B, N, A, d] <-> [B, A, N, d]."""
  return x.transpose(0, 2, 1, 3)


def _forward(q, k, v, mask, bias):
  q, k, v = by_head(q), by_head(k), by_head(v)
  s = scores(q, k, mask, bias)
  e = jnp.exp(s - jnp.max(s, axis=-1, keepdims=True))                # [B, A, N, N]
  share = 1 / jnp.sum(e, axis=-1, keepdims=True)                     # [B, A, N, 1]
  e = e.astype(v.dtype)
  y = (jnp.einsum('baqk,bakd->baqd', e, v) * share).astype(v.dtype)
  return by_head(y), (q, k, v, mask, bias, e, share, y)


def _backward(saved: Any, dy: jax.Array) -> tuple[jax.Array | None, ...]:
  """With weights p = share * e: dv = p' dy, ds = p * (dy v' - sum(dy * y))."""
  q, k, v, mask, bias, e, share, y = saved
  dy = by_head(dy)
  along = jnp.sum((dy * y).astype(jnp.float32), axis=-1, keepdims=True)
  dy = (dy * share).astype(v.dtype)
  dv = jnp.einsum('baqd,baqk->badk', dy, e)      # this way round it is the quickest
  dp = jnp.einsum('baqd,bakd->baqk', dy, v).astype(jnp.float32)
  ds = e.astype(jnp.float32) * (dp - along * share)
  if mask is not None:
    ds = jnp.where(mask[:, None, None, :], ds, 0.0)
  dbias = None if bias is None else jnp.sum(ds, axis=0).astype(bias.dtype)
  ds = ds.astype(q.dtype)
  dq = jnp.einsum('baqk,bakd->baqd', ds, k)
  dk = jnp.einsum('baqd,baqk->badk', q, ds)
  return (by_head(dq), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None, dbias)


attend.defvjp(_forward, _backward)
