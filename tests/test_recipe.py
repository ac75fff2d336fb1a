"""vatt_jax/recipe.py"""

import json

import pytest

from vatt_jax import recipe
from vatt_jax import settings
from vatt_jax.errors import UserError


def _takes(a, b=2):
  if a < 0:
    raise ValueError(f'a={a}: expected 0 or more')
  return a, b


def test_a_section_becomes_the_arguments_of_a_function():
  assert settings.call('x', _takes, dict(a=1)) == (1, 2)
  assert settings.call('x', _takes, dict(b=5), a=3) == (3, 5)


@pytest.mark.parametrize('section, message', [
    (dict(a=1, c=3), r'config\.x\.c: nobody takes this key; expected one of a, b'),
    (dict(b=3), r'config\.x\.a: missing'),
    (dict(a=-1), r'config\.x: a=-1: expected 0 or more')])
def test_a_section_that_does_not_fit_is_one_clear_line(section, message):
  with pytest.raises(UserError, match=message):
    settings.call('x', _takes, section)


def test_a_builder_makes_only_the_folder_of_its_own_name(tmp_path):
  data = recipe.Data(str(tmp_path / 'mine' / 'train.csv'), builder='data.toy_world')
  with pytest.raises(UserError, match='no such folder or file'):
    recipe._reader(data, None, None, '', tmp_path)
  assert not (tmp_path / 'mine').exists()


def test_a_loss_of_another_name_is_named():
  with pytest.raises(UserError, match=r"losses\.x: name='nec': expected one of nce"):
    settings.call('losses.x', recipe._term, dict(name='nec', temperature=1.0),
                  pair='video_audio')


def test_a_bug_keeps_its_trace():
  with pytest.raises(TypeError):
    settings.call('x', _takes, dict(a='text'))


def test_a_workdir_belongs_to_one_config(tmp_path):
  config = dict(seed=0, model=dict(patch=(2, 4)), evals=dict())
  recipe._compare(config, tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  recipe._compare(config, tmp_path)
  with pytest.raises(UserError, match=r'another config, model\.patch=\[2, 4\] where '
                                      r'this one has \[2, 8\]; choose another'):
    recipe._compare(config | dict(model=dict(patch=(2, 8))), tmp_path)
