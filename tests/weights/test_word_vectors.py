"""Tests vatt_jax/weights/word_vectors.py."""

import logging
import pickle

import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import text
from vatt_jax.weights import word_vectors

TABLE = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
WORDS = text.WordTokenizer(('cat', 'dog', 'tree'))    # ids 2, 3, 4; 5 is unused


def _write(folder, content):
  path = folder / 'vectors.txt'
  path.write_text(content, encoding='utf-8')
  return path


@pytest.mark.parametrize('header', ['', '4 3\n'])
def test_text_vectors_fill_the_rows_of_their_words(header, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  path = _write(tmp_path, f'{header}dog 1 2 3\nCat 9 9 9\ncat -1 0.5 2e-1 \n'
                          'new york 7 7 7\ndog 8 8 8\n')
  before = TABLE.copy()
  table = word_vectors.load(path, WORDS, TABLE)
  np.testing.assert_array_equal(TABLE, before)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table[2], [-1, 0.5, 0.2])
  np.testing.assert_array_equal(table[3], [1, 2, 3])    # its first line
  np.testing.assert_array_equal(table[[0, 1, 4, 5]], TABLE[[0, 1, 4, 5]])
  assert ('has vectors of 2 of the 3 words of the vocabulary; the other 1 keep random '
          'vectors' in caplog.text)


def test_text_vectors_match_a_vocabulary_with_its_own_padding(tmp_path):
  words = text.WordTokenizer(('<pad>', 'cat', '<unk>', 'dog'))
  path = _write(tmp_path, '<unk> 4 4 4\ndog 1 2 3\n')
  table = word_vectors.load(path, words, TABLE)
  np.testing.assert_array_equal(table[2:4], [[4, 4, 4], [1, 2, 3]])
  np.testing.assert_array_equal(table[1], TABLE[1])


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16])
def test_npz_file_is_the_table_in_the_order_of_ids(dtype, tmp_path):
  vectors = np.arange(18).reshape(6, 3).astype(dtype)
  np.savez(tmp_path / 'v.npz', vectors=vectors)
  table = word_vectors.load(tmp_path / 'v.npz', WORDS, TABLE)
  np.testing.assert_array_equal(table, vectors)
  assert table.dtype == np.float32


@pytest.mark.parametrize('arrays, message', [
    (dict(vectors=np.zeros((6, 4))),
     r'float64 of shape \(6, 4\); expected floats of '
     r'shape \(6, 3\): config\.model\.text'),
    (dict(vectors=np.zeros((5, 3))), r'shape \(5, 3\); expected floats'),
    (dict(vectors=np.zeros((6, 3), int)), r'int64 of shape \(6, 3\); expected floats'),
    (dict(vectors=np.full((6, 3), np.nan)), 'values that are not finite'),
    (dict(table=np.zeros((6, 3))), r"the arrays table; expected 'vectors' of shape"),
    (dict(vectors=np.array([[None] * 3] * 6)), 'not an .npz file of numeric arrays')])
def test_npz_file_that_does_not_fit_raises(arrays, message, tmp_path):
  np.savez(tmp_path / 'v.npz', **arrays)
  with pytest.raises(UserError, match=message) as error:
    word_vectors.load(tmp_path / 'v.npz', WORDS, TABLE)
  assert 'v.npz' in str(error.value) and '\n' not in str(error.value)


def test_npy_content_in_npz_file_raises(tmp_path):
  with open(tmp_path / 'v.npz', 'wb') as file:
    np.save(file, TABLE)
  with pytest.raises(UserError, match="has the arrays none; expected 'vectors'"):
    word_vectors.load(tmp_path / 'v.npz', WORDS, TABLE)


class _Trap:
  """Fails the test if it is unpickled."""

  def __reduce__(self):
    return pytest.fail, ('a pickle was run',)


@pytest.mark.parametrize('content', [pickle.dumps(_Trap()), b'', b'PK\x03\x04 broken'])
def test_invalid_npz_file_raises_and_runs_no_pickle(content, tmp_path):
  (tmp_path / 'v.npz').write_bytes(content)
  with pytest.raises(UserError, match=r'v\.npz: not an \.npz file') as error:
    word_vectors.load(tmp_path / 'v.npz', WORDS, TABLE)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content, message', [
    ('dog 1 2\n', 'line 1 has 3 fields; expected a word and 3 numbers'),
    ('2 4\ndog 1 2 3 4\n', 'line 2 has 5 fields; expected a word and 3 numbers'),
    ('dog 1 2 3\n\ncat 1 2 3\n', 'line 2 has 0 fields'),
    ('dog 1 x 3\n', "line 1: could not convert string to float: .*x"),
    ('dog 1 nan 3\n', 'line 1 has values that are not finite'),
    ('bird 1 2 3\n', 'has none of the 5 words of the vocabulary'),
    ('', 'has none of the 5 words')])
def test_text_that_does_not_fit_raises_with_its_line(content, message, tmp_path):
  path = _write(tmp_path, content)
  with pytest.raises(UserError, match=message) as error:
    word_vectors.load(path, WORDS, TABLE)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_missing_file_raises(tmp_path):
  with pytest.raises(UserError, match=r'none\.txt: no such file of word vectors'):
    word_vectors.load(tmp_path / 'none.txt', WORDS, TABLE)


def test_text_needs_a_vocabulary_of_words(tmp_path):
  pieces = text.WordPieceTokenizer(['[PAD]', '[UNK]', 'cat'])
  with pytest.raises(UserError, match=r"need config\.data\.tokenizer='words'"):
    word_vectors.load(_write(tmp_path, 'cat 1 2 3\n'), pieces, TABLE)
