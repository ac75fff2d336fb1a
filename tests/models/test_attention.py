"""vatt_jax/models/attention.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.models import attention
from vatt_jax.models import build
from vatt_jax.models import layers

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
def test_a_mask_counts_in_every_form(form):
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  mask = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]], bool)
  plain, other = (layers.Attention(num_heads=2, form=f) for f in ('plain', form))
  variables = plain.init(jax.random.key(1), x)
  np.testing.assert_array_equal(plain.apply(variables, x, mask),
                                other.apply(variables, x, mask))


def test_the_form_of_a_config_is_that_of_its_transformers():
  tower = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
  for name in attention.FORMS:
    model = build.build_model(video=tower, shared=None, attention=name)
    assert model.backbones['video'].attention.keywords == dict(form=name)
  with pytest.raises(UserError, match=r'attention=.flush.: expected one of auto'):
    build.build_model(video=tower, attention='flush')
