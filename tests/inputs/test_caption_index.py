"""Tests of vatt_jax/inputs/caption_index.py and its use by sources."""

import csv
import json
import os
import threading

import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import caption_index
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Caption


@pytest.fixture(autouse=True)
def index_all(monkeypatch, tmp_path):
  """Indexes small files too, and does not touch the user's cache."""
  monkeypatch.setattr(caption_index, 'MIN_BYTES', 0)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def _write(folder, kind='csv', num_clips=20, num_rows=300, seed=0):
  """Writes a manifest and captions in random order, with paths in several spellings.

  Returns:
    The captions of each clip, in the order of their rows.
  """
  rng = np.random.default_rng(seed)
  folder.mkdir(exist_ok=True)
  (folder / 'm.csv').write_text(
      'path\n' + ''.join(f'v/{i}.mp4\n' for i in range(num_clips)))
  said, rows, clip = {i: [] for i in range(num_clips)}, [], 0
  for i in range(num_rows):
    if rng.random() < 0.3:
      clip = int(rng.integers(num_clips + 2))    # two are not in the manifest
    spelling = rng.choice(['v/{}.mp4', './v/{}.mp4', 'v/../v/{}.mp4',
                           f'{folder}/v/{{}}.mp4'], p=[0.7, 0.1, 0.1, 0.1])
    text = str(rng.choice(['so', 'größe, "quoted"', 'two\nlines']))
    rows.append(dict(path=spelling.format(clip), start=i, end=i + 1, text=text))
    said.get(clip, []).append(Caption(i, i + 1, text))
  with (folder / f'c.{kind}').open('w', newline='') as file:
    if kind == 'csv':
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
    else:
      file.writelines(json.dumps(row) + '\n' for row in rows)
  return list(said.values())


def _open(folder, kind='csv'):
  return sources.open_source(str(folder / 'm.csv'), f'c.{kind}')


def _said(clips):
  return [list(clip.captions) for clip in clips]


@pytest.fixture
def counted(monkeypatch):
  """Counts the scans of captions files."""
  count = []
  pieces = sources.Captioned._pieces

  def counting(self):
    count.append(self)
    yield from pieces(self)

  monkeypatch.setattr(sources.Captioned, '_pieces', counting)
  return count


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_indexed_captions_equal_a_full_scan(kind, tmp_path, counted, caplog):
  said = _write(tmp_path / 'd', kind)
  assert _said(_open(tmp_path / 'd', kind)) == said
  assert len(counted) == 1
  assert 'paths are not in the manifest' in caplog.text
  assert _said(_open(tmp_path / 'd', kind)) == said    # from the index
  assert len(counted) == 1
  assert sorted(os.listdir(tmp_path / 'd')) == [f'c.{kind}', f'c.{kind}.index.npy',
                                                'm.csv']


def test_index_is_memory_mapped_without_objects(tmp_path):
  _write(tmp_path / 'd')
  _open(tmp_path / 'd')
  clips = _open(tmp_path / 'd')
  assert isinstance(clips._index.table, np.memmap)
  np.load(tmp_path / 'd' / 'c.csv.index.npy', allow_pickle=False)


def test_changed_captions_file_rebuilds_the_index(tmp_path, counted):
  _write(tmp_path / 'd')
  _open(tmp_path / 'd')
  stat = (tmp_path / 'd' / 'c.csv').stat()
  said = _write(tmp_path / 'd', seed=1)
  os.utime(tmp_path / 'd' / 'c.csv', ns=(0, stat.st_mtime_ns))    # another size
  assert _said(_open(tmp_path / 'd')) == said and len(counted) == 2
  os.utime(tmp_path / 'd' / 'c.csv', ns=(0, stat.st_mtime_ns + 1))    # another time
  assert _said(_open(tmp_path / 'd')) == said and len(counted) == 3
  assert _said(_open(tmp_path / 'd')) == said and len(counted) == 3


def _flip(content):
  return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize('damage', [
    lambda c: b'', lambda c: c[:-8], lambda c: c[:-24], lambda c: c[:40],
    lambda c: b'junk' * 99, _flip, lambda c: c + b'\0' * 24])
def test_damaged_index_is_rebuilt(damage, tmp_path, counted):
  said = _write(tmp_path / 'd')
  _open(tmp_path / 'd')
  index = tmp_path / 'd' / 'c.csv.index.npy'
  whole = index.read_bytes()
  index.write_bytes(damage(whole))
  assert _said(_open(tmp_path / 'd')) == said
  if damage(whole).startswith(whole):    # bytes after the array are not read
    assert len(counted) == 1
  else:
    assert len(counted) == 2 and index.read_bytes() == whole


@pytest.mark.parametrize('array', [
    np.zeros(7), np.zeros((4, 3), np.int64), np.zeros(5, np.int64),
    np.array([{}], object)])
def test_other_arrays_are_not_read_as_an_index(array, tmp_path):
  said = _write(tmp_path / 'd')
  np.save(tmp_path / 'd' / 'c.csv.index.npy', array)
  assert _said(_open(tmp_path / 'd')) == said


def test_index_goes_to_the_cache_if_the_folder_is_not_writable(
    tmp_path, counted, caplog):
  said = _write(tmp_path / 'd')
  (tmp_path / 'd' / 'c.csv.index.npy').mkdir()    # in the way
  assert _said(_open(tmp_path / 'd')) == said
  assert 'cannot write the index' in caplog.text
  assert _said(_open(tmp_path / 'd')) == said and len(counted) == 1
  assert len(list((tmp_path / 'cache' / 'vatt_jax' / 'captions').iterdir())) == 1
  assert sorted(os.listdir(tmp_path / 'd')) == ['c.csv', 'c.csv.index.npy', 'm.csv']


def test_captions_are_read_without_a_writable_index_folder(
    tmp_path, counted):
  said = _write(tmp_path / 'd')
  (tmp_path / 'd' / 'c.csv.index.npy').mkdir()
  (tmp_path / 'cache').touch()    # not a folder
  for number in (1, 2):
    assert _said(_open(tmp_path / 'd')) == said and len(counted) == number


def test_small_captions_file_gets_no_index(tmp_path, monkeypatch):
  monkeypatch.setattr(caption_index, 'MIN_BYTES', 2 ** 24)
  said = _write(tmp_path / 'd')
  assert _said(_open(tmp_path / 'd')) == said
  assert sorted(os.listdir(tmp_path / 'd')) == ['c.csv', 'm.csv']
  assert caption_index.is_ready(tmp_path / 'd' / 'c.csv')


def test_several_threads_may_build_the_index_at_once(tmp_path):
  said = _write(tmp_path / 'd')
  barrier, results = threading.Barrier(4), []

  def build():
    barrier.wait()
    results.append(_said(_open(tmp_path / 'd')))

  threads = [threading.Thread(target=build) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [said] * 4
  assert sorted(os.listdir(tmp_path / 'd')) == ['c.csv', 'c.csv.index.npy', 'm.csv']


def test_index_stays_valid_after_moving_the_folder(tmp_path, counted, monkeypatch):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'm.csv').write_text('path\nv/x.mp4\n../y.mp4\n')
  (tmp_path / 'a' / 'c.csv').write_text('path,text\n../y.mp4,why\nv/x.mp4,ex\n')
  expected = [['ex'], ['why']]
  texts = lambda folder: [[c.text for c in clip.captions] for clip in
                          sources.open_source(f'{folder}/m.csv', 'c.csv')]
  assert texts(tmp_path / 'a') == expected
  (tmp_path / 'a').rename(tmp_path / 'b')
  (tmp_path / 'x').mkdir()
  assert texts(tmp_path / 'b') == texts(f'{tmp_path}/x/../b') == expected
  monkeypatch.chdir(tmp_path / 'b')
  assert texts('.') == texts('../b') == expected
  assert len(counted) == 1


def test_malformed_captions_raise_at_every_start_and_leave_no_index(tmp_path):
  _write(tmp_path / 'd')
  with (tmp_path / 'd' / 'c.csv').open('a') as file:
    file.write('v/1.mp4,soon,,x\n')
  for _ in range(2):
    with pytest.raises(UserError, match="start='soon': expected seconds"):
      _open(tmp_path / 'd')
  assert not caption_index.is_ready(tmp_path / 'd' / 'c.csv')


def test_captions_of_other_clips_raise_with_an_index_too(tmp_path):
  _write(tmp_path / 'd')
  (tmp_path / 'd' / 'm.csv').write_text('path\nother.mp4\n')
  for _ in range(2):
    with pytest.raises(UserError, match='none of its paths is in the manifest'):
      _open(tmp_path / 'd')


def test_is_indexed_is_true_after_opening_a_source(tmp_path):
  _write(tmp_path / 'd')
  manifest = str(tmp_path / 'd' / 'm.csv')
  assert sources.is_indexed(manifest, '')
  assert not sources.is_indexed(manifest, 'c.csv')
  assert not sources.is_indexed(manifest, 'absent.csv')
  _open(tmp_path / 'd')
  assert sources.is_indexed(manifest, 'c.csv')
  assert sources.is_indexed(str(tmp_path / 'd'), 'c.csv')    # as a folder
