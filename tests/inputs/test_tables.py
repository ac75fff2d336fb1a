"""Tests of vatt_jax/inputs/tables.py."""

import math

import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.sources import open_source


def test_csv_and_jsonl_give_equal_clips(tmp_path):
  (tmp_path / 'm.csv').write_text(
      'path,start,end,text,colour\n"a, b.mp4",1.5,4,hello,red\n/x/c.mp4,,,,\n')
  (tmp_path / 'm.jsonl').write_text(
      '{"path": "a, b.mp4", "start": 1.5, "end": 4, "text": "hello", "colour": "red"}\n'
      '\n{"path": "/x/c.mp4", "colour": ""}\n')
  expected = [
      Clip(str(tmp_path / 'a, b.mp4'), 1.5, 4.0, (Caption(1.5, 4.0, 'hello'),),
           {'colour': 'red'}),
      Clip('/x/c.mp4', 0.0, math.inf, (), {'colour': ''})]
  assert open_source(str(tmp_path / 'm.csv')) == expected
  assert open_source(str(tmp_path / 'm.jsonl')) == expected


def test_manifest_in_another_encoding_raises(tmp_path):
  (tmp_path / 'm.csv').write_bytes('path,text\na.mp4,été\n'.encode('latin-1'))
  with pytest.raises(UserError, match=r'm\.csv: expected UTF-8 text'):
    open_source(str(tmp_path / 'm.csv'))


@pytest.mark.parametrize('name, content, message', [
    ('m.csv', 'file,text\na.mp4,hi\n', r"m\.csv: no column 'path' .* found file, text"),
    ('m.csv', '', r"m\.csv: no column 'path' .* found nothing"),
    ('m.csv', 'path\n', r'm\.csv: holds no clips'),
    ('m.csv', 'path,start\na.mp4,soon\n', r"m\.csv:2: start='soon': expected seconds"),
    ('m.csv', 'path,start,end\na.mp4,3,2\n', r'm\.csv:2: end=2\.0 is not after'),
    ('m.jsonl', '{"path": "a"\n', r'm\.jsonl:1: not JSON'),
    ('m.jsonl', '[1]\n', r'm\.jsonl:1: expected a JSON object'),
    ('m.jsonl', '{"path": "a"}\n{"file": "b"}\n', r"m\.jsonl:2: no key 'path'"),
    ('m.jsonl', '{"path": 3}\n', r'm\.jsonl:1: path=3: expected text'),
    ('m.jsonl', '{"path": "a", "captions": ["x"]}\n', r'm\.jsonl:1: expected a cap'),
    ('m.jsonl', '{"path": "a", "captions": 5}\n', r'm\.jsonl:1: captions=5: expected'),
    ('m.csv', f'path\n{"a" * 200_000}\n', r'm\.csv:2: not CSV \(field larger'),
    ('m.txt', 'a.mp4\n', r'm\.txt: expected a folder, a \.csv or a \.jsonl'),
])
def test_invalid_manifest_raises_with_line_and_reason(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=message) as error:
    open_source(str(tmp_path / name))
  assert '\n' not in str(error.value)


def test_published_list_without_path_raises_with_its_columns(shared):
  with pytest.raises(UserError, match=r"no column 'path'.*vid_key, video_id"):
    open_source(str(shared / 'captions' / 'msrvtt_test.csv'))


def test_json_list_of_labels_becomes_one_text(tmp_path):
  (tmp_path / 'm.jsonl').write_text('{"path": "a.mp4", "label": ["dog", "bark"]}\n')
  clip, = open_source(str(tmp_path / 'm.jsonl'))
  assert clip.labels == {'label': 'dog|bark'}


def test_unquoted_comma_raises(tmp_path):
  (tmp_path / 'm.csv').write_text('path,text\na.mp4,cut the onion, then fry\n')
  with pytest.raises(UserError, match=r'm\.csv:2: 3 values for 2 columns; put text'):
    open_source(str(tmp_path / 'm.csv'))
