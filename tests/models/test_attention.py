"""vatt_jax/models/attention.py"""

import functools
import types

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import models
from vatt_jax.distributed import logical_axes
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.models import attention
from vatt_jax.models import attention_pallas
from vatt_jax.models.vatt import Vatt

OTHERS = ('save_weights', 'save_scores')


def _operands(dtype=jnp.float32, scale=1.0):
  """Returns queries, keys, values and the result's gradient, [B, N, A, D]."""
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
def test_every_form_equals_xla(form, scale, tolerance):
  operands = _operands(scale=scale)
  for actual, xla in zip(_both_ways(form, *operands), _both_ways('xla', *operands),
                           strict=True):
    np.testing.assert_allclose(actual, xla, atol=tolerance * np.abs(xla).max())


@pytest.mark.parametrize('form', OTHERS)
def test_every_form_in_bfloat16_is_as_exact_as_xla(form):
  operands = _operands(jnp.bfloat16)
  true = _both_ways('xla', *(x.astype(jnp.float32) for x in operands))

  def errors(form):
    return [float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - t) ** 2)))
            for x, t in zip(_both_ways(form, *operands), true, strict=True)]
  for error, xla in zip(errors(form), errors('xla'), strict=True):
    assert error < 1.1 * xla


@pytest.mark.parametrize('form', OTHERS)
def test_large_scores_do_not_overflow(form):
  q, k, v, dy = _operands(scale=1e4)
  for x in _both_ways(form, q, k, v, dy):
    assert np.isfinite(x).all()


@pytest.mark.parametrize('form', OTHERS)
def test_every_form_applies_mask_and_bias(form):
  """Gradients apply them too, including the gradient of the bias."""
  q, k, v, dy = _operands()
  mask = jnp.arange(13)[None, :] < jnp.array([13, 7])[:, None]
  bias = jax.random.normal(jax.random.key(1), (3, 13, 13))

  def both_ways(form):
    y, backward = jax.vjp(
        lambda q, k, v, bias: attention.attend(q, k, v, mask, bias, form=form),
        q, k, v, bias)
    return y, *backward(dy)
  for actual, xla in zip(both_ways(form), both_ways('xla'), strict=True):
    np.testing.assert_allclose(actual, xla, atol=1e-6 * np.abs(xla).max())


@pytest.mark.parametrize('form', OTHERS)
def test_backward_pass_keeps_one_array_of_the_size_of_the_scores(form):
  q, k, v, _ = _operands()
  _, backward = jax.vjp(functools.partial(attention.attend, form=form), q, k, v)
  assert [x.size for x in jax.tree.leaves(backward)].count(2 * 3 * 13 * 13) == 1


@pytest.mark.parametrize('num_tokens, width', [
    (130, 64), (40, 32), pytest.param(785, 64, marks=pytest.mark.slow)])
def test_kernel_equals_xla(num_tokens, width, monkeypatch):
  """A CPU interprets the kernel as a TPU would run it, with several query blocks."""
  monkeypatch.setattr(attention_pallas, '_MOST_WEIGHTS', 48 * num_tokens)
  shape = (2, num_tokens, 256 // width, width)
  q, *others = (jax.random.normal(key, shape)
                for key in jax.random.split(jax.random.key(0), 4))
  operands = [q * width ** -0.5, *others]

  def both_ways(form):
    y, backward = jax.vjp(form, *operands[:3])
    return y, *backward(operands[3])
  with pltpu.force_tpu_interpret_mode():
    kernel = both_ways(lambda *x: attention_pallas.attend(*x, jnp.float32))
  for actual, xla in zip(kernel, both_ways(attention.xla), strict=True):
    np.testing.assert_allclose(actual, xla, atol=2e-6 * np.abs(xla).max())


def test_kernel_fits_heads_that_fill_tiles():
  fits = lambda num_heads, width, num_tokens=9: attention_pallas.fits(
      jax.ShapeDtypeStruct((1, num_tokens, num_heads, width), jnp.float32))
  assert fits(12, 64, 1569) and not fits(12, 64, 3137)
  assert fits(12, 64) and fits(1, 128) and fits(4, 32)
  assert not fits(3, 64) and not fits(4, 48) and not fits(1, 256) and not fits(2, 32)


@pytest.mark.parametrize('num_rows', [4, 3])    # split over devices, and not
def test_kernel_runs_on_the_rows_and_heads_of_each_device(num_rows):
  mesh = sharding.make_mesh(4, data=2, devices=jax.devices())
  shapes = []

  def kernel(q, k, v):
    shapes.append(q.shape)
    return q + k * v
  q, k, v = jax.random.normal(jax.random.key(0), (3, num_rows, 5, 2, 4))
  whole = jax.device_put((q, k, v), sharding.replicated(mesh))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):    # as a step does
    result = jax.jit(lambda *x: logical_axes.on_each_device(kernel, *x))(*whole)
  np.testing.assert_allclose(result, q + k * v, atol=1e-6)
  assert shapes[-1] == ((2 if num_rows == 4 else 3), 5, 2, 4)
  assert logical_axes.on_each_device(kernel, q, k, v).shape == q.shape    # no mesh


def test_each_form_falls_back_where_another_is_faster(monkeypatch):
  """The form that runs depends on the number of tokens, the type and the mask."""
  used = []
  for name in ('xla', 'save_weights', 'save_scores', 'cudnn', 'pallas'):
    def stand_in(q, *args, name=name):
      used.append(name)
      return q
    monkeypatch.setattr(attention, name, stand_in)

  def stands_for(form, num_tokens, dtype=jnp.bfloat16, mask=None, drop=None):
    x = jnp.zeros((1, num_tokens, 1, 8), dtype)
    attention.attend(x, x, x, mask, drop=drop, form=form)
    return used[-1]
  long, mask = attention.PALLAS_FROM, jnp.ones((1, 600), bool)
  assert stands_for('pallas', long) == 'pallas'
  assert stands_for('pallas', long - 1) == 'save_scores'
  assert stands_for('pallas', 600, mask=mask) == 'save_weights'
  assert stands_for('pallas', 600, drop=lambda x: x) == 'xla'
  assert stands_for('save_scores', 600) == 'save_scores'
  assert stands_for('cudnn', 8) == 'cudnn'
  assert stands_for('cudnn', 8, jnp.float32) == 'save_weights'
  assert stands_for('cudnn', 600, mask=mask) == 'save_weights'


@pytest.mark.parametrize(('device', 'form'), [
    (dict(platform='cpu', device_kind='cpu'), 'save_weights'),
    (dict(platform='tpu', device_kind='TPU v3'), 'pallas'),
    (dict(platform='tpu', device_kind='TPU v4'), 'pallas'),
    (dict(platform='tpu', device_kind='TPU v6 lite'), 'pallas'),
    (dict(platform='gpu', device_kind='H200', compute_capability='9.0'), 'cudnn'),
    (dict(platform='gpu', device_kind='V100', compute_capability='7.0'),
     'save_weights'),
    (dict(platform='gpu', device_kind='MI300', compute_capability='gfx942'),
     'save_weights')])
def test_choose_form_depends_on_the_device(device, form):
  assert attention.choose_form(types.SimpleNamespace(**device)) == form


@pytest.mark.parametrize(('kind', 'operand'), [
    ('TPU v3', jnp.float32), ('TPU v4', jnp.bfloat16)])
def test_kernel_multiplies_the_type_that_the_device_of_the_step_supports(
    kind, operand, monkeypatch):
  operands = []
  monkeypatch.setattr(attention_pallas, 'attend',
                      lambda q, k, v, operand: operands.append(operand) or q)
  device = types.SimpleNamespace(device_kind=kind)
  x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
  monkeypatch.setattr(jax, 'devices', lambda: [device])    # without a mesh
  attention.attend(x, x, x, form='pallas')
  mesh = types.SimpleNamespace(empty=False, abstract_device=device)
  monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind='')])
  monkeypatch.setattr(jax.sharding, 'get_abstract_mesh', lambda: mesh)
  attention.pallas(x, x, x)
  assert operands == [operand] * 2


def test_cudnn_form_calls_attention_with_the_same_result(monkeypatch):
  """This machine has no cuDNN, so XLA's implementation of the same call replaces it."""
  ask = jax.nn.dot_product_attention

  def instead(*args, implementation, **kwargs):
    assert implementation == 'cudnn'
    return ask(*args, implementation='xla', **kwargs)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
  q, k, v, _ = _operands()
  np.testing.assert_allclose(attention.cudnn(q, k, v), attention.xla(q, k, v),
                             atol=1e-6)


def test_attention_form_of_a_config_reaches_its_transformers():
  tower = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
  for name in attention.FORMS:
    model = Vatt.from_config(video=tower, shared=None, attention=name)
    assert model.backbones['video'].attention.keywords == dict(form=name)
  with pytest.raises(UserError, match=r'attention=.palas.: did you mean pallas'):
    models.from_config(dict(video=tower, attention='palas'))
