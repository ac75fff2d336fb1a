"""Tests vatt_jax/models/tokenization.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.inputs import clip_keys
from vatt_jax.models import tokenization


def test_video_patch_contains_its_voxels():
  video = jnp.arange(2 * 4 * 4 * 6 * 3).reshape(2, 4, 4, 6, 3)
  patches = tokenization.cut_patches(video, (2, 2, 3)).reshape(2, 8, -1)
  assert patches.shape == (2, 2 * 2 * 2, 2 * 2 * 3 * 3)
  # Token 5 of a 2 x 2 x 2 grid is time 1, height 0, width 1.
  patch = video[1, 2:4, 0:2, 3:6].transpose(tokenization.patch_order(3))
  np.testing.assert_array_equal(patches[1, 5], patch.reshape(-1))


@pytest.mark.parametrize('patch', [(4,), (2, 3), (2, 4, 3)])
def test_patch_projection_is_the_product_with_the_kernel(patch):
  x = jax.random.normal(jax.random.key(0), (1, *(2 * side for side in patch), 3))
  projection = tokenization.PatchProjection((*patch, 3), width=5)
  patches = tokenization.cut_patches(x, patch).reshape(1, 2 ** len(patch), -1)
  variables = projection.init(jax.random.key(1), patches)
  last = x[0, *(slice(side, None) for side in patch)]
  expected = np.tensordot(last, variables['params']['kernel'], len(patch) + 1)
  np.testing.assert_allclose(projection.apply(variables, patches)[0, -1], expected,
                             atol=1e-5)


def test_last_patch_is_padded_with_zeros():
  patches = tokenization.cut_patches(jnp.ones((1, 3, 4, 5, 3)), (2, 2, 2))
  assert patches.shape == (1, 2, 2, 3, 24)
  assert patches.sum() == 3 * 4 * 5 * 3
  audio = tokenization.cut_patches(jnp.arange(1.0, 11.0)[None, :, None], (4,))
  np.testing.assert_array_equal(
      audio[0], [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]])


def test_keep_tokens_draws_uniformly_and_in_order():
  keys = jax.random.split(jax.random.key(0), 4000)
  kept = np.asarray(tokenization.keep_tokens(keys, 10, 3))
  assert kept.shape == (4000, 3)
  assert (np.diff(kept, axis=1) > 0).all()
  share = np.bincount(kept.ravel(), minlength=10) / 4000
  np.testing.assert_allclose(share, 0.3, atol=0.03)
  assert len({tuple(row) for row in kept}) > 100    # each example draws its own


@pytest.mark.parametrize('tokenizer, x', [
    (tokenization.VideoTokenizer(width=8, patch=(2, 4, 4), drop_token_rate=0.5),
     jax.random.normal(jax.random.key(1), (3, 4, 8, 12, 3))),
    (tokenization.WaveformTokenizer(width=8, patch=(16,), drop_token_rate=0.5),
     jax.random.normal(jax.random.key(1), (3, 190)))])
def test_dropping_before_the_projection_equals_dropping_after_it(tokenizer, x):
  variables = tokenizer.init(jax.random.key(0), x)
  every = tokenizer.apply(variables, x).x
  some = tokenizer.apply(variables, x, clip_keys.make(2, 0, 3)).x
  assert some.shape == (3, 6, 8) and every.shape == (3, 12, 8)
  for row in range(3):
    distance = abs(some[row][:, None] - every[row][None]).max(-1)
    matches = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-5
    assert (np.diff(matches) > 0).all()


@pytest.mark.parametrize('samples, kept', [
    (4 * 600, 255),    # 300 with AGG are nearer to 256 than to 384
    (4 * 200, 127),    # at least one tile, not 100
    (4 * 100, 100)])   # all tokens, not 50
def test_fill_tiles_rounds_kept_tokens_with_agg_to_whole_tiles(samples, kept):
  tokenizer = tokenization.WaveformTokenizer(width=8, patch=(4,), drop_token_rate=0.5,
                                     fill_tiles=True)
  x = jnp.ones((2, samples))
  tokens = tokenizer.apply(tokenizer.init(jax.random.key(0), x), x,
                           clip_keys.make(1, 0, 2)).x
  assert tokens.shape == (2, kept, 8)


def test_only_kept_patches_are_projected():
  """Half of the tokens take half of the projection's multiplications."""
  tokenizer = tokenization.VideoTokenizer(width=64, patch=(2, 8, 8),
                                          drop_token_rate=0.5)
  x = jnp.ones((2, 8, 64, 64, 3))
  variables = tokenizer.init(jax.random.key(0), x)

  def flops(train):
    apply = lambda v, x: tokenizer.apply(
        v, x, clip_keys.make(0, 0, 2) if train else None).x
    return jax.jit(apply).lower(variables, x).compile().cost_analysis()['flops']

  projection = 2 * 2 * 256 * 384 * 64
  assert flops(False) > projection
  assert flops(True) < 0.6 * flops(False)


def test_positions_are_the_sum_of_three_tables():
  tokenizer = tokenization.VideoTokenizer(width=8, patch=(2, 4, 4))
  x = jnp.zeros((1, 4, 8, 12, 3))
  variables = tokenizer.init(jax.random.key(0), x)
  p = variables['params']
  assert [p[f'{n}_positions'].shape[0] for n in ('time', 'vertical', 'horizontal')] == [
      2, 2, 3]
  tokens = tokenizer.apply(variables, x).x
  i, j, k = 1, 0, 2
  np.testing.assert_allclose(
      tokens[0, (i * 2 + j) * 3 + k],
      p['time_positions'][i] + p['vertical_positions'][j]
      + p['horizontal_positions'][k], atol=1e-6)
