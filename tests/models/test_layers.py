"""vatt_jax/models/layers.py"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.models import layers


def _x(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def test_attention_is_the_softmax_of_scaled_products():
  """It equals loops over heads, queries and keys in NumPy."""
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


def test_masked_token_does_not_change_other_tokens():
  module = layers.Transformer(depth=2, num_heads=2, mlp_dim=16, relative_bias=True)
  x, mask = _x(1, 6, 8), np.array([[1, 1, 1, 1, 0, 0]], bool)
  variables = module.init(jax.random.key(0), x)
  other = x.at[:, 4:].set(9.0)
  np.testing.assert_allclose(module.apply(variables, x, mask)[:, :4],
                             module.apply(variables, other, mask)[:, :4], atol=1e-6)


def test_relative_buckets_match_the_release(shared):
  golden = np.load(shared / 'golden' / 'misc.npz')
  names = [k for k in golden.files if 'bucket' in k]
  assert names
  for key in names:
    n = len(golden[key])
    position = np.arange(n)
    buckets = layers.relative_buckets(jnp.asarray(position[None] - position[:, None]),
                                      num_buckets=32, max_distance=64)
    np.testing.assert_array_equal(buckets, golden[key])


def test_short_distances_have_separate_buckets():
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


def test_transformer_normalizes_its_output():
  x = 5 * _x(2, 3, 8) + 2
  module = layers.Transformer(depth=1, num_heads=2, mlp_dim=16)
  y = module.apply(module.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def _grad(module):
  """Differentiates the sum of the output's sines.

  Squares would not do: those of a normalized output sum to a constant.
  """
  return jax.jit(jax.grad(lambda params, x, mask: jnp.sum(jnp.sin(
      module.apply({'params': params}, x, mask))), argnums=(0, 1)))


def _assert_same(actual, expected):
  """Compares to 1e-6 of the largest number, since a key's bias has no gradient."""
  largest = max(abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6 * largest), actual, expected)


@pytest.mark.parametrize('remat', ['dots', 'blocks'])
def test_remat_keeps_parameter_names_and_gradients(remat):
  x, mask = _x(2, 5, 8), np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], bool)
  plain, saving = (
      layers.Transformer(depth=2, num_heads=2, mlp_dim=16, relative_bias=True,
                         remat=kind) for kind in ('none', remat))
  params = plain.init(jax.random.key(0), x)['params']
  jax.tree.map(np.testing.assert_array_equal, params,
               saving.init(jax.random.key(0), x)['params'])
  _assert_same(_grad(saving)(params, x, mask), _grad(plain)(params, x, mask))


def test_remat_keeps_fewer_activations():
  """Counts the numbers that eight blocks keep for the backward pass."""
  x = jax.ShapeDtypeStruct((4, 64, 32), jnp.float32)
  kept = []
  for remat in layers.REMAT:
    module = layers.Transformer(depth=8, num_heads=4, mlp_dim=128, remat=remat)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    backward = jax.eval_shape(lambda *args, m=module: jax.vjp(m.apply, *args)[1],
                              variables, x)
    kept.append(sum(leaf.size for leaf in jax.tree.leaves(backward)))
  assert list(layers.REMAT) == ['none', 'dots', 'blocks']
  assert kept[0] > 3 * kept[1] > 3 * 3 * kept[2]


@pytest.mark.parametrize('style, remat', [
    (dict(), 'none'), (dict(), 'blocks'), (dict(relative_bias=True), 'dots'),
    (dict(relative_bias=True, t5_style=True, width=8), 'none')])
def test_scan_layers_keeps_parameter_names_and_gradients(style, remat):
  x, mask = _x(2, 5, 8), np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], bool)
  size = dict(depth=3, num_heads=2, mlp_dim=16)
  unrolled = layers.Transformer(**size, **style)
  loop = layers.Transformer(**size, **style, remat=remat, scan_layers=True)
  params = unrolled.init(jax.random.key(0), x)['params']
  jax.tree.map(np.testing.assert_array_equal, params,
               loop.init(jax.random.key(0), x)['params'])
  params = jax.tree.map(lambda p: p + 0.1 * _x(*p.shape, seed=3), params)
  _assert_same(_grad(loop)(params, x, mask), _grad(unrolled)(params, x, mask))


def test_scan_layers_draws_dropout_separately_for_each_layer():
  """Also, bfloat16 towers keep the parameters of norms in float32."""
  x, key = _x(2, 5, 8), jax.random.key(1)
  module = layers.Transformer(depth=3, num_heads=2, mlp_dim=16, dropout_rate=0.5,
                              scan_layers=True, dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), x)
  apply = lambda depth, train: module.clone(depth=depth).apply(
      variables, x.astype(jnp.bfloat16), None, jnp.arange(2) if train else None,
      rngs={'dropout': key})
  program = jax.make_jaxpr(lambda: apply(3, True))()
  (loop,) = [e for e in program.eqns if e.primitive.name == 'scan']
  assert loop.params['length'] == 3
  types = {str(v.aval.dtype) for v in loop.invars}
  assert any('key' in t for t in types) and {'bfloat16', 'float32'} <= types
  assert (apply(3, True) != apply(3, False)).any()


def test_scan_layers_compiles_one_layer():
  """The number of matrix products does not depend on the depth."""
  x = _x(2, 5, 8)

  def products(depth):
    module = layers.Transformer(depth, num_heads=2, mlp_dim=16, relative_bias=True,
                                remat='blocks', scan_layers=True)
    params = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    return str(jax.make_jaxpr(_grad(module))(params, x, None)).count('dot_general')
  assert products(3) == products(12) > 0


@pytest.mark.slow
def test_remat_lowers_memory_with_scan_layers():
  """Compares compiled gradients; without a loop a CPU's compiler undoes `remat`."""
  x, memory = jax.ShapeDtypeStruct((4, 64, 32), jnp.float32), []
  for remat in layers.REMAT:
    module = layers.Transformer(depth=8, num_heads=4, mlp_dim=128, remat=remat,
                                scan_layers=True)
    params = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    memory.append(_grad(module).lower(params, x, None).compile().memory_analysis()
                  .temp_size_in_bytes)
  assert memory[0] > 2 * memory[1] > 2 * 1.2 * memory[2]


def test_attention_dropout_scales_up_the_kept_weights():
  x = _x(2, 5, 8)
  module = layers.Attention(num_heads=2, dropout_rate=0.5)
  variables = module.init(jax.random.key(0), x)
  whole = module.apply(variables, x)
  draw = lambda key: module.apply(variables, x, clips=jnp.arange(2),
                                  rngs={'dropout': key})
  draws = jax.vmap(draw)(jax.random.split(jax.random.key(1), 400))
  assert not np.allclose(draws[0], whole)
  np.testing.assert_allclose(draws.mean(axis=0), whole, atol=0.15)
