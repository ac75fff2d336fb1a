"""Tests vatt_jax/config.py."""

import pytest

from vatt_jax import config
from vatt_jax import losses
from vatt_jax.errors import UserError


def _takes(a, b=2):
  if a < 0:
    raise ValueError(f'a={a}: expected 0 or more')
  return a, b


def test_section_is_passed_as_arguments():
  assert config.call('x', _takes, dict(a=1)) == (1, 2)
  assert config.call('x', _takes, dict(b=5), a=3) == (3, 5)


@pytest.mark.parametrize('section, message', [
    (dict(a=1, c=3), r'config\.x\.c: unknown key; expected one of a, b$'),
    (dict(b=3), r'config\.x\.a: missing'),
    (dict(a=-1), r'config\.x: a=-1: expected 0 or more')])
def test_invalid_section_error_names_the_key(section, message):
  with pytest.raises(UserError, match=message):
    config.call('x', _takes, section)


def test_unknown_loss_error_suggests_the_nearest():
  with pytest.raises(UserError, match=r"losses\.x: name='nec': did you mean nce\?"):
    losses.build('x', dict(name='nec', temperature=1.0))


def test_section_name_is_the_default_pair_of_a_loss():
  build = lambda **fields: losses.build('video_text', dict(name='nce', **fields))
  assert build(temperature=1.0).pair == 'video_text'
  assert build(temperature=1.0, pair='video_audio').pair == 'video_audio'


def test_bug_keeps_its_traceback():
  with pytest.raises(TypeError):
    config.call('x', _takes, dict(a='text'))


class _Parts:

  def __init__(self, parts):
    self.parts = parts

  @classmethod
  def from_config(cls, a, b=0, seed=0):
    return cls((a, b, seed))


_TABLE = dict(takes=_takes, parts=_Parts)


def test_named_section_gives_the_entry_of_the_table_its_arguments():
  assert config.build('x.y', _TABLE, dict(name='takes', a=1), b=3, seed=4) == (1, 3)
  assert config.build('x.y', _TABLE, dict(name='takes', a=1, b=2), seed=4) == (1, 2)


def test_class_is_built_by_its_from_config():
  built = config.build('x.y', _TABLE, dict(name='parts', a=1), seed=4)
  assert isinstance(built, _Parts) and built.parts == (1, 0, 4)


@pytest.mark.parametrize('section, message', [
    (dict(name='part', a=1), r"config\.x\.y: name='part': did you mean parts\? "
     'expected one of takes, parts$'),
    (dict(a=1), r'config\.x\.y\.name: missing; expected one of takes, parts$'),
    (3, r'config\.x\.y: 3: expected a section with a name, one of takes, parts$'),
    (dict(name='takes', a=1, c=3), r'config\.x\.y\.c: unknown key; expected one of a$'),
    (dict(name='takes', a=1, b=2), r'config\.x\.y\.b: unknown key; expected one of a$'),
    (dict(name='takes'), r'config\.x\.y\.a: missing$'),
    (dict(name='takes', a=-1), r'config\.x\.y: a=-1: expected 0 or more$')])
def test_invalid_named_section_error_names_the_key(section, message):
  with pytest.raises(UserError, match=message):
    config.build('x.y', _TABLE, section, b=3)


def test_choice_from_a_list_is_the_value_itself():
  assert config.choose(('clips', 'windows'), 'clips', 'rows') == 'clips'
  with pytest.raises(ValueError, match=r"^rows='clip': did you mean clips\? expected"):
    config.choose(('clips', 'windows'), 'clip', 'rows')
