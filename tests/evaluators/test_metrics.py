"""vatt_jax/evaluators/metrics.py"""

import json

import numpy as np
import pytest

from vatt_jax.evaluators import metrics


def test_ranks_by_hand():
  similarity = np.array([[.9, .1, .2], [.8, .5, .6], [.1, .3, .2]])
  assert metrics.rank_of_match(similarity).tolist() == [0, 2, 1]
  assert dict(metrics.retrieval(np.array([0, 2, 1]), ks=(1, 2))) == {
      'R@1': pytest.approx(1 / 3), 'R@2': pytest.approx(2 / 3), 'MedR': 2.0}


def test_ties_and_what_is_no_number_count_against_the_model():
  assert metrics.rank_of_match(np.ones((4, 4))).tolist() == [3] * 4
  nan = np.eye(3)
  nan[0, 0] = nan[1, 2] = np.nan
  assert metrics.rank_of_match(nan).tolist() == [2, 1, 0]


def test_chance_is_what_random_orders_reach():
  rng = np.random.default_rng(0)
  measured = [dict(metrics.retrieval(metrics.rank_of_match(rng.random((40, 40)))))
              for _ in range(400)]
  for name, value in metrics.retrieval_by_chance(40):
    assert np.mean([m[name] for m in measured]) == pytest.approx(value, rel=0.08)
  assert dict(metrics.retrieval_by_chance(4))['R@10'] == 1


@pytest.mark.parametrize('case', ['sim', 'embd_avg', 'cosine_avg', 'one_window_default',
                                  'one_window_normalized'])
def test_measures_are_the_release_s(case, shared):
  similarity = np.load(shared / 'golden' / 'retrieval.npz')[
      case if case == 'sim' else f'sim_{case}']
  expected = json.loads(
      (shared / 'golden' / 'retrieval_expected.json').read_text())[case]
  ours = dict(metrics.retrieval(metrics.rank_of_match(similarity)))
  assert ours == {'R@1': expected['R1'], 'R@5': expected['R5'], 'R@10': expected['R10'],
                  'MedR': expected['MedianRank']}
