"""vatt_jax/losses/gdt.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import config
from vatt_jax import losses as losses_lib
from vatt_jax.errors import UserError

# Shift and reversal of the rows of the paper's Table 1; None for a factor of one value.
ROWS = dict(
    a=(None, None), b=(None, 'invariant'), c=('invariant', None),
    d=('invariant', 'invariant'), e=(None, None), f=(None, 'invariant'),
    g=('invariant', None), h=('invariant', 'invariant'), i=(None, 'distinctive'),
    j=('distinctive', None), k=('invariant', 'distinctive'),
    l=('distinctive', 'invariant'), m=('distinctive', 'distinctive'))
# The released code's number of a hypothesis -> the row.
HYPOTHESES = dict(enumerate('eifjgmlkh', 1))


def some_slow(names, quick):
  """Returns parameters of a test, of which all but the quick ones are slow."""
  return [pytest.param(name, marks=() if name in quick else pytest.mark.slow)
          for name in names]


def make(row, **fields):
  shift, reversal = ROWS[row]
  kinds = {name: kind for name, kind in dict(shift=shift, reversal=reversal).items()
           if kind}
  return losses_lib.build(
      'gdt', dict(name='gdt') | kinds | fields, num_shifts=1 + bool(shift),
      num_views=2 if row in 'abcd' else 1, num_copies=1 + bool(reversal))


def compute(loss, embed, batch):
  return loss({}, dict(embed=dict(video_audio=embed)), batch, None)[0]


def value_and_grad(loss, embed, batch):
  return jax.jit(jax.value_and_grad(functools.partial(compute, loss)))(embed, batch)


@pytest.fixture(scope='module')
def equations(shared):
  return np.load(shared / 'golden_gdt_stica' / 'gdt_equation1.npz')


@pytest.mark.parametrize('name', some_slow([*ROWS, 'l_absent', 'm_absent'],
                                           ('c', 'k', 'l_absent')))
def test_paper_variant_computes_equation_1_of_every_row(equations, name):
  """Positives are counted as in lemma 6, negatives as in lemma 7."""
  row = name[0]
  is_audio = equations[f'{row}/factors'][:, 2] == 1
  x, there = equations[f'{row}/embeddings'], np.ones(len(is_audio), bool)
  if 'absent' in name:
    there = equations[f'{name}/there']
  # The golden rows are ordered by (clip, shift, modality, reversal, augmentation).
  sides = dict(video=~is_audio, audio=is_audio)
  batch = {f'has_{m}': there[rows] for m, rows in sides.items()}
  loss = make(row, pair='video_video' if row in 'abcd' else 'video_audio',
              temperature=float(equations['temperature']))
  value, gradients = value_and_grad(
      loss, {m: x[rows] for m, rows in sides.items()}, batch)
  expected = equations[f'{name}/grad_mean']
  np.testing.assert_allclose(value, equations[f'{name}/loss_mean'], rtol=1e-5)
  for m, rows in sides.items():
    np.testing.assert_allclose(gradients[m], expected[rows], rtol=1e-5,
                               atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize('row', ROWS)
def test_classes_of_rows_give_the_positives_of_the_lemmas(equations, row):
  contrast, weight = (equations[f'{row}/{k}'] for k in ('contrast', 'weight'))
  factors = equations[f'{row}/factors']
  labels = np.zeros(len(factors), int)
  for modality in set(factors[:, 2]):
    rows = factors[:, 2] == modality
    labels[rows] = make(row, pair='video_audio')._classes(rows.sum())
  same = labels[:, None] == labels
  np.testing.assert_array_equal(same, contrast)
  assert same.sum() == equations[f'{row}/num_c1']
  assert (same & weight).sum() == equations[f'{row}/num_positives']


@pytest.mark.parametrize('number', some_slow(HYPOTHESES, (1, 7, 9)))
@pytest.mark.parametrize('replicas', some_slow((2, 3), (2,)))
def test_release_variant_matches_every_hypothesis(shared, number, replicas):
  """The global loss is the mean over replicas."""
  released = np.load(shared / 'golden_gdt_stica' / f'gdt_release_w{replicas}.npz')
  row = HYPOTHESES[number]
  x = released['embeddings']                                         # [W, 4, 2, N, D]
  shift, reversal = ROWS[row]
  sets = [k for k in range(4) if (shift or k < 2) and (reversal or k % 2 == 0)]
  rows = lambda y: np.moveaxis(y[:, sets], 3, 1).reshape(-1, 2, y.shape[-1])
  loss = make(row, pair='video_audio', variant='release', num_groups=len(x),
              temperature=float(released['temperature']))
  embed = dict(zip(('video', 'audio'), np.moveaxis(rows(x), 1, 0), strict=True))
  present = np.ones(len(embed['video']), bool)
  value, gradients = value_and_grad(
      loss, embed, dict(has_video=present, has_audio=present))
  np.testing.assert_allclose(value, released[f'h{number}_loss'].mean(), rtol=2e-6,
                             atol=1e-6)
  expected = rows(released[f'h{number}_grad']) / len(x)
  for i, modality in enumerate(('video', 'audio')):
    np.testing.assert_allclose(gradients[modality], expected[:, i], rtol=0, atol=2e-6)


def _inputs(clips=8, rows=4, d=16):
  x = jax.random.normal(jax.random.key(0), (2, clips * rows, d))
  embed = dict(zip(('video', 'audio'), x / jnp.linalg.norm(x, axis=-1, keepdims=True),
                   strict=True))
  present = np.ones(clips * rows, bool)
  has_audio = np.repeat(np.arange(clips) != 2, rows)
  return embed, dict(has_video=present, has_audio=has_audio)


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_missing_audio_leaves_no_trace_in_the_loss(variant):
  loss = make('l', pair='video_audio', variant=variant)
  embed, batch = _inputs()
  absent = ~batch['has_audio'][:, None]
  value, gradients = value_and_grad(loss, embed, batch)
  other = embed | dict(audio=jnp.where(absent, 7.0, embed['audio']))
  assert compute(loss, other, batch) == value
  assert not gradients['audio'][absent[:, 0]].any()
  assert np.isfinite(gradients['video']).all()
  none = dict(batch, has_audio=np.zeros(32, bool))
  value, gradients = value_and_grad(loss, embed, none)
  assert value == 0 and not any(g.any() for g in gradients.values())


def test_captions_of_a_row_are_positives_of_it():
  """With equal captions, each of K has K as many negatives and a share of 1/K."""
  embed, batch = _inputs()
  text = np.ones((32, 3, 1), np.int32)
  loss = lambda text, batch: make('l', pair='video_text')(
      {}, dict(embed=dict(video_text=embed | dict(text=text))), batch, None)[0]
  one, three = (np.repeat(embed['audio'][:, None], k, axis=1) for k in (1, 3))
  batch = dict(batch, text=text)
  # An anchor's loss gains log 3, but that of a caption does not: the mean over them.
  x = np.asarray([loss(three, batch), loss(one, dict(batch, text=text[:, :1]))])
  assert 0 < x[0] - x[1] < np.log(3)
  batch['text'] = text * np.array([1, 0, 0])[:, None]    # the others are padding
  np.testing.assert_allclose(loss(three, batch), x[1], rtol=1e-5)


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_loss_in_chunks_equals_the_whole_loss(variant):
  embed, batch = _inputs()
  whole, chunked = (value_and_grad(
      make('l', pair='video_audio', variant=variant, num_groups=4, num_chunks=n),
      embed, batch) for n in (1, 4))
  np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-6)
  for modality, expected in whole[1].items():
    np.testing.assert_allclose(chunked[1][modality], expected, rtol=1e-6,
                               atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize('variant', config.VARIANTS)
def test_sixteen_chunks_take_a_sixteenth_of_the_memory(variant):
  """The memory is that of value and gradients, without arguments and results."""
  shapes = jax.eval_shape(lambda: _inputs(4096, 4, 16))
  memory = []
  for num_chunks in (1, 16):
    loss = make('l', pair='video_audio', variant=variant, num_chunks=num_chunks)
    program = jax.jit(jax.value_and_grad(functools.partial(compute, loss)))
    memory.append(program.lower(*shapes).compile().memory_analysis().temp_size_in_bytes)
  assert memory[0] > 15 * memory[1]


@pytest.mark.parametrize('fields, message', [
    (dict(shift='variant'), "shift='variant': did you mean invariant"),
    (dict(shift=''), "shift='': expected one of invariant, distinctive"),
    (dict(variant='release', num_groups=1), 'num_groups=1: expected 2 or more'),
    (dict(variant='release', pair='video_video'), "variant='release': expected at mo"),
    (dict(pair='video_video', reversal='distinctive'), 'no row has a positive; set co'),
    (dict(num_shifts=2), r'num_shifts: unknown key')])
def test_invalid_field_is_named(fields, message):
  with pytest.raises(UserError, match=message):
    make('l', **dict(pair='video_audio') | fields)


def test_kind_of_a_factor_of_one_value_is_refused():
  with pytest.raises(UserError, match=r"reversal='invariant': .*augment\.copies"):
    make('j', pair='video_audio', reversal='invariant')


def test_release_variant_takes_one_caption():
  loss = make('l', pair='video_text', variant='release')
  embed, batch = _inputs()
  text = jnp.repeat(embed['audio'][:, None], 2, axis=1)
  with pytest.raises(ValueError, match=r'window\.num_candidates=1'):
    loss({}, dict(embed=dict(video_text=embed | dict(text=text))),
         batch | dict(text=np.ones((32, 2, 1), np.int32)), None)
