"""Tests vatt_jax/inputs/dataset.py."""

import collections.abc
import types

import pytest

from vatt_jax import config as config_lib
from vatt_jax import run_config
from vatt_jax.errors import UserError
from vatt_jax.inputs import dataset
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip


def test_classes_are_counted_without_the_captions(tmp_path):
  (tmp_path / 'm.csv').write_text('path,label\na.mp4,x\nb.mp4,y\n')
  (tmp_path / 'c.csv').write_text('invalid, but not read')
  config, classes = dataset.count_classes(dict(
      data=dict(path=str(tmp_path / 'm.csv'), captions='c.csv', label='label'),
      model=dict(head=dict(name='classifier', num_classes=0))), '', tmp_path / 'run')
  assert classes[0].names == ('x', 'y') and config['model']['head']['num_classes'] == 2


CLIPS = [Clip('a.mp4', captions=(
    Caption(0, 1, 'the red circle'), Caption(1, 2, 'red')))]


def claim(workdir, tokenizer, /, **data):
  """Writes the workdir of a run."""
  reader = types.SimpleNamespace(tokenizer=tokenizer, labels=None)
  run_config.claim(dict(data=dict(path='x', **data)), workdir, reader)


@pytest.fixture
def pieces(tmp_path):
  """Returns the file of a SentencePiece model."""
  path = tmp_path / 'mine.model'
  text.SentencePieceTokenizer.train(['the red circle', 'a blue square'], 40).save(path)
  return str(path)


def test_vocabulary_comes_from_captions_without_a_file(tmp_path):
  words = lambda **data: dataset.open_tokenizer(
      dataset.Data('x', **data), CLIPS, 9, '', tmp_path)
  assert words().vocabulary == ('red', 'circle', 'the')
  assert words(drop_stop_words=True).vocabulary == ('red', 'circle')


class Records(collections.abc.Sequence):
  """A sequence of numbered clips that records the indices that were read."""

  def __init__(self, count):
    self.count, self.read = count, []

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    self.read.append(index)
    if index == 4:
      raise media.MediaError('shard[4]', 'is not a record')
    return Clip(f'{index}', captions=(Caption(0, 1, f'word{index}'),))


def test_vocabulary_of_many_records_uses_a_sample(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(dataset, 'VOCABULARY_CLIPS', 5)
  words = lambda clips: dataset.open_tokenizer(
      dataset.Data('x'), clips, 99, '', tmp_path).vocabulary
  many, few = Records(20), Records(5)
  assert words(sources.Mixture([CLIPS, many])) == (
      'red', 'circle', 'the', 'word0', 'word12', 'word16', 'word8')
  assert many.read == [0, 4, 8, 12, 16]
  assert 'the words of 5 clips, spread over the 20' in caplog.text
  assert 'python -m vatt_jax vocabulary' in caplog.text
  caplog.clear()
  assert words(sources.Mixture([few])) == ('word0', 'word1', 'word2', 'word3')
  listed = [Clip('a', captions=(Caption(0, 1, f'w{i}'),))
            for i in range(9)]    # in memory
  assert len(words(sources.Mixture([listed]))) == 9 and not caplog.text


def test_resumed_run_uses_the_tokenizer_of_its_workdir(tmp_path, pieces):
  """The original file may be deleted."""
  data = dict(tokenizer='sentencepiece', vocabulary=pieces)
  run = tmp_path / 'run'
  load = lambda: dataset.open_tokenizer(dataset.Data('x', **data), CLIPS, 40, '', run)
  first = load()
  claim(run, first, **data)
  (tmp_path / 'mine.model').unlink()
  assert (run / 'sentencepiece.model').exists()
  assert load().ids('the red square') == first.ids('the red square')


def test_vocabulary_without_a_config_is_ignored(tmp_path):
  """A killed start may leave an incomplete vocabulary; the config is written last."""
  (tmp_path / 'vocabulary.txt').write_text('re')
  words = dataset.open_tokenizer(dataset.Data('x'), CLIPS, 9, '', tmp_path)
  assert words.vocabulary == ('red', 'circle', 'the')


def test_tokenizer_comes_from_init_from(tmp_path, pieces):
  mine = dict(tokenizer='sentencepiece', vocabulary=pieces)
  first = dataset.open_tokenizer(dataset.Data('x', **mine), CLIPS, 40, '',
                                 tmp_path / 'a')
  claim(tmp_path / 'a', first, **mine)
  claim(tmp_path / 'b', text.WordTokenizer(['red'], True), drop_stop_words=True)
  words = lambda run, **data: dataset.open_tokenizer(
      dataset.Data('x', **data), CLIPS, 40, str(tmp_path / run), tmp_path / 'new')
  assert words('a', tokenizer='sentencepiece').ids('red') == first.ids('red')
  assert words('b', drop_stop_words=True).ids('the red') == [2]
  with pytest.raises(UserError, match=r"a: was trained with data\.tokenizer='sentence"
                                      r"piece'; set config\.data\.tokenizer to that"):
    words('a')
  with pytest.raises(UserError, match=r'b: was .* with data\.drop_stop_words=True'):
    words('b')
  assert words('b', vocabulary=str(tmp_path / 'b' / 'vocabulary.txt')).ids('the') == [1]
  (tmp_path / 'b' / 'vocabulary.txt').unlink()
  with pytest.raises(UserError, match='b: has no vocabulary file'):
    words('b', drop_stop_words=True)


@pytest.mark.parametrize('data, message', [
    (dict(tokenizer='bert'), r"config\.data: tokenizer='bert': expected one of words, "
     'wordpiece, sentencepiece'),
    (dict(tokenizer='wordpiece', drop_stop_words=True),
     r"drop_stop_words=True: expected False with tokenizer='wordpiece'"),
    (dict(tokenizer='wordpiece'), r"config\.data\.tokenizer='wordpiece': needs a "
     r'file; set config\.data\.vocabulary'),
    (dict(vocabulary='none.txt'), r'none\.txt: no such vocabulary file')])
def test_invalid_tokenizer_error_names_the_key(data, message, tmp_path):
  with pytest.raises(UserError, match=message):
    dataset.open_tokenizer(config_lib.call('data', dataset.Data, dict(data, path='x')),
                       CLIPS, 9, '', tmp_path)


def test_model_without_text_needs_no_vocabulary(tmp_path):
  data = dataset.Data('x', tokenizer='wordpiece', vocabulary='none.txt')
  assert dataset.open_tokenizer(data, CLIPS, 0, '', tmp_path).size == 2
