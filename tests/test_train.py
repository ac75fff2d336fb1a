"""Tests vatt_jax/train.py: initial weights, warnings, and signals at the end."""

import types

import jax
import jax.numpy as jnp
import pytest

from vatt_jax import train
from vatt_jax.distributed import interrupt
from vatt_jax.evaluators import evaluation
from vatt_jax.inputs import clip
from vatt_jax.inputs import sources
from vatt_jax.train_step import State


def test_start_from_sets_parameters_and_average():
  random = dict(tower=jnp.zeros(3), head=jnp.ones(2), losses=jnp.ones(1))
  state = State(jnp.int32(0), random, {}, (), average=jax.tree.map(jnp.copy, random))
  initial = dict(params=dict(tower=jnp.full(3, 7.0),
                             head=jax.ShapeDtypeStruct((2,), jnp.float32)))
  begun = train.start_from(initial, state)
  for params in (begun.params, begun.average):
    assert {k: x[0] for k, x in params.items()} == dict(tower=7, head=1, losses=1)
  assert train.start_from(initial, state.replace(average=None)).average is None
  jax.jit(lambda state: state, donate_argnums=0)(begun)    # fails if buffers are shared


def test_batch_larger_than_its_source_is_a_warning(caplog):
  clips = [clip.Clip(str(i)) for i in range(9)]
  train._warn_of_repeats(sources.Mixture([clips[:2], clips[2:]]), 9)
  train._warn_of_repeats(sources.Mixture([clips[:2], clips[2:]], (1, 4)), 8)
  assert not caplog.records
  train._warn_of_repeats(sources.Mixture([clips[:2], clips[2:]], (1, 1)), 8)
  assert ('config.batch_size=8: takes 4 clips from source 1 of config.data.path, which '
          'has 2, ') in caplog.text
  train._warn_of_repeats(sources.Mixture([clips[:2], clips[2:]]), 10)
  assert 'takes 10 clips from config.data.path, which has 9, ' in caplog.text
  assert len(caplog.records) == 2


def test_no_evaluation_starts_after_a_signal(tmp_path):
  ran = []

  def evaluator(name):
    def run(state):
      ran.append(name)
      yield 'measure', 1.0
    fake = types.SimpleNamespace(run=run, beside_random=False)
    return evaluation.Evaluation(fake, 0, where=name)

  def check():
    if ran:
      raise interrupt.Interrupted(15)

  run = types.SimpleNamespace(evaluations={n: evaluator(n) for n in ('one', 'two')})
  with pytest.raises(interrupt.Interrupted):
    train._finish(run, None, None, tmp_path, check)
  assert ran == ['one'] and not list(tmp_path.iterdir())
