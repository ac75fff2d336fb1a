"""Tests vatt_jax/tools/cost.py."""

import json
import subprocess
import sys

from flax import linen as nn
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import pytest

from configs import pretrain_mbs
from vatt_jax import experiment
from vatt_jax.models import attention
from vatt_jax.models import multimodal
from vatt_jax.models.vatt import Vatt
from vatt_jax.tools import cost

F32 = jnp.float32


def _tower(layers, d, d_ff, n):
  """Counts a Transformer's multiply-adds on N tokens by hand.  -> all, scores."""
  linear = layers * n * (4 * d * d + 2 * d * d_ff)
  products = layers * n * n * d
  return linear + products, products


def test_video_tower_cost_equals_the_count_by_hand():
  model = Vatt.from_config(video=dict(size='base'))
  clip = dict(video=jax.ShapeDtypeStruct((1, 32, 224, 224, 3), F32))
  count = cost.forward(model, clip)
  patches = 8 * 14 * 14
  rest, scores = _tower(12, 768, 3072, patches + 1)
  rest += patches * 4 * 16 * 16 * 3 * 768
  assert count.true == 2 * (rest + scores)
  elementwise = count.paper - 2 * rest
  softmax = 12 * 12 * (patches + 1) ** 2
  assert 5 * softmax < elementwise < 8 * softmax


def test_dropped_tokens_cost_nothing():
  sizes = [cost.forward(Vatt.from_config(audio=dict(size='small', drop_token_rate=r)),
                        dict(audio=jax.ShapeDtypeStruct((1, 12_800), F32)), train=True)
           for r in (0.0, 0.5)]
  for count, n in zip(sizes, (100, 50), strict=True):
    rest, scores = _tower(6, 512, 2048, n + 1)
    assert count.true == 2 * (rest + scores + n * 128 * 512)


def test_classifier_dropout_costs_nothing():
  clip = dict(video=jax.ShapeDtypeStruct((1, 4, 32, 32, 3), F32))
  counts = [cost.forward(Vatt.from_config(
      video=dict(size='small'), head=dict(name='classifier', num_classes=9,
                                          dropout_rate=rate)), clip, train=True)
            for rate in (0.0, 0.5)]
  assert counts[0] == counts[1]


def test_kernel_operations_are_padded_to_the_matrix_unit():
  """Counts 2 x 3 steps, a sum over 64 numbers and a right operand of width 40."""
  def kernel(x, y, z):
    z[...] = jnp.dot(x[...], y[...])

  @jax.jit
  def run(x, y):
    return pl.pallas_call(
        kernel, grid=(2, 3), name='dot', out_shape=jax.ShapeDtypeStruct((16, 40), F32),
        in_specs=[pl.BlockSpec((8, 64), lambda i, j: (i, 0)),
                  pl.BlockSpec((64, 40), lambda i, j: (0, 0))],
        out_specs=pl.BlockSpec((8, 40), lambda i, j: (i, 0)))(x, y)
  jaxpr = jax.make_jaxpr(run)(jnp.ones((16, 64)), jnp.ones((64, 40))).jaxpr
  for side, each in ((1, 64 * 40), (32, 64 * 64), (128, 128 * 128)):
    assert cost.kernels(jaxpr, side) == {('dot', ((16, 40),)): 2 * 3 * 2 * 8 * each}


@pytest.mark.parametrize('form', attention.FORMS)
def test_every_form_of_attention_costs_the_same(form):
  clip = dict(video=jax.ShapeDtypeStruct((1, 32, 224, 224, 3), F32))
  tower = dict(width=64, depth=1, num_heads=1, mlp_dim=64)
  forms = (Vatt.from_config(video=tower, attention=name) for name in (form, 'xla'))
  count, xla = (cost.forward(model, clip) for model in forms)
  assert count == xla


def test_loop_body_counts_once_per_iteration():
  w = jnp.ones((4, 4))
  loop = lambda x: jax.lax.scan(lambda c, _: (c @ w, None), x, length=7)[0]
  assert cost.operations(loop, jnp.ones((3, 4))).true == 7 * 2 * 3 * 4 * 4
  both = lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ w, lambda y: y, x)
  assert cost.operations(both, jnp.ones((3, 4))).true == 2 * 3 * 4 * 4
  with pytest.raises(ValueError, match='unknown length'):
    cost.operations(lambda x: jax.lax.while_loop(
        lambda c: c[0, 0] < 9, lambda c: c @ w, x), jnp.ones((4, 4)))


class Net(multimodal.MultimodalModel):
  """Projects audio, without tokens."""
  modalities: tuple[str, ...] = ('audio',)
  head: nn.Module | None = None

  @nn.compact
  def encode(self, batch, train=False):
    x = nn.Dense(3, name='audio_layer')(batch['audio'])
    return dict(tokens={}, grid={}, pooled=dict(audio=x))


def test_table_has_a_row_for_a_modality_without_tokens():
  audio, total = cost.table(Net(), dict(audio=jax.ShapeDtypeStruct((1, 8), F32)))
  assert (audio.part, audio.parameters, audio.tokens) == ('audio', 27, None)
  assert audio.train['true'] == total.evaluate['true'] == 2 * 8 * 3


@pytest.mark.slow
def test_command_prints_a_table_and_json():
  run = lambda *args: subprocess.run(
      [sys.executable, '-m', 'vatt_jax', 'cost', *args], capture_output=True, text=True)
  config = '--config=configs/pretrain_mbs.py:toy'
  done = run(config, '--json')
  assert done.returncode == 0, done.stderr
  rows = {row['part']: row for row in json.loads(done.stdout)}
  assert list(rows) == ['video', 'audio', 'text', 'head', 'total']
  assert rows['total']['parameters'] == sum(
      row['parameters'] for part, row in rows.items() if part != 'total')
  assert rows['video']['tokens'] == 2 * 6 * 6 // 2
  parts = sum(rows[m]['train']['true'] for m in ('video', 'audio', 'text'))
  assert parts < rows['total']['train']['true'] < 1.1 * parts
  toy = pretrain_mbs.get_config('toy').to_dict()
  text = cost.as_text(cost.table(*experiment.model_and_clip(toy)))
  assert 'GFLOPs' in text and f'{rows["total"]["parameters"]:,}' in text
  wrong = run()
  assert wrong.returncode == 2
  assert wrong.stderr.startswith('vatt_jax: --config: missing')
