"""Multi-head attention in several forms, which differ only by rounding."""

from collections.abc import Callable
import re

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import attention_pallas

# Large enough to remove a key in float32 and bfloat16, small enough to stay finite.
_MASKED = -1e9

# Name scope of the products of queries and keys in the traced program.
SCORES = 'attention_scores'

FORMS = ('xla', 'save_weights', 'save_scores', 'pallas', 'cudnn')

# The number of tokens from which on the Pallas kernel is faster.
PALLAS_FROM = 128


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
           bias: jax.Array | None = None,
           drop: Callable[[jax.Array], jax.Array] | None = None,
           form: str = 'xla') -> jax.Array:
  """Computes each query's mean of the values, weighted by the softmax of its scores.

  The softmax is computed in float32 for arguments of any type.

  Args:
    q: [B, N, A, D], scaled.
    k: [B, N, A, D].
    v: [B, N, A, D].
    mask: bool [B, N], False for keys that no query attends to.
    bias: [A, N, N] (head, query, key), added to the scores.
    drop: applied to the weights, [B, A, N, N]; selects 'xla'.
    form: one of `FORMS`. With a mask or a bias, 'save_weights' replaces the later
      forms. For float32, which cuDNN does not support, it replaces 'cudnn'.
      'save_scores' replaces 'pallas' for fewer than `PALLAS_FROM` tokens, and for
      shapes that the kernel does not support (`attention_pallas.fits`).

  Returns:
    [B, N, A, D].
  """
  if form == 'xla' or drop is not None:
    return xla(q, k, v, mask, bias, drop)
  if form == 'save_weights' or mask is not None or bias is not None:
    return save_weights(q, k, v, mask, bias)
  if form == 'cudnn':
    return save_weights(q, k, v) if q.dtype == jnp.float32 else cudnn(q, k, v)
  if form == 'save_scores' or q.shape[1] < PALLAS_FROM:
    return save_scores(q, k, v)
  # The compiler cannot partition a kernel, so each device runs it on its own rows.
  return logical_axes.on_each_device(pallas, q, k, v)


def choose_form(device: jax.Device) -> str:
  """Returns the form that suits a device."""
  if device.platform == 'tpu':
    return 'pallas'
  capability = getattr(device, 'compute_capability', '')    # AMD's is not a number
  has_flash = re.fullmatch(r'\d+\.\d+', capability) and float(capability) >= 8
  return 'cudnn' if has_flash else 'save_weights'


def xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        drop: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """Computes `attend` directly from its definition."""
  q, k = by_head(q), by_head(k)
  weights = nn.softmax(masked(products(q, k), mask, bias)).astype(v.dtype)
  if drop is not None:
    weights = drop(weights)
  return jnp.einsum('baqk,bkad->bqad', weights, v)


def products(q: jax.Array, k: jax.Array) -> jax.Array:
  """Multiplies queries and keys.  [B, A, N, D], [B, A, N, D] -> [B, A, N, N].

  The name scope lets `vatt_jax cost` find the products in the traced program.
  """
  with jax.named_scope(SCORES):
    return jnp.einsum('baqd,bakd->baqk', q, k)


def masked(scores: jax.Array, mask: jax.Array | None, bias: jax.Array | None
           ) -> jax.Array:
  """Adds the bias to scores and masks keys.  -> float32 [B, A, N, N]."""
  scores = scores.astype(jnp.float32)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  return scores if mask is None else jnp.where(mask[:, None, None, :], scores, _MASKED)


def by_head(x: jax.Array) -> jax.Array:
  """Transposes [B, N, A, D] to [B, A, N, D] and back."""
  return x.transpose(0, 2, 1, 3)


@jax.custom_vjp
def save_weights(q: jax.Array, k: jax.Array, v: jax.Array,
                 mask: jax.Array | None = None, bias: jax.Array | None = None
                 ) -> jax.Array:
  """Computes `attend` and keeps one [B, A, N, N] array for the backward pass.

  That array holds the exponentials. They are never divided by their sum: the other
  factor of each product is divided instead, since it is smaller by N / D. This form is
  the fastest on a CPU.
  """
  return _save_weights(q, k, v, mask, bias)[0]


def _save_weights(q, k, v, mask, bias):
  q, k, v = by_head(q), by_head(k), by_head(v)
  scores = masked(products(q, k), mask, bias)
  e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))      # [B, A, N, N]
  share = 1 / jnp.sum(e, axis=-1, keepdims=True)                     # [B, A, N, 1]
  e = e.astype(v.dtype)
  y = share * jnp.einsum('baqk,bakd->baqd', e, v, preferred_element_type=jnp.float32)
  return by_head(y.astype(v.dtype)), (q, k, v, mask, bias, e, share, y)


def _save_weights_backward(saved, dy):
  """Computes gradients from the weights p = share * e.

  dv = p' dy, ds = p * (dy v' - sum(dy * y)).
  """
  q, k, v, mask, bias, e, share, y = saved
  dy = (by_head(dy) * share).astype(v.dtype)
  along = jnp.sum(dy.astype(jnp.float32) * y, axis=-1, keepdims=True)
  dv = jnp.einsum('baqd,baqk->badk', dy, e)      # this order is the fastest
  dp = jnp.einsum('baqd,bakd->baqk', dy, v, preferred_element_type=jnp.float32)
  ds = e.astype(jnp.float32) * (dp - along)
  if mask is not None:
    ds = jnp.where(mask[:, None, None, :], ds, 0.0)
  dbias = None if bias is None else jnp.sum(ds, axis=0).astype(bias.dtype)
  ds = ds.astype(q.dtype)
  dq = jnp.einsum('baqk,bakd->baqd', ds, k)
  dk = jnp.einsum('baqd,baqk->badk', q, ds)
  return by_head(dq), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None, dbias


save_weights.defvjp(_save_weights, _save_weights_backward)


@jax.custom_vjp
def save_scores(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Computes `attend` with one [B, A, N, N] array written in each pass.

  These arrays, not the products, dominate the cost of attention on a TPU. Here only
  matrix products read and write them. The scores are kept, and every product that
  reads the weights recomputes them from the scores. The values get a column of ones,
  so that their product also gives the sum of the weights. The gradient of the softmax
  is computed as in FlashAttention (arXiv 2205.14135, appendix B.2).
  """
  return _save_scores(q, k, v)[0]


def _save_scores(q, k, v):
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
  """Computes weights with a maximum of 1; a barrier keeps XLA from storing them."""
  scores, highest = jax.lax.optimization_barrier((scores, highest))
  return jnp.exp(scores.astype(jnp.float32) - highest)


def _save_scores_backward(saved, dy):
  q, k, v, scores, highest, total, y = saved
  dy = (dy.astype(jnp.float32) / total).astype(v.dtype)
  mean = jnp.einsum('bqad,bqad->baq', dy.astype(jnp.float32), y)[..., None]
  dv = jnp.einsum('baqk,bqad->bkad', _weights(scores, highest).astype(v.dtype), dy)
  dweights = jnp.einsum('bqad,bkad->baqk', dy, v, preferred_element_type=jnp.float32)
  dscores = (_weights(scores, highest) * (dweights - mean)).astype(q.dtype)
  return (jnp.einsum('baqk,bkad->bqad', dscores, k),
          jnp.einsum('baqk,bqad->bkad', dscores, q), dv)


save_scores.defvjp(_save_scores, _save_scores_backward)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Computes `attend` by cuDNN's FlashAttention, for 16-bit types."""
  return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation='cudnn')


def pallas(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Computes `attend` by the kernel for TPUs, where it supports the shape."""
  if not attention_pallas.fits(q):
    return save_scores(q, k, v)
  # Inside a kernel these multiply only float32 operands, rounded to bfloat16.
  is_old = _device_kind() in ('TPU v2', 'TPU v3')
  return attention_pallas.attend(q, k, v, jnp.float32 if is_old else q.dtype)


def _device_kind() -> str:
  """Returns the kind of device that a step is compiled for, or that of this machine."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return (device or jax.devices()[0]).device_kind
