"""Tests vatt_jax/train.py: warnings, and signals at the end."""

import types

import pytest

from vatt_jax import train
from vatt_jax.distributed import interrupt
from vatt_jax.evaluators import evaluation
from vatt_jax.inputs import clip
from vatt_jax.inputs import sources


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
