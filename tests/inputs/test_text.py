"""vatt_jax/inputs/text.py"""

import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import text


def test_words_are_lower_case_without_punctuation():
  assert text.words("Don't  STOP, now: it's 5_o'clock!\tÉté") == [
      'dont', 'stop', 'now', 'its', '5oclock', 'été']


def test_the_commonest_words_get_ids_and_the_alphabet_settles_ties():
  tokenizer = text.WordTokenizer.build(['b a c', 'c a', 'd'], size=5)
  assert tokenizer.vocabulary == ('a', 'c', 'b')
  assert tokenizer.encode('c b a d!', 6).tolist() == [3, 4, 2, 1, 0, 0]
  assert tokenizer.encode('a b c', 2).tolist() == [2, 4]
  assert tokenizer.encode('', 2).tolist() == [0, 0]


def test_a_saved_vocabulary_comes_back(tmp_path):
  tokenizer = text.WordTokenizer.build(['été zwei three'], size=9)
  tokenizer.save(tmp_path / 'words.txt')
  assert text.WordTokenizer.load(tmp_path / 'words.txt', 9).vocabulary == (
      tokenizer.vocabulary)
  with pytest.raises(UserError, match=r'3 words do not fit .*vocabulary_size=4'):
    text.WordTokenizer.load(tmp_path / 'words.txt', 4)
