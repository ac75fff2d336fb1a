"""Tests vatt_jax/tools/vocabulary.py."""

import subprocess
import sys

import pytest

from vatt_jax.errors import UserError
from vatt_jax.inputs import text
from vatt_jax.tools import vocabulary

SENTENCES = ['A red circle', 'a red, red square!', 'the blue circle', 'zwölf']


@pytest.fixture
def corpus(tmp_path):
  path = tmp_path / 'corpus.txt'
  path.write_text('\n'.join(SENTENCES) + '\n\n', encoding='utf-8')
  return path


@pytest.fixture
def manifest(tmp_path):
  """Writes the same sentences, some in a manifest, some in a captions file."""
  path = tmp_path / 'clips.csv'
  path.write_text(f'path,text\na.mp4,{SENTENCES[0]}\nb.mp4,"{SENTENCES[1]}"\n')
  (tmp_path / 'captions.csv').write_text(
      'path,start,end,text\n' + ''.join(
          f'b.mp4,{i},{i + 1},{s}\n' for i, s in enumerate(SENTENCES[2:])))
  return path


def run(*flags):
  return subprocess.run([sys.executable, '-m', 'vatt_jax', 'vocabulary', *flags],
                        capture_output=True, text=True)


@pytest.mark.slow
def test_command_builds_words_of_a_manifest(manifest, tmp_path):
  out = tmp_path / 'words.txt'
  done = run(f'--source={manifest}', '--captions=captions.csv', '--size=5',
             f'--out={out}')
  assert done.returncode == 0, done.stderr
  assert out.read_text() == 'red\na\ncircle\n'
  assert done.stdout == (
      f'Wrote {out}: 4 sentences, 7 distinct words; size 5, coverage 63.64% of 11 '
      'words\n')
  again = run(f'--source={manifest}', f'--out={out}')
  assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
  assert f'--out={out}: exists already' in again.stderr


@pytest.mark.slow
def test_command_trains_sentencepiece_on_a_text_file(corpus, tmp_path):
  done = [run(f'--source={corpus}', '--kind=sentencepiece', '--size=30',
              f'--out={tmp_path / name}') for name in ('a.model', 'b.model')]
  assert done[0].returncode == 0, done[0].stderr
  assert '4 sentences, 7 distinct words; size ' in done[0].stdout
  assert done[0].stdout.endswith('coverage 100.00% of 11 words\n')
  a, b = ((tmp_path / name).read_bytes() for name in ('a.model', 'b.model'))
  assert a == b
  assert 1 not in text.load('sentencepiece', tmp_path / 'a.model', 30).ids('red zwölf')


def test_manifest_and_text_file_give_the_same_vocabulary(
    corpus, manifest, tmp_path):
  vocabulary.build(str(corpus), '', 'words', 99, tmp_path / 'a')
  vocabulary.build(str(manifest), 'captions.csv', 'words', 99, tmp_path / 'b')
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_dropped_stop_words_are_not_counted_as_missing(corpus, tmp_path):
  line = vocabulary.build(str(corpus), '', 'words', 99, tmp_path / 'words.txt', True)
  assert (tmp_path / 'words.txt').read_text().split() == [
      'red', 'circle', 'blue', 'square', 'zwölf']
  assert 'size 7, coverage 100.00% of 8 words' in line


@pytest.mark.parametrize('changes, message', [
    (dict(source='none.txt'), 'none.txt: no such file'),
    (dict(captions='c.csv'), r'--captions=c\.csv: a \.txt source has no captions file'),
    (dict(out='nowhere/x'), r'--out=.*nowhere/x: the folder .*nowhere does not exist'),
    (dict(out='corpus.txt'), r'corpus\.txt: exists already'),
    (dict(kind='sentencepiece', drop_stop_words=True), '--drop_stop_words: only'),
    (dict(kind='sentencepiece', size=4), '--size=4: SentencePiece: .*is smaller than')])
def test_invalid_settings_are_refused(changes, message, corpus, tmp_path):
  settings = dict(source=corpus.name, captions='', kind='words', size=9,
                  out='words.txt') | changes
  settings['source'] = str(tmp_path / settings['source'])
  settings['out'] = tmp_path / settings['out']
  with pytest.raises(UserError, match=message):
    vocabulary.build(**settings)
  assert not (tmp_path / 'words.txt').exists()


@pytest.mark.parametrize('content, message', [
    (b'\n ... \n', 'has no sentences; give --captions=FILE'),
    (b'red\n\xff\xfe\n', 'expected UTF-8 text')])
def test_unusable_corpus_is_refused(content, message, tmp_path):
  (tmp_path / 'corpus.txt').write_bytes(content)
  with pytest.raises(UserError, match=rf'corpus\.txt: {message}'):
    vocabulary.build(str(tmp_path / 'corpus.txt'), '', 'words', 9, tmp_path / 'out')


@pytest.mark.slow
@pytest.mark.parametrize('flags, message', [
    (['--source=x', '--out=y'], 'x: no such'),
    (['--source=x', '--out=y', '--kind=bytes'], 'value should be one of <words|')])
def test_wrong_command_is_reported_in_one_line(flags, message):
  done = run(*flags)
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
