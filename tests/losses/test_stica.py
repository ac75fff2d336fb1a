"""vatt_jax/losses/stica.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import config
from vatt_jax import losses as losses_lib
from vatt_jax.errors import UserError
from vatt_jax.losses import stica


def make(kinds=(), num_views=2, **fields):
  return losses_lib.build('stica', dict(name='stica', **fields), num_views=num_views,
                          num_copies=1, crops=dict(video=kinds) if kinds else {})


def compute(loss, embed, batch):
  value, metrics, _ = loss({}, dict(embed=dict(video_audio=embed)), batch, None)
  return value, metrics


def value_and_grad(loss, embed, batch):
  return jax.jit(jax.value_and_grad(functools.partial(compute, loss), has_aux=True))(
      embed, batch)


def rows(first, second):
  """Returns adjacent rows of both views.  2 x [N, ...] -> [2 N, ...]."""
  return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def here(n):
  return dict(has_video=np.ones(2 * n, bool), has_audio=np.ones(2 * n, bool))


@pytest.mark.parametrize('name, num_terms', [('first', 40), ('second', 10)])
def test_paper_variant_computes_equations_6_and_7(shared, name, num_terms):
  golden = np.load(shared / 'golden_gdt_stica' / 'stica_equations.npz')
  x = {k.split('/')[1]: golden[k] for k in golden.files if k.startswith(name)}
  kinds = ((len(x['medium_1']), len(x['small_1'])),)
  crops = [np.moveaxis(np.concatenate([x[f'medium_{v}'], x[f'small_{v}']]), 0, 1)
           for v in (1, 2)]
  embed = dict(video=rows(x['large_1'], x['large_2']), video_crops=rows(*crops),
               audio=rows(x['audio'], x['audio']))
  value, metrics = compute(make(kinds), embed, here(len(x['audio'])))
  assert len(stica._pairs(kinds, 'paper')) == num_terms == x['num_terms']
  np.testing.assert_allclose(metrics['within'] * num_terms, x['L_vv'], rtol=1e-5)
  np.testing.assert_allclose(metrics['across'] * 4, x['L_va'], rtol=1e-5)
  np.testing.assert_allclose(value, x['loss_of_means'], rtol=1e-5)


KINDS = ('space_large', 'space_small', 'time_large', 'time_small')


@pytest.mark.parametrize('replicas', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_release_variant_matches_loss_and_gradients_of_replicas(shared, replicas):
  """The global loss is the mean over replicas."""
  golden = np.load(shared / 'golden_gdt_stica' / f'stica_release_loss_w{replicas}.npz')
  counts = [golden[f'v1_{kind}'].shape[1] for kind in KINDS]

  def embeddings(prefix=''):
    flat = lambda k: golden[prefix + k].reshape(-1, golden[k].shape[-1])
    crops = []
    for view in (1, 2):
      x = np.concatenate([golden[f'{prefix}v{view}_{kind}'] for kind in KINDS], axis=1)
      crops.append(np.moveaxis(x, 1, 2).reshape(-1, sum(counts), x.shape[-1]))
    return dict(video=rows(flat('v1_whole'), flat('v2_whole')),
                audio=rows(flat('a1'), flat('a2')), video_crops=rows(*crops))

  loss = make((tuple(counts[:2]), tuple(counts[2:])), variant='release',
              temperature_within=float(golden['temperature_within']),
              temperature_across=float(golden['temperature_cross']))
  embed = embeddings()
  batch = here(len(embed['video']) // 2)
  (value, metrics), gradients = value_and_grad(loss, embed, batch)
  for ours, name in ((value, 'out_loss'), (metrics['within'], 'out_loss_crops'),
                     (metrics['across'], 'out_loss_av')):
    np.testing.assert_allclose(ours, golden[name].mean(), rtol=2e-6, err_msg=name)
  for name, expected in embeddings('grad_').items():
    np.testing.assert_allclose(gradients[name], expected / replicas, rtol=0, atol=2e-6)


def _inputs(n=8, crops=9):
  keys = jax.random.split(jax.random.key(0), 3)
  embed = dict(video=jax.random.normal(keys[0], (2 * n, 16)),
               audio=jax.random.normal(keys[1], (2 * n, 16)),
               video_crops=jax.random.normal(keys[2], (2 * n, crops, 16)))
  return jax.tree.map(lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), embed)


def test_views_without_audio_are_only_contrasted_within_video():
  embed = _inputs()
  batch = here(8) | dict(has_audio=np.arange(16) // 2 != 3)
  loss = make(((2, 4), (2, 1)))
  (value, _), gradients = value_and_grad(loss, embed, batch)
  other = embed | dict(audio=embed['audio'].at[6:8].set(7.0))
  assert compute(loss, other, batch)[0] == value
  assert not gradients['audio'][6:8].any() and not gradients['video'][6:8].any()
  assert abs(gradients['video_crops'][6:8]).max() > 0


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_views_are_contrasted_themselves_without_crops(variant):
  embed, batch = _inputs(), here(8)
  _, metrics = compute(make(variant=variant), embed, batch)
  as_crops = embed | dict(video_crops=embed['video'][:, None])
  _, expected = compute(make(((1, 0),), variant=variant), as_crops, batch)
  assert metrics['within'] == expected['within']


def test_video_alone_needs_no_audio():
  loss, embed = make(weight_within=1.0), _inputs()
  value, metrics = compute(loss, dict(video=embed['video']), {})
  assert value == metrics['within'] > 0 and 'across' not in metrics


def test_loss_in_chunks_equals_the_whole_loss():
  whole, chunked = (value_and_grad(make(((2, 4), (2, 1)), num_chunks=n), _inputs(),
                                   here(8)) for n in (1, 4))
  np.testing.assert_allclose(chunked[0][0], whole[0][0], rtol=1e-6)
  for name, expected in whole[1].items():
    np.testing.assert_allclose(chunked[1][name], expected, rtol=1e-6,
                               atol=1e-6 * abs(expected).max())


def test_one_view_raises():
  with pytest.raises(UserError, match=r'set config\.window\.num_views=2'):
    make(num_views=1)


@pytest.mark.parametrize('name', ['temperature_within', 'num_chunks'])
def test_field_that_is_not_positive_is_named(name):
  with pytest.raises(UserError, match=f'{name}=0: expected more than 0'):
    make(**{name: 0})
