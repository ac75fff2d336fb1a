"""Tokenizers: whole words, BERT's WordPiece, or SentencePiece.

All pad with 0. None adds tokens at the begin or end of a sentence, like BERT's [CLS]
and [SEP], because VATT's text tower has its own aggregation token.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import io
import os
import pathlib
import re
from typing import ClassVar

import numpy as np
import sentencepiece
import tokenizers

from vatt_jax.errors import UserError

PAD, UNKNOWN = '<pad>', '<unk>'  # ids 0 and 1 of the vocabularies built here
_NOT_WORD = re.compile(r"[^\w\s]|_")

# The trainer holds all sentences in memory, and more of them change little.
_MAX_TRAINING_SENTENCES = 1_000_000


def words(text: str) -> list[str]:
  """Splits a text into words: lower case, no punctuation, split at white space."""
  return _NOT_WORD.sub('', text.lower()).split()


class Tokenizer(abc.ABC):
  """Maps sentences to ids; 0 is the id of padding.

  Attributes:
    file_name: name of its file in a workdir.
    size: number of ids, including padding.
    unknown: id of tokens that are not in the vocabulary.
  """
  file_name: ClassVar[str]
  size: int
  unknown: int

  @abc.abstractmethod
  def ids(self, text: str) -> list[int]:
    """Returns the ids of all tokens of a sentence."""

  @abc.abstractmethod
  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a file that `load` reads."""

  def encode(self, text: str, max_tokens: int) -> np.ndarray:
    """Returns ids, truncated or padded to `max_tokens`.  -> int32 [max_tokens]."""
    ids = self.ids(text)[:max_tokens]
    return np.pad(np.asarray(ids, np.int32), (0, max_tokens - len(ids)))

  def count_unknown(self, text: str) -> tuple[int, int]:
    """Returns the number of unknown tokens and the number of all tokens."""
    ids = self.ids(text)
    return ids.count(self.unknown), len(ids)


class WordTokenizer(Tokenizer):
  """Splits sentences into whole words.

  The stop words are the Glasgow Information Retrieval Group's, from scikit-learn. The
  list that cleaned HowTo100M's narrations (`stop_words.py` of
  github.com/antoine77340/howto100m) is derived from it.

  Attributes:
    vocabulary: the words as given to the constructor.
    names: the words in the order of ids, including padding and unknown.
  """
  file_name = 'vocabulary.txt'

  def __init__(self, vocabulary: Sequence[str], drop_stop_words: bool = False):
    """Creates a tokenizer from a list of words.

    Args:
      vocabulary: the words of ids 2, 3, ..., where 0 pads and 1 is unknown. If the list
        begins with '<pad>', the words of ids 0, 1, ..., with '<unk>' at any place (the
        release's code reads such lists).
      drop_stop_words: whether to remove stop words; a sentence may become empty.

    Raises:
      ValueError: a list that begins with '<pad>' lacks '<unk>'.
    """
    self.vocabulary = tuple(vocabulary)
    names = self.vocabulary
    if names[:1] != (PAD,):
      names = (PAD, UNKNOWN, *names)
    if UNKNOWN not in names:
      raise ValueError(f'begins with {PAD}, but has no {UNKNOWN}; add it, or remove '
                       'both')
    self.names = tuple(names)
    self._ids = {word: i for i, word in enumerate(names)}
    self._dropped = _stop_words() if drop_stop_words else frozenset()
    self.size, self.unknown = len(names), self._ids[UNKNOWN]

  def ids(self, text: str) -> list[int]:
    return [self._ids.get(word, self.unknown) for word in words(text)
            if word not in self._dropped]

  def save(self, path: str | os.PathLike[str]) -> None:
    pathlib.Path(path).write_text(''.join(f'{w}\n' for w in self.vocabulary),
                                  encoding='utf-8')

  @classmethod
  def parse(cls, content: bytes, drop_stop_words: bool = False) -> WordTokenizer:
    """Parses a file of one word per line, or of lines `ID WORD` like the release's.

    Raises:
      ValueError: the file has another format.
    """
    rows = [(number, line.split()) for number, line in enumerate(_lines(content), 1)]
    rows = [(number, row) for number, row in rows if row]
    if rows and rows[0][1] == ['[PAD]']:
      raise ValueError("is a WordPiece vocabulary; set config.data.tokenizer="
                       "'wordpiece'")
    if rows and all(len(row) == 2 and row[0].isdecimal() for _, row in rows):
      by_id = sorted((int(i), word) for _, (i, word) in rows)
      if [i for i, _ in by_id] != list(range(len(by_id))) or by_id[0][1] != PAD:
        raise ValueError(f'expected the ids 0 ... {len(by_id) - 1}, each once, and 0 '
                         f'for {PAD}')
      return cls([word for _, word in by_id], drop_stop_words)
    for number, row in rows:
      if len(row) != 1:
        raise ValueError(f'line {number}: expected one word, found {" ".join(row)!r}')
    return cls([word for _, (word,) in rows], drop_stop_words)

  @classmethod
  def build(cls, texts: Iterable[str], size: int, drop_stop_words: bool = False
            ) -> WordTokenizer:
    """Builds a vocabulary of the `size` - 2 most frequent words of the texts.

    Words of equal frequency are in alphabetical order.
    """
    return cls.rank(collections.Counter(w for text in texts for w in words(text)), size,
                    drop_stop_words)

  @classmethod
  def rank(cls, counts: Mapping[str, int], size: int, drop_stop_words: bool = False
           ) -> WordTokenizer:
    """Builds a vocabulary like `build`, from counts of words."""
    wanted = counts.keys() - (_stop_words() if drop_stop_words else ())
    ranked = sorted(wanted, key=lambda w: (-counts[w], w))
    return cls(ranked[:size - 2], drop_stop_words)


class WordPieceTokenizer(Tokenizer):
  """Splits words into pieces with BERT's vocabulary; an id is its line, from 0.

  Sentences become lower case without accents unless the vocabulary has capitals.
  """
  file_name = 'wordpiece.txt'

  def __init__(self, pieces: Sequence[str]):
    """Takes the pieces of ids 0, 1, ...

    Raises:
      ValueError: the pieces are not a vocabulary like BERT's.
    """
    if not pieces or pieces[0] != '[PAD]' or '[UNK]' not in pieces:
      raise ValueError("expected a BERT vocabulary, one piece per line, with '[PAD]' "
                       "first and with '[UNK]'")
    self._pieces = tuple(pieces)
    self.size, self.unknown = len(pieces), pieces.index('[UNK]')
    cased = any(p != p.lower() for p in pieces if not re.fullmatch(r'\[\w+\]', p))
    self._tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)}, unk_token='[UNK]'))
    self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=not cased)
    self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

  def ids(self, text: str) -> list[int]:
    return self._tokenizer.encode(text).ids

  def save(self, path: str | os.PathLike[str]) -> None:
    pathlib.Path(path).write_text(''.join(f'{p}\n' for p in self._pieces),
                                  encoding='utf-8', newline='\n')

  @classmethod
  def parse(cls, content: bytes) -> WordPieceTokenizer:
    """Parses a BERT `vocab.txt`.

    Raises:
      ValueError: the file has another format.
    """
    return cls([line.strip() for line in _lines(content)])


class SentencePieceTokenizer(Tokenizer):
  """Splits sentences into pieces with a SentencePiece model.

  The ids are the model's if its id 0 pads, as in models of `train` and T5's. Otherwise
  the ids are the model's plus 1. (By default SentencePiece has no padding, and 0 is
  unknown.)
  """
  file_name = 'sentencepiece.model'

  def __init__(self, content: bytes):
    """Takes the bytes of a model file.

    Raises:
      ValueError: the bytes are not a SentencePiece model.
    """
    self._content = content
    try:
      self._model = sentencepiece.SentencePieceProcessor()
      self._model.LoadFromSerializedProto(content)
    except RuntimeError as e:
      raise ValueError('expected a SentencePiece model (.model)') from e
    self._shift = int(self._model.pad_id() != 0)
    self.size = self._model.get_piece_size() + self._shift
    self.unknown = self._model.unk_id() + self._shift

  def ids(self, text: str) -> list[int]:
    return [i + self._shift for i in self._model.encode(text)]

  def save(self, path: str | os.PathLike[str]) -> None:
    pathlib.Path(path).write_bytes(self._content)

  @classmethod
  def parse(cls, content: bytes) -> SentencePieceTokenizer:
    """Parses a model file.

    Raises:
      ValueError: the file is not a SentencePiece model.
    """
    return cls(content)

  @classmethod
  def train(cls, texts: Iterable[str], size: int) -> SentencePieceTokenizer:
    """Trains a case-insensitive unigram model; the same texts give the same bytes.

    Args:
      texts: sentences; if more than a million, a random million is used.
      size: the largest number of ids; a small corpus gives fewer.

    Raises:
      ValueError: SentencePiece cannot train the model; includes its own message.
    """
    sentencepiece.set_random_generator_seed(0)
    file = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
          sentence_iterator=(' '.join(text.split()) for text in texts),
          model_writer=file, model_type='unigram', vocab_size=size,
          hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
          normalization_rule_name='nmt_nfkc_cf', shuffle_input_sentence=True,
          input_sentence_size=_MAX_TRAINING_SENTENCES, minloglevel=2)
    except RuntimeError as e:
      raise ValueError(f'SentencePiece: {e}') from e
    return cls(file.getvalue())


TOKENIZERS = {'words': WordTokenizer, 'wordpiece': WordPieceTokenizer,
              'sentencepiece': SentencePieceTokenizer}


def load(kind: str, path: str | os.PathLike[str], max_size: int,
         drop_stop_words: bool = False) -> Tokenizer:
  """Reads a tokenizer's file.

  Args:
    kind: a key of `TOKENIZERS`.
    path: path of the tokenizer's file.
    max_size: the model's `vocabulary_size`.
    drop_stop_words: argument of `WordTokenizer`; other kinds do not take it.

  Raises:
    UserError: the file does not exist, it is of another kind, or it has more ids than
      the model has embeddings.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as e:
    raise UserError(f'{path}: no such vocabulary file') from e
  options = dict(drop_stop_words=True) if drop_stop_words else {}
  try:
    tokenizer = TOKENIZERS[kind].parse(content, **options)
  except ValueError as e:
    raise UserError(f'{path}: as data.tokenizer={kind!r}: {e}') from e
  if tokenizer.size > max_size:
    raise UserError(
        f'{path}: {tokenizer.size} ids, including padding and unknown words, do not '
        f'fit model.text.vocabulary_size={max_size}; raise it to {tokenizer.size} or '
        'use a smaller vocabulary')
  return tokenizer


def _lines(content: bytes) -> list[str]:
  """Returns the lines of a text file; raises ValueError if it is not UTF-8."""
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(f'expected UTF-8 text ({e.reason} at byte {e.start}); for a '
                     "SentencePiece model set data.tokenizer='sentencepiece'") from e
  return text.removesuffix('\n').split('\n') if text else []


def _stop_words() -> frozenset[str]:
  """Returns scikit-learn's list; the import takes a second."""
  from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
  return ENGLISH_STOP_WORDS
