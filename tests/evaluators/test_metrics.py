"""Tests vatt_jax/evaluators/metrics.py."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.views import of_clips


def test_ranks_by_hand():
  similarity = np.array([[.9, .1, .2], [.8, .5, .6], [.1, .3, .2]])
  assert metrics.rank_of_match(similarity).tolist() == [0, 2, 1]
  assert metrics.rank_of_match(similarity, np.array([2, 0, 0])).tolist() == [1, 0, 2]
  assert dict(metrics.retrieval(np.array([0, 2, 1]), ks=(1, 2))) == {
      'R@1': pytest.approx(1 / 3), 'R@2': pytest.approx(2 / 3), 'MedR': 2.0,
      'MeanR': 2.0}
  assert dict(metrics.retrieval(np.array([0, 0, 7])))['MeanR'] == pytest.approx(10 / 3)


def test_ties_and_nan_scores_count_against_the_model():
  assert metrics.rank_of_match(np.ones((4, 4))).tolist() == [3] * 4
  nan = np.eye(3)
  nan[0, 0] = nan[1, 2] = np.nan
  assert metrics.rank_of_match(nan).tolist() == [2, 1, 0]


@pytest.mark.parametrize('scores_at_once', [1, 41, 160, 2 ** 24])
def test_ranks_do_not_depend_on_the_block_size(scores_at_once, monkeypatch):
  """Includes candidates that are equal, nearly equal, zero or NaN."""
  rng = np.random.default_rng(0)
  queries = rng.normal(size=(41, 30)).astype(np.float32)
  pool = queries + rng.normal(size=queries.shape).astype(np.float32)
  pool[20:30] = pool[20]
  pool[30], pool[31], queries[32] = 0, np.nan, 0
  pool[33] = pool[34] + 1e-9
  sizes = []
  of_block = metrics.rank_of_match

  def watched(scores, match):
    sizes.append(scores.size)
    return of_block(scores, match)

  monkeypatch.setattr(metrics, 'rank_of_match', watched)
  rank = metrics.rank_in_pool(queries, pool, scores_at_once)
  assert max(sizes) <= max(scores_at_once, 41)    # a block has at least one query
  exact = (queries[:, None].astype(np.float64) * pool[None]).sum(-1)
  np.testing.assert_array_equal(rank, of_block(exact.astype(np.float32)))
  assert (rank[20:30] >= 10).all()    # nine are equal, one is NaN
  assert rank[31] == rank[32] == 40


def test_collapsed_embeddings_rank_last():
  """Holds for every order of summation."""
  rng = np.random.default_rng(0)
  for x in (rng.normal(size=30), np.zeros(30), np.full(30, np.nan)):
    same = np.tile(x.astype(np.float32), (50, 1))
    assert metrics.rank_in_pool(same, same).tolist() == [49] * 50


def test_chance_matches_random_rankings():
  rng = np.random.default_rng(0)
  measured = [dict(metrics.retrieval(metrics.rank_of_match(rng.random((40, 40)))))
              for _ in range(400)]
  for name, value in metrics.retrieval_by_chance(40):
    assert np.mean([m[name] for m in measured]) == pytest.approx(value, rel=0.08)
  assert dict(metrics.retrieval_by_chance(4))['R@10'] == 1


def release_metrics(shared, case):
  expected = json.loads(
      (shared / 'golden' / 'retrieval_expected.json').read_text())[case]
  return {'R@1': expected['R1'], 'R@5': expected['R5'], 'R@10': expected['R10'],
          'MedR': expected['MedianRank']}


def measures(rank):
  values = dict(metrics.retrieval(rank))
  del values['MeanR']    # the release has none
  return values


@pytest.mark.parametrize('case', ['sim', 'embd_avg', 'cosine_avg', 'one_window_default',
                                  'one_window_normalized'])
def test_retrieval_metrics_match_the_release(case, shared):
  scores = np.load(shared / 'golden' / 'retrieval.npz')[
      case if case == 'sim' else f'sim_{case}']
  assert measures(metrics.rank_of_match(scores)) == release_metrics(shared, case)


@pytest.mark.parametrize('average, case, windows', [
    ('embeddings', 'embd_avg', 4), ('similarities', 'cosine_avg', 4),
    ('embeddings', 'one_window_normalized', 1),
    ('similarities', 'one_window_normalized', 1)])
def test_averages_over_views_match_the_release(average, case, windows, shared):
  """Checks both averages on its embeddings; with one view both are equal."""
  golden = np.load(shared / 'golden' / 'retrieval.npz')
  text = golden['embd'][:, None]
  video = golden['video_embd'].reshape(len(text), 4, -1)[:, :windows]
  clips = of_clips(
      dict(video_text=dict(text=text, video=video)),
      {m: np.ones(x.shape[:2], bool) for m, x in dict(text=text, video=video).items()},
      average)['video_text']
  np.testing.assert_allclose(clips['text'] @ clips['video'].T, golden[f'sim_{case}'],
                             atol=2e-6)
  rank = metrics.rank_in_pool(clips['text'], clips['video'])
  assert measures(rank) == release_metrics(shared, case)


def test_top_k_by_hand():
  scores = np.array([[.1, .9, .0], [.5, .2, .4], [.3, .3, .2], [.6, np.nan, .1]])
  labels = np.array([1, 2, 0, 0])
  # The third row has a tie; the fourth has a NaN score, which ranks first.
  assert dict(metrics.top_k(scores, labels, ks=(1, 2, 3, 5))) == {
      'top1': 0.25, 'top2': 1.0}
  assert dict(metrics.top_k(scores, np.array([1, 1, 1, 1]), ks=(1, 2))) == {
      'top1': 0.25, 'top2': 0.5}


def test_constant_scores_reach_only_chance():
  scores, labels = np.ones((20, 10)), np.arange(20) % 10
  assert dict(metrics.top_k(scores, labels)) == {'top1': 0, 'top5': 0}
  targets = np.eye(10, dtype=bool)[labels]
  chance = dict(metrics.multi_label_by_chance(targets))
  assert chance == {'mAP': pytest.approx(0.1), 'AUC': 0.5, 'd_prime': 0}
  for same in (1.0, np.inf):
    assert dict(metrics.multi_label(same * scores, targets, 'abcdefghij')) == (
        pytest.approx(chance, abs=1e-12))


def test_chance_predicts_the_most_frequent_classes():
  labels = np.array([0, 1, 1, 2, 3, 3, 3, 1])
  assert dict(metrics.top_k_by_chance(labels, np.bincount(labels), (1, 2, 4))) == {
      'top1': 3 / 8, 'top2': 6 / 8}
  other_counts = np.array([9, 1, 1, 8])
  assert dict(metrics.top_k_by_chance(labels, other_counts, (1, 2))) == {
      'top1': 1 / 8, 'top2': 4 / 8}


def test_multi_label_by_hand():
  scores = np.array([[4., 1.], [3., 2.], [2., 3.], [1., 4.]])
  targets = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
  values = dict(metrics.multi_label(scores, targets, 'ab'))
  assert values['mAP'] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
  assert values['AUC'] == pytest.approx((3 / 4 + 1) / 2)
  # The second class has a perfect order: half of one of its four pairs counts as wrong.
  assert values['d_prime'] == pytest.approx(
      np.sqrt(2) * (stats.norm.ppf(3 / 4) + stats.norm.ppf(7 / 8)) / 2)


def test_multi_label_metrics_match_scikit_learn():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(80, 6)).round(1)    # with ties
  targets = rng.random((80, 6)) < 0.3
  values = dict(metrics.multi_label(scores, targets, 'abcdef'))
  assert values['mAP'] == pytest.approx(
      sklearn_metrics.average_precision_score(targets, scores), abs=1e-12)
  auc = sklearn_metrics.roc_auc_score(targets, scores, average=None)
  assert values['AUC'] == pytest.approx(auc.mean(), abs=1e-12)
  assert values['d_prime'] == pytest.approx(
      np.mean([metrics.d_prime(a, 10 ** 9) for a in auc]), abs=1e-9)


@pytest.mark.parametrize('apart', [0.0, 0.5, 2.0])
def test_d_prime_is_the_distance_of_two_normal_distributions(apart):
  auc = stats.norm.cdf(apart / np.sqrt(2))
  assert metrics.d_prime(auc, 10 ** 9) == pytest.approx(apart, abs=1e-9)


def test_d_prime_of_a_perfect_order_is_finite_and_grows_with_the_pairs():
  assert metrics.d_prime(1.0, 1) == 0    # one pair is no evidence
  assert 2 < metrics.d_prime(1.0, 10) < metrics.d_prime(1.0, 1000) < 6
  assert metrics.d_prime(0.0, 10) == pytest.approx(-metrics.d_prime(1.0, 10))


def test_nan_scores_count_against_the_model():
  scores = np.array([[3.], [2.], [1.], [0.]])
  targets = np.array([[1], [1], [0], [0]], bool)
  assert dict(metrics.multi_label(scores, targets, 'a'))['AUC'] == 1
  for places in ([0], [3], [1, 2], [0, 1, 2, 3]):
    broken = scores.copy()
    broken[places] = np.nan
    values = dict(metrics.multi_label(broken, targets, 'a'))
    worst = np.where(targets, -9., 9.)
    expected = dict(metrics.multi_label(np.where(np.isnan(broken), worst, broken),
                                        targets, 'a'))
    assert values == expected and values['AUC'] < 1 and values['mAP'] < 1


def test_class_without_positives_or_negatives_is_left_out_and_logged(caplog):
  rng = np.random.default_rng(0)
  scores, targets = rng.normal(size=(30, 9)), rng.random((30, 9)) < 0.5
  targets[:, [2, 3, 4, 5, 6, 7]] = False
  targets[:, 8] = True
  with caplog.at_level('WARNING'):
    values = dict(metrics.multi_label(scores, targets, 'abcdefghi'))
  assert values == dict(metrics.multi_label(scores[:, :2], targets[:, :2], 'ab'))
  (record,) = caplog.records
  assert '7 of 9 classes' in record.getMessage()
  assert record.getMessage().endswith('c, d, e, f, g and 2 more')
  assert dict(metrics.multi_label_by_chance(targets))['mAP'] == (
      pytest.approx(targets[:, :2].mean()))
  assert not dict(metrics.multi_label(scores[:, 2:], targets[:, 2:], 'cdefghi'))
  assert not dict(metrics.multi_label_by_chance(targets[:, 2:]))


def test_classification_metrics_match_the_release(shared):
  golden = np.load(shared / 'golden' / 'retrieval.npz')
  expected = json.loads((shared / 'golden' / 'retrieval_expected.json').read_text())
  scores, classes = golden['cls_pred'], [str(c) for c in range(8)]
  assert dict(metrics.top_k(scores, golden['cls_label'][:, 0])) == expected['accuracy']
  values = dict(metrics.multi_label(scores, golden['cls_multi_hot'] > 0, classes))
  released = expected['ml_classification']
  for name, key in dict(mAP='mAP', AUC='AUC', d_prime='d-prime').items():
    assert values[name] == pytest.approx(released[key], abs=1e-12)
