"""Tests of vatt_jax/inputs/sources.py."""

import math
import tracemalloc

import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs.sources import Caption
from vatt_jax.inputs.sources import Clip
from vatt_jax.inputs.sources import Mixture
from vatt_jax.inputs.sources import open_source


def test_folder_gives_its_media_files_in_order(tmp_path):
  for name in ('b.mp4', 'a/c.MKV', 'a/notes.txt', 'README.md', 'd.ogg'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert [c.path for c in open_source(str(tmp_path))] == [
      str(tmp_path / name) for name in ('a/c.MKV', 'b.mp4', 'd.ogg')]


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


def test_captions_come_from_a_jsonl_line_or_a_captions_file(tmp_path):
  (tmp_path / 'm.jsonl').write_text(
      '{"path": "a.mp4", "captions": [{"start": 1, "end": 2, "text": "one"}]}\n'
      '{"path": "b.mp4"}\n')
  (tmp_path / 'c.csv').write_text('path,start,end,text\na.mp4,3,4,two\nz.mp4,0,1,no\n')
  a, b = open_source(str(tmp_path / 'm.jsonl'), 'c.csv')
  assert a.captions == (Caption(1, 2, 'one'), Caption(3, 4, 'two'))
  assert b.captions == ()


def test_captions_match_paths_in_any_spelling(tmp_path, caplog):
  (tmp_path / 'lists').mkdir()
  (tmp_path / 'm.csv').write_text('path\n./a.mp4\n')
  (tmp_path / 'lists' / 'c.csv').write_text('path,text\n../a.mp4,one\n../b.mp4,two\n')
  clip, = open_source(str(tmp_path / 'm.csv'), 'lists/c.csv')
  assert [c.text for c in clip.captions] == ['one']
  assert '1 of its 2 paths are not in the manifest' in caplog.text


@pytest.mark.parametrize('start', ['', '\ufeff'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_captions_are_found_at_any_position_of_their_rows(start, end, tmp_path):
  """Covers pieces, rows of several lines, multi-byte characters, the file's end."""
  (tmp_path / 'm.csv').write_text('path\na.mp4\nb.mp4\na.mp4\n')
  rows = ['path,start,end,text', 'a.mp4,0,1,één', 'a.mp4,1,2,"zwei,', 'drei"',
          'b.mp4,0,1,b\u2028', '', 'a.mp4,5,6,vier', './a.mp4,6,7,fünf', 'z.mp4,,,z',
          'a.mp4,7,8,sechs']
  (tmp_path / 'c.csv').write_bytes((start + end.join(rows)).encode())
  clips = open_source(str(tmp_path / 'm.csv'), 'c.csv')
  said = [Caption(0, 1, 'één'), Caption(1, 2, f'zwei,{end}drei'), Caption(5, 6, 'vier'),
          Caption(6, 7, 'fünf'), Caption(7, 8, 'sechs')]
  assert [list(c.captions) for c in clips] == [said, [Caption(0, 1, 'b\u2028')], said]


def test_jsonl_captions_equal_csv_captions(tmp_path):
  (tmp_path / 'm.csv').write_text('path\na.mp4\nb.mp4\n')
  (tmp_path / 'c.csv').write_text('path,start,end,text\nb.mp4,1,2,x\na.mp4,3,4,y\n')
  (tmp_path / 'c.jsonl').write_text(
      '{"path": "b.mp4", "start": 1, "end": 2, "text": "x"}\n\n'
      '{"path": "a.mp4", "start": 3, "end": 4, "text": "y"}\n')
  one, other = (list(open_source(str(tmp_path / 'm.csv'), f'c.{kind}'))
                for kind in ('csv', 'jsonl'))
  assert one == other and one[0].captions == (Caption(3, 4, 'y'),)


def test_captions_stay_in_the_file_not_in_memory(tmp_path):
  """A hundred million of them must fit into memory."""
  (tmp_path / 'm.csv').write_text('path\n' + ''.join(f'{i}.mp4\n' for i in range(10)))
  with (tmp_path / 'c.csv').open('w') as file:
    file.write('path,start,end,text\n')
    file.writelines(f'{i // 2000}.mp4,{i},{i + 1},so now we do this\n'
                    for i in range(20_000))
  tracemalloc.start()
  clips = open_source(str(tmp_path / 'm.csv'), 'c.csv')
  kept, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert kept < 50_000 and most < 500_000
  assert [len(c.captions) for c in clips] == [2000] * 10
  assert clips[7].captions[3] == Caption(14_003, 14_004, 'so now we do this')


def test_malformed_captions_raise_at_the_start(tmp_path):
  (tmp_path / 'm.csv').write_text('path\na.mp4\n')
  (tmp_path / 'c.csv').write_text('path,start,text\na.mp4,1,x\na.mp4,soon,y\n')
  with pytest.raises(UserError, match=r"c\.csv:3: start='soon': expected seconds"):
    open_source(str(tmp_path / 'm.csv'), 'c.csv')


def test_captions_match_a_folder_in_any_spelling(tmp_path):
  (tmp_path / 'x').mkdir()
  (tmp_path / 'x' / 'a.mp4').touch()
  (tmp_path / 'c.csv').write_text('path,text\nx/a.mp4,one\n')
  clip, = open_source(f'{tmp_path}/x/../x', '../c.csv')
  assert [c.text for c in clip.captions] == ['one']


def test_mixture_concatenates_its_sources():
  a, b = [Clip('a'), Clip('b')], [Clip('c'), Clip('c', 2.0)]
  mixture = Mixture([a, b], (2, 3))
  assert list(mixture) == a + b and len(mixture) == 4
  assert mixture.num_files == 3 and mixture.shares == (4000, 6000)
  assert Mixture([a, b]).shares == ()


@pytest.mark.parametrize('weights, message', [
    ((1,), 'expected a positive number for each of the 2 sources'),
    ((1, 0), 'expected a positive number'), ((1, -2), 'expected a positive number'),
    ((1, 1e-9), 'the smallest is too small')])
def test_invalid_weights_raise(weights, message):
  with pytest.raises(UserError, match=rf'data\.weights=.*{message}'):
    Mixture([[Clip('a')], [Clip('b')]], weights)


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


def test_missing_or_empty_source_raises(tmp_path):
  with pytest.raises(UserError, match=r'\(data\.path, --source\) is empty'):
    open_source('')
  with pytest.raises(UserError, match='holds no clips'):
    open_source(str(tmp_path))
  with pytest.raises(UserError, match='no such folder or file'):
    open_source(str(tmp_path / 'absent'))
  (tmp_path / 'a.mp4').touch()
  with pytest.raises(UserError, match='no such captions file'):
    open_source(str(tmp_path), 'absent.csv')
  (tmp_path / 'c.csv').write_text('path,text\nother.mp4,hi\n')
  with pytest.raises(UserError, match='none of its paths is in the manifest'):
    open_source(str(tmp_path), 'c.csv')


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
