"""The Transformer that every tower shares (VATT, equation 2)."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# Large enough to silence a key in float32 and bfloat16, small enough to stay finite.
_MASKED = -1e9


class Attention(nn.Module):
  """Multi-head self-attention.  [B, N, D] -> [B, N, D].

  Softmax runs in float32 whatever the compute type.
  """
  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None,
               bias: jax.Array | None = None) -> jax.Array:
    """Attends.

    Args:
      x: [B, N, D].
      mask: bool [B, N], False for keys that nobody may look at.
      bias: [A, N, N] (head, query, key), added to the scores.
    """
    d = x.shape[-1]
    project = lambda name: nn.DenseGeneral(
        (self.num_heads, d // self.num_heads), dtype=self.dtype, name=name)(x)
    q, k, v = (project(name) for name in ('query', 'key', 'value'))  # [B, N, A, D/A]
    scores = jnp.einsum('bqad,bkad->baqk', q, k).astype(jnp.float32)
    scores = scores / jnp.sqrt(jnp.float32(q.shape[-1]))             # [B, A, N, N]
    if bias is not None:
      scores = scores + bias.astype(jnp.float32)
    if mask is not None:
      scores = jnp.where(mask[:, None, None, :], scores, _MASKED)
    weights = nn.softmax(scores).astype(self.dtype)
    y = jnp.einsum('baqk,bkad->bqad', weights, v)
    return nn.DenseGeneral(d, axis=(-2, -1), dtype=self.dtype, name='out')(y)


class Block(nn.Module):
  """Pre-norm Transformer block.  [B, N, D] -> [B, N, D]."""
  num_heads: int
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None,
               bias: jax.Array | None = None) -> jax.Array:
    y = nn.LayerNorm(dtype=self.dtype, name='norm_1')(x)
    x = x + Attention(self.num_heads, self.dtype, name='attention')(y, mask, bias)
    y = nn.LayerNorm(dtype=self.dtype, name='norm_2')(x)
    y = nn.Dense(self.mlp_dim, dtype=self.dtype, name='mlp_1')(y)
    y = nn.gelu(y, approximate=False)                                # [B, N, mlp_dim]
    return x + nn.Dense(x.shape[-1], dtype=self.dtype, name='mlp_2')(y)


class RelativeBias(nn.Module):
  """T5's learnable bias by relative position, bidirectional.  -> [A, N, N].

  Half of the buckets are for keys before the query, half for keys after it;
  of each half, the nearer distances have a bucket of their own and the others
  share logarithmically wider ones (Raffel et al. 2020, section 2.1).
  """
  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, num_tokens: int) -> jax.Array:
    table = self.param('table', nn.initializers.normal(0.02),
                       (self.num_buckets, self.num_heads))
    position = jnp.arange(num_tokens)
    buckets = relative_buckets(position[None, :] - position[:, None],
                               self.num_buckets, self.max_distance)
    return table[buckets].transpose(2, 0, 1)                         # [A, N, N]


def relative_buckets(distance: jax.Array, num_buckets: int,
                     max_distance: int) -> jax.Array:
  """The bucket of each signed distance key - query.  int [...] -> int [...]."""
  half = num_buckets // 2
  exact = half // 2
  size = jnp.abs(distance)
  wide = exact + (jnp.log(jnp.maximum(size, 1) / exact)
                  / jnp.log(max_distance / exact) * (half - exact)).astype(int)
  bucket = jnp.where(size < exact, size, jnp.minimum(wide, half - 1))
  return bucket + half * (distance > 0)


class Transformer(nn.Module):
  """Blocks and the last norm.  [B, N, D] -> [B, N, D]; D is that of the input.

  With `relative_bias`, the first layer's scores get a learnable bias by
  relative position: VATT's text model (section 3.2).
  """
  depth: int
  num_heads: int
  mlp_dim: int
  relative_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    for i in range(self.depth):
      bias = None
      if i == 0 and self.relative_bias:
        bias = RelativeBias(self.num_heads, name='relative_bias')(x.shape[1])
      x = Block(self.num_heads, self.mlp_dim, self.dtype, name=f'block_{i}')(
          x, mask, bias)
    return nn.LayerNorm(dtype=self.dtype, name='norm')(x)


class Aggregator(nn.Module):
  """Puts the learnable AGG token, which will stand for all, in front.

  [B, N, D] -> [B, N + 1, D]
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, _, d = x.shape
    agg = self.param('agg', nn.initializers.normal(0.02), (d,)).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(agg, (b, 1, d)), x], axis=1)
