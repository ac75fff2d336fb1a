"""vatt_jax/models/pooling.py"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import config
from vatt_jax.models import pooling


def _settings(golden, case):
  """Returns the module of a golden case, its parameters and its input."""
  p = {k.removeprefix(f'{case}/p/'): golden[k] for k in golden.files
       if k.startswith(f'{case}/p/')}
  num_heads, x = int(golden[f'{case}/heads']), golden[f'{case}/in']
  depth = len({k.split('.')[1] for k in p if k.startswith('transformer')})
  paper = 'transformer.0.mha.v_lin.weight' in p
  params = {}
  for i in range(depth):
    block, of = params.setdefault(f'block_{i}', {}), f'transformer.{i}'
    linear = lambda name, of=of: dict(kernel=p[f'{of}.{name}.weight'].T,
                                      bias=p[f'{of}.{name}.bias'])
    heads = num_heads, x.shape[-1] // num_heads
    attention = block['attention'] = {}
    for ours, theirs in dict(query='q', key='k', value='v').items():
      if f'{of}.mha.{theirs}_lin.weight' in p:
        layer = linear(f'mha.{theirs}_lin')
        attention[ours] = dict(kernel=layer['kernel'].reshape(-1, *heads),
                               bias=layer['bias'].reshape(heads))
    if paper:
      out = linear('mha.out_lin')
      attention['out'] = dict(out, kernel=out['kernel'].reshape(*heads, -1))
    for name in ('1', '2'):
      block[f'norm_{name}'] = dict(scale=p[f'{of}.norm{name}.weight'],
                                   bias=p[f'{of}.norm{name}.bias'])
      block[f'mlp_{name}'] = linear(f'ffn.lin{name}')
  if paper:
    params['positions'] = p['pos_embs.0.weight']
  elif 'pos_embs.0.weight' in p:    # positions alone are no variant of ours
    x = x + p['pos_embs.0.weight'][:x.shape[1]]
  module = pooling.TransformerPooling(depth, num_heads,
                                      variant='paper' if paper else 'release')
  return module, params, x


@pytest.mark.parametrize('case', ['default', 'long', 'full_qkv_positions', 'one_head'])
def test_transformer_matches_the_release(shared, case):
  golden = np.load(shared / 'golden_gdt_stica' / 'transformer_pooling.npz')
  module, params, x = _settings(golden, case)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  out = module.apply(dict(params=params), x)
  np.testing.assert_allclose(out, golden[f'{case}/out'], rtol=0, atol=4e-6)


def test_number_of_parameters_is_that_of_the_release():
  x = jnp.zeros((1, 4, 512))
  count = lambda variant: sum(x.size for x in jax.tree.leaves(jax.eval_shape(
      pooling.TransformerPooling(variant=variant).init, jax.random.key(0), x)))
  assert count('release') == 5_254_144
  assert count('paper') == 2 * 3_152_384 + 64 * 512


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_only_the_paper_variant_tells_the_order_of_steps(variant):
  x = jax.random.normal(jax.random.key(0), (2, 6, 16))
  module = pooling.TransformerPooling(mlp_dim=32, variant=variant)
  params = module.init(jax.random.key(1), x)
  params = jax.tree.map(lambda p: p * 10 if p.ndim > 1 else p, params)
  other = x[:, jnp.array([0, 5, 4, 3, 2, 1])]
  moved = abs(module.apply(params, x) - module.apply(params, other)).max()
  assert moved <= 1e-5 if variant == 'release' else moved >= 1e-2


def test_max_over_windows_of_time_matches_the_protocol_of_stica(shared):
  golden = np.load(shared / 'golden_gdt_stica' / 'audio_linear_pool.npz')
  grid = golden['in'].transpose(0, 3, 2, 1)[:, :, :, None]           # [B, t, f, 1, D]
  out = pooling.Max(steps=3, stride=2).apply({}, grid)
  expected = golden['out'].transpose(0, 3, 2, 1)
  np.testing.assert_array_equal(out, expected.reshape(len(out), -1))


@pytest.mark.parametrize('module, reduce', [
    (pooling.Average(), np.mean), (pooling.Max(), np.max)])
def test_whole_map_has_one_value_a_channel(module, reduce):
  grid = np.random.default_rng(0).normal(size=(2, 4, 3, 3, 5)).astype(np.float32)
  np.testing.assert_allclose(module.apply({}, grid), reduce(grid, axis=(1, 2, 3)),
                             rtol=1e-6)


def test_positions_of_a_crop_are_those_in_the_clip():
  x = jax.random.normal(jax.random.key(0), (2, 3, 16))
  module = pooling.TransformerPooling(mlp_dim=32)
  params = module.init(jax.random.key(1), x)
  table = params['params']['positions']
  moved = dict(params=dict(params['params'], positions=jnp.roll(table, -2, axis=0)))
  start = jnp.array([0, 2])
  out = module.apply(params, x, start)
  np.testing.assert_allclose(out[:1], module.apply(params, x)[:1], atol=1e-6)
  np.testing.assert_allclose(out[1:], module.apply(moved, x)[1:], atol=1e-6)


def test_more_steps_than_positions_raise():
  with pytest.raises(ValueError, match='65 steps of time: expected at most 64'):
    pooling.TransformerPooling().init(jax.random.key(0), jnp.zeros((1, 65, 16)))


@pytest.mark.parametrize('module, message', [
    (pooling.Max(steps=5), 'steps=5: expected at most 4, the length of the map'),
    (pooling.TransformerPooling(num_heads=3), 'num_heads=3: expected a divisor of')])
def test_pooling_that_does_not_fit_the_map_raises(module, message):
  with pytest.raises(ValueError, match=message):
    module.init(jax.random.key(0), jnp.zeros((1, 4, 16)))


def test_adaptive_bins_match_the_release(shared):
  golden = np.load(shared / 'golden_gdt_stica' / 'adaptive_pool.npz')
  for name in golden.files:
    if name.startswith('time_'):
      _, steps, _, bins = name.split('_')
      x = np.moveaxis(golden['in'][:, :, :int(steps)].mean((3, 4)), 1, 2)
      np.testing.assert_allclose(pooling.adaptive_bins(x, int(bins)),
                                 np.moveaxis(golden[name][..., 0, 0], 1, 2), rtol=0,
                                 atol=1e-6, err_msg=name)


SIZES = {4: {}, 8: dict(time_large=(2, 6), time_small=(1, 4))}


def _boxes(steps, variant):
  """Returns the boxes that 300 draws reach, in the notation of the golden file."""
  crops = pooling.Crops(variant=variant, **SIZES[steps])
  starts = crops.starts(jax.random.split(jax.random.key(0), 300), (steps, 7, 7))
  return {name: sorted({
      tuple(int(x) for first in row for x in (first, first + getattr(crops, name)[1]))
      for row in np.asarray(start).reshape(-1, start.shape[-1])})
          for name, start in starts.items()}


@pytest.mark.parametrize('steps', SIZES)
def test_release_variant_reaches_exactly_the_boxes_of_the_release(shared, steps):
  path = shared / 'golden_gdt_stica' / 'stica_reachable_boxes.json'
  expected = json.loads(path.read_text())[f'duration_{steps}']
  assert _boxes(steps, 'release') == {
      name: sorted(map(tuple, boxes)) for name, boxes in expected.items()}


def test_paper_variant_reaches_every_box():
  assert {k: len(v) for k, v in _boxes(4, 'paper').items()} == dict(
      space_large=4, space_small=16, time_large=2, time_small=3)


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_crops_are_averages_of_slices_of_the_map(variant):
  crops = pooling.Crops(space_large=(1, 5), space_small=(2, 3), time_large=(0, 3),
                        time_small=(2, 2), variant=variant)
  grid = jax.random.normal(jax.random.key(0), (3, 4, 7, 6, 5))
  keys = jax.random.split(jax.random.key(1), 3)
  out = crops(keys, grid, lambda x, start: x[:, :2].reshape(len(x), 10))
  starts = crops.starts(keys, (4, 7, 6))
  assert out.shape == (3, 5, 10) and crops.counts == ((1, 2), (0, 2))
  for b in range(3):
    expected = [grid[b, :, r:r + size, c:c + size].mean((1, 2))
                for name, size in (('space_large', 5), ('space_small', 3))
                for r, c in starts[name][b].tolist()]
    for [first] in starts['time_small'][b].tolist():
      cut = grid[b, first:first + 2].mean((1, 2))
      expected.append(cut if variant == 'paper' else jnp.repeat(cut, 2, axis=0))
    for ours, x in zip(out[b], expected, strict=True):
      np.testing.assert_allclose(ours, x[:2].reshape(-1), atol=1e-5)


def test_crop_larger_than_the_map_is_named():
  with pytest.raises(ValueError, match=r'space_large=\(2, 6\): expected a size of at'):
    pooling.Crops().starts(jax.random.split(jax.random.key(0), 2), (4, 5, 7))
