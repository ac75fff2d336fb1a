"""Computes metrics of retrieval and classification; ties count against the model."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import re

from absl import logging
import numpy as np
from scipy import stats
from sklearn import metrics

_NAMED = 5    # classes, in a warning


@dataclasses.dataclass(frozen=True)
class Metric:
  """Describes how to read a metric.

  Attributes:
    title: the name as people write it.
    higher_is_better: None if neither direction is better.
    decimals: digits after the decimal point.
    limits: the least and the greatest possible value.
    meaning: an explanation in one sentence.
  """
  title: str
  higher_is_better: bool | None
  decimals: int
  limits: tuple[float, float]
  meaning: str

  @property
  def is_share(self) -> bool:
    """Returns whether it is a fraction, which fits on an axis from 0 to 1."""
    return self.limits == (0, 1)

  def beats(self, value: float, other: float) -> bool:
    """Returns whether a value is strictly better than another one."""
    if self.higher_is_better is None:
      return False
    return value > other if self.higher_is_better else value < other


_SHARE, _RANK = (0, 1), (1, math.inf)

# The last component of a result's name -> its metric; {k} stands for any number.
METRICS = {
    'R@{k}': Metric(
        'R@{k}', True, 3, _SHARE,
        'Recall at {k}: fraction of queries with a correct result in the top {k}.'),
    'MedR': Metric(
        'MedR', False, 1, _RANK, 'Median rank of the correct result; 1 is the best.'),
    'MeanR': Metric(
        'MeanR', False, 1, _RANK, 'Mean rank of the correct result; 1 is the best.'),
    'top{k}': Metric(
        'top-{k}', True, 3, _SHARE,
        'Fraction of clips with a correct class among the {k} highest scores.'),
    'top{k}_std': Metric(
        'top-{k} std', None, 3, _SHARE,
        'Standard deviation of top-{k} over random choices of training clips.'),
    'mAP': Metric(
        'mAP', True, 3, _SHARE,
        'Mean over classes of the average precision; 1 if each class scores its own '
        'clips above all others.'),
    'AUC': Metric(
        'AUC', True, 3, _SHARE,
        'Mean over classes of the area under the ROC curve: how often a clip of the '
        'class scores higher than one of the others.'),
    'd_prime': Metric(
        "d'", True, 3, (-math.inf, math.inf),
        'Mean over classes of √2 times the normal quantile of AUC: how many standard '
        'deviations apart the scores of clips of the class and of others are.'),
    'loss': Metric(
        'loss', False, 3, (0, math.inf), 'Weighted sum of the losses, in nats.')}


def find(name: str, k: str = '') -> Metric | None:
  """Returns how to read a result.

  Args:
    name: name of the result, `TASK/METRIC`.
    k: text in place of the number in the name; empty to keep the number.

  Returns:
    None if the metric is unknown.
  """
  measure = name.rpartition('/')[2]
  metric = METRICS.get(re.sub(r'\d+', '{k}', measure))
  if metric is None:
    return None
  k = k or ''.join(re.findall(r'\d+', measure)[:1])
  return dataclasses.replace(metric, title=metric.title.replace('{k}', k),
                             meaning=metric.meaning.replace('{k}', k))


def rank_of_match(scores: np.ndarray, match: np.ndarray | None = None) -> np.ndarray:
  """Returns the rank of the correct candidate of each query.

  Args:
    scores: [Q, C]; a higher score is a better match.
    match: int [Q], the correct candidate of each query; None: candidate i for query i.

  Returns:
    int [Q], 0 for the first place. Candidates with an equal or a NaN score come before
    the correct one.
  """
  if match is None:
    match = np.arange(len(scores))
  right = np.take_along_axis(scores, match[:, None], axis=1)
  return np.sum(~(scores < right), axis=1) - 1


def rank_in_pool(queries: np.ndarray, pool: np.ndarray,
                 scores_at_once: int = 2 ** 24) -> np.ndarray:
  """Computes `rank_of_match` of dot products in blocks of queries.

  Args:
    queries: [N, D], N > 0.
    pool: [N, D]; candidate i is correct for query i.
    scores_at_once: maximum number of scores (8 bytes each) in memory; a block has at
      least one query.

  Returns:
    int [N]; does not depend on `scores_at_once`.
  """
  pool = pool.astype(np.float64)
  size = max(1, scores_at_once // len(pool))
  ranks = []
  for begin in range(0, len(queries), size):
    scores = similarities(queries[begin:begin + size], pool)
    ranks.append(rank_of_match(scores, np.arange(begin, begin + len(scores))))
  return np.concatenate(ranks)


def similarities(queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
  """Computes dot products; equal candidates get equal scores.

  [Q, D], [C, D] -> float32 [Q, C].
  """
  # The order of BLAS's summation depends on a candidate's position in a block. Rounding
  # to float32 removes the digits that differ.
  scores = queries.astype(np.float64) @ pool.astype(np.float64).T
  return scores.astype(np.float32)


def rank_of_best(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Returns how many wrong candidates come before the best correct one.

  Args:
    scores: [Q, C]; a higher score is a better match.
    right: bool [Q, C], the correct candidates.

  Returns:
    int [Q], 0 for the first place, C if no candidate is correct. Wrong candidates with
    an equal or a NaN score come before the correct one.
  """
  best = np.max(scores, axis=1, where=right, initial=-np.inf)[:, None]
  before = np.sum(~right & ~(scores < best), axis=1)
  return np.where(right.any(axis=1), before, scores.shape[1])


def retrieval(rank: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)
              ) -> Iterator[tuple[str, float]]:
  """Yields recall at k, and the median and the mean rank, counted from 1.

  int [Q] -> (name, value)s.
  """
  for k in ks:
    yield f'R@{k}', float(np.mean(rank < k))
  yield 'MedR', float(np.median(rank)) + 1
  yield 'MeanR', float(np.mean(rank)) + 1


def retrieval_by_chance(pool: int, ks: tuple[int, ...] = (1, 5, 10)
                        ) -> Iterator[tuple[str, float]]:
  """Yields the expected metrics of `retrieval` for a random ranking of a pool."""
  for k in ks:
    yield f'R@{k}', min(k / pool, 1.0)
  yield 'MedR', (pool + 1) / 2
  yield 'MeanR', (pool + 1) / 2


def top_k(scores: np.ndarray, labels: np.ndarray, ks: tuple[int, ...] = (1, 5)
          ) -> Iterator[tuple[str, float]]:
  """Yields how often the correct class is among the k highest scores.

  Args:
    scores: [N, C].
    labels: int [N].
    ks: values of k. A k of C or more is left out: its accuracy is always 1.

  Yields:
    `top1` and so on, and the fraction of rows.
  """
  rank = rank_of_match(scores, labels)
  for k in ks:
    if k < scores.shape[1]:
      yield f'top{k}', float(np.mean(rank < k))


def top_k_by_chance(labels: np.ndarray, counts: np.ndarray,
                    ks: tuple[int, ...] = (1, 5)) -> Iterator[tuple[str, float]]:
  """Yields top-k accuracy of always predicting the k most frequent classes.

  Args:
    labels: int [N].
    counts: [C], frequency of each class in the data that defines "most frequent".
    ks: values of k, as for `top_k`.
  """
  commonest = np.argsort(-counts, kind='stable')
  for k in ks:
    if k < len(counts):
      yield f'top{k}', float(np.mean(np.isin(labels, commonest[:k])))


def multi_label(scores: np.ndarray, targets: np.ndarray, names: Sequence[str]
                ) -> Iterator[tuple[str, float]]:
  """Yields class means of average precision, area under the ROC curve and d-prime.

  d-prime is computed for each class and then averaged, as in VATT's code and in VATT's
  rows of Table 5 (0.971 and 2.895). The other rows of the table use the d-prime of the
  mean AUC, which would be 2.68. These metrics are undefined for a class that no clip or
  every clip has: it is left out and named in the log. A NaN score counts as the highest
  if the class is absent, and as the lowest if it is present.

  Args:
    scores: [N, C].
    targets: bool [N, C].
    names: names of the C classes.

  Yields:
    `mAP`, `AUC` and `d_prime`; nothing if no class is left.
  """
  kept = _measurable(targets)
  if not kept.all():
    absent = [name for name, keep in zip(names, kept, strict=True) if not keep]
    more = f' and {len(absent) - _NAMED} more' if len(absent) > _NAMED else ''
    logging.warning('Left out of mAP, AUC and d_prime: %d of %d classes that no clip '
                    'or every clip has: %s%s', len(absent), len(names),
                    ', '.join(absent[:_NAMED]), more)
  if not kept.any():
    return
  precision, auc, prime = [], [], []
  for c in np.flatnonzero(kept):
    target = targets[:, c]
    order = _order(scores[:, c], target)
    precision.append(metrics.average_precision_score(target, order))
    auc.append(metrics.roc_auc_score(target, order))
    prime.append(d_prime(auc[-1], int(target.sum()) * int((~target).sum())))
  yield 'mAP', float(np.mean(precision))
  yield 'AUC', float(np.mean(auc))
  yield 'd_prime', float(np.mean(prime))


def multi_label_by_chance(targets: np.ndarray) -> Iterator[tuple[str, float]]:
  """Yields the metrics of `multi_label` if all scores are equal.  bool [N, C]."""
  kept = _measurable(targets)
  if kept.any():
    yield 'mAP', float(np.mean(targets[:, kept]))
    yield 'AUC', 0.5
    yield 'd_prime', 0.0


def d_prime(auc: float, pairs: int) -> float:
  """Returns the distance of two normal distributions with this AUC.

  It is sqrt(2) times the normal quantile of `auc`, in standard deviations. The quantile
  is infinite if all pairs of a positive and a negative are in the correct order, or all
  in the wrong one. Half a pair then counts as the opposite.

  Args:
    auc: 0 to 1.
    pairs: number of pairs of a positive and a negative.
  """
  least = 0.5 / pairs
  return float(np.sqrt(2) * stats.norm.ppf(np.clip(auc, least, 1 - least)))


def _measurable(targets: np.ndarray) -> np.ndarray:
  """Returns the classes with positives and negatives.  bool [N, C] -> bool [C]."""
  return targets.any(axis=0) & ~targets.all(axis=0)


def _order(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Returns the order of the scores as integers, with NaN at the wrong end."""
  _, order = np.unique(scores, return_inverse=True)    # NaN sorts last
  return np.where(np.isnan(scores) & target, -1, order)
