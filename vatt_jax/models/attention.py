"""Attention of many heads, in forms that are equal but for rounding."""

from collections.abc import Callable
import functools
import re

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import attention_pallas

# Large enough to silence a key in float32 and bfloat16, small enough to stay finite.
_MASKED = -1e9

# The name, in the traced program, of the products of queries and keys.
SCORES = 'attention_scores'

FORMS = ('plain', 'weights', 'scores', 'fused', 'fused_float32', 'cudnn')

# Tokens from which on the kernel is the quicker.
FUSED_FROM = 128


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
    drop: applied to the weights, [B, A, N, N]; takes the plain form.
    form: of `FORMS`. Where there is a mask or a bias, 'weights' takes the place of the
      later ones, and for float32 that of 'cudnn', which knows none; 'scores' takes that
      of the fused ones for fewer than `FUSED_FROM` tokens, and for what a kernel does
      not take (`attention_pallas.fits`).

  Returns:
    [B, N, A, D].
  """
  if form == 'plain' or drop is not None:
    return plain(q, k, v, mask, bias, drop)
  if form == 'weights' or mask is not None or bias is not None:
    return from_weights(q, k, v, mask, bias)
  if form == 'cudnn':
    return from_weights(q, k, v) if q.dtype == jnp.float32 else cudnn(q, k, v)
  if form == 'scores' or q.shape[1] < FUSED_FROM:
    return from_scores(q, k, v)
  operand = jnp.float32 if form == 'fused_float32' else q.dtype
  # The compiler cannot split a kernel.
  kernel = functools.partial(_fused, operand=operand)
  return logical_axes.on_each_device(kernel, q, k, v)


def _fused(q, k, v, operand):
  if not attention_pallas.fits(q):
    return from_scores(q, k, v)
  return attention_pallas.attend(q, k, v, operand)


def choose_form(device: jax.Device) -> str:
  """The form that suits a device."""
  if device.platform == 'tpu':
    # In a kernel these multiply only float32, which they round to bfloat16.
    is_old = device.device_kind in ('TPU v2', 'TPU v3')
    return 'fused_float32' if is_old else 'fused'
  capability = getattr(device, 'compute_capability', '')    # AMD's are no numbers
  has_flash = re.fullmatch(r'\d+\.\d+', capability) and float(capability) >= 8
  return 'cudnn' if has_flash else 'weights'


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
          bias: jax.Array | None = None,
          drop: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """`attend` by the book."""
  q, k = by_head(q), by_head(k)
  weights = nn.softmax(masked(products(q, k), mask, bias)).astype(v.dtype)
  if drop is not None:
    weights = drop(weights)
  return jnp.einsum('baqk,bkad->bqad', weights, v)


def products(q: jax.Array, k: jax.Array) -> jax.Array:
  """Of queries and keys.  [B, A, N, D], [B, A, N, D] -> [B, A, N, N].

  Named in the traced program, where `vatt_jax cost` finds it by this name.
  """
  with jax.named_scope(SCORES):
    return jnp.einsum('baqd,bakd->baqk', q, k)


def masked(scores: jax.Array, mask: jax.Array | None, bias: jax.Array | None
           ) -> jax.Array:
  """With the bias, but for keys that nobody may look at.  -> float32 [B, A, N, N]."""
  scores = scores.astype(jnp.float32)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  return scores if mask is None else jnp.where(mask[:, None, None, :], scores, _MASKED)


def by_head(x: jax.Array) -> jax.Array:
  """[B, N, A, D] <-> [B, A, N, D]."""
  return x.transpose(0, 2, 1, 3)


@jax.custom_vjp
def from_weights(q: jax.Array, k: jax.Array, v: jax.Array,
                 mask: jax.Array | None = None, bias: jax.Array | None = None
                 ) -> jax.Array:
  """`attend` that keeps one [B, A, N, N] for the way back: the exponentials.

  They are never divided by their sum: what they are multiplied with is, which is
  smaller by N / D. The quickest on a CPU.
  """
  return _from_weights(q, k, v, mask, bias)[0]


def _from_weights(q, k, v, mask, bias):
  q, k, v = by_head(q), by_head(k), by_head(v)
  scores = masked(products(q, k), mask, bias)
  e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))      # [B, A, N, N]
  share = 1 / jnp.sum(e, axis=-1, keepdims=True)                     # [B, A, N, 1]
  e = e.astype(v.dtype)
  y = share * jnp.einsum('baqk,bakd->baqd', e, v, preferred_element_type=jnp.float32)
  return by_head(y.astype(v.dtype)), (q, k, v, mask, bias, e, share, y)


def _from_weights_backward(saved, dy):
  """With weights p = share * e: dv = p' dy, ds = p * (dy v' - sum(dy * y))."""
  q, k, v, mask, bias, e, share, y = saved
  dy = (by_head(dy) * share).astype(v.dtype)
  along = jnp.sum(dy.astype(jnp.float32) * y, axis=-1, keepdims=True)
  dv = jnp.einsum('baqd,baqk->badk', dy, e)      # this way round it is the quickest
  dp = jnp.einsum('baqd,bakd->baqk', dy, v, preferred_element_type=jnp.float32)
  ds = e.astype(jnp.float32) * (dp - along)
  if mask is not None:
    ds = jnp.where(mask[:, None, None, :], ds, 0.0)
  dbias = None if bias is None else jnp.sum(ds, axis=0).astype(bias.dtype)
  ds = ds.astype(q.dtype)
  dq = jnp.einsum('baqk,bakd->baqd', ds, k)
  dk = jnp.einsum('baqd,baqk->badk', q, ds)
  return by_head(dq), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None, dbias


from_weights.defvjp(_from_weights, _from_weights_backward)


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
  scores = products(by_head(q), by_head(k))
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


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """`attend` by cuDNN's FlashAttention; of 16 bits a number."""
  return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation='cudnn')
