"""vatt_jax/models/layers.py"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vatt_jax.models import layers


def _x(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def test_attention_is_softmax_of_scaled_products():
  """Against loops over heads, queries and keys in NumPy."""
  x, mask = _x(2, 5, 8), np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], bool)
  bias = _x(2, 5, 5, seed=1)
  module = layers.Attention(num_heads=2)
  variables = module.init(jax.random.key(2), x)
  variables = jax.tree.map(lambda p: p + 0.1 * _x(*p.shape, seed=3), variables)
  p = jax.tree.map(np.asarray, variables['params'])
  expected = np.zeros((2, 5, 8))
  for b in range(2):
    for a in range(2):
      q, k, v = (np.asarray(x[b]) @ p[n]['kernel'][:, a] + p[n]['bias'][a]
                 for n in ('query', 'key', 'value'))
      for i in range(5):
        scores = np.array([q[i] @ k[j] / 2 + bias[a, i, j] if mask[b, j] else -1e30
                           for j in range(5)])
        weights = np.exp(scores - scores.max())
        expected[b, i] += (weights / weights.sum()) @ v @ p['out']['kernel'][a]
  expected += p['out']['bias']
  np.testing.assert_allclose(module.apply(variables, x, mask, bias), expected,
                             atol=1e-5)


def test_a_masked_token_changes_nothing():
  module = layers.Transformer(depth=2, num_heads=2, mlp_dim=16, relative_bias=True)
  x, mask = _x(1, 6, 8), np.array([[1, 1, 1, 1, 0, 0]], bool)
  variables = module.init(jax.random.key(0), x)
  other = x.at[:, 4:].set(9.0)
  np.testing.assert_allclose(module.apply(variables, x, mask)[:, :4],
                             module.apply(variables, other, mask)[:, :4], atol=1e-6)


def test_relative_buckets_are_those_of_the_release(shared):
  golden = np.load(shared / 'golden' / 'misc.npz')
  found = [k for k in golden.files if 'bucket' in k]
  assert found
  for key in found:
    n = len(golden[key])
    position = np.arange(n)
    ours = layers.relative_buckets(jnp.asarray(position[None] - position[:, None]),
                                   num_buckets=32, max_distance=64)
    np.testing.assert_array_equal(ours, golden[key])


def test_near_distances_have_a_bucket_of_their_own():
  buckets = layers.relative_buckets(jnp.arange(-200, 201), 32, 128)
  assert buckets.min() == 0 and buckets.max() == 31
  before, after = buckets[:200][::-1], buckets[201:]
  np.testing.assert_array_equal(before[:7], range(1, 8))
  np.testing.assert_array_equal(after, before + 16)
  assert (np.diff(before) >= 0).all() and before[126] == 15 and before[199] == 15


def test_only_the_first_layer_has_a_relative_bias():
  x = _x(1, 6, 8)
  module = layers.Transformer(depth=2, num_heads=2, mlp_dim=16, relative_bias=True)
  params = module.init(jax.random.key(0), x)['params']
  assert params['relative_bias']['table'].shape == (32, 2)
  assert params.keys() == {'relative_bias', 'block_0', 'block_1', 'norm'}


def test_the_transformer_normalises_before_each_sublayer_and_at_the_end():
  x = 5 * _x(2, 3, 8) + 2
  module = layers.Transformer(depth=1, num_heads=2, mlp_dim=16)
  y = module.apply(module.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def test_gelu_and_its_slope_are_exact_to_float32():
  x = np.linspace(-8, 8, 2001, dtype=np.float32)
  wide = x.astype(np.float64)
  density = np.exp(-0.5 * wide ** 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), wide * special.ndtr(wide),
                             atol=1.5e-6)
  np.testing.assert_allclose(jax.grad(lambda x: layers.gelu(x).sum())(jnp.asarray(x)),
                             special.ndtr(wide) + wide * density, atol=1e-6)


def test_attention_drops_weights_and_scales_up_the_others():
  x = _x(2, 5, 8)
  module = layers.Attention(num_heads=2, dropout_rate=0.5)
  variables = module.init(jax.random.key(0), x)
  whole = module.apply(variables, x)
  draw = lambda key: module.apply(variables, x, train=True, rngs={'dropout': key})
  draws = jax.vmap(draw)(jax.random.split(jax.random.key(1), 400))
  assert not np.allclose(draws[0], whole)
  np.testing.assert_allclose(draws.mean(axis=0), whole, atol=0.15)


def test_gradients_of_a_product_are_right_for_tall_and_for_wide_kernels():
  for rows, columns in ((6, 4), (4, 6)):
    x, kernel, dy = _x(2, 3, rows), _x(rows, columns, seed=1), _x(2, 3, columns, seed=2)
    y, backward = jax.vjp(layers.product, x, kernel)
    dx, dkernel = backward(dy)
    np.testing.assert_allclose(y, np.matmul(x, kernel), atol=1e-5)
    np.testing.assert_allclose(dx, np.matmul(dy, kernel.T), atol=1e-5)
    np.testing.assert_allclose(dkernel, np.einsum('bnk,bnd->kd', x, dy), atol=1e-5)
