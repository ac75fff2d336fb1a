"""Tests of vatt_jax/inputs/sources.py."""

import tracemalloc

import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.sources import Mixture
from vatt_jax.inputs.sources import open_source


def test_folder_gives_its_media_files_in_order(tmp_path):
  for name in ('b.mp4', 'a/c.MKV', 'a/notes.txt', 'README.md', 'd.ogg'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert [c.path for c in open_source(str(tmp_path))] == [
      str(tmp_path / name) for name in ('a/c.MKV', 'b.mp4', 'd.ogg')]


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
