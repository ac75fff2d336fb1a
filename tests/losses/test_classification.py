"""vatt_jax/losses/classification.py"""

import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.losses import base
from vatt_jax.losses import classification

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
ONE_HOT = np.eye(4, dtype=bool)[[0, 1, 1, 2, 3, 1]]
MULTI_HOT = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0],
                    [1, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0]], bool)
ALL = np.ones(6, bool)


def _binary(logits, labels):
  probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return -np.sum(np.where(labels, np.log(probability), np.log(1 - probability)), axis=1)


def test_softmax_with_smoothed_labels_matches_the_release(shared):
  golden = np.load(shared / 'golden' / 'ft_vit_io.npz')
  one_hot = golden['labels'] > 0.5    # the golden labels are smoothed
  loss = classification.softmax(golden['out_logits'], one_hot, np.ones(2, bool), 0.1)
  np.testing.assert_allclose(loss, golden['out_model_loss'], rtol=1e-6)


def test_binary_cross_entropy_matches_the_release(shared):
  golden = np.load(shared / 'golden' / 'ft_wat_io.npz')
  loss = classification.binary_cross_entropy(
      golden['out_logits'], golden['labels'], np.ones(2, bool), balance=True)
  np.testing.assert_allclose(loss, golden['out_model_loss'], rtol=1e-6)


def test_smoothing_spreads_labels_over_all_classes():
  log_softmax = LOGITS - np.log(np.sum(np.exp(LOGITS), axis=1, keepdims=True))
  expected = -0.7 * log_softmax[ONE_HOT].mean() - 0.3 * log_softmax.mean()
  np.testing.assert_allclose(classification.softmax(LOGITS, ONE_HOT, ALL, 0.3),
                             expected, rtol=1e-5)


def test_balance_lowers_the_weight_of_common_labels():
  """Class 0 occurs three times, the others twice each."""
  weights = [(1 / 3 + 1 / 2) / 2, 1 / 3, 1 / 2, (1 / 3 + 1 / 2 + 1 / 2) / 3, 1 / 2,
             1 / 2]
  np.testing.assert_allclose(
      classification.binary_cross_entropy(LOGITS, MULTI_HOT, ALL, balance=True),
      np.mean(_binary(LOGITS, MULTI_HOT) * weights), rtol=1e-5)
  np.testing.assert_allclose(
      classification.binary_cross_entropy(LOGITS, MULTI_HOT, ALL),
      np.mean(_binary(LOGITS, MULTI_HOT)), rtol=1e-5)


@pytest.mark.parametrize('loss_fn, labels, settings', [
    (classification.softmax, ONE_HOT, dict(smoothing=0.1)),
    (classification.binary_cross_entropy, MULTI_HOT, dict(balance=True))])
def test_absent_and_unlabeled_clips_do_not_count(loss_fn, labels,
                                                              settings):
  kept = np.array([True, False, True, True, False, True])
  labels = labels.copy()
  labels[1] = False
  present = np.arange(6) != 4
  loss = loss_fn(jnp.asarray(LOGITS), labels, present, **settings)
  alone = loss_fn(jnp.asarray(LOGITS[kept]), labels[kept], np.ones(4, bool),
                    **settings)
  np.testing.assert_allclose(loss, alone, rtol=1e-6)
  assert loss_fn(jnp.asarray(LOGITS), labels, ~ALL, **settings) == 0


def test_labels_can_be_probabilities_of_a_mixture():
  mixed = 0.25 * ONE_HOT + 0.75 * ONE_HOT[::-1]
  losses = [classification.softmax(LOGITS, x, ALL) for x in (ONE_HOT, ONE_HOT[::-1])]
  np.testing.assert_allclose(classification.softmax(LOGITS, mixed, ALL),
                             0.25 * losses[0] + 0.75 * losses[1], rtol=1e-5)


def _loss_of_columns(logits, label=''):
  """Computes the loss of clips with two columns of labels."""
  batch = dict(labels=dict(noun=ONE_HOT, verb=ONE_HOT[:, ::-1]), has_video=ALL)
  loss, _, _ = classification.Softmax(label=label)(
      {}, dict(logits=logits, pooled=dict(video=None)), batch, None)
  return loss


def test_loss_of_a_column_takes_its_scores_and_labels():
  logits = dict(noun=LOGITS, verb=2 * LOGITS)
  assert _loss_of_columns(logits, 'noun') == classification.softmax(
      LOGITS, ONE_HOT, ALL)
  assert _loss_of_columns(logits, 'verb') == classification.softmax(
      2 * LOGITS, ONE_HOT[:, ::-1], ALL)


def test_loss_without_a_column_needs_a_single_one():
  with pytest.raises(ValueError, match="label='': expected a column of labels, one of "
                                       'noun, verb'):
    _loss_of_columns(dict(noun=LOGITS, verb=LOGITS))
  with pytest.raises(base.MissingOutput, match=r'batch\.labels\.adverb'):
    _loss_of_columns(dict(noun=LOGITS, verb=LOGITS), 'adverb')
  with pytest.raises(base.MissingOutput, match=r'outputs\.logits\.verb'):
    _loss_of_columns(dict(noun=LOGITS), 'verb')
