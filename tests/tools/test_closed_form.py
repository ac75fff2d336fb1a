"""Tests that the counts of vatt_jax/tools/cost.py equal a closed form."""

import closed_form
import jax
import jax.numpy as jnp
import pytest

from configs import pretrain_lbs
from configs import pretrain_ma
from configs import pretrain_mbs
from vatt_jax import experiment
from vatt_jax.models.vatt import Vatt
from vatt_jax.tools import cost

SMALL = dict(depth=2, width=32, mlp_dim=48, num_heads=2)
TEXT = dict(vocabulary_size=100)
CLIP = dict(
    video=jax.ShapeDtypeStruct((1, 5, 36, 32, 3), jnp.float32),
    audio=jax.ShapeDtypeStruct((1, 9700), jnp.float32),
    text=jax.ShapeDtypeStruct((1, 3, 7), jnp.int32))
SPECIFIC = dict(video=dict(SMALL, drop_token_rate=0.3), audio=SMALL,
                text=dict(SMALL, **TEXT))
AGNOSTIC = dict(video=dict(drop_token_rate=0.5), audio={},
                text=dict(TEXT, max_tokens=16), shared=SMALL)

MODELS = {
    'specific': dict(SPECIFIC, head={}),
    'specific, as released': dict(SPECIFIC, head={}, variant='release'),
    'agnostic': dict(AGNOSTIC, head=dict(audio_text=True)),
    'agnostic, as released': dict(
        AGNOSTIC, shared=dict(SMALL, projected_width=24), head={}, variant='release'),
    'towers without text': dict(video=SMALL, audio=dict(SMALL, width=24, num_heads=3),
                                head=dict(audio_text=True)),
    'a spectrogram': dict(audio=dict(SMALL, kind='spectrogram', drop_token_rate=0.5),
                          head=dict(name='classifier', num_classes=9)),
    'a spectrogram, as released': dict(
        audio=dict(SMALL, kind='spectrogram', patch=(4, 5)), variant='release'),
    'means of words': dict(text=dict(TEXT, width=8, depth=0), head={}),
    'means of words, as released': dict(text=dict(TEXT, width=8, depth=0), head={},
                                        variant='release'),
    'no head': dict(text=dict(SMALL, **TEXT))}


def check(model, clip, modes=(True, False)):
  parameters = 0
  for train in modes:
    parts = closed_form.parts(model, clip, train)
    assert sum(part.operations for part in parts.values()) == cost.forward(
        model, clip, train).true
    parameters = sum(part.parameters for part in parts.values())
  assert parameters == cost.parameters(model, clip)


@pytest.mark.parametrize('name', MODELS)
def test_formula_equals_the_traced_count(name):
  model = Vatt.from_config(**MODELS[name])
  check(model, {m: CLIP[m] for m in model.tokenizers})


def test_every_row_of_the_table_agrees_with_the_formula():
  model = Vatt.from_config(
      video=dict(drop_token_rate=0.5), text=dict(TEXT, max_tokens=7), shared=SMALL,
      head={})
  rows = cost.table(model, {m: CLIP[m] for m in model.tokenizers})
  assert [row.part for row in rows] == ['video', 'text', 'shared', 'head', 'total']
  for name, train in (('train', True), ('evaluate', False)):
    parts = closed_form.parts(model, {m: CLIP[m] for m in model.tokenizers}, train)
    for row in rows[:-1]:
      assert row.parameters == parts[row.part].parameters, row
      if row.part in model.tokenizers:
        counts = getattr(row, name)
        assert counts['true'] == parts[row.part].operations, row
        assert counts['xla'] > counts['true']    # elementwise operations too
    assert getattr(rows[-1], name)['true'] == sum(p.operations for p in parts.values())
  assert rows[-1].train['true'] < rows[-1].evaluate['true']


def test_image_costs_as_a_clip_of_one_patch():
  clip = dict(video=jax.ShapeDtypeStruct((1, 1, 32, 32, 3), jnp.float32))
  check(Vatt.from_config(video=SMALL), clip)


@pytest.mark.parametrize('config', [
    pretrain_mbs.get_config(),
    pytest.param(pretrain_mbs.get_config('release'), marks=pytest.mark.slow),
    pytest.param(pretrain_lbs.get_config(), marks=pytest.mark.slow),
    pytest.param(pretrain_ma.get_config(), marks=pytest.mark.slow)],
    ids=['MBS', 'MBS, as released', 'LBS', 'MA'])
def test_formula_holds_for_the_models_of_the_paper(config):
  check(*experiment.model_and_clip(config.to_dict()), modes=(True,))
