"""Measures of retrieval. Ties count against the model."""

from collections.abc import Iterator

import numpy as np


def rank_of_match(similarity: np.ndarray) -> np.ndarray:
  """How many candidates come before the right one.

  Args:
    similarity: [Q, C]; candidate i is the right one for query i.

  Returns:
    int [Q], 0 for the first place. A candidate that is as similar as the right
    one, or whose similarity is not a number, comes before it.
  """
  right = np.diagonal(similarity)[:, None]
  return np.sum(~(similarity < right), axis=1) - 1


def retrieval(rank: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)
              ) -> Iterator[tuple[str, float]]:
  """Recall at k and the median rank, counted from 1.  int [Q] -> (name, value)s."""
  for k in ks:
    yield f'R@{k}', float(np.mean(rank < k))
  yield 'MedR', float(np.median(rank)) + 1


def retrieval_by_chance(pool: int, ks: tuple[int, ...] = (1, 5, 10)
                        ) -> Iterator[tuple[str, float]]:
  """What a random order of a pool of so many expects of the same measures."""
  for k in ks:
    yield f'R@{k}', min(k / pool, 1.0)
  yield 'MedR', (pool + 1) / 2
