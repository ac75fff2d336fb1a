"""Classifies clips by nearest neighbours on frozen features, without training."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from vatt_jax.config import Settings
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import frozen_features
from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.views import unit_norm
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import Reader

_BLOCK = 256    # rows whose similarities are in memory at once


class Neighbours:
  """Compares test clips with the nearest training clips, by cosine similarity.

  Class retrieval: a test clip is correct at k if one of the k nearest training clips
  has its class, or one of its classes (GDT, arXiv 2003.04298, appendix; STiCA,
  arXiv 2103.10211, Table 5). Few-shot: a fixed number of training clips is drawn at
  random from each class, and the nearest of all gives the prediction (GDT, appendix).
  In a tie, a clip of another class ranks before the clip of the correct class.
  """

  def __init__(self, data: frozen_features.Frozen, ks: Sequence[int] = (1, 5, 20),
               shots: Sequence[int] = (), num_draws: int = 10, seed: int = 0):
    """Stores the settings.

    Args:
      data: the features.
      ks: values of k for class retrieval.
      shots: numbers of training clips per class; a class with fewer uses all of them.
      num_draws: number of random draws of these clips.
      seed: seed of the draws.

    Raises:
      ValueError: one of the numbers is less than 1.
    """
    for name, value in (('ks', ks), ('shots', shots), ('num_draws', (num_draws,))):
      if min(value, default=1) < 1:
        raise ValueError(f'{name}={value}: expected 1 or more')
    self._data = data
    self._ks, self._shots = tuple(ks), tuple(shots)
    self._num_draws, self._seed = num_draws, seed

  @classmethod
  def from_config(cls, where: str, predict: extract.Predict, reader: Reader,
                  batch_size: int, model: Settings, train: str | Sequence[str],
                  test: str | Sequence[str], ks: Sequence[int] = (1, 5, 20),
                  shots: Sequence[int] = (), num_draws: int = 10, seed: int = 0,
                  **features: Any) -> Neighbours:
    """Builds it with the features of a section (`frozen_features.open_section`)."""
    data = frozen_features.open_section(where, features, train, test, predict=predict,
                                        reader=reader, batch_size=batch_size,
                                        model=model)
    return cls(data, ks, shots, num_draws, seed)

  @property
  def measured(self) -> Sequence[Clip]:
    """Returns the clips whose labels are measured."""
    return self._data.measured

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields `LABEL/R@1`, and for few-shot `LABEL/1_shot/top1` and `.../top1_std`.

    The standard deviation is over the draws; all other values have a chance level
    beside them. Several splits give the mean, and `LABEL/split_1/R@1` and so on. Leaves
    out a k that is not less than the number of training clips, and few-shot for
    multi-label columns.
    """
    for label, splits in self._data.splits(state):
      measured = [dict(self._measure(split)) for split in splits]
      if not all(measured):
        logging.warning('%s: %d training clips are too few for ks=%s', label,
                        min(len(split.x) for split in splits), self._ks)
      for name, value in frozen_features.over_splits(measured):
        yield f'{label}/{name}', value

  def _measure(self, split: frozen_features.Split) -> Iterator[tuple[str, float]]:
    pool = np.arange(len(split.x))
    rank, right = _rank(split, pool)
    for k in self._ks:
      if k < len(pool):
        yield f'R@{k}', float(np.mean(rank < k))
        yield f'chance_R@{k}', float(np.mean(_chance(right, len(pool), k)))
    if split.multi_label:
      return
    for shots in self._shots:
      top1, chance = [], []
      for number in range(self._num_draws):
        drawn = _draw(split.targets, shots, np.random.default_rng(
            (self._seed, shots, number)))
        rank, right = _rank(split, drawn)
        top1.append(np.mean(rank < 1))
        chance.append(np.mean(_chance(right, len(drawn), 1)))
      yield f'{shots}_shot/top1', float(np.mean(top1))
      yield f'{shots}_shot/chance_top1', float(np.mean(chance))
      yield f'{shots}_shot/top1_std', float(np.std(top1))


def _rank(split: frozen_features.Split, pool: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rank of the first correct clip of a pool, and the number of them.

  Args:
    split: N training clips and M test clips.
    pool: int [P], indices of some training clips.

  Returns:
    int [M] and int [M]; the rank is P if no clip of the pool is correct.
  """
  x = unit_norm(split.x[pool].astype(np.float64))
  targets = split.targets[pool].astype(np.float32)
  ranks, rights = [], []
  for begin in range(0, len(split.x_test), _BLOCK):
    rows = slice(begin, begin + _BLOCK)
    # Sums are in float64 and rounded to float32, to keep equal similarities equal.
    x_test = unit_norm(split.x_test[rows].astype(np.float64))
    similarity = (x_test @ x.T).astype(np.float32)
    right = split.targets_test[rows].astype(np.float32) @ targets.T > 0
    ranks.append(metrics.rank_of_best(similarity, right))
    rights.append(right.sum(axis=1))
  return np.concatenate(ranks), np.concatenate(rights)


def _draw(targets: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
  """Draws `shots` clips of each class.  bool [N, C] -> int [P]."""
  members = [np.flatnonzero(column) for column in targets.T]
  return np.concatenate([rng.permutation(of_class)[:shots] for of_class in members])


def _chance(right: np.ndarray, pool: int, k: int) -> np.ndarray:
  """Returns the chance that k random clips of a pool include a correct one.

  Args:
    right: int [M], how many clips of the pool are correct.
    pool: size of the pool.
    k: number of clips drawn.
  """
  drawn = np.arange(k)
  wrong = np.maximum(pool - right[:, None] - drawn, 0) / (pool - drawn)
  return 1 - np.prod(wrong, axis=1)
