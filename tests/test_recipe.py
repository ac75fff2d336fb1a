"""Tests vatt_jax/recipe."""

import collections.abc
import json
import types

import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import config as config_lib
from vatt_jax import losses
from vatt_jax import recipe
from vatt_jax.errors import UserError
from vatt_jax.inputs import caption_index
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip
from vatt_jax.recipe import data as section


def _takes(a, b=2):
  if a < 0:
    raise ValueError(f'a={a}: expected 0 or more')
  return a, b


def test_section_is_passed_as_arguments():
  assert config_lib.call('x', _takes, dict(a=1)) == (1, 2)
  assert config_lib.call('x', _takes, dict(b=5), a=3) == (3, 5)


@pytest.mark.parametrize('section, message', [
    (dict(a=1, c=3), r'config\.x\.c: unknown key; expected one of a, b$'),
    (dict(b=3), r'config\.x\.a: missing'),
    (dict(a=-1), r'config\.x: a=-1: expected 0 or more')])
def test_invalid_section_error_names_the_key(section, message):
  with pytest.raises(UserError, match=message):
    config_lib.call('x', _takes, section)


def test_unknown_loss_error_suggests_the_nearest():
  with pytest.raises(UserError, match=r"losses\.x: name='nec': did you mean nce\?"):
    losses.build('x', dict(name='nec', temperature=1.0))


def test_bug_keeps_its_traceback():
  with pytest.raises(TypeError):
    config_lib.call('x', _takes, dict(a='text'))


def test_workdir_accepts_only_its_own_config(tmp_path):
  config = dict(seed=0, model=dict(patch=(2, 4)), evals=dict())
  recipe._compare(config, tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  recipe._compare(config, tmp_path)
  with pytest.raises(UserError, match=r'another config, model\.patch=\[2, 4\] where '
                                      r'this one has \[2, 8\]; choose another'):
    recipe._compare(config | dict(model=dict(patch=(2, 8))), tmp_path)
  # Figures may change, because they do not affect the run. An absent switch is off.
  recipe._compare(config | dict(figures=dict(label='shape')), tmp_path)
  recipe._compare(config | dict(switch=False), tmp_path)
  with pytest.raises(UserError, match='another config, switch=None'):
    recipe._compare(config | dict(switch=True), tmp_path)


def test_window_short_of_an_older_workdir_is_hold(tmp_path):
  config = dict(window=dict(num_frames=4))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  short = lambda value: dict(window=dict(num_frames=4, short=value))
  recipe._compare(short('hold'), tmp_path)
  with pytest.raises(UserError, match=r"another config, window\.short='hold' where "
                                      r"this one has 'loop'"):
    recipe._compare(short('loop'), tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(short('hold')))
  recipe._compare(config, tmp_path)


def test_is_begun_if_all_files_exist(tmp_path, monkeypatch):
  """In this case its processes open the sources at the same time."""
  monkeypatch.setattr(caption_index, 'MIN_BYTES', 0)
  (tmp_path / 'd').mkdir()
  (tmp_path / 'd' / 'm.csv').write_text('path\na.mp4\n')
  (tmp_path / 'd' / 'c.csv').write_text('path,text\na.mp4,hi\n')
  manifest = str(tmp_path / 'd' / 'm.csv')
  data = dict(path=manifest, captions='c.csv')
  begun = lambda **changes: recipe.is_begun(dict(data=data | changes), tmp_path)
  assert not begun(captions='')    # no config yet
  (tmp_path / 'config.json').write_text('{}')
  assert begun(captions='') and not begun()
  sources.open_source(manifest, 'c.csv')
  assert begun() and begun(path='', captions='')


def test_classes_are_counted_without_the_captions(tmp_path):
  (tmp_path / 'm.csv').write_text('path,label\na.mp4,x\nb.mp4,y\n')
  (tmp_path / 'c.csv').write_text('invalid, but not read')
  config, classes = section.count_classes(dict(
      data=dict(path=str(tmp_path / 'm.csv'), captions='c.csv', label='label'),
      model=dict(head=dict(name='classifier', num_classes=0))), '', tmp_path / 'run')
  assert classes.names == ('x', 'y') and config['model']['head']['num_classes'] == 2


def test_older_workdir_without_a_key_resumes(tmp_path):
  config = dict(seed=0, optim=dict(clip_norm=0.75))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  recipe._compare(config, tmp_path)
  recipe._compare(config | dict(optim=dict(clip_norm=0.75, clip_replicas=1)), tmp_path)
  with pytest.raises(UserError, match=r'another config, optim\.clip_replicas=1'):
    recipe._compare(config | dict(optim=dict(clip_norm=0.75, clip_replicas=8)),
                    tmp_path)


def test_longer_run_error_suggests_extend(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(dict(total_steps=12, seed=0)))
  with pytest.raises(UserError, match=r'holds a run of total_steps=12, and with total_'
                                      r'steps=24 its learning rates would .* --extend, '
                                      r'.* --config\.init_from='):
    recipe._compare(dict(total_steps=24, seed=0), tmp_path)
  for config in (dict(total_steps=24, seed=1), dict(total_steps=6, seed=0)):
    with pytest.raises(UserError, match='holds a run of another config'):
      recipe._compare(config, tmp_path)


def test_extend_needs_a_checkpoint_and_more_steps(tmp_path):
  config = dict(total_steps=24)
  assert recipe._extended(config, tmp_path, False) == config
  with pytest.raises(UserError, match=r'--extend: .* holds no checkpoint of'):
    recipe._extended(config, tmp_path, True)
  (tmp_path / 'config.json').write_text(json.dumps(dict(total_steps=12)))
  with pytest.raises(UserError, match=r'--extend: .* holds no checkpoint of'):
    recipe._extended(config, tmp_path, True)
  with checkpoint.Checkpoints(tmp_path / 'checkpoints', keep=1, every_steps=1) as saved:
    saved.save(9, dict(x=np.zeros(1)))
  longer = recipe._extended(config, tmp_path, True)
  assert longer == config | dict(extended=[[9, 12]])
  with pytest.raises(UserError, match=r'--extend: config\.total_steps=6: expected'):
    recipe._extended(dict(total_steps=6), tmp_path, True)
  (tmp_path / 'config.json').write_text(json.dumps(longer))
  for again in (False, True):    # the same command, or without the flag
    assert recipe._extended(config, tmp_path, again) == longer
  assert recipe._extended(dict(total_steps=30), tmp_path, True) == dict(
      total_steps=30, extended=[[9, 12], [9, 24]])


CLIPS = [Clip('a.mp4', captions=(
    Caption(0, 1, 'the red circle'), Caption(1, 2, 'red')))]


def claim(workdir, tokenizer, /, **data):
  """Writes the workdir of a run."""
  run = types.SimpleNamespace(reader=types.SimpleNamespace(tokenizer=tokenizer,
                                                           labels=None))
  recipe._claim(dict(data=dict(path='x', **data)), workdir, run)


@pytest.fixture
def pieces(tmp_path):
  """Returns the file of a SentencePiece model."""
  path = tmp_path / 'mine.model'
  text.SentencePieceTokenizer.train(['the red circle', 'a blue square'], 40).save(path)
  return str(path)


def test_vocabulary_comes_from_captions_without_a_file(tmp_path):
  words = lambda **data: section.open_words(
      section.Data('x', **data), CLIPS, 9, '', tmp_path)
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
  monkeypatch.setattr(section, 'VOCABULARY_CLIPS', 5)
  words = lambda clips: section.open_words(
      section.Data('x'), clips, 99, '', tmp_path).vocabulary
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
  load = lambda: section.open_words(section.Data('x', **data), CLIPS, 40, '', run)
  first = load()
  claim(run, first, **data)
  (tmp_path / 'mine.model').unlink()
  assert (run / 'sentencepiece.model').exists()
  assert load().ids('the red square') == first.ids('the red square')


def test_vocabulary_without_a_config_is_ignored(tmp_path):
  """A killed start may leave an incomplete vocabulary; the config is written last."""
  (tmp_path / 'vocabulary.txt').write_text('re')
  words = section.open_words(section.Data('x'), CLIPS, 9, '', tmp_path)
  assert words.vocabulary == ('red', 'circle', 'the')


def test_tokenizer_comes_from_init_from(tmp_path, pieces):
  mine = dict(tokenizer='sentencepiece', vocabulary=pieces)
  first = section.open_words(section.Data('x', **mine), CLIPS, 40, '', tmp_path / 'a')
  claim(tmp_path / 'a', first, **mine)
  claim(tmp_path / 'b', text.WordTokenizer(['red'], True), drop_stop_words=True)
  words = lambda run, **data: section.open_words(
      section.Data('x', **data), CLIPS, 40, str(tmp_path / run), tmp_path / 'new')
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
    section.open_words(config_lib.call('data', section.Data, dict(data, path='x')),
                       CLIPS, 9, '', tmp_path)


def test_model_without_text_needs_no_vocabulary(tmp_path):
  data = section.Data('x', tokenizer='wordpiece', vocabulary='none.txt')
  assert section.open_words(data, CLIPS, 2, '', tmp_path).size == 2
