"""Tests of vatt_jax/inputs/labels.py."""

import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import labels
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip

CLIPS = [Clip(path, labels=dict(kind=kind)) for path, kind in (
    ('a.mp4', 'dog'), ('b.mp4', 'cat'), ('c.mp4', ''), ('d.mp4', 'dog|ant'))]


def test_find_sorts_classes_and_encodes_clips():
  (found,) = labels.find(CLIPS, ['kind'], multi_label=True, source='here')
  assert found.names == ('ant', 'cat', 'dog')
  np.testing.assert_array_equal(
      [found.encode(clip) for clip in CLIPS],
      [[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]])


def test_label_map_is_saved_and_read(tmp_path):
  (found,) = labels.find(CLIPS, ['kind'], multi_label=True, source='here')
  labels.save(tmp_path / 'labels.csv', [found])
  assert (tmp_path / 'labels.csv').read_text().startswith('index,label\n0,ant\n')
  (read,) = labels.read(tmp_path / 'labels.csv', ['kind'], True)
  assert read.names == found.names


def test_label_map_of_several_columns_keeps_each_ones_order(tmp_path):
  clips = [Clip('a', labels=dict(verb='take', noun='cup', place='x')),
           Clip('b', labels=dict(verb='put', noun='cup'))]
  found = labels.find(clips, ['verb', 'noun'], multi_label=False, source='here')
  assert [one.names for one in found] == [('put', 'take'), ('cup',)]
  labels.save(tmp_path / 'labels.csv', found)
  assert (tmp_path / 'labels.csv').read_text() == (
      'column,index,label\nverb,0,put\nverb,1,take\nnoun,0,cup\n')
  read = labels.read(tmp_path / 'labels.csv', ['noun', 'verb', 'place'], False)
  assert [(one.column, one.names) for one in read] == [
      ('noun', ('cup',)), ('verb', ('put', 'take'))]


def test_label_map_of_one_column_serves_any_single_column(tmp_path):
  (tmp_path / 'map.csv').write_text('label\ncat\n')
  (read,) = labels.read(tmp_path / 'map.csv', ['kind'], False)
  assert (read.column, read.names) == ('kind', ('cat',))
  assert not labels.read(tmp_path / 'map.csv', ['kind', 'place'], False)


def test_label_map_in_another_encoding_raises(tmp_path):
  path = tmp_path / 'map.csv'
  path.write_bytes('label\nMädchen\n'.encode('utf-8-sig'))
  assert labels.read(path, ['kind'], False)[0].names == ('Mädchen',)
  path.write_bytes('label\nMädchen\n'.encode('latin-1'))
  with pytest.raises(UserError, match=r'map\.csv: expected a CSV file in UTF-8'):
    labels.read(path, ['kind'], False)


def test_label_map_keeps_its_order(tmp_path):
  path = tmp_path / 'labels.csv'
  path.write_text('index,label,mid\n0,"dog, barking",/m/1\n1,ant,/m/2\n')
  (read,) = labels.read(path, ['kind'], False)
  assert read.names == ('dog, barking', 'ant')
  np.testing.assert_array_equal(read.encode(Clip('a', labels=dict(kind='ant'))), [0, 1])


@pytest.mark.parametrize('text, message', [
    ('index,name\n0,dog\n', "no column 'label' in its first line; found index, name"),
    ('label\ndog\ncat\ndog\n', "row 2 has the label 'dog'; expected each class once"),
    ('label,more\ndog,1\n,2\n', "row 1 has the label ''; expected each class once"),
    ('index,label\n1,dog\n0,cat\n', "row 0 has index='1'; expected the rows in the"),
    ('label\n', 'holds no labels'), ('', "no column 'label'"),
    (None, 'no such label map')])
def test_invalid_label_map_raises_with_file_and_reason(tmp_path, text, message):
  path = tmp_path / 'map.csv'
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=message) as error:
    labels.read(path, ['kind'], False)
  assert str(error.value).startswith(str(path))


def test_unknown_label_raises_with_file_and_label_map():
  (found,) = labels.find(CLIPS[:2], ['kind'], multi_label=False, source='train.csv')
  with pytest.raises(UserError, match=r"e\.mp4: kind='cow' is none of the 2 classes of "
                                      r"train\.csv, such as 'cat'"):
    found.encode(Clip('e.mp4', labels=dict(kind='cow')))


def test_several_labels_without_multi_label_raise():
  with pytest.raises(UserError, match=r"d\.mp4: kind='dog\|ant' joins several labels"):
    labels.find(CLIPS, ['kind'], multi_label=False, source='here')


def test_missing_label_column_raises_with_existing_columns():
  with pytest.raises(UserError, match=r"here: no column 'sort'; found kind"):
    labels.find(CLIPS, ['sort'], multi_label=False, source='here')
  with pytest.raises(UserError, match=r"no clip has a label in its column 'kind'"):
    labels.find(CLIPS[2:3], ['kind'], multi_label=False, source='here')


def test_labels_of_a_folder_are_its_subfolders(tmp_path):
  for name in ('cat/1.wav', 'cat/more/2.wav', 'dog/1.wav', '3.wav'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  clips = sources.open_source(str(tmp_path))
  assert [c.labels.get('label') for c in clips] == [None, 'cat', 'cat', 'dog']
