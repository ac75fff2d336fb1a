"""Sentences to ids: whole words, BERT's pieces of words, or SentencePiece's.

Whatever the kind, 0 pads, and no token marks where a sentence begins or ends, as
BERT's [CLS] and [SEP] do: VATT's text tower has an aggregation token of its own.
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
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
import tokenizers

from vatt_jax.errors import UserError

PAD, UNKNOWN = '<pad>', '<unk>'  # ids 0 and 1 of the vocabularies built here
_NOT_WORD = re.compile(r"[^\w\s]|_")

# More say little, and the trainer would hold them all in memory.
_MAX_TRAINING_SENTENCES = 1_000_000


def words(text: str) -> list[str]:
  """Lower case, punctuation removed, split on white space."""
  return _NOT_WORD.sub('', text.lower()).split()


class Tokenizer(abc.ABC):
  """Maps sentences to ids; 0 pads.

  Attributes:
    file_name: under which a workdir keeps it.
    size: how many ids there are, with that of padding.
    unknown: the id of what the vocabulary lacks.
  """
  file_name: ClassVar[str]
  size: int
  unknown: int

  @abc.abstractmethod
  def ids(self, text: str) -> list[int]:
    """Of all words, or pieces, of a sentence."""

  @abc.abstractmethod
  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a file that `load` reads."""

  def encode(self, text: str, max_tokens: int) -> np.ndarray:
    """Clipped or padded to `max_tokens`.  -> int32 [max_tokens]."""
    ids = self.ids(text)[:max_tokens]
    return np.pad(np.asarray(ids, np.int32), (0, max_tokens - len(ids)))

  def count_unknown(self, text: str) -> tuple[int, int]:
    """How many words, or pieces, the vocabulary lacks, and of how many."""
    ids = self.ids(text)
    return ids.count(self.unknown), len(ids)


class WordTokenizer(Tokenizer):
  """Whole words.

  The stop words are the Glasgow Information Retrieval Group's, as scikit-learn has
  them. The list that HowTo100M's narrations were cleaned with (`stop_words.py` of
  github.com/antoine77340/howto100m) is one made from it.

  Attributes:
    vocabulary: the words as they were given.
    names: the words in the order of ids, padding and unknown among them.
  """
  file_name = 'vocabulary.txt'

  def __init__(self, vocabulary: Sequence[str], drop_stop_words: bool = False):
    """Makes a tokenizer of a list of words.

    Args:
      vocabulary: the words of ids 2, 3, ..., for 0 pads and 1 is unknown; or, begun
        by '<pad>', of 0, 1, ..., with '<unk>' wherever it is (the release's code reads
        such lists).
      drop_stop_words: leave them out of sentences, which may leave nothing.

    Raises:
      ValueError: a list that begins with '<pad>' lacks '<unk>'.
    """
    self.vocabulary = tuple(vocabulary)
    names = self.vocabulary
    if names[:1] != (PAD,):
      names = (PAD, UNKNOWN, *names)
    if UNKNOWN not in names:
      raise ValueError(f'begins with {PAD}, but has no {UNKNOWN}; add it, or leave '
                       'both out')
    self.names = tuple(names)
    self._ids = {word: i for i, word in enumerate(names)}
    self._dropped = ENGLISH_STOP_WORDS if drop_stop_words else frozenset()
    self.size, self.unknown = len(names), self._ids[UNKNOWN]

  def ids(self, text: str) -> list[int]:
    return [self._ids.get(word, self.unknown) for word in words(text)
            if word not in self._dropped]

  def save(self, path: str | os.PathLike[str]) -> None:
    pathlib.Path(path).write_text(''.join(f'{w}\n' for w in self.vocabulary),
                                  encoding='utf-8')

  @classmethod
  def parse(cls, content: bytes, drop_stop_words: bool = False) -> WordTokenizer:
    """Of a file of one word a line, or of `ID WORD`, as the release's code takes too.

    Raises:
      ValueError: it is no such file.
    """
    rows = [(number, line.split()) for number, line in enumerate(_lines(content), 1)]
    rows = [(number, row) for number, row in rows if row]
    if rows and rows[0][1] == ['[PAD]']:
      raise ValueError("a WordPiece vocabulary; set config.data.tokenizer='wordpiece'")
    if rows and all(len(row) == 2 and row[0].isdecimal() for _, row in rows):
      by_id = sorted((int(i), word) for _, (i, word) in rows)
      if [i for i, _ in by_id] != list(range(len(by_id))) or by_id[0][1] != PAD:
        raise ValueError(f'expected the ids 0 ... {len(by_id) - 1}, each once, 0 for '
                         f'{PAD}')
      return cls([word for _, word in by_id], drop_stop_words)
    for number, row in rows:
      if len(row) != 1:
        raise ValueError(f'line {number}: expected one word, found {" ".join(row)!r}')
    return cls([word for _, (word,) in rows], drop_stop_words)

  @classmethod
  def build(cls, texts: Iterable[str], size: int, drop_stop_words: bool = False
            ) -> WordTokenizer:
    """The `size` - 2 commonest words of the texts; of equals, the alphabet's first."""
    return cls.rank(collections.Counter(w for text in texts for w in words(text)), size,
                    drop_stop_words)

  @classmethod
  def rank(cls, counts: Mapping[str, int], size: int, drop_stop_words: bool = False
           ) -> WordTokenizer:
    """As `build`, of words counted already."""
    wanted = counts.keys() - (ENGLISH_STOP_WORDS if drop_stop_words else ())
    ranked = sorted(wanted, key=lambda w: (-counts[w], w))
    return cls(ranked[:size - 2], drop_stop_words)


class WordPieceTokenizer(Tokenizer):
  """Pieces of words by a vocabulary of BERT's; an id is a line of that file, from 0.

  Sentences are put in lower case and stripped of accents unless the vocabulary has
  capitals.
  """
  file_name = 'wordpiece.txt'

  def __init__(self, pieces: Sequence[str]):
    """Takes the pieces of ids 0, 1, ...

    Raises:
      ValueError: not such as BERT's.
    """
    if not pieces or pieces[0] != '[PAD]' or '[UNK]' not in pieces:
      raise ValueError("expected a BERT vocabulary, one piece a line, '[PAD]' first "
                       "and '[UNK]' among them")
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
    """Of a BERT `vocab.txt`.

    Raises:
      ValueError: it is no such file.
    """
    return cls([line.strip() for line in _lines(content)])


class SentencePieceTokenizer(Tokenizer):
  """Pieces of sentences by a SentencePiece model.

  The ids are the model's if its 0 pads, as those of `train` and T5's do; all others
  (by default SentencePiece has no padding, and 0 for unknown characters) are the
  model's plus 1.
  """
  file_name = 'sentencepiece.model'

  def __init__(self, content: bytes):
    """Takes the bytes of a model file.

    Raises:
      ValueError: they are none.
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
    """Of a model file.

    Raises:
      ValueError: it is none.
    """
    return cls(content)

  @classmethod
  def train(cls, texts: Iterable[str], size: int) -> SentencePieceTokenizer:
    """A unigram model, without regard to case; the same texts give the same bytes.

    Args:
      texts: sentences; of more than a million, a million drawn at random.
      size: the most ids; a small corpus gives fewer.

    Raises:
      ValueError: SentencePiece cannot make such a model; its own words say why.
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
    kind: of `TOKENIZERS`.
    path: of its file.
    max_size: the model's `vocabulary_size`.
    drop_stop_words: of `WordTokenizer`; of no other kind.

  Raises:
    UserError: there is no such file, it is of another kind, or it has more ids than
      the model has vectors.
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
        f'{path}: {tokenizer.size} ids, padding and unknown words among them, do not '
        f'fit model.text.vocabulary_size={max_size}; raise it to {tokenizer.size} or '
        'take a smaller vocabulary')
  return tokenizer


def _lines(content: bytes) -> list[str]:
  """Without the last line's end. Raises ValueError unless it is text."""
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(f'expected UTF-8 text ({e.reason} at byte {e.start}); a '
                     "SentencePiece model goes with data.tokenizer='sentencepiece'"
                     ) from e
  return text.removesuffix('\n').split('\n') if text else []
