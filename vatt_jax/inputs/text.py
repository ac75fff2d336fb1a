"""Words to ids."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Sequence
import os
import pathlib
import re

import numpy as np

from vatt_jax.errors import UserError

PAD, UNKNOWN = '<pad>', '<unk>'  # ids 0 and 1
_NOT_WORD = re.compile(r"[^\w\s]|_")


def words(text: str) -> list[str]:
  """Lower case, punctuation removed, split on white space."""
  return _NOT_WORD.sub('', text.lower()).split()


class WordTokenizer:
  """Maps the words of a vocabulary to ids; 0 pads, 1 stands for all other words."""

  def __init__(self, vocabulary: Sequence[str]):
    """Takes the words of ids 2, 3, ... in order."""
    self.vocabulary = tuple(vocabulary)
    self._ids = {word: i for i, word in enumerate((PAD, UNKNOWN, *vocabulary))}

  def encode(self, text: str, max_words: int) -> np.ndarray:
    """Clipped or padded to `max_words`.  -> int32 [max_words]."""
    ids = [self._ids.get(word, 1) for word in words(text)[:max_words]]
    return np.pad(np.asarray(ids, np.int32), (0, max_words - len(ids)))

  @classmethod
  def build(cls, texts: Iterable[str], size: int) -> WordTokenizer:
    """The `size` - 2 commonest words of the texts; of equals, the alphabet's first."""
    counts = collections.Counter(w for text in texts for w in words(text))
    ranked = sorted(counts, key=lambda w: (-counts[w], w))
    return cls(ranked[:size - 2])

  @classmethod
  def load(cls, path: str | os.PathLike[str], size: int) -> WordTokenizer:
    """Reads what `save` wrote, or the like with the padding and unknown words first.

    Raises:
      UserError: there is no such file, or it has more words than `size` leaves room
        for.
    """
    try:
      vocabulary = pathlib.Path(path).read_text(encoding='utf-8').split()
    except OSError as e:
      raise UserError(f'{path}: no such vocabulary file') from e
    if vocabulary[:2] == [PAD, UNKNOWN]:
      vocabulary = vocabulary[2:]
    if len(vocabulary) > size - 2:
      raise UserError(
          f'{path}: {len(vocabulary)} words do not fit model.text.vocabulary_size='
          f'{size} (two ids are for padding and unknown words); raise it or '
          'shorten the file')
    return cls(vocabulary)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes one word a line."""
    pathlib.Path(path).write_text(''.join(f'{w}\n' for w in self.vocabulary),
                                  encoding='utf-8')
