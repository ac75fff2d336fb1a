"""vatt_jax/models/attention.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.models import attention
from vatt_jax.models import build

OTHERS = [form for form in attention.FORMS if form != 'plain']


def _operands(dtype=jnp.float32, scale=1.0):
  """Queries, keys, values and the gradient of the result, [B, N, A, D]."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, dy = (jax.random.normal(key, (2, 13, 3, 8)) for key in keys)
  return tuple(x.astype(dtype) for x in (q * scale, k, v, dy))


def _both_ways(form, q, k, v, dy):
  y, backward = jax.vjp(functools.partial(attention.attend, form=form), q, k, v)
  return y, *backward(dy)


@pytest.mark.parametrize('form', OTHERS)
@pytest.mark.parametrize('scale, tolerance', [
    (1.0, 1e-6),
    (100.0, 1e-4)])    # one key has all the weight: the gradients nearly cancel
def test_every_form_is_the_plain_one(form, scale, tolerance):
  operands = _operands(scale=scale)
  for ours, plain in zip(_both_ways(form, *operands), _both_ways('plain', *operands),
                         strict=True):
    np.testing.assert_allclose(ours, plain, atol=tolerance * np.abs(plain).max())


@pytest.mark.parametrize('form', OTHERS)
def test_in_bfloat16_every_form_is_as_near_to_the_truth_as_the_plain_one(form):
  operands = _operands(jnp.bfloat16)
  true = _both_ways('plain', *(x.astype(jnp.float32) for x in operands))

  def errors(form):
    return [float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - t) ** 2)))
            for x, t in zip(_both_ways(form, *operands), true, strict=True)]
  for ours, plain in zip(errors(form), errors('plain'), strict=True):
    assert ours < 1.1 * plain


@pytest.mark.parametrize('form', OTHERS)
def test_scores_too_large_for_exp_are_no_matter(form):
  q, k, v, dy = _operands(scale=1e4)
  for x in _both_ways(form, q, k, v, dy):
    assert np.isfinite(x).all()


@pytest.mark.parametrize('form', OTHERS)
def test_mask_and_bias_count_in_every_form(form):
  """Also in the gradients, of the bias too."""
  q, k, v, dy = _operands()
  mask = jnp.arange(13)[None, :] < jnp.array([13, 7])[:, None]
  bias = jax.random.normal(jax.random.key(1), (3, 13, 13))

  def both_ways(form):
    y, backward = jax.vjp(
        lambda q, k, v, bias: attention.attend(q, k, v, mask, bias, form=form),
        q, k, v, bias)
    return y, *backward(dy)
  for ours, plain in zip(both_ways(form), both_ways('plain'), strict=True):
    np.testing.assert_allclose(ours, plain, atol=1e-6 * np.abs(plain).max())


@pytest.mark.parametrize('form', OTHERS)
def test_the_backward_pass_keeps_one_array_of_the_size_of_the_scores(form):
  q, k, v, _ = _operands()
  _, backward = jax.vjp(functools.partial(attention.attend, form=form), q, k, v)
  assert [x.size for x in jax.tree.leaves(backward)].count(2 * 3 * 13 * 13) == 1


def test_the_form_of_a_config_is_that_of_its_transformers():
  tower = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
  for name in attention.FORMS:
    model = build.build_model(video=tower, shared=None, attention=name)
    assert model.backbones['video'].attention.keywords == dict(form=name)
  with pytest.raises(UserError, match=r'attention=.flush.: expected one of auto'):
    build.build_model(video=tower, attention='flush')
