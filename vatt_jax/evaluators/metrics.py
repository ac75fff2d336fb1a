"""Measures of retrieval and classification. Ties count against the model."""

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
    title: as people write it.
    higher_is_better: None where neither direction is better.
    decimals: digits after the point.
    limits: the least and the greatest value that is possible.
    meaning: a sentence for those who do not know it.
  """
  title: str
  higher_is_better: bool | None
  decimals: int
  limits: tuple[float, float]
  meaning: str

  @property
  def is_share(self) -> bool:
    """Whether it is a share of one, so that it fits on an axis from 0 to 1."""
    return self.limits == (0, 1)

  def beats(self, value: float, other: float) -> bool:
    """Returns whether a value is strictly better than another one."""
    if self.higher_is_better is None:
      return False
    return value > other if self.higher_is_better else value < other


_SHARE, _RANK = (0, 1), (1, math.inf)

# The last part of a result's name -> how to read it; {k} stands for any number.
METRICS = {
    'R@{k}': Metric(
        'R@{k}', True, 3, _SHARE,
        'Recall at {k}: the share of queries with a right answer among the first {k}.'),
    'MedR': Metric(
        'MedR', False, 1, _RANK, 'Median rank of the right answer; 1 is the first.'),
    'MeanR': Metric(
        'MeanR', False, 1, _RANK, 'Mean rank of the right answer; 1 is the first.'),
    'top{k}': Metric(
        'top-{k}', True, 3, _SHARE,
        'The share of clips with a right class among the {k} of highest score.'),
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
    name: of the result, `TASK/METRIC`.
    k: stands for the number in the name; empty for that number.

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
  """How many candidates come before the right one.

  Args:
    scores: [Q, C], the higher the likelier.
    match: int [Q], the right candidate of each query; None: candidate i is query i's.

  Returns:
    int [Q], 0 for the first place. A candidate whose score is as high as the right
    one's, or is not a number, comes before it.
  """
  if match is None:
    match = np.arange(len(scores))
  right = np.take_along_axis(scores, match[:, None], axis=1)
  return np.sum(~(scores < right), axis=1) - 1


def rank_in_pool(queries: np.ndarray, pool: np.ndarray,
                 scores_at_once: int = 2 ** 24) -> np.ndarray:
  """As `rank_of_match`, of dot products, for some queries at a time.

  Args:
    queries: [N, D], N > 0.
    pool: [N, D]; candidate i is the right one for query i.
    scores_at_once: the most that are kept, of 8 bytes; one query's at least.

  Returns:
    int [N], the same whatever `scores_at_once`.
  """
  pool = pool.astype(np.float64)
  size = max(1, scores_at_once // len(pool))
  ranks = []
  for begin in range(0, len(queries), size):
    scores = similarities(queries[begin:begin + size], pool)
    ranks.append(rank_of_match(scores, np.arange(begin, begin + len(scores))))
  return np.concatenate(ranks)


def similarities(queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
  """Returns dot products, of equal candidates equal ones.

  [Q, D], [C, D] -> float32 [Q, C].
  """
  # In which order BLAS adds up depends on where in a block a candidate stands; so the
  # last digits, where that shows, are rounded off.
  scores = queries.astype(np.float64) @ pool.astype(np.float64).T
  return scores.astype(np.float32)


def rank_of_best(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
  """How many wrong candidates come before the best of the right ones.

  Args:
    scores: [Q, C], the higher the likelier.
    right: bool [Q, C].

  Returns:
    int [Q], 0 for the first place, C where no candidate is right. A wrong candidate
    whose score is as high, or is not a number, comes before it.
  """
  best = np.max(scores, axis=1, where=right, initial=-np.inf)[:, None]
  before = np.sum(~right & ~(scores < best), axis=1)
  return np.where(right.any(axis=1), before, scores.shape[1])


def retrieval(rank: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)
              ) -> Iterator[tuple[str, float]]:
  """Recall at k, the median and the mean rank, counted from 1.

  int [Q] -> (name, value)s.
  """
  for k in ks:
    yield f'R@{k}', float(np.mean(rank < k))
  yield 'MedR', float(np.median(rank)) + 1
  yield 'MeanR', float(np.mean(rank)) + 1


def retrieval_by_chance(pool: int, ks: tuple[int, ...] = (1, 5, 10)
                        ) -> Iterator[tuple[str, float]]:
  """What a random order of a pool of so many expects of the same measures."""
  for k in ks:
    yield f'R@{k}', min(k / pool, 1.0)
  yield 'MedR', (pool + 1) / 2
  yield 'MeanR', (pool + 1) / 2


def top_k(scores: np.ndarray, labels: np.ndarray, ks: tuple[int, ...] = (1, 5)
          ) -> Iterator[tuple[str, float]]:
  """How often the right class is among the k likeliest.

  Args:
    scores: [N, C].
    labels: int [N].
    ks: one that leaves no class out would always be reached, and is left out.

  Yields:
    `top1` and so on, and the share.
  """
  rank = rank_of_match(scores, labels)
  for k in ks:
    if k < scores.shape[1]:
      yield f'top{k}', float(np.mean(rank < k))


def top_k_by_chance(labels: np.ndarray, counts: np.ndarray,
                    ks: tuple[int, ...] = (1, 5)) -> Iterator[tuple[str, float]]:
  """What of the same measures the commonest classes reach, answered to everything.

  Args:
    labels: int [N].
    counts: [C], how common each class is where the answer could be learnt.
    ks: as for `top_k`.
  """
  commonest = np.argsort(-counts, kind='stable')
  for k in ks:
    if k < len(counts):
      yield f'top{k}', float(np.mean(np.isin(labels, commonest[:k])))


def multi_label(scores: np.ndarray, targets: np.ndarray, names: Sequence[str]
                ) -> Iterator[tuple[str, float]]:
  """Means over the classes: average precision, area under the ROC curve, d-prime.

  d-prime is the mean of the classes' own, as in VATT's code and its rows of Table 5
  (0.971 and 2.895); the other rows there have that of the mean AUC, which would be
  2.68. A class that nobody has, or everybody, has no such measures: it is left out,
  and named in the log. A score that is no number is the highest where the class is
  absent, and the lowest where it is there.

  Args:
    scores: [N, C].
    targets: bool [N, C].
    names: of the C classes.

  Yields:
    `mAP`, `AUC` and `d_prime`; nothing if no class is left.
  """
  kept = _measurable(targets)
  if not kept.all():
    absent = [name for name, keep in zip(names, kept, strict=True) if not keep]
    more = f' and {len(absent) - _NAMED} more' if len(absent) > _NAMED else ''
    logging.warning('Left out of mAP, AUC and d_prime: %d of %d classes, which no clip '
                    'has, or every one: %s%s', len(absent), len(names),
                    ', '.join(absent[:_NAMED]), more)
  if not kept.any():
    return
  precision, auc, prime = [], [], []
  for c in np.flatnonzero(kept):
    there = targets[:, c]
    order = _order(scores[:, c], there)
    precision.append(metrics.average_precision_score(there, order))
    auc.append(metrics.roc_auc_score(there, order))
    prime.append(d_prime(auc[-1], int(there.sum()) * int((~there).sum())))
  yield 'mAP', float(np.mean(precision))
  yield 'AUC', float(np.mean(auc))
  yield 'd_prime', float(np.mean(prime))


def multi_label_by_chance(targets: np.ndarray) -> Iterator[tuple[str, float]]:
  """What of the same measures scores that are all alike reach.  bool [N, C]."""
  kept = _measurable(targets)
  if kept.any():
    yield 'mAP', float(np.mean(targets[:, kept]))
    yield 'AUC', 0.5
    yield 'd_prime', 0.0


def d_prime(auc: float, pairs: int) -> float:
  """How many deviations apart two normal distributions have this area under the curve.

  sqrt(2) times the normal quantile of `auc`. That is infinite where no pair, or every
  pair, of a positive and a negative is in the wrong order; there, half a pair counts
  as the other way round.

  Args:
    auc: 0 to 1.
    pairs: how many of a positive and a negative there are.
  """
  least = 0.5 / pairs
  return float(np.sqrt(2) * stats.norm.ppf(np.clip(auc, least, 1 - least)))


def _measurable(targets: np.ndarray) -> np.ndarray:
  """The classes that some have and some have not.  bool [N, C] -> bool [C]."""
  return targets.any(axis=0) & ~targets.all(axis=0)


def _order(scores: np.ndarray, there: np.ndarray) -> np.ndarray:
  """Whole numbers in the order of the scores, those that are none at the wrong end."""
  _, order = np.unique(scores, return_inverse=True)    # no number: behind the others
  return np.where(np.isnan(scores) & there, -1, order)
