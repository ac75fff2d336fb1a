"""Reads word vectors for the frozen embedding table of the released model."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
import zipfile

from absl import logging
import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs import text

# Name of the array in a .npz file.
KEY = 'vectors'


def load(path: str | os.PathLike[str], tokenizer: text.Tokenizer, table: np.ndarray
         ) -> np.ndarray:
  """Returns the table with the vectors of a file.

  Args:
    path: an .npz file whose array `vectors` is the table in the order of ids. Any other
      file is text in the format of word2vec: a line `WORD v1 ... vD` for each word,
      with or without a first line `NUM_WORDS D`. It may have more words than the
      vocabulary, and lack some.
    tokenizer: the vocabulary, which maps words to rows.
    table: float32 [V, D], random; words without a vector keep their rows.

  Raises:
    UserError: the file is missing, or does not fit the table or the vocabulary.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'{path}: no such file of word vectors; set config.model.text.'
                    'word_vectors to an existing file')
  if pathlib.Path(path).suffix == '.npz':
    return _load_npz(path, table.shape)
  if not isinstance(tokenizer, text.WordTokenizer):
    raise UserError(f"{path}: vectors of words need config.data.tokenizer="
                    f"'words'; for other tokenizers, give an .npz file with the array "
                    f'{KEY!r} in the order of ids')
  rows = {word: i for i, word in enumerate(tokenizer.names)}
  vectors = _read_text(path, rows, table.shape[1])
  if not vectors:
    raise UserError(f'{path}: has none of the {len(rows)} words of the vocabulary; '
                    'expected lines of a lower-case word and its vector')
  table = np.array(table)
  for row, vector in vectors.items():
    table[row] = vector
  wanted = rows.keys() - {text.PAD, text.UNKNOWN}
  missing = len(wanted) - sum(rows[word] in vectors for word in wanted)
  logging.info('%s: has vectors of %d of the %d words of the vocabulary; the other %d '
               'keep random vectors', path, len(wanted) - missing, len(wanted), missing)
  return table


def _load_npz(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
  try:
    with open(path, 'rb') as raw:    # NumPy leaves a damaged file open
      file = np.load(raw, allow_pickle=False)
      arrays = getattr(file, 'files', [])
      if KEY not in arrays:
        raise UserError(f'{path}: has the arrays {", ".join(arrays) or "none"}; '
                        f'expected {KEY!r} of shape {shape}')
      vectors = file[KEY]
  except (EOFError, OSError, ValueError, zipfile.BadZipFile) as e:
    raise UserError(f'{path}: not an .npz file of numeric arrays ({e})') from e
  if vectors.shape != shape or vectors.dtype.kind != 'f':
    raise UserError(
        f'{path}: {KEY!r} is {vectors.dtype} of shape {vectors.shape}; expected floats '
        f'of shape {shape}: config.model.text.vocabulary_size rows of table_width')
  if not np.isfinite(vectors).all():
    raise UserError(f'{path}: {KEY!r} has values that are not finite')
  return vectors.astype(np.float32)


def _read_text(path: str | os.PathLike[str], rows: Mapping[str, int], width: int
               ) -> dict[int, np.ndarray]:
  """Reads row -> vector of the words with a row; the first line of a word counts."""
  vectors: dict[int, np.ndarray] = {}
  with open(path, encoding='utf-8', errors='replace') as file:
    for number, line in enumerate(file, 1):
      fields = line.split()
      if number == 1 and len(fields) == 2 and fields[0].isdecimal():
        continue    # header: NUM_WORDS D
      # Further lines of some published files have "words" that contain spaces.
      if len(fields) <= width or (number <= 2 and len(fields) != width + 1):
        raise UserError(f'{path}: line {number} has {len(fields)} fields; expected a '
                        f'word and {width} numbers (config.model.text.table_width)')
      word, numbers = ' '.join(fields[:-width]), fields[-width:]
      if word not in rows or rows[word] in vectors:
        continue
      try:
        vector = np.array(numbers, np.float32)
      except ValueError as e:
        raise UserError(f'{path}: line {number}: {e}; expected a word and {width} '
                        'numbers') from e
      if not np.isfinite(vector).all():
        raise UserError(f'{path}: line {number} has values that are not finite')
      vectors[rows[word]] = vector
  return vectors
