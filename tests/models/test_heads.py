"""Tests the projection head; the other heads are tested with their models."""

import jax
import numpy as np
import pytest

from vatt_jax.models import heads
from vatt_jax.weights import gdt


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_projection_matches_the_release(train, shared):
  golden = np.load(shared / 'golden_gdt_stica' / 'mlp_head.npz')
  head = heads.ProjectionHead(12, 16, dropout_rate=0.0)
  x = golden['in']
  shapes = jax.eval_shape(head.init, jax.random.key(0), dict(video=x), {})
  weights = {f'mlp_v.{key[2:]}': golden[key] for key in golden.files if key[:2] == 'p/'}
  variables = gdt.convert(weights, {k: dict(head=v) for k, v in shapes.items()}, '')
  own = {kind: tree['head'] for kind, tree in variables.items()}
  # Rows of others that are absent must not count.
  rows = dict(video=np.arange(8) < 6)
  outputs, new = head.apply(own, dict(video=np.concatenate([x, 9 * x[:2]])), rows,
                            train, mutable=['batch_stats'])
  ours = outputs['embed']['video_audio']['video'][:6]
  expected = golden['out_train'] if train else golden['out_eval_unit']
  np.testing.assert_allclose(ours, heads.unit_norm(expected), rtol=0, atol=4e-6)
  if train:
    norm = new['batch_stats']['video']['norm']
    old = golden['p/block_forward.4.running_var']
    var = 0.9 * old + (norm['var'] - 0.9 * old) * 6 / 5    # unbiased in the release
    np.testing.assert_allclose(var, golden['after/block_forward.4.running_var'],
                               rtol=0, atol=3e-6)
    mean = golden['after/block_forward.4.running_mean']
    np.testing.assert_allclose(norm['mean'], mean, rtol=0, atol=3e-6)


def features():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return dict(video=normal(3, 8), video_crops=normal(3, 5, 8), audio=normal(3, 8),
              text=normal(3, 2, 8))


def test_projection_embeds_crops_like_their_modality_in_every_space():
  head, pooled = heads.ProjectionHead(6, 4), features()
  pooled['video_crops'][:, 1] = pooled['video']
  outputs, variables = jax.jit(head.init_with_output)(jax.random.key(0), pooled, {})
  assert variables['params'].keys() == {'video', 'audio', 'text'}
  embed = outputs['embed']
  assert embed['video_audio'].keys() == {'video', 'video_crops', 'audio'}
  assert embed['video_text'].keys() == pooled.keys()
  assert embed['video_text']['video_crops'].shape == (3, 5, 4)
  np.testing.assert_allclose(embed['video_text']['video_crops'][:, 1],
                             embed['video_audio']['video'], rtol=1e-5, atol=1e-6)
  for x in embed['video_text'].values():
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)


def test_absent_clips_and_their_crops_stay_out_of_the_statistics():
  head, pooled = heads.ProjectionHead(6, 4, dropout_rate=0.0), features()
  variables = jax.jit(head.init)(jax.random.key(0), pooled, {})
  rows = np.array([True, False, True])
  masks = dict(video=rows, audio=rows, text=np.repeat(rows[:, None], 2, 1))
  embed = jax.jit(lambda pooled, present: head.apply(variables, pooled, present, True,
                                                     mutable=['batch_stats'])[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
               embed(pooled, masks), embed({k: x[rows] for k, x in pooled.items()}, {}))


def test_dropout_belongs_to_the_clip_in_any_order_of_the_batch():
  head, pooled = heads.ProjectionHead(6, 4, dropout_rate=0.5), features()
  variables = jax.jit(head.init)(jax.random.key(0), pooled, {})
  clips = np.arange(3, dtype=np.uint32)
  embed = jax.jit(lambda pooled, clips: head.apply(
      variables, pooled, {}, False, clips,
      rngs=dict(dropout=jax.random.key(1)))['embed']['video_text'])
  order = np.array([2, 0, 1])
  whole, other = embed(pooled, clips), embed(pooled, clips + 3)
  turned = embed({k: x[order] for k, x in pooled.items()}, clips[order])
  for key in pooled:
    np.testing.assert_allclose(whole[key][order], turned[key], rtol=1e-5, atol=1e-6)
    assert (whole[key] != other[key]).any()


def test_projection_has_the_released_number_of_parameters():
  pooled = dict(video=np.zeros((1, 512)), audio=np.zeros((1, 512)))
  shapes = jax.eval_shape(heads.ProjectionHead().init, jax.random.key(0), pooled, {})
  assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == 2 * 394_496
