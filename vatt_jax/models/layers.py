"""Layers of the Transformer of every tower (VATT, equation 2)."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.distributed import logical_axes
from vatt_jax.models import attention
from vatt_jax.models import kernels

# The paper names no initializer; this is the release's for linear layers.
kernel_init = nn.initializers.xavier_uniform()


def table_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
               ) -> jax.Array:
  """Initializes vectors, positions and AGG: truncated normal of scale D^-0.5."""
  return nn.initializers.truncated_normal(shape[-1] ** -0.5)(key, shape, dtype)


def small_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
               ) -> jax.Array:
  """Initializes tokens and relative biases as the release: uniform in [-0.05, 0.05]."""
  return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


class Dense(nn.Module):
  """Applies a linear layer.  [..., inputs] -> [..., features].

  Attributes:
    features: size of the output's one axis, or of its several axes.
    use_bias: add a bias.
    num_inputs: number of axes of the inputs.
    dtype: compute type.
  """
  features: int | Sequence[int]
  use_bias: bool = True
  num_inputs: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = self.features
    features = (features,) if isinstance(features, int) else tuple(features)
    inputs = x.shape[-self.num_inputs:]
    flat = math.prod(inputs), math.prod(features)

    def init(key, shape):
      return kernel_init(key, flat).reshape(shape)

    kernel = self.param('kernel', init, (*inputs, *features))
    kernel = logical_axes.gathered(kernel.astype(self.dtype))
    matrix = kernels.as_matrix(kernel, flat)
    rows = x.shape[:-self.num_inputs]
    y = kernels.product(x.astype(self.dtype).reshape(*rows, flat[0]), matrix)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, features)
      y = y + bias.astype(self.dtype).reshape(flat[1])
    return y.reshape(*rows, *features)


def dense(features: int, name: str, dtype: Any, use_bias: bool = True) -> Dense:
  return Dense(features, use_bias, dtype=dtype, name=name)


def layer_norm(x: jax.Array, name: str) -> jax.Array:
  """Applies layer norm in float32, and returns the input's type."""
  norm = nn.LayerNorm(epsilon=1e-6, name=name)
  return norm(x.astype(jnp.float32)).astype(x.dtype)


def rms_norm(x: jax.Array, name: str) -> jax.Array:
  """Applies root-mean-square norm in float32, and returns the input's type."""
  return nn.RMSNorm(epsilon=1e-6, name=name)(x.astype(jnp.float32)).astype(x.dtype)


class Dropout(nn.Module):
  """Zeroes a fraction of the activations of each clip.  [B, ...] -> [B, ...].

  Attributes:
    rate: the fraction.
  """
  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, clips: jax.Array | None) -> jax.Array:
    """Drops activations, and scales up the others.

    Args:
      x: [B, ...].
      clips: uint32 [B], a number for each row (`clip_keys.numbers`). It makes the draw
        of a clip independent of the rest of its batch. None drops nothing.
    """
    if clips is None or not self.rate:
      return x
    key = self.make_rng('dropout')
    keep = jax.vmap(lambda clip: jax.random.bernoulli(
        jax.random.fold_in(key, clip), 1 - self.rate, x.shape[1:]))(clips)
    return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))


def dropout(x: jax.Array, rate: float, clips: jax.Array | None) -> jax.Array:
  """Calls `Dropout` from within another module."""
  return Dropout(rate)(x, clips)


class Attention(nn.Module):
  """Applies multi-head self-attention.  [B, N, D] -> [B, N, D].

  A module with the same arguments can replace it as `attention` of `Transformer`. Its
  input is the sequence of tokens, with AGG in front.
  """
  num_heads: int
  t5_style: bool = False     # scores not scaled, no biases
  dropout_rate: float = 0.0  # of the weights
  form: str = 'xla'          # one of `attention.FORMS`
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None,
               bias: jax.Array | None = None, clips: jax.Array | None = None
               ) -> jax.Array:
    """Computes the attention of each token to all others.

    Args:
      x: [B, N, D].
      mask: bool [B, N], False for keys that no query attends to.
      bias: [A, N, N] (head, query, key), added to the scores.
      clips: for `Dropout` of the weights.
    """
    d = x.shape[-1]
    kwargs = dict(use_bias=not self.t5_style, dtype=self.dtype)
    project = lambda name: Dense(
        (self.num_heads, d // self.num_heads), name=name, **kwargs)(x)
    q, k, v = (project(name) for name in ('query', 'key', 'value'))  # [B, N, A, D/A]
    if not self.t5_style:
      q = q * q.shape[-1] ** -0.5
    drop = None
    if clips is not None and self.dropout_rate:
      drop = lambda weights: dropout(weights, self.dropout_rate, clips)
    y = attention.attend(q, k, v, mask, bias, drop, self.form)
    return Dense(d, num_inputs=2, name='out', **kwargs)(y)


class Block(nn.Module):
  """Applies a pre-norm Transformer block.  [B, N, D] -> [B, N, D]."""
  num_heads: int
  mlp_dim: int
  t5_style: bool = False
  dropout_rate: float = 0.0
  attention: Callable[..., nn.Module] = Attention
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None,
               bias: jax.Array | None = None, clips: jax.Array | None = None
               ) -> jax.Array:
    drop = lambda y: dropout(y, self.dropout_rate, clips)
    y = (rms_norm if self.t5_style else layer_norm)(x, 'norm_1')
    attend = self.attention(
        num_heads=self.num_heads, t5_style=self.t5_style,
        dropout_rate=self.dropout_rate, dtype=self.dtype, name='attention')
    y = attend(y, mask=mask, bias=bias, clips=clips)
    x = logical_axes.split_rows(x + drop(y))
    use_bias = not self.t5_style
    y = layer_norm(x, 'norm_2')
    y = dense(self.mlp_dim, 'mlp_1', self.dtype, use_bias)(y)
    y = drop(kernels.gelu(y))                                        # [B, N, mlp_dim]
    y = dense(x.shape[-1], 'mlp_2', self.dtype, use_bias)(y)
    return logical_axes.split_rows(x + drop(y))


class RelativeBias(nn.Module):
  """Computes T5's learnable bias by relative position, bidirectional.  -> [A, N, N].

  Half of the buckets are for keys before the query, half for keys after it. In each
  half, short distances have a bucket each, and longer ones share buckets of
  logarithmically growing size (Raffel et al. 2020, section 2.1).
  """
  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128
  init: nn.initializers.Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, num_tokens: int) -> jax.Array:
    table = self.param('table', self.init, (self.num_buckets, self.num_heads))
    position = jnp.arange(num_tokens)
    buckets = relative_buckets(position[None, :] - position[:, None],
                               self.num_buckets, self.max_distance)
    return table[buckets].transpose(2, 0, 1)                         # [A, N, N]


def relative_buckets(distance: jax.Array, num_buckets: int,
                     max_distance: int) -> jax.Array:
  """Returns the bucket of each signed distance key - query.  int [...] -> int [...]."""
  half = num_buckets // 2
  exact = half // 2
  size = jnp.abs(distance)
  wide = exact + (jnp.log(jnp.maximum(size, 1).astype(jnp.float32) / exact)
                  / jnp.log(max_distance / exact) * (half - exact)).astype(size.dtype)
  bucket = jnp.where(size < exact, size, jnp.minimum(wide, half - 1))
  return bucket + half * (distance > 0).astype(size.dtype)


# Arrays of a block that are kept for the backward pass; the rest is recomputed. 'dots'
# keeps only the products with the block's matrices, not those of queries with keys.
REMAT = {'none': None,
         'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
         'blocks': jax.checkpoint_policies.nothing_saveable}


class Transformer(nn.Module):
  """Applies blocks and a last norm.  [B, N, D] -> [B, N, D], with the input's D.

  With `relative_bias`, the first layer's scores get a learnable bias by relative
  position: VATT's text model (section 3.2). With `t5_style` too, it is the release's
  text model. There every layer's scores get that bias, with distances up to 64 in
  separate buckets; there are no other biases; scores are not scaled; norms before
  attention and at the end are root-mean-square norms; and the input is first projected
  to `width`.

  `remat`, a key of `REMAT`, sets which arrays are kept for the backward pass, from all
  to only the input of each block. With `scan_layers` blocks that are alike run as one
  loop, so that the program has the size of one block. Each block still has its own
  parameters.
  """
  depth: int
  num_heads: int
  mlp_dim: int
  relative_bias: bool = False
  t5_style: bool = False
  width: int = 0             # with t5_style
  dropout_rate: float = 0.0
  attention: Callable[..., nn.Module] = Attention
  remat: str = 'none'
  scan_layers: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None,
               clips: jax.Array | None = None) -> jax.Array:
    if self.t5_style:
      x = kernels.gelu(dense(self.width, 'projection', self.dtype, use_bias=False)(x))
      x = dropout(x, self.dropout_rate, clips)
    bias = None
    if self.relative_bias:
      style = dict(max_distance=64, init=small_init) if self.t5_style else {}
      bias = RelativeBias(self.num_heads, **style, name='relative_bias')(x.shape[1])
    unrolled = self.depth
    if self.scan_layers and not self.is_initializing():
      # In the paper's text model only the first block has a bias.
      unrolled = int(self.relative_bias and not self.t5_style)
    block_type = Block
    if self.remat != 'none':
      block_type = nn.remat(Block, policy=REMAT[self.remat])
    for i in range(unrolled):
      block = block_type(*self._block_settings(), name=f'block_{i}')
      x = block(x, mask, bias if i == 0 or self.t5_style else None, clips)
    if unrolled < self.depth:
      x = self._scan(range(unrolled, self.depth), x, mask,
                     bias if self.t5_style else None, clips)
    x = (rms_norm if self.t5_style else layer_norm)(x, 'norm')
    return dropout(x, self.dropout_rate, clips)

  def _block_settings(self) -> tuple[Any, ...]:
    return (self.num_heads, self.mlp_dim, self.t5_style, self.dropout_rate,
            self.attention, self.dtype)

  def _scan(self, numbers: Sequence[int], x: jax.Array, mask: jax.Array | None,
            bias: jax.Array | None, clips: jax.Array | None) -> jax.Array:
    """Applies the blocks of these numbers in a loop over their stacked parameters."""
    def stack(*params):    # matrices in the compute type; norms need float32
      return jnp.stack([p.astype(self.dtype) if p.ndim > 1 else p for p in params])

    params = jax.tree.map(stack, *(self.get_variable('params', f'block_{i}')
                                   for i in numbers))
    keys = None
    if clips is not None and self.dropout_rate:
      keys = jax.random.split(self.make_rng('dropout'), len(numbers))
    block = Block(*self._block_settings(), parent=None)

    def apply(x, layer):
      params, key = layer
      return block.apply({'params': params}, x, mask, bias, clips,
                         rngs={} if key is None else dict(dropout=key)), None

    if self.remat != 'none':
      apply = jax.checkpoint(apply, policy=REMAT[self.remat], prevent_cse=False)
    return jax.lax.scan(apply, x, (params, keys))[0]


class WordMean(nn.Module):
  """Averages the tokens of a sentence: a text tower of depth 0 (VATT, section 4.4.4).

  [B, N, D] -> [B, 1 + N, width or D]: the mean, in the place of a Transformer's AGG,
  followed by the tokens. A sentence without tokens has a mean of zeros.

  Attributes:
    width: of the linear projection of each token; 0 for none, since trained vectors
      need no projection.
    dtype: compute type.
  """
  width: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, clips: jax.Array | None = None
               ) -> jax.Array:
    """Averages the tokens that are not padding.

    Args:
      x: [B, N, D].
      mask: bool [B, N], False for padding.
      clips: not used.
    """
    del clips
    if self.width:
      x = dense(self.width, 'projection', self.dtype, use_bias=False)(x)
    tokens = jnp.where(mask[..., None], x, 0).astype(jnp.float32)
    count = jnp.maximum(mask.sum(axis=1), 1)[:, None, None]
    mean = tokens.sum(axis=1, keepdims=True) / count
    return jnp.concatenate([mean.astype(x.dtype), x], axis=1)


class Aggregator(nn.Module):
  """Prepends the learnable AGG token, whose output is the pooled feature.

  It has no position: the sum of two learnable vectors is one learnable vector.

  [B, N, D] -> [B, N + 1, D]
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, _, d = x.shape
    agg = self.param('agg', table_init, (d,)).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(agg, (b, 1, d)), x], axis=1)


class Projector(nn.Module):
  """Applies a linear layer and GELU.  [..., D] -> [..., width]."""
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return kernels.gelu(dense(self.width, 'projection', self.dtype)(x))
