"""Attention of many heads, in forms that are equal but for rounding."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

# Large enough to silence a key in float32 and bfloat16, small enough to stay finite.
_MASKED = -1e9

# The name, in the traced program, of the products of queries and keys.
SCORES = 'attention_scores'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
           bias: jax.Array | None = None,
           drop: Callable[[jax.Array], jax.Array] | None = None,
           form: str = 'plain') -> jax.Array:
  """Each query's mean of the values, weighted by the softmax of its scores.

  The softmax runs in float32 whatever the type of the arguments.

  Args:
    q: [B, N, A, D], scaled.
    k: [B, N, A, D].
    v: [B, N, A, D].
    mask: bool [B, N], False for keys that nobody may look at.
    bias: [A, N, N] (head, query, key), added to the scores.
    drop: applied to the weights, [B, A, N, N].
    form: of `FORMS`; with a mask, a bias or dropout it is the plain one.

  Returns:
    [B, N, A, D].
  """
  if mask is not None or bias is not None or drop is not None:
    return plain(q, k, v, mask, bias, drop)
  return FORMS[form](q, k, v)


def choose_form(device: jax.Device) -> str:
  """The form that suits a device."""
  return 'scores' if device.platform == 'tpu' else 'plain'


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
          bias: jax.Array | None = None,
          drop: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """`attend` by the book."""
  scores = attention_scores(q, k).astype(jnp.float32)                # [B, A, N, N]
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[:, None, None, :], scores, _MASKED)
  weights = nn.softmax(scores).astype(v.dtype)
  if drop is not None:
    weights = drop(weights)
  return jnp.einsum('baqk,bkad->bqad', weights, v)


def attention_scores(q: jax.Array, k: jax.Array) -> jax.Array:
  """Products of queries and keys.  [B, N, A, D], [B, N, A, D] -> [B, A, N, N].

  Named in the traced program, where `vatt_jax.cost` finds it by this name.
  """
  with jax.named_scope(SCORES):
    return jnp.einsum('bqad,bkad->baqk', q, k)


@jax.custom_vjp
def from_scores(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """`attend` that writes one [B, A, N, N] on the way there and one on the way back.

  Those arrays, not the products, are what attention costs a TPU. Here only matrix
  products touch them: the scores are kept, and what becomes of them is computed anew
  in every product that reads them; the sum of the weights comes out of the product
  with the values, which get a column of ones; the gradient of the softmax is computed
  as in FlashAttention (arXiv 2205.14135, appendix B.2).
  """
  return _from_scores(q, k, v)[0]


def _from_scores(q, k, v):
  scores = attention_scores(q, k)
  highest = jnp.max(scores, axis=-1, keepdims=True).astype(jnp.float32)
  weights = _weights(scores, highest).astype(v.dtype)
  ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
  y = jnp.einsum('baqk,bkad->bqad', weights, jnp.concatenate([v, ones], axis=-1),
                 preferred_element_type=jnp.float32)
  total = y[..., -1:]                                                # [B, N, A, 1]
  y = y[..., :-1] / total
  return y.astype(v.dtype), (q, k, v, scores, highest, total, y)


def _weights(scores, highest):
  """Of a largest one of 1; behind a barrier, or XLA would write them down."""
  scores, highest = jax.lax.optimization_barrier((scores, highest))
  return jnp.exp(scores.astype(jnp.float32) - highest)


def _from_scores_backward(saved, dy):
  q, k, v, scores, highest, total, y = saved
  dy = (dy.astype(jnp.float32) / total).astype(v.dtype)
  mean = jnp.einsum('bqad,bqad->baq', dy.astype(jnp.float32), y)[..., None]
  dv = jnp.einsum('baqk,bqad->bkad', _weights(scores, highest).astype(v.dtype), dy)
  dweights = jnp.einsum('bqad,bkad->baqk', dy, v, preferred_element_type=jnp.float32)
  dscores = (_weights(scores, highest) * (dweights - mean)).astype(q.dtype)
  return (jnp.einsum('baqk,bkad->bqad', dscores, k),
          jnp.einsum('baqk,bqad->bkad', dscores, q), dv)


from_scores.defvjp(_from_scores, _from_scores_backward)

FORMS = {'plain': plain, 'scores': from_scores}
